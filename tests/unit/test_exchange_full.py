"""The systems at full size, without memory: every published name, shape and count has its place."""

import json
from pathlib import Path

import pytest
import torch
from exchange_kit import published

from manyeyes.config.recipe import (
    ChannelConcat,
    EncoderSection,
    LanguageModelSection,
    MixtureOfResolution,
    MlpProjector,
    ModelSection,
    PatchInfoMining,
    SpatialVisionAggregator,
)
from manyeyes.model.vlm import VisionLanguageModel
from manyeyes.model.weights.exchange.matching import Matcher, match
from manyeyes.model.weights.exchange.names import find_system
from manyeyes.model.weights.exchange.projector import published_names
from manyeyes.model.weights.exchange.source import Source

VICUNA = {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
          "num_attention_heads": 32, "vocab_size": 32000, "max_position_embeddings": 4096}  # fmt: skip
LLAMA_3 = {**VICUNA, "intermediate_size": 14336, "num_key_value_heads": 8, "vocab_size": 128256,
           "max_position_embeddings": 8192}  # fmt: skip
ROWS = {"clip": "clip-vit-l-14-448", "convnext": "convnext-xxl-1024", "sam": "sam-vit-l-1024",
        "eva02": "eva02-l-1024", "pix2struct": "pix2struct-l-1024"}  # fmt: skip
WINDOW = "model.vision_sampler_0.layers.0."


def encoder(name, spec, **changes):
    return EncoderSection(name=name, spec=spec, weights="published/somewhere", **changes)


def five(*left_out):
    return tuple(encoder(name, row) for name, row in ROWS.items() if name not in left_out)


CONCAT = ChannelConcat(kind="channel_concat")
CASES = {
    "llava-1.5-7b": (
        "llava", VICUNA, 24, (encoder("clip", "clip-vit-l-14-336"),), CONCAT,
        {"projector.": 21.0},
        {"model.mm_projector.0.weight": (4096, 1024), "model.mm_projector.2.bias": (4096,)},
    ),
    "eagle-x5-7b": (
        "eagle", VICUNA, 32, five(), CONCAT,
        {"projector.": 48.2},
        {"model.mm_projector.0.weight": (4096, 7680)},
    ),
    "mgm-7b": (
        "mgm", VICUNA, 24,
        (encoder("clip", "clip-vit-l-14-336"),
         encoder("convnext", "convnext-l-768-all-stages", grid=192)),
        PatchInfoMining(kind="patch_info_mining", low="clip", high="convnext", crops=1),
        {"projector.": 21.0, "fusion.": 6.96},
        {"model.vlm_uni_query_projector.0.weight": (1024,),
         "model.vlm_uni_query_projector.1.weight": (1024, 1024),
         "model.vlm_uni_aux_projector.0.bias": (2880,),
         "model.vlm_uni_val_projector.1.weight": (1024, 2880)},
    ),
    "cambrian-8b": (
        "cambrian", LLAMA_3, 24,
        (encoder("siglip", "siglip-so400m-14-384"), encoder("clip", "clip-vit-l-14-336"),
         encoder("dinov2", "dinov2-g-14-378"),
         encoder("convnext", "convnext-xxl-1024-all-stages", grid=96)),
        SpatialVisionAggregator(
            kind="spatial_vision_aggregator", width=1024, heads=16, depth=3, num_layers=10,
            first_layer=0, layer_stride=3,
        ),
        {"projector.": 21.0, "fusion.inside_samplers.": 220.6, "fusion.into.": 13.9,
         "fusion.samplers.": 47.3},
        {"model.vision_query": (1, 1024), "model.image_newline": (4096,),
         "model.mm_projector_aux_3.0.weight": (1024, 5760),
         f"{WINDOW}proj_in.weight": (1024, 2048), f"{WINDOW}pos_embed_3": (16, 1024),
         f"{WINDOW}cross_attn.k_proj_3.1.weight": (1024, 1024),
         "model.vision_sampler_layers.9.layers.0.proj_in.weight": (1024, 5120),
         "model.vision_sampler_layers.9.layers.0.proj_out.linear_2.weight": (4096, 1024)},
    ),
    "llava-hr-7b": (
        "llava-hr", VICUNA, 32,
        (encoder("clip", "clip-vit-l-14-448"), encoder("convnext", "convnext-l-1024")),
        MixtureOfResolution(
            kind="mixture_of_resolution", fast="clip", slow="convnext", before_blocks=(6, 12, 18)
        ),
        {"projector.": 21.0, "fusion.adapters.": 18.3, "fusion.from_": 2.6},
        {"model.vision_tower.align_stages.0.slow_proj.weight": (1024, 1536),
         "model.vision_tower.align_stages_latent.2.slow_conv.weight": (1536, 1536, 1, 1),
         "model.vision_tower.align_stages_latent.2.fast_conv.weight": (1024, 1, 7, 7),
         "model.vision_tower.align_stages_latent.0.gate.2.weight": (1, 512)},
    ),
}  # fmt: skip


def build(name, folder):
    _, llm, grid, encoders, fusion, *_ = CASES[name]
    config = {"model_type": "llama", "tie_word_embeddings": False, **llm}
    (folder / "config.json").write_text(json.dumps(config))
    section = ModelSection(
        encoders=encoders, grid=grid, normalization="shared", fusion=fusion,
        projector=MlpProjector(kind="mlp2x_gelu"), max_length=2048,
        llm=LanguageModelSection(weights=str(folder), template="vicuna_v1"),
    )  # fmt: skip
    with torch.device("meta"):
        return section, VisionLanguageModel.from_recipe(section, seed=0, load=False)


@pytest.mark.parametrize("name", CASES)
def test_every_published_name_and_shape_has_its_place(name, tmp_path):
    system, _, _, _, _, counts, shapes = CASES[name]
    section, model = build(name, tmp_path)
    state = model.state_dict()
    theirs = published(system, state)
    source = Source("released", Path(), (), {key: tuple(v.shape) for key, v in theirs.items()})
    matcher = Matcher(model, section, find_system(system), whole=True)
    report = match(matcher, source, name)
    assert report.problem is None
    assert (report.unused, len(report.used)) == ({}, len(theirs))
    assert list(report.elsewhere) == (
        [f"encoders.{each.name}" for each in section.encoders] if system == "cambrian" else []
    )
    names = published_names(model, system)
    found = {name: tuple(state[ours].shape) for ours, name in names.items()}
    assert {key: found[key] for key in shapes} == shapes
    for prefix, millions in counts.items():
        size = sum(value.numel() for key, value in state.items() if key.startswith(prefix))
        assert size / 1e6 == pytest.approx(millions, abs=0.06), prefix
    assert "meta" in {tensor.device.type for tensor in state.values()}


def test_a_mixture_of_four_does_not_take_the_weights_of_five(tmp_path):
    """The authors number towers by position: det is 2 in X4 and 3 in X5."""
    _, whole = build("eagle-x5-7b", tmp_path)
    theirs = published("eagle", whole.state_dict())
    source = Source("released", Path(), (), {key: tuple(v.shape) for key, v in theirs.items()})
    section = ModelSection(
        encoders=five("sam"), grid=32, normalization="shared", fusion=CONCAT,
        projector=MlpProjector(kind="mlp2x_gelu"), max_length=2048,
        llm=LanguageModelSection(weights=str(tmp_path), template="vicuna_v1"),
    )  # fmt: skip
    with torch.device("meta"):
        four = VisionLanguageModel.from_recipe(section, seed=0, load=False)
    matcher = Matcher(four, section, find_system("eagle"), whole=True)
    with pytest.raises(Exception, match="tower number 4") as caught:
        match(matcher, source, "eagle-x4-7b")
    assert str(caught.value) == (
        "The weights have a tower number 4 (counted from 0), but model.encoders has clip, "
        "convnext, eva02, pix2struct: use the recipe of the model that was published."
    )


EVE = {
    "model.vision_tower.patch_embedding.weight": "encoders.patches.tower.patch_embedding.weight",
    "model.vision_tower.class_embedding": "encoders.patches.tower.class_embedding",
    "model.vision_tower.split_embedding": "encoders.patches.tower.split_embedding",
    "model.vision_tower.local_attention.q.1.weight": "encoders.patches.tower.local_attention.q.1.weight",
    "model.vision_tower.global_attention.kv.0.bias": "encoders.patches.tower.global_attention.kv.0.bias",
    "model.vision_tower.global_attention.proj.bias": "encoders.patches.tower.global_attention.proj.bias",
    "model.mm_projector.2.weight": "projector.2.weight",
    "lm_head.weight": "llm.lm_head.weight",
    "model.vision_clip.vision_tower.vision_model.x": None,
    "model.vision_tower_compressor.clip_layer.vision_tower.x": None,
    "model.vision_tower_compressor.norm_layer.3.0.weight": None,
}  # fmt: skip


class Patches(torch.nn.Module):
    """Stands for EVE's layer, whose parameters have the authors' names."""

    def rename(self, key):
        return key


@pytest.mark.parametrize("key", EVE)
def test_eves_names(key, tmp_path):
    from types import SimpleNamespace

    patches = SimpleNamespace(name="patches")
    model = SimpleNamespace(experts={"patches": Patches()})
    section = SimpleNamespace(encoders=(patches,))
    goal = Matcher(model, section, find_system("eve"), whole=True).goal(key)
    assert (goal[0] if isinstance(goal, tuple) else None) == EVE[key]
    if EVE[key] is None:
        assert "CLIP while training" in goal.reason
