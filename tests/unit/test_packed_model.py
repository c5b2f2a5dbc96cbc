"""A pack trains as its samples would one by one: loss, gradients, isolation, in every fusion."""

import numpy as np
import pytest
import torch
from eve_kit import SIZES, eve, noise
from model_kit import model_section, write_llama
from torch.nn import functional

from manyeyes.config.recipe import (
    ChannelConcat,
    EncoderSection,
    MixtureOfResolution,
    PatchInfoMining,
    SequenceAppend,
    SpatialVisionAggregator,
)
from manyeyes.data.dataset.sample import ImageRef, Sample
from manyeyes.data.loading.batches import collate
from manyeyes.data.loading.tokens import IGNORED, IMAGE_TOKEN, Encoded
from manyeyes.model.vlm import VisionLanguageModel
from manyeyes.training.engine import both_losses, model_inputs

FUSIONS = {
    "channel_concat": (ChannelConcat(kind="channel_concat"), None),
    "sequence_append": (SequenceAppend(kind="sequence_append"), None),
    "patch_info_mining": (
        PatchInfoMining(kind="patch_info_mining", low="clip", high="convnext", crops=1),
        8,
    ),
    "mixture_of_resolution": (
        MixtureOfResolution(
            kind="mixture_of_resolution", fast="clip", slow="convnext", before_blocks=(1, 2)
        ),
        8,
    ),
    "spatial_vision_aggregator": (
        SpatialVisionAggregator(
            kind="spatial_vision_aggregator",
            width=16, heads=2, depth=1, num_layers=1, first_layer=0, layer_stride=1,
        ),
        8,
    ),
}  # fmt: skip
MODELS = [*FUSIONS, "eve"]
PICTURE = IMAGE_TOKEN
SAMPLES = [  # ids; the last two of each are learned
    (1, PICTURE, 5, 6, 2),
    (1, 7, 8, 9, 10, 2),
    (1, 5, PICTURE, 6, PICTURE, 7, 2),
    (8, 9),
    (1, PICTURE, 9, 10, 11, 7, 6, 2),
]
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    return write_llama(tmp_path_factory.mktemp("llm"))


def build(llm, kind):
    """Return a model in evaluation mode, and its canvases of pictures of several shapes."""
    if kind == "eve":
        model = eve(llm)
    else:
        fusion, fine = FUSIONS[kind]
        encoders = (
            EncoderSection(name="clip", spec="clip-tiny", weights="random"),
            EncoderSection(name="convnext", spec="convnext-tiny", weights="random", grid=fine),
        )
        section = model_section(llm, fusion=fusion, encoders=encoders)
        model = VisionLanguageModel.from_recipe(section, seed=0).train(mode=False)
    return model, model.fusion.processor(128).pixels(noise())


def made(model, numbers, canvases, *, packed):
    """Return the batch of some of the samples."""
    first = [sum(ids.count(PICTURE) for ids in SAMPLES[:number]) for number in range(len(SAMPLES))]
    samples, encoded, shown = [], [], []
    for number in numbers:
        ids = SAMPLES[number]
        here = range(first[number], first[number] + ids.count(PICTURE))
        refs = tuple(ImageRef("p", "s", 0, 0, "0" * 64, *SIZES[place]) for place in here)
        samples.append(Sample(f"s{number}", "train", "t", "", (), refs, (), "s", "CC0-1.0", ()))
        labels = (IGNORED,) * (len(ids) - 2) + ids[-2:]
        length = (
            len(ids) - len(refs) + sum(model.fusion.picture_tokens(*SIZES[place]) for place in here)
        )
        encoded.append(Encoded(np.array(ids), np.array(labels), length, len(refs), False))
        shown += [canvases[place] for place in here]
    return collate(samples, encoded, torch.stack(shown) if shown else None, packed=packed)


def losses(model, batch):
    """Return the sums of the losses over learned positions and over pictures."""
    means = both_losses(model(**model_inputs(batch, CPU, None)))
    return means * torch.tensor([batch.num_supervised, batch.num_images])


def gradient(model, total):
    model.zero_grad()
    total.sum().backward()
    zeros = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters()]
    return torch.cat([each.flatten() for each in zeros]).double()


def differ(first, second):
    return float(((first - second).detach().abs() / second.abs().clamp_min(1e-12)).max())


@pytest.mark.parametrize("kind", MODELS)
def test_packed_and_unpacked_losses_and_gradients_agree(llm, kind):
    model, canvases = build(llm, kind)
    model.train()
    numbers = range(len(SAMPLES))
    padded = losses(model, made(model, numbers, canvases, packed=False))
    expected = gradient(model, padded)
    whole = losses(model, made(model, numbers, canvases, packed=True))
    found = gradient(model, whole)
    assert differ(whole, padded) < 1e-5
    assert functional.cosine_similarity(found, expected, dim=0) > 0.999999
    # Two packs add up to the same, whatever is in which: text alone, several pictures.
    parts = [made(model, some, canvases, packed=True) for some in ([1, 3], [4, 0, 2])]
    together = [losses(model, part) for part in parts]
    assert differ(sum(together), padded) < 1e-5
    halves = sum(gradient(model, losses(model, part)) for part in parts)
    assert functional.cosine_similarity(halves, expected, dim=0) > 0.9999


@pytest.mark.parametrize("kind", MODELS)
def test_no_sample_of_a_pack_sees_another(llm, kind):
    model, canvases = build(llm, kind)
    batch = made(model, [0, 2, 4, 1], canvases, packed=True)
    other = canvases.clone()
    other[1:3] = 255 - other[1:3]
    changed = made(model, [0, 2, 4, 1], other, packed=True)
    changed.input_ids[0, 5:12][changed.input_ids[0, 5:12] > 2] = 11

    def logits(given):
        inputs = model_inputs(given, CPU, None)
        return model(**{**inputs, "labels": None}).logits[0].split(list(given.lengths))

    with torch.no_grad():
        before, after = logits(batch), logits(changed)
    for place in (0, 2, 3):
        assert (before[place] - after[place]).abs().max() <= 1e-6
    assert (before[1] - after[1]).abs().max() > 1e-3


def test_a_packs_row_has_no_padding_and_learns_no_first_position(llm):
    model, canvases = build(llm, "channel_concat")
    batch = made(model, [3, 1], canvases, packed=True)
    assert batch.input_ids.tolist() == [[8, 9, 1, 7, 8, 9, 10, 2]]
    assert batch.labels.tolist() == [[IGNORED, 9, *[IGNORED] * 4, 10, 2]]
    assert batch.attention_mask.tolist() == [[1] * 8]
    assert (batch.num_supervised, batch.lengths, batch.packed) == (3, (2, 6), True)


@pytest.mark.parametrize("packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("kind", MODELS)
def test_lengths_that_are_rounded_up_change_no_loss_and_no_gradient(llm, kind, packed):
    model, canvases = build(llm, kind)
    model.train()
    batch = made(model, range(len(SAMPLES)), canvases, packed=packed)
    exact = losses(model, batch)
    expected = gradient(model, exact)
    seen = []
    inside = model.llm.model.layers[0].register_forward_pre_hook(
        lambda _, given: seen.append(given[0].shape[1])
    )
    model.length_multiple = 64
    rounded = losses(model, batch)
    found = gradient(model, rounded)
    inside.remove()
    assert seen[0] % 64 == 0
    assert differ(rounded, exact) < 1e-5
    assert functional.cosine_similarity(found, expected, dim=0) > 0.999999
