"""What the tests of importing share: tiny recipes of each system, and the authors' names by hand."""

import json

from manyeyes.config.recipe import (
    ChannelConcat,
    EncoderSection,
    LanguageModelSection,
    MixtureOfResolution,
    MlpProjector,
    PatchEmbedding,
    PatchInfoMining,
    SpatialVisionAggregator,
    load_recipe,
    recipe_yaml,
)

FIVE = ("clip", "convnext", "sam", "eva02", "pix2struct")
TINY = "recipes/tiny/eagle-x5.yaml"


def encoder(name, spec=None, **changes):
    return EncoderSection(name=name, spec=spec or f"{name}-tiny", weights="random", **changes)


MODELS = {
    "llava": ((encoder("clip"),), ChannelConcat(kind="channel_concat")),
    "eagle": (tuple(encoder(name) for name in FIVE), ChannelConcat(kind="channel_concat")),
    "mgm": (
        (encoder("clip"), encoder("convnext", "convnext-tiny-all-stages", grid=8)),
        PatchInfoMining(kind="patch_info_mining", low="clip", high="convnext", crops=1),
    ),
    "cambrian": (
        (encoder("clip"), encoder("convnext", grid=8)),
        SpatialVisionAggregator(
            kind="spatial_vision_aggregator", width=32, heads=2, depth=2, num_layers=2,
            first_layer=0, layer_stride=1,
        ),
    ),
    "llava-hr": (
        (encoder("clip"), encoder("convnext")),
        MixtureOfResolution(
            kind="mixture_of_resolution", fast="clip", slow="convnext", before_blocks=(1, 2)
        ),
    ),
    "eve": ((encoder("patches", "eve-patch-embedding-tiny"),), PatchEmbedding(kind="patch_embedding")),
}  # fmt: skip
KINDS = {"llava": "llava_llama", "eagle": "eagle_llama", "mgm": "mgm", "cambrian": "cambrian_llama",
         "llava-hr": "llava_llama_hr", "eve": "eve"}  # fmt: skip


def recipe_of(system, llm, root):
    """Return a tiny recipe of a system around a language model."""
    encoders, fusion = MODELS[system]
    base = load_recipe(root / TINY)
    model = base.model.model_copy(
        update={
            "encoders": encoders,
            "grid": 8 if system == "eve" else 4,  # patches cannot be resized
            "fusion": fusion,
            "projector": MlpProjector(kind="mlp2x_gelu"),
            "llm": LanguageModelSection(weights=llm, template="plain_chat"),
        }
    )
    experts = {name.name: base.prealign.experts["clip"] for name in encoders}
    prealign = base.prealign.model_copy(update={"experts": experts})
    return base.model_copy(update={"name": f"{system}-tiny", "model": model, "prealign": prealign})


def write_recipe(recipe, path):
    path.write_text(recipe_yaml(recipe))
    return path


def to_timm(key):
    """Name a ConvNeXt tensor as timm does."""
    parts = key.split(".")
    if parts[0] == "embeddings":
        return f"stem.{0 if parts[1] == 'patch_embeddings' else 1}.{parts[2]}"
    stage, kind, index, *rest = parts[2:]
    if kind == "downsampling_layer":
        return ".".join(["stages", stage, "downsample", index, *rest])
    names = {"dwconv": "conv_dw", "layernorm": "norm", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2",
             "layer_scale_parameter": "gamma"}  # fmt: skip
    return ".".join(["stages", stage, "blocks", index, names[rest[0]], *rest[1:]])


def tower_name(name, key):
    """Name a tower's tensor as the authors' wrapper holds it."""
    if name == "clip":
        return f"vision_model.{key}"
    if name == "convnext":
        return to_timm(key)
    return key.removeprefix("vision_encoder.") if name == "sam" else key


def sampler_name(parts):
    """Name one tensor of a sampler as Cambrian does."""
    plain = {"context": "proj_context", "into": "proj_in", "norm": "norm",
             "merge": "cross_attn.o_proj", "query": "cross_attn.q_proj"}  # fmt: skip
    first, *rest = parts
    if first == "out":
        return f"proj_out.linear_{1 if rest[0] == '0' else 2}.{rest[1]}"
    if first == "positions":
        return f"pos_embed_{rest[0]}"
    if first in ("keys", "values"):
        return ".".join([f"cross_attn.{first[0]}_proj_{rest[0]}", *rest[1:]])
    return ".".join([plain[first], *rest])


def fusion_name(system, parts):
    """Name one tensor of a fusion as its authors do."""
    first, *rest = parts
    if system == "mgm":
        role = {"query": "query", "key": "aux", "value": "val"}[first]
        return ".".join([f"model.vlm_uni_{role}_projector", *rest])
    if system == "llava-hr":
        if first == "adapters":
            index, branch, place, tail = rest
            name = (
                f"gate.{place}"
                if branch == "gate"
                else f"{branch}_{'conv' if place == '0' else 'proj'}"
            )
            return f"model.vision_tower.align_stages_latent.{index}.{name}.{tail}"
        return f"model.vision_tower.align_stages.0.{first.removeprefix('from_')}_proj.{rest[0]}"
    if first == "into":
        return ".".join([f"model.mm_projector_aux_{rest[0]}", *rest[1:]])
    if first == "samplers":
        return f"model.vision_sampler_0.layers.{rest[0]}.{sampler_name(rest[1:])}"
    if first == "inside_samplers":
        return f"model.vision_sampler_layers.{rest[0]}.layers.0.{sampler_name(rest[1:])}"
    return {"query": "model.vision_query", "newline": "model.image_newline"}[first]


def tower_place(system, name, key):
    """Name a tower's tensor in its authors' whole model."""
    inner = tower_name(name, key)
    if system == "llava":
        return f"model.vision_tower.vision_tower.{inner}"
    if system == "eve":
        return f"model.vision_tower.{inner}"
    if system == "eagle":
        return f"model.vision_tower.vision_towers.{FIVE.index(name)}.vision_tower.{inner}"
    if system == "mgm" and name == "convnext":
        return f"model.vision_tower_aux.vision_{inner}"
    if system == "mgm":
        return f"model.vision_tower.vision_tower.{inner}"
    side = "fast" if name == "clip" else "slow"
    return f"model.vision_tower.{side}_vision_tower.{inner}"


def published(system, state):
    """Return a state dict under its authors' names."""
    found = {}
    for key, tensor in state.items():
        first, *rest = key.split(".")
        if first == "llm":
            name = key.removeprefix("llm.")
        elif first == "projector":
            name = "model.mm_" + key
        elif first == "fusion":
            name = fusion_name(system, rest)
        elif system == "cambrian":
            continue  # its towers are never in the file
        else:
            name = tower_place(system, rest[0], ".".join(rest[2:]))
        found[name] = tensor.clone()
    return found


def write_config(folder, llm, kind):
    """Write the config of a released checkpoint: a Llama's values under the authors' kind."""
    config = json.loads((llm / "config.json").read_text())
    folder.mkdir(exist_ok=True)
    extra = {"model_type": kind, "mm_projector_type": "mlp2x_gelu", "mm_vision_tower": "somewhere"}
    (folder / "config.json").write_text(json.dumps({**config, **extra}))
