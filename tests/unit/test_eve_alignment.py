"""The patch aligning layer: its loss by hand, its gradients, and that it exists in training only."""

import math

import pytest
import torch
from eve_kit import SIZES, alignment_section, canvases, eve, eve_section, noise, table
from model_kit import write_llama
from safetensors.torch import load_file
from torch.nn import functional

from manyeyes.config.recipe import EncoderSection
from manyeyes.data.loading.conversation import IMAGE_TOKEN
from manyeyes.errors import UserError
from manyeyes.model.alignment import PatchAligningLayer, build_alignment
from manyeyes.model.encoders import encoder_from_spec, find_spec
from manyeyes.model.processor import Processor
from manyeyes.model.rectangle import fit
from manyeyes.model.saving import save_model
from manyeyes.model.transformer import load_tokenizer
from manyeyes.model.vlm import VisionLanguageModel
from manyeyes.training.freeze import apply_trainable

IDS = torch.tensor([[5, IMAGE_TOKEN, 6, IMAGE_TOKEN, 7], [IMAGE_TOKEN, 8, 9, IMAGE_TOKEN, 6]])
LABELS = IDS.masked_fill(IDS < 6, -100)


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llm"), num_hidden_layers=4)


def by_hand(model, pixels, sizes):
    """The loss of a batch, one picture, one cell and one head at a time, from all hidden states."""
    layer, side, pieces = model.alignment, model.fusion.side, model.fusion.pieces
    step = side // pieces
    visual = model.project(model.see(pixels, sizes))
    spliced = model.splice_inputs(IDS, visual, None, LABELS, image_sizes=sizes, side="right")
    states = model.llm.model(
        inputs_embeds=spliced.embeddings, output_hidden_states=True
    ).hidden_states
    features = layer.teacher(pixels)  # (I, C, G, G)
    losses, picture = [], 0
    for row in range(len(IDS)):
        place = 0
        for token in IDS[row].tolist():
            if token != IMAGE_TOKEN:
                place += 1
                continue
            width, height = SIZES[picture]
            across, down = fit(width, height, pieces)
            left, top = (pieces - across) // 2, (pieces - down) // 2
            cosines = []
            for r in range(down):
                for c in range(across):
                    inner = [
                        place + 1 + (r * step + i) * (across * step + 1) + c * step + j
                        for i in range(step)
                        for j in range(step)
                    ]
                    cell = [states[n][row, inner].mean(0) for n in layer.layers]
                    target = features[picture, :, top + r, left + c]
                    cosines.append(
                        functional.cosine_similarity(student(layer, cell), target, dim=0)
                    )
            losses.append(1 - torch.stack(cosines).mean())
            place += model.picture_tokens(width, height)
            picture += 1
    return torch.stack(losses).mean()


def student(layer, cell):
    """What the layer makes of one cell's hidden states, last first."""
    named = zip(layer.norm_layer, cell, strict=True)
    query, *others = [linear(norm(state)) for (norm, linear), state in named]
    others = torch.stack(others)
    found = []
    for part in torch.arange(len(query)).chunk(layer.heads):
        weights = (others[:, part] @ query[part] / math.sqrt(len(query))).softmax(0)
        found.append(weights @ others[:, part])
    return layer.input_layer(cell[0]) + layer.output_layer(torch.cat(found))


@pytest.mark.parametrize("step", [1, 2], ids=["one cell a piece", "four cells a piece"])
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_the_loss_is_what_a_plain_loop_says(llm, step, stride):
    model = eve(llm, step, alignment=alignment_section(stride=stride))
    pixels, sizes = canvases(model, noise())
    with torch.no_grad():
        output = model(IDS, labels=LABELS, pixels=pixels, image_sizes=sizes)
        expected = by_hand(model, pixels, sizes)
    torch.testing.assert_close(output.alignment_loss, expected, atol=1e-5, rtol=1e-5)
    layers = {1: (4, 3, 2, 1, 0), 2: (4, 2, 0), 3: (4, 1)}
    assert model.alignment.layers == layers[stride]


def test_the_layer_has_the_published_layers_size_and_the_authors_names():
    with torch.device("meta"):
        teacher = encoder_from_spec(
            find_spec("clip-vit-l-14-336"), grid=24, normalization="per_encoder"
        )
        section = alignment_section(stride=4)
        layer = PatchAligningLayer(section, teacher, width=4096, num_layers=32)
    assert layer.layers == (32, 28, 24, 20, 16, 12, 8, 4, 0)
    assert sum(parameter.numel() for parameter in layer.parameters()) == 43_067_392
    assert {name.rsplit(".", 1)[0] for name in layer.state_dict()} == {
        "input_layer", "output_layer",
        *(f"norm_layer.{k}.{part}" for k in range(9) for part in (0, 1)),
    }  # fmt: skip


def test_both_losses_reach_everything_but_the_teacher(llm):
    model = eve(llm)
    apply_trainable(model, ["*"])
    pixels, sizes = canvases(model, noise())
    output = model(IDS, labels=LABELS, pixels=pixels, image_sizes=sizes)
    (output.loss + output.alignment_loss).backward()
    still = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert still == []
    assert not any("teacher" in name for name, _ in model.named_parameters())
    assert not any(p.requires_grad or p.grad is not None for p in layer_teacher(model).parameters())
    assert not layer_teacher(model).training


def layer_teacher(model):
    return model.alignment.teacher


def test_the_alignment_teaches_the_patches_through_a_frozen_language_model(llm):
    model = eve(llm)
    apply_trainable(model, ["encoders.patches.*", "projector.*", "alignment.*"])
    pixels, sizes = canvases(model, noise())
    model(IDS, labels=LABELS, pixels=pixels, image_sizes=sizes).alignment_loss.backward()
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    assert [n for n, p in trained.items() if p.grad is None or not p.grad.any()] == []
    assert all(p.grad is None for n, p in model.named_parameters() if n not in trained)


def test_what_is_heard_changes_nothing_of_what_is_said(llm):
    model, deaf = eve(llm), eve(llm, alignment=False)
    deaf.load_state_dict({k: v for k, v in model.state_dict().items() if "alignment" not in k})
    pixels, sizes = canvases(model, noise())
    with torch.no_grad():
        output = model(IDS, labels=LABELS, pixels=pixels, image_sizes=sizes)
        plain = deaf(IDS, labels=LABELS, pixels=pixels, image_sizes=sizes)
    assert torch.equal(output.loss, plain.loss)
    assert plain.alignment_loss is None
    assert all(not block._forward_hooks for block in model.llm.model.layers)


@pytest.mark.parametrize("what", ["llm", "all"])
def test_recomputed_blocks_are_heard_as_well(llm, what):
    from manyeyes.training.recompute import recomputing

    model = eve(llm)
    apply_trainable(model, ["*"])
    pixels, sizes = canvases(model, noise())
    gradients = []
    for mode in ("none", what):
        model.zero_grad()
        with recomputing(model, mode):
            output = model(IDS, labels=LABELS, pixels=pixels, image_sizes=sizes)
            (output.loss + output.alignment_loss).backward()
        gradients.append({name: p.grad.clone() for name, p in model.named_parameters()})
    assert all(torch.equal(gradients[0][name], gradients[1][name]) for name in gradients[0])


def test_text_alone_is_compared_with_nothing(llm):
    ids = torch.tensor([[5, 6, 7]])
    assert eve(llm)(ids, labels=ids).alignment_loss is None


def test_an_idle_picture_meets_every_module_and_adds_nothing(llm):
    model = eve(llm)
    apply_trainable(model, ["*"])
    ids = torch.tensor([[5, 6, 7]])
    idle = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    output = model(ids, labels=ids, idle_pixels=idle)
    assert output.alignment_loss.item() == 0.0
    (output.loss + output.alignment_loss).backward()
    named = dict(model.named_parameters())
    seeing = [n for n in named if n.startswith(("encoders", "projector", "alignment"))]
    assert all(not named[n].grad.any() for n in seeing)
    assert any(named[n].grad.any() for n in named if n.startswith("llm"))


def test_a_checkpoint_keeps_the_layer_for_training_and_not_the_teacher(llm, tmp_path):
    model = eve(llm)
    save_model(model, load_tokenizer(llm), model.fusion.processor(0), tmp_path)
    saved = [key for path in tmp_path.glob("*.safetensors") for key in load_file(path)]
    assert any(key.startswith("alignment.") for key in saved)
    assert not any("teacher" in key for key in saved)
    pixels, sizes = canvases(model, noise())

    to_use = VisionLanguageModel.from_pretrained(tmp_path)
    assert to_use.alignment is None
    assert Processor.load(tmp_path) == Processor(32, pieces=4)
    expected = model.generate(IDS, None, pixels, sizes, max_new_tokens=4)
    assert torch.equal(to_use.generate(IDS, None, pixels, sizes, max_new_tokens=4), expected)

    with table(1):
        to_train = VisionLanguageModel.from_pretrained(tmp_path, training=eve_section(llm))
    mine, theirs = model.state_dict(), to_train.state_dict()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


def test_training_may_go_on_at_a_higher_resolution(llm, tmp_path):
    low = eve(llm)
    save_model(low, load_tokenizer(llm), low.fusion.processor(0), tmp_path)
    with table(2):
        high = VisionLanguageModel.from_pretrained(tmp_path, training=eve_section(llm, step=2))
    assert torch.equal(high.projector[0].weight, low.projector[0].weight)
    assert (high.fusion.side, high.config.num_visual_tokens) == (8, 73)
    pixels, sizes = canvases(high, noise())
    output = high(IDS, labels=LABELS, pixels=pixels, image_sizes=sizes)
    assert output.alignment_loss.isfinite()


def test_training_cannot_go_on_without_the_layer(llm, tmp_path):
    model = eve(llm, alignment=False)
    save_model(model, load_tokenizer(llm), model.fusion.processor(0), tmp_path)
    with table(1), pytest.raises(UserError) as error:
        VisionLanguageModel.from_pretrained(tmp_path, training=eve_section(llm))
    assert str(error.value).startswith(f"The weights '{tmp_path}' are of another model: ")
    assert "tensors are missing, first 'alignment." in str(error.value)


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        (
            {"stride": 5},
            "model.alignment.stride is 5, but the language model has only 4 layers: lower stride.",
        ),
        (
            {"heads": 5},
            "model.alignment.heads is 5, which does not divide the 96 channels of clip.",
        ),
        (
            {"teacher": EncoderSection(name="clip", spec="clip-tiny", weights="random")},
            "The teacher 'clip-tiny' has 8 cells a side, but the pictures are laid out in 4: take "
            "a teacher with 4.",
        ),
    ],
    ids=["stride", "heads", "grid"],
)
def test_what_cannot_be_aligned_is_said(llm, changes, text):
    model = eve(llm, alignment=False)
    with table(1), pytest.raises(UserError) as error:
        build_alignment(alignment_section(**changes), model.fusion, model.llm.config, load=False)
    assert str(error.value) == text
