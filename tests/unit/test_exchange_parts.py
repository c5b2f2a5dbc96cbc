"""Encoders and language models in: HF folders, hub ids and pickles; and what is refused."""

import json
import pickle

import pytest
import torch
from exchange_kit import to_timm
from model_kit import write_llama
from safetensors.torch import load_file, save_file

from manyeyes.cli import main
from manyeyes.model.encoders import encoder_from_spec, find_spec
from manyeyes.model.weights.exchange.source import open_source
from manyeyes.model.weights.loading import load_weights


def build(name):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        return encoder_from_spec(find_spec(name), grid=8, normalization="per_encoder")


def run(*words):
    return main([str(word) for word in words])


def eva_wrapped(wrapper):
    """Return EVA-02's detector as its training script saves it."""
    tower = build("eva02-tiny").tower.state_dict()
    averaged = {f"backbone.net.{key}": value.clone() for key, value in tower.items()}
    averaged["backbone.net.rope_win.freqs_cos"] = torch.zeros(2)
    averaged["backbone.simfp_2.0.weight"] = torch.zeros(2)
    averaged["roi_heads.x"] = torch.zeros(2)
    if wrapper == "plain":
        return averaged
    if wrapper == "module":
        return {"module": {f"module.{key}": value for key, value in averaged.items()}, "epoch": 3}
    last = {key: torch.zeros_like(value) for key, value in averaged.items()}
    return {"model": last, "ema_state": averaged, "iteration": 10}


@pytest.mark.parametrize("wrapper", ["plain", "module", "ema_state"])
def test_eva02s_detector_is_read_out_of_its_wrapping(wrapper, tmp_path, capsys):
    torch.save(eva_wrapped(wrapper), tmp_path / "eva02_det.pth")
    words = ("import-weights", tmp_path / "eva02_det.pth", "--as", "eva02-tiny", "--json")
    assert run(*words, "--out", tmp_path / "eva") == 0
    report = json.loads(capsys.readouterr().out)
    assert sorted(key.removeprefix("module.") for key in report["unused"]) == [
        "backbone.net.rope_win.freqs_cos",
        "backbone.simfp_2.0.weight",
        "roi_heads.x",
    ]
    source, target = build("eva02-tiny"), build("eva02-tiny")
    for parameter in target.parameters():
        parameter.data.zero_()
    load_weights(target, str(tmp_path / "eva"))
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def openclip(tower):
    """Return OpenCLIP's ConvNeXt with its text side."""
    text = {"positional_embedding": torch.zeros(2), "text_projection": torch.zeros(2, 2),
            "logit_scale": torch.tensor(1.0), "token_embedding.weight": torch.zeros(2),
            "transformer.resblocks.0.x": torch.zeros(2), "ln_final.bias": torch.zeros(2),
            "visual.head.mlp.fc1.weight": torch.zeros(2),
            "visual.trunk.head.norm.weight": torch.zeros(2)}  # fmt: skip
    return {**{f"visual.trunk.{to_timm(key)}": value for key, value in tower.items()}, **text}


def timm(tower):
    return {**{to_timm(key): value for key, value in tower.items()},
            "head.norm.weight": torch.zeros(2), "head.fc.bias": torch.zeros(2)}  # fmt: skip


@pytest.mark.parametrize("names", [openclip, timm])
@pytest.mark.parametrize("row", ["convnext-tiny", "convnext-tiny-all-stages"])
def test_a_convnext_comes_under_openclips_and_timms_names(names, row, tmp_path, capsys):
    tower = build(row).tower.state_dict()
    save_file({k: v.clone() for k, v in names(tower).items()}, tmp_path / "open_clip.safetensors")
    assert run("import-weights", tmp_path, "--as", row, "--out", tmp_path / "out") == 0
    assert f"{len(tower)} used" in capsys.readouterr().out
    written = load_file(tmp_path / "out/model.safetensors")
    assert written.keys() == tower.keys()
    assert all(torch.equal(written[key], value) for key, value in tower.items())


def test_a_hub_id_is_taken_from_the_cache(tmp_path, monkeypatch):
    import huggingface_hub

    tower = build("clip-tiny").tower.state_dict()
    whole = {f"vision_model.{key}": value for key, value in tower.items()}
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    asked = []

    def download(repository, allow_patterns):
        asked.append((repository, "*.bin" in allow_patterns))
        if "*.bin" in allow_patterns:
            torch.save(whole, snapshot / "pytorch_model.bin")
        return str(snapshot)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    source = open_source("openai/clip")
    assert asked == [("openai/clip", False), ("openai/clip", True)]
    assert source.shapes.keys() == whole.keys()


@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_language_model_comes_with_its_tokenizer(tied, tmp_path, capsys):
    from manyeyes.model.transformer import load_language_model, load_tokenizer

    write_llama(tmp_path / "llama", tie_word_embeddings=tied)
    tensors = load_file(tmp_path / "llama/model.safetensors")
    (tmp_path / "llama/model.safetensors").unlink()
    torch.save(
        {**tensors, "model.layers.1.self_attn.rotary_emb.inv_freq": torch.zeros(2)},
        tmp_path / "llama/pytorch_model.bin",
    )
    capsys.readouterr()  # what libraries said while the model was made
    assert run("import-weights", tmp_path / "llama", "--out", tmp_path / "out", "--json") == 0
    report = json.loads(capsys.readouterr().out)
    assert (len(report["used"]), len(report["unused"])) == (len(tensors), 1)
    assert load_tokenizer(str(tmp_path / "out")).eos_token_id == 2
    state = load_language_model(str(tmp_path / "out")).state_dict()
    assert all(torch.equal(state[key], value) for key, value in tensors.items())


class Attack:
    def __reduce__(self):
        return (print, ("code ran",))


def attack(folder, tower):
    torch.save({"a": Attack()}, folder / "x.bin")
    return folder / "x.bin"


def old_attack(folder, tower):
    (folder / "x.bin").write_bytes(pickle.dumps({"a": Attack()}))
    return folder / "x.bin"


def no_tensors(folder, tower):
    torch.save({"epoch": 3}, folder / "x.pth")
    return folder / "x.pth"


def cut_pickle(folder, tower):
    torch.save(tower, folder / "x.pt")
    (folder / "x.pt").write_bytes((folder / "x.pt").read_bytes()[:-3000])
    return folder / "x.pt"


def cut(folder, tower):
    file = good(folder, tower)
    file.write_bytes(file.read_bytes()[:-100])
    return file


def foreign(folder, tower):
    return good(folder, build("sam-tiny").tower.state_dict())


def good(folder, tower):
    save_file(tower, folder / "x.safetensors")
    return folder / "x.safetensors"


def index(shard):
    def write(folder, tower):
        text = json.dumps({"weight_map": {"a": shard}})
        (folder / "model.safetensors.index.json").write_text(text)
        return folder

    return write


def cut_old_pickle(folder, tower):
    torch.save(tower, folder / "x.bin", _use_new_zipfile_serialization=False)
    (folder / "x.bin").write_bytes((folder / "x.bin").read_bytes()[:200])
    return folder / "x.bin"


def within_itself(folder, tower):
    endless = {}
    endless["model"] = endless
    torch.save(endless, folder / "x.bin")
    return folder / "x.bin"


def holding(name, data):
    def write(folder, tower):
        (folder / name).write_bytes(data)
        return folder / name

    return write


CLIP = ("--as", "clip-tiny")
SOURCES = {
    "an old pickle that was cut": (cut_old_pickle, CLIP),
    "a dict within itself": (within_itself, CLIP),
    "an empty pickle": (holding("x.bin", b""), CLIP),
    "empty safetensors": (holding("x.safetensors", b""), CLIP),
    "an answer in JSON": (holding("x.bin", b'{"error": "not found"}\n'), CLIP),
    "an answer in words": (holding("x.safetensors", b"Invalid username or password."), CLIP),
    "a pickle of another kind": (holding("x.bin", b"GGUF\3\0\0\0" + bytes(99)), CLIP),
    "zeros": (holding("x.bin", bytes(5000)), CLIP),
    "an archive that was cut": (holding("x.bin", b"PK\3\4" + bytes(99)), CLIP),
    "a name without end": (lambda folder, _: folder / ("x" * 5000), CLIP),
    "nothing there": (lambda folder, _: folder / "x.safetensors", CLIP),
    "an attack": (attack, CLIP),
    "an old attack": (old_attack, CLIP),
    "no tensors": (no_tensors, CLIP),
    "a truncated pickle": (cut_pickle, CLIP),
    "truncated": (cut, CLIP),
    "another architecture": (foreign, CLIP),
    "a missing shard": (index("model-2.safetensors"), CLIP),
    "a shard elsewhere": (index("../other.safetensors"), CLIP),
    "an empty folder": (lambda folder, _: folder, CLIP),
    "nobody knows what": (good, ()),
    "an unknown row": (good, ("--as", "clip-tinny")),
    "a system without a recipe": (good, ("--as", "mgm")),
}
"""How to make a source that cannot be read, and the words of the command."""


PICKLE_ONLY = "): only a state dict of tensors is read, since any other pickle can run code.\n"
REFUSED = {
    "an old pickle that was cut": "{file} is no whole state dict (it ends in the middle or is "
    "damaged" + PICKLE_ONLY,
    "a dict within itself": "{file} is no whole state dict (it is not a state dict" + PICKLE_ONLY,
    "an empty pickle": "{file} is empty; fetch it again.\n",
    "empty safetensors": "{file} is empty; fetch it again.\n",
    "an answer in JSON": "{file} is text (the answer of a web server?); fetch the file itself.\n",
    "an answer in words": "{file} is text (the answer of a web server?); fetch the file itself.\n",
    "a pickle of another kind": "{file} is a GGUF file; get the weights as safetensors.\n",
    "zeros": "{file} is no whole state dict (the archive is none of torch's" + PICKLE_ONLY,
    "an archive that was cut": "{file} is no whole state dict (the archive is damaged"
    + PICKLE_ONLY,
    "a name without end": "No file can be called '",
    "nothing there": "There are no weights at {file}: the path does not exist.",
    "an old attack": "{file} holds more than tensors (objects): only a state dict of tensors is "
    "read, since any other pickle can run code.\n",
    "an attack": "{file} holds more than tensors (print): only a state dict of tensors "
    "is read, since any other pickle can run code.\n",
    "no tensors": "{file} is no whole state dict (it is not a state dict): only a state dict of tensors "
    "is read, since any other pickle can run code.\n",
    "a truncated pickle": "{file} is no whole state dict (",
    "truncated": "{file} is not a whole safetensors file (",
    "another architecture": "The weights '{file}' are not those of clip-tiny: nobody knows "
    "'vision_encoder.layers.0.attn.proj.bias' (and ",
    "a missing shard": "{file} is incomplete: model-2.safetensors of its index is missing.",
    "a shard elsewhere": "{file}/model.safetensors.index.json names '../other.safetensors', which "
    "lies elsewhere: take it out.",
    "an empty folder": "There are no weights in {file}: neither safetensors nor a state dict.",
    "nobody knows what": "What '{file}' is cannot be told from its config.json: say it with --as "
    "(an encoder of the table, or llm), or give the --recipe of the system it is of.",
    "an unknown row": "Unknown kind of weights 'clip-tinny': known are cambrian, clip-tiny, ",
    "a system without a recipe": "Weights of mgm fill the model of a recipe: name it with "
    "--recipe.",
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_cannot_be_read_is_refused_in_one_sentence(kind, tmp_path, capsys):
    place = tmp_path / "place"
    place.mkdir()
    make, words = SOURCES[kind]
    file = make(place, build("clip-tiny").tower.state_dict())
    assert run("import-weights", file, *words, "--out", tmp_path / "out") == 2
    output = capsys.readouterr()
    assert output.err.startswith(REFUSED[kind].format(file=file)), output.err
    assert output.err.count("\n") == 1
    assert "code ran" not in output.out
    assert [item.name for item in tmp_path.iterdir()] == ["place"]


def test_a_folder_that_exists_is_not_written_into(tmp_path, capsys):
    save_file(build("clip-tiny").tower.state_dict(), tmp_path / "x.safetensors")
    words = ("import-weights", tmp_path / "x.safetensors", "--as", "clip-tiny", "--out", tmp_path)
    assert run(*words) == 2
    assert capsys.readouterr().err == (
        f"{tmp_path} exists already: remove it or give another folder with --out.\n"
    )


def test_a_projector_of_nobodys_fusion_has_no_names(tmp_path):
    from manyeyes.errors import UserError
    from manyeyes.model.weights.exchange.projector import system_of

    class Model:
        config = type("Config", (), {"fusion": {"kind": "deformable_attention"}})
        experts = {"a": 1, "b": 2}  # noqa: RUF012

    with pytest.raises(UserError) as caught:
        system_of(Model)
    assert str(caught.value) == (
        "Nobody published weights of the fusion deformable_attention, so there are no names to "
        "write it with."
    )


def test_export_refuses_a_name_that_does_not_say_how(tmp_path, capsys):
    from manyeyes.errors import UserError
    from manyeyes.model.weights.exchange.projector import export_projector

    with pytest.raises(UserError) as caught:
        export_projector(None, "llava", tmp_path / "p.pkl")
    assert str(caught.value) == (
        f"{tmp_path}/p.pkl ends in neither .bin nor .safetensors: name the file so."
    )


@pytest.mark.parametrize(
    ("keys", "whole"),
    [
        (("model.mm_projector.0.weight", "model.embed_tokens.weight"), False),
        (("model.embed_tokens.weight", "model.layers.0.mlp.up_proj.weight"), True),
        (
            (
                "model.embed_tokens.weight",
                "model.vision_tower.vision_tower.vision_model.encoder.layers.0.mlp.fc1.bias",
            ),
            False,
        ),
    ],
)
def test_a_table_of_words_alone_makes_no_whole_model(keys, whole, monkeypatch, tmp_path):
    from types import SimpleNamespace

    from manyeyes.cli.weights import _read_as
    from manyeyes.model.weights.exchange import importing

    for name in ("import_system", "import_projector"):
        monkeypatch.setattr(
            importing, name, lambda *_, name=name: SimpleNamespace(report=name == "import_system")
        )
    source = SimpleNamespace(shapes=dict.fromkeys(keys, (1,)))
    assert _read_as(source, "llava", object(), tmp_path / "out") is whole
