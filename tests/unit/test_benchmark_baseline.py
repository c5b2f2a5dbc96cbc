"""The LLaVA-style trainer against the product on a tiny model: the same loss, the authors' cost."""

import copy
import os
from statistics import fmean

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

from benchmarks import arithmetic, cached, data_path, ours, parity
from benchmarks.baseline import conversation, trainer
from benchmarks.baseline.method import AUTHORS, TUNED, ladder
from benchmarks.baseline.model import PaddedModel
from benchmarks.results import Findings
from benchmarks.shapes import Shape
from benchmarks.stages import PREALIGN, PRETRAIN, SFT, Bench, Scale
from manyeyes.data.loading.conversation import Codec
from manyeyes.errors import ManyeyesError
from manyeyes.model.last_layer import single_position_parts
from manyeyes.model.transformer import decoder_of, load_tokenizer
from manyeyes.plan.ledger import Ledger
from manyeyes.training.freeze import apply_trainable

TINY = Shape(vocabulary=64, width=32, layers=2, mlp=64, heads=2, key_heads=2, tower_depth=1)
SCALE = Scale(samples=8, batch_size=4, rounds=1)


@pytest.fixture(scope="module")
def sft(tmp_path_factory):
    return Bench(SFT, TINY, SCALE, tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="module")
def pretrain(tmp_path_factory):
    return Bench(PRETRAIN, TINY, SCALE, tmp_path_factory.mktemp("pretrain"))


def test_every_way_to_train_computes_what_the_engine_computes(sft):
    sft.require_parity(dict(ladder()))


def test_parity_holds_where_the_language_model_is_frozen(pretrain, tmp_path):
    pretrain.require_parity({"shipped": AUTHORS, "tuned": TUNED})
    Bench(PREALIGN, TINY, SCALE, tmp_path).require_parity({"shipped": AUTHORS})


def test_a_baseline_that_learns_other_tokens_is_refused(sft, monkeypatch):
    right = PaddedModel.rows

    def wrong(self, *arguments):
        rows = right(self, *arguments)
        return [(embeddings, labels.roll(1)) for embeddings, labels in rows]

    monkeypatch.setattr(PaddedModel, "rows", wrong)
    with pytest.raises(ManyeyesError, match="do not compute the same training"):
        sft.require_parity({"shipped": AUTHORS})


def test_a_baseline_that_trains_less_is_refused(sft):
    section = sft.section.model_copy(update={"train": ("projector.*",)})
    _, gradients = ours.loss_and_gradients(copy.deepcopy(sft.model), sft.workload, section, [0, 7])
    _, whole = ours.loss_and_gradients(copy.deepcopy(sft.model), sft.workload, sft.section, [0, 7])
    cosine, norm = parity._compare(gradients, whole)
    with pytest.raises(ManyeyesError, match="no speed is counted"):
        parity.require("sft", parity.Parity(0.0, cosine, norm), parity.FLOAT32)


@pytest.mark.parametrize(("method", "times"), [(AUTHORS, 2), (TUNED, 1)], ids=["shipped", "tuned"])
def test_a_frozen_language_model_is_recomputed_as_shipped(pretrain, method, times):
    model = copy.deepcopy(pretrain.model)
    apply_trainable(model, pretrain.section.train)
    padded = PaddedModel(model, method).train()
    calls = []
    layer = decoder_of(model.llm).layers[0].mlp
    layer.register_forward_pre_hook(lambda *_: calls.append(1))
    samples = trainer.Samples(pretrain.workload, blank_pictures=True)
    padded(**trainer.collate([samples[0], samples[1]]))["loss"].backward()
    assert len(calls) == times


@pytest.mark.parametrize(("blank", "num"), [(True, 4), (False, 2)], ids=["shipped", "without"])
def test_a_row_of_text_sends_a_black_picture_along_as_shipped(sft, blank, num):
    samples = trainer.Samples(sft.workload, blank_pictures=blank)
    texts = [i for i, e in enumerate(sft.workload.prepared.encoded) if not e.num_images]
    shown = [i for i, e in enumerate(sft.workload.prepared.encoded) if e.num_images]
    indices = [texts[0], texts[1], shown[0], shown[1]]
    batch = trainer.collate([samples[index] for index in indices])
    assert batch["images"].shape == (num, 3, 128, 128)
    assert batch["images"].dtype == torch.float32
    assert bool(batch["images"][0].any()) is not blank


def test_both_sides_train_each_sample_once(sft, monkeypatch):
    monkeypatch.setattr(trainer, "NUM_WORKERS", 0)
    mine, theirs = sft.product(), sft.baseline(AUTHORS)
    assert fmean(mine.losses) == pytest.approx(fmean(theirs.losses), rel=0.02)
    order = trainer.order_of(AUTHORS, sft.workload.prepared, 4, 1)
    assert sorted(order) == list(range(8))
    assert min(mine.seconds, theirs.seconds) > 0


@pytest.mark.parametrize("stage", ["sft", "pretrain"])
def test_in_the_same_order_every_step_has_the_same_loss(stage, request, monkeypatch, tmp_path):
    monkeypatch.setattr(trainer, "NUM_WORKERS", 0)
    bench = request.getfixturevalue(stage)
    order = ours.order_of(bench.workload, bench.section, seed=1)
    model = copy.deepcopy(bench.model)
    apply_trainable(model, bench.section.train)
    theirs = trainer.train_epoch(
        model, bench.workload, bench.section, AUTHORS, tmp_path, 1, order=order
    )
    mine = bench.product()
    assert len(mine.losses) == 2
    assert mine.losses == pytest.approx(theirs.losses, rel=1e-4)


def test_kept_features_are_measured_warm_and_cold(pretrain, monkeypatch):
    monkeypatch.setattr(trainer, "NUM_WORKERS", 0)
    findings = Findings()
    cached.measure(pretrain, findings)
    assert [(row.name.split(", vocabulary")[0], row.against) for row in findings.rows] == [
        ("pretrain, features kept", "LLaVA-style trainer"),
        ("pretrain, features kept", "the same, tuned"),
        ("pretrain, keeping features", "keeping nothing"),
    ]


def test_a_ledger_counts_what_lives_at_once():
    with Ledger() as counter:
        first = torch.zeros(100)
        view = first[:50]
        second = first + 1.0
        del first, view
        third = second * 2.0
        del second, third
    assert counter.peak == 800
    assert counter.alive == 0


def test_the_loss_on_learned_positions_needs_less_memory():
    assert arithmetic.loss_memory_row(512, 0.15, length=32).spread.ratio > 3.0


def test_the_needed_operations_are_those_of_the_language_model():
    load = arithmetic.Load(shape=TINY, rows=2, length=8)
    model = ours_of(load)
    parameters = sum(p.numel() for p in decoder_of(model.llm).layers.parameters())
    parameters += decoder_of(model.llm).norm.weight.numel()
    forward = 2 * (2 * parameters * 8 + 2 * 2 * 32 * 8**2) + 2 * 14 * 64 * 32
    # Of each row's last position, which predicts nothing, the last layer makes keys and values only.
    left_out = single_position_parts(decoder_of(model.llm))
    forward -= 2 * 2 * sum(p.numel() for part in left_out for p in part.parameters())
    assert arithmetic.needed_flops(model, load) == 3 * forward


def ours_of(load):
    from benchmarks.shapes import build_model

    model = build_model(load.shape, experts=("clip",))
    apply_trainable(model, ("llm.*",))
    return model


def test_three_passes_learn_the_same_tokens():
    samples = data_path.conversations(4)
    tokenizer = load_tokenizer(data_path.TOKENIZER)
    codec = Codec(tokenizer, "plain_chat", 1 << 20, 1)
    for sample, encoded in zip(samples, codec.encode_all(samples), strict=True):
        _, labels = conversation.encode(sample, tokenizer, str(tokenizer.eos_token))
        assert [i for i in labels if i >= 0] == [i for i in encoded.labels if i >= 0]
