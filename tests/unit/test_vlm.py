"""The whole model: loss, freezing, generation, saving, loading."""

import json
import zlib

import pytest
import torch
from model_kit import NAMES, model_section, pictures, write_llama
from torch.nn import functional

from manyeyes.data.loading.conversation import IGNORED, IMAGE_TOKEN
from manyeyes.errors import UserError
from manyeyes.model.loss import Learned, supervised_loss
from manyeyes.model.processor import Processor
from manyeyes.model.saving import save_model
from manyeyes.model.transformer import (
    check_tokenizer,
    load_language_model,
    load_tokenizer,
    refuse_rescaled_logits,
)
from manyeyes.model.vlm import VisionLanguageModel

IMG = IMAGE_TOKEN
ROWS = [[4, 5, 6, 7, 8, 9], [10, IMG, 11, 0, 0, 0], [IMG, 12, IMG, 13, 14, 0]]


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llm"))


@pytest.fixture
def model(llm):
    return VisionLanguageModel.from_recipe(model_section(llm), seed=3).eval()


@pytest.fixture
def pair(llm):
    """A mixture of two, which is quicker where the number of experts does not matter."""
    section = model_section(llm, names=("clip", "pix2struct"))
    return VisionLanguageModel.from_recipe(section, seed=3).eval()


def batch():
    ids = torch.tensor(ROWS)
    labels = torch.where(ids > 5, ids, torch.full_like(ids, IGNORED))
    return ids, ids != 0, labels, pictures(3)


def test_the_loss_is_next_token_cross_entropy_on_supervised_positions(pair):
    ids, mask, labels, pixels = batch()
    with torch.no_grad():
        output = pair(ids, mask, labels=labels, pixels=pixels)
        logits = pair(ids, mask, pixels=pixels).logits
        spliced = pair.splice_inputs(
            ids, pair.project(pair.see(pixels)), mask, labels, side="right"
        )
    targets = spliced.labels[:, 1:].flatten()
    expected = functional.cross_entropy(logits[:, :-1].flatten(0, 1), targets, ignore_index=-100)
    torch.testing.assert_close(output.loss, expected)
    # Every supervised label has a token before it, except one that opens a sample.
    assert int(output.num_supervised) == int((labels != IGNORED).sum()) - 1
    assert output.logits is None


def test_the_head_sees_supervised_positions_only():
    seen = []

    class Head(torch.nn.Linear):
        def forward(self, hidden):
            seen.append(tuple(hidden.shape))
            return super().forward(hidden)

    labels = torch.full((2, 9), IGNORED)
    labels[0, 4:7] = 1
    labels[1, 0] = 1  # nothing stands before it, so nothing predicts it
    learned = Learned.of(labels, torch.device("cpu"))
    supervised_loss(torch.randn(2, 9, 8), learned, Head(8, 5), 5)
    assert seen == [(3, 8)]


def test_a_batch_without_supervision_has_a_loss_of_zero_and_no_nan(pair):
    ids, mask, labels, pixels = batch()
    output = pair(ids, mask, labels=torch.full_like(labels, IGNORED), pixels=pixels)
    output.loss.backward()
    assert output.loss == 0
    assert int(output.num_supervised) == 0


def test_a_sample_gets_the_same_logits_alone_and_in_a_batch(pair):
    ids, mask, _, pixels = batch()
    first_image = [0, 0, 1, 3]
    with torch.no_grad():
        together = pair(ids, mask, pixels=pixels)
        for i in range(3):
            own = ids[i : i + 1, mask[i]]
            alone = pair(own, pixels=pixels[first_image[i] : first_image[i + 1]]).logits[0]
            real = together.attention_mask[i]
            torch.testing.assert_close(together.logits[i, real], alone, rtol=1e-4, atol=1e-4)


def test_text_only_batches_never_run_an_encoder(pair):
    for encoder in pair.encoders.values():
        encoder.forward = None  # a call would fail
    ids = torch.tensor([[4, 5, 6]])
    with torch.no_grad():
        for pixels in (None, pictures(0)):
            assert pair(ids, pixels=pixels).logits.shape == (1, 3, 40)


def test_the_model_sees_the_picture(pair):
    ids = torch.tensor([[IMG, 4]])
    with torch.no_grad():
        logits = [pair(ids, pixels=pictures(1, seed=seed)).logits[0, -1] for seed in (1, 2)]
    assert not torch.allclose(logits[0], logits[1])


def test_every_trainable_parameter_gets_a_gradient(model):
    ids, mask, labels, pixels = batch()
    model.train()
    model(ids, mask, labels=labels, pixels=pixels).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def freeze(model, *prefixes):
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(not name.startswith(prefixes))


def test_a_frozen_tower_builds_no_graph(pair):
    freeze(pair, "encoders.clip")
    features = {}
    for name, encoder in pair.experts.items():
        encoder.register_forward_hook(lambda *call, name=name: features.update({name: call[2]}))
    ids, mask, labels, pixels = batch()
    pair(ids, mask, labels=labels, pixels=pixels).loss.backward()
    assert features["clip"].grad_fn is None
    assert features["pix2struct"].grad_fn is not None
    frozen = [p for name, p in pair.named_parameters() if name.startswith("encoders.clip")]
    assert all(parameter.grad is None for parameter in frozen)


def test_the_projector_trains_alone_through_a_frozen_language_model(pair):
    freeze(pair, "encoders", "llm")
    ids, mask, labels, pixels = batch()
    pair(ids, mask, labels=labels, pixels=pixels).loss.backward()
    with_gradient = {name for name, p in pair.named_parameters() if p.grad is not None}
    assert with_gradient == {f"projector.{key}" for key in pair.projector.state_dict()}


def test_a_wholly_frozen_model_builds_no_graph(pair):
    freeze(pair, "encoders", "projector", "llm")
    ids, mask, labels, pixels = batch()
    assert pair(ids, mask, labels=labels, pixels=pixels).loss.grad_fn is None


def test_frozen_parts_stay_in_evaluation_mode(pair):
    freeze(pair, "encoders.clip", "llm")
    pair.train()
    assert pair.training
    assert not pair.llm.training
    assert not pair.encoders["clip"].training
    assert pair.encoders["pix2struct"].training
    freeze(pair)
    assert pair.train().llm.training


def test_bfloat16_autocast_trains(model):
    ids, mask, labels, pixels = batch()
    exact = model(ids, mask, labels=labels, pixels=pixels).loss
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = model(ids, mask, labels=labels, pixels=pixels).loss
    loss.backward()
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, exact, rtol=0.1, atol=0.1)


def argmax_loop(model, ids, pixels, num):
    """Continue one prompt greedily with a full forward per token and no cache."""
    new = []
    for _ in range(num):
        logits = model(torch.tensor([ids + new]), pixels=pixels).logits
        new.append(int(logits[0, -1].argmax()))
        if new[-1] == 2:
            break
    return new


def test_generation_equals_an_argmax_loop_without_cache(pair):
    ids, mask, _, pixels = batch()
    first_image = [0, 0, 1, 3]
    with torch.no_grad():
        together = pair.generate(ids, mask, pixels, max_new_tokens=6).tolist()
        for i in range(3):
            own = ids[i, mask[i]].tolist()
            expected = argmax_loop(pair, own, pixels[first_image[i] : first_image[i + 1]], 6)
            assert together[i][: len(expected)] == expected
            assert set(together[i][len(expected) :]) <= {0}


def test_generation_stops_at_the_end_token_and_pads(pair):
    ids, mask, _, pixels = batch()
    free = pair.generate(ids, mask, pixels, max_new_tokens=6)
    stop = int(free[0, 1])
    stopped = pair.generate(ids, mask, pixels, max_new_tokens=6, eos_token_id=stop)[0].tolist()
    end = stopped.index(stop)
    assert stopped[: end + 1] == free[0, : end + 1].tolist()
    assert set(stopped[end + 1 :]) <= {0}


def test_images_are_encoded_once_per_generation(pair):
    calls = []
    pair.encoders["clip"].register_forward_hook(lambda *_: calls.append(1))
    pair.generate(torch.tensor([[IMG, 4]]), None, pictures(1), max_new_tokens=5)
    assert len(calls) == 1


def test_saving_and_loading_keeps_every_logit(model, tmp_path):
    ids, mask, _, pixels = batch()
    model.save_pretrained(tmp_path)
    loaded = VisionLanguageModel.from_pretrained(tmp_path)
    with torch.no_grad():
        before = model(ids, mask, pixels=pixels).logits
        after = loaded(ids, mask, pixels=pixels).logits
    assert torch.equal(before, after)
    assert list(loaded.state_dict()) == list(model.state_dict())
    assert not loaded.training


def test_a_checkpoint_with_a_file_per_module_loads_too(pair, llm, tmp_path):
    save_model(pair, load_tokenizer(llm), Processor(128), tmp_path)
    loaded = VisionLanguageModel.from_pretrained(tmp_path)
    for key, value in pair.state_dict().items():
        assert torch.equal(loaded.state_dict()[key], value)
    assert Processor.load(tmp_path) == Processor(128)
    assert load_tokenizer(str(tmp_path)).eos_token == "</s>"


@pytest.mark.parametrize("tied", [True, False])
def test_tied_embeddings_stay_tied(tied, tmp_path):
    folder = write_llama(tmp_path / "llm", tie_word_embeddings=tied)
    section = model_section(folder, names=("clip",))
    model = VisionLanguageModel.from_recipe(section, seed=0)
    model.save_pretrained(tmp_path / "vlm")
    loaded = VisionLanguageModel.from_pretrained(tmp_path / "vlm")
    same = loaded.llm.lm_head.weight is loaded.llm.model.embed_tokens.weight
    assert same is tied


def test_stop_tokens_that_stand_only_in_the_generation_config_survive(llm, tmp_path):
    model = VisionLanguageModel.from_recipe(model_section(llm, names=("clip",)), seed=0)
    model.generation_config.eos_token_id = [2, 7]
    model.save_pretrained(tmp_path)
    loaded = VisionLanguageModel.from_pretrained(tmp_path)
    assert loaded.llm.generation_config.eos_token_id == [2, 7]


def test_the_config_needs_neither_recipe_nor_table(pair, tmp_path, monkeypatch):
    pair.save_pretrained(tmp_path)
    monkeypatch.setattr("manyeyes.model.encoders.registry.ENCODERS", {})
    loaded = VisionLanguageModel.from_pretrained(tmp_path)
    assert [encoder.spec for encoder in loaded.experts.values()] == [
        encoder.spec for encoder in pair.experts.values()
    ]
    assert loaded.config.max_length == 256


def digest(module):
    values = [p.detach().contiguous().numpy().tobytes() for p in module.parameters()]
    return zlib.crc32(b"".join(values))


def test_the_seed_decides_the_first_weights(llm):
    section = model_section(llm, names=("clip",))
    digests = [digest(VisionLanguageModel.from_recipe(section, seed=seed)) for seed in (1, 1, 2)]
    assert digests[0] == digests[1] != digests[2]


def test_a_part_starts_alike_in_any_mixture_and_leaves_the_generator_alone(llm):
    torch.manual_seed(11)
    expected = torch.rand(1)
    torch.manual_seed(11)
    one = VisionLanguageModel.from_recipe(model_section(llm, names=("sam",)), seed=1)
    two = VisionLanguageModel.from_recipe(model_section(llm, names=("clip", "sam")), seed=1)
    assert digest(one.encoders["sam"]) == digest(two.encoders["sam"])
    assert torch.equal(torch.rand(1), expected)


def test_description_counts_every_parameter_once(model):
    freeze(model, "encoders", "llm")
    rows = {row.name: row for row in model.describe()}
    assert list(rows) == [*(f"encoders.{name}" for name in NAMES), "fusion", "projector", "llm"]
    assert sum(row.num_parameters for row in rows.values()) == sum(
        p.numel() for p in model.parameters()
    )
    trainable = {name for name, row in rows.items() if row.num_trainable}
    assert trainable == {"projector"}


def test_traced_shapes_are_those_of_the_path(model):
    shapes = {row.where: row.shape for row in model.trace_shapes(128)}
    assert shapes["canvas"] == (1, 3, 128, 128)
    assert shapes["encoders.clip input"] == (1, 3, 112, 112)
    assert shapes["encoders.convnext native"] == (1, 96, 9, 9)
    assert shapes["encoders.eva02 grid"] == (1, 96, 4, 4)
    assert shapes["fusion"] == (1, 16, 480)
    assert shapes["projector"] == (1, 16, 32)
    assert shapes["splice"] == (1, 17, 32)
    assert shapes["llm logits"] == (1, 17, 40)


def test_shapes_can_be_traced_without_memory(llm):
    with torch.device("meta"):
        section = model_section(llm, names=("clip",))
        model = VisionLanguageModel.from_recipe(section, seed=0, load=False)
        shapes = {row.where: row.shape for row in model.trace_shapes(128)}
    assert shapes["splice"] == (1, 17, 32)
    assert shapes["llm logits"] == (1, 17, 40)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"max_length": 513},
            "model.max_length is 513, but the language model '{llm}' has 512 positions: lower "
            "max_length.",
        ),
        (
            {"names": ("clip.a",)},
            "An encoder cannot be called 'clip.a', because parameters are named after it: use a "
            "name without dots, like 'clip'.",
        ),
        (
            {"names": ("keys",)},
            "An encoder cannot be called 'keys', because parameters are named after it: use a "
            "name without dots, like 'clip'.",
        ),
    ],
)
def test_a_recipe_that_cannot_be_built_is_refused(changes, text, llm):
    with pytest.raises(UserError) as caught:
        VisionLanguageModel.from_recipe(model_section(llm, **changes), seed=0)
    assert str(caught.value) == text.format(llm=llm)


def damage(kind, folder):
    weights = folder / "model.safetensors"
    match kind:
        case "nothing":
            for path in folder.iterdir():
                path.unlink()
        case "another kind":
            (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-8])
        case "not JSON":
            (folder / "config.json").write_text("{")
        case "another mixture":
            config = json.loads((folder / "config.json").read_text())
            config["encoders"][0]["name"] = "eye"
            (folder / "config.json").write_text(json.dumps(config))


DAMAGE = {
    "nothing": "There is no model in {at}: it has no config.json.",
    "another kind": "{at} holds a model of kind 'llama' instead of 'manyeyes_vlm': give the folder "
    "of a checkpoint written by pretrain or sft.",
    "truncated": "{at}/model.safetensors is not a whole safetensors file (",
    "not JSON": "Cannot read {at}/config.json: ",
    "another mixture": "The weights '{at}' are of another model: 52 of ",
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_refused_in_one_sentence(kind, llm, tmp_path):
    model = VisionLanguageModel.from_recipe(model_section(llm, names=("clip",)), seed=0)
    model.save_pretrained(tmp_path)
    damage(kind, tmp_path)
    with pytest.raises(UserError) as caught:
        VisionLanguageModel.from_pretrained(tmp_path)
    assert str(caught.value).startswith(DAMAGE[kind].format(at=tmp_path))
    assert "\n" not in str(caught.value)


def test_a_truncated_language_model_is_refused(tmp_path):
    folder = write_llama(tmp_path)
    path = tmp_path / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-8])
    with pytest.raises(UserError, match=r"^The weights of the language model ") as caught:
        load_language_model(folder)
    assert "\n" not in str(caught.value)


def test_an_incomplete_language_model_is_refused(tmp_path):
    from safetensors.torch import load_file, save_file

    folder = write_llama(tmp_path)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["model.norm.weight"]
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError) as caught:
        load_language_model(folder)
    assert str(caught.value) == (
        f"The language model '{folder}' is incomplete: 1 tensors are missing, first "
        "'model.norm.weight'."
    )


def test_a_pickled_language_model_is_refused(tmp_path):
    folder = write_llama(tmp_path)
    (tmp_path / "model.safetensors").rename(tmp_path / "pytorch_model.bin")
    with pytest.raises(UserError) as caught:
        load_language_model(folder)
    assert str(caught.value) == (
        f"The language model '{folder}' has only pickled weights (pytorch_model.bin): safetensors "
        "are needed."
    )


def test_half_precision_files_are_computed_in_single_precision(tmp_path):
    folder = write_llama(tmp_path)
    model = load_language_model(folder)
    model.half().save_pretrained(tmp_path)
    assert {p.dtype for p in load_language_model(folder).parameters()} == {torch.float32}


def test_a_foreign_tokenizer_is_refused(llm):
    with pytest.raises(UserError) as caught:
        check_tokenizer(load_tokenizer(llm), 8, "this model")
    assert str(caught.value) == (
        "The tokenizer of 'this model' is of another model: it has the id 11, but the embedding "
        "table has 8 rows."
    )
    check_tokenizer(load_tokenizer(llm), 12, "this model")


def test_models_that_rescale_their_logits_are_refused():
    from transformers import Gemma2Config

    with pytest.raises(UserError) as caught:
        refuse_rescaled_logits(Gemma2Config())
    assert str(caught.value) == (
        "Language models of kind 'gemma2' rescale their logits (final_logit_softcapping), which "
        "this trainer does not do: use a Llama-class model."
    )
