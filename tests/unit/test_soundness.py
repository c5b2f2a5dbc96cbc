"""Weights that would load and be garbage are named for what they are."""

import json

import pytest
import torch
from safetensors.torch import save_file

from manyeyes.cli import main
from manyeyes.errors import UserError
from manyeyes.model.encoders import encoder_from_spec, find_spec
from manyeyes.model.weights.loading import load_weights
from manyeyes.model.weights.soundness import check_numbers

LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n"
FILES = {
    "a pointer as a pickle": ("w.bin", LFS, "a Git LFS pointer and not the file itself; run 'git lfs pull'"),
    "a pointer as safetensors": ("w.safetensors", LFS, "a Git LFS pointer and not the file itself; run 'git lfs pull'"),
    "a page as a pickle": ("w.pth", b"<!DOCTYPE html>", "an HTML page (the answer of a web server?); fetch the file itself"),
    "gzip": ("w.safetensors", b"\x1f\x8b\x08", "gzip-compressed; unpack it first"),
}  # fmt: skip


def clip():
    spec = find_spec("clip-tiny")
    return encoder_from_spec(spec, grid=spec.native_grid, normalization="per_encoder")


def spoiled(kind):
    """Return the weights of a tower, one tensor of them unusable."""
    tensors = dict(clip().tower.state_dict())
    key = "vision_model.embeddings.patch_embedding.weight"
    key = key if key in tensors else next(name for name in tensors if name.endswith("weight"))
    bad = tensors[key].clone()
    match kind:
        case "int8":
            bad = bad.to(torch.int8)
        case _:
            bad.view(-1)[3] = float(kind)
    return {**tensors, key: bad}, key, bad.numel()


@pytest.mark.parametrize("case", FILES)
def test_a_file_that_is_no_weights_is_named(case, tmp_path, capsys):
    name, data, told = FILES[case]
    (tmp_path / name).write_bytes(data)
    words = ["import-weights", str(tmp_path / name), "--as", "clip-tiny"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == f"{tmp_path / name} is {told}.\n"
    if name.endswith("safetensors"):
        with pytest.raises(UserError) as caught:
            load_weights(clip(), str(tmp_path / name))
        assert str(caught.value) == f"{tmp_path / name} is {told}."


@pytest.mark.parametrize("kind", ["nan", "inf", "-inf", "int8"])
def test_numbers_that_are_none_are_not_taken_in(kind, tmp_path, capsys):
    tensors, key, count = spoiled(kind)
    file = tmp_path / "w.safetensors"
    save_file(tensors, file)
    told = (
        f"{key!r} holds quantised codes (int8) without their scales: get the weights in a "
        "floating-point form."
        if kind == "int8"
        else f"{key!r} holds 1 numbers of {count} that are NaN or infinite: nothing can be "
        "computed with them; get the weights again."
    )
    words = ["import-weights", str(file), "--as", "clip-tiny", "--out", str(tmp_path / "out")]
    assert main(words) == 2
    assert capsys.readouterr().err == f"{file}: {told}\n"
    assert not (tmp_path / "out").exists()
    with pytest.raises(UserError) as caught:
        load_weights(clip(), str(file))
    assert str(caught.value) == f"The weights {str(file)!r}: {told}"


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_large_but_finite_numbers_of_half_precision_pass(dtype):
    check_numbers("w", "k", torch.full((1000,), 400.0).to(dtype))
    check_numbers("w", "k", torch.full((1000,), 60000.0, dtype=torch.float16))
    check_numbers("w", "k", torch.empty(0, dtype=dtype))
    check_numbers("w", "k", torch.tensor([1, 2]))


def test_a_folder_is_not_named_like_a_file(tmp_path, capsys):
    out = tmp_path / "x.bin"
    assert main(["import-weights", "w", "--out", str(out)]) == 2
    assert capsys.readouterr().err == (
        f"{out} is to be a folder, which a recipe would take for a file: name it without .bin.\n"
    )


def test_a_config_that_nests_without_end_is_told(tmp_path, capsys):
    save_file(clip().tower.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"a":' * 100_000)
    assert main(["import-weights", str(tmp_path), "--out", str(tmp_path / "out")]) == 2
    assert capsys.readouterr().err == (
        f"Cannot read {tmp_path / 'config.json'}: it nests deeper than any description does; get it again.\n"
    )


def test_a_table_of_another_length_than_its_config_is_told(tmp_path):
    from model_kit import write_llama

    from manyeyes.model.transformer import load_language_model

    folder = write_llama(tmp_path / "llm")
    config = json.loads((tmp_path / "llm/config.json").read_text())
    (tmp_path / "llm/config.json").write_text(json.dumps({**config, "vocab_size": 999}))
    with pytest.raises(UserError) as caught:
        load_language_model(str(folder))
    assert str(caught.value) == (
        f"The weights of the language model {str(folder)!r} have other shapes than its "
        "config.json says: take both from one model."
    )
