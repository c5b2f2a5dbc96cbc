"""The counted operations of the baseline are the product's and what is not needed on top."""

from dataclasses import replace

import pytest

from benchmarks import operations
from benchmarks.baseline.method import AUTHORS, TUNED
from benchmarks.shapes import Shape
from benchmarks.stages import PRETRAIN, SFT_TEXT, Bench, Scale
from manyeyes.training.cost import cost_of
from manyeyes.training.flops import language_model_flops
from manyeyes.training.freeze import apply_trainable

TINY = Shape(vocabulary=64, width=32, layers=2, mlp=64, heads=2, key_heads=2, tower_depth=1)


@pytest.fixture(scope="module", params=[PRETRAIN, SFT_TEXT], ids=["pretrain", "sft"])
def bench(request, tmp_path_factory):
    made = Bench(request.param, TINY, Scale(8, 4, 1), tmp_path_factory.mktemp("bench"))
    apply_trainable(made.model, made.section.train)
    return made


def towers(bench):
    return sum(cost_of(bench.model, bench.workload.canvas_size).encoder_flops.values())


def test_recomputation_is_one_more_forward_of_what_passes_gradients_on(bench):
    encoded = bench.workload.prepared.encoded
    order = operations.order_of(AUTHORS, bench.workload.prepared, 4, operations.SEED)
    longest = [int(encoded.lengths[order[i : i + 4]].max()) for i in (0, 4)]
    cost = cost_of(bench.model, bench.workload.canvas_size)
    expected = 4 * sum(language_model_flops(cost, length) for length in longest)
    if bench.stage is SFT_TEXT:  # its towers train; each of the 8 rows sends a picture through them
        expected += 8 * towers(bench)
    without = operations.baseline(bench, replace(AUTHORS, recompute=False))
    assert operations.baseline(bench, AUTHORS) - without == pytest.approx(expected)


def test_a_row_without_a_picture_costs_the_authors_one(bench):
    num_text = int((bench.workload.prepared.encoded.num_images == 0).sum())
    assert num_text == (4 if bench.stage is SFT_TEXT else 0)
    real = operations.baseline(bench, replace(TUNED, blank_pictures=False))
    difference = operations.baseline(bench, TUNED) - real
    assert difference >= 3 * num_text * towers(bench)
    assert (difference > 0) == (num_text > 0)


def test_kept_features_spare_the_frozen_towers_only(bench):
    spared = operations.product(bench) - operations.product(bench, kept=True)
    expected = 8 * towers(bench) if bench.stage is PRETRAIN else 0
    assert spared == pytest.approx(expected)


def test_a_line_tells_both_ratios_and_the_target(bench):
    first, *_ = operations.rows_of(bench)
    name, shipped, tuned, target = first
    assert name == bench.title
    assert float(shipped) > float(tuned) > 1.0
    assert float(target) == bench.stage.target
