"""What is measured of a step, what is recomputed, what is traced, and how states are written."""

import gzip
import json
import platform
import resource
import threading
from dataclasses import replace

import psutil
import pytest
import torch
from torch import nn
from training_kit import constant, make_codec, make_dataset, make_model, make_section, run

from manyeyes.data.loading.batches import BatchPlan, prepare
from manyeyes.data.loading.canvases import PixelCache
from manyeyes.data.loading.loader import BatchLoader
from manyeyes.errors import UserError
from manyeyes.model.processor import Processor
from manyeyes.runtime.progress import describe
from manyeyes.training import state_writer
from manyeyes.training.checkpoint import State, Totals, load_state
from manyeyes.training.freed_memory import freed_memory_kept
from manyeyes.training.freeze import apply_trainable, digest_tensors
from manyeyes.training.metering import Clock, Meter, Outcome, StepCounts
from manyeyes.training.peak import AGAIN, Peak, peak_of
from manyeyes.training.recompute import blocks_of, recomputing
from manyeyes.training.state_writer import StateWriter

SOURCES = {"colours": 3.0, "chat": 1.0}
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("speed") / "data")


def small(dropout=0.0):
    return make_model(experts=("clip",), dropout=dropout)


def batch_of(dataset):
    prepared = prepare(dataset, make_codec(), SOURCES)
    plan = BatchPlan.of(prepared, SOURCES, seed=0, micro_size=4, num_micro=1)
    processor = Processor(canvas_size=32)
    cache = PixelCache(dataset, lambda image: processor.pixels([image])[0])
    loader = BatchLoader(prepared, plan, cache, 0, 1)
    return next(b for b in map(loader.make_micro, plan.step(0)) if b.pixels is not None)


def test_the_measured_peak_is_a_rate_and_measured_once(monkeypatch):
    peak_of.cache_clear()
    first = peak_of(CPU, torch.float32)
    assert first.rate > 1e8
    monkeypatch.setattr(torch, "mm", None)
    assert peak_of(CPU, torch.float32) is first
    assert first.share_of(first.rate / 4) == 0.25


def test_a_peak_that_is_beaten_is_measured_again_and_no_share_is_above_one():
    measured = iter([3.0, 8.0, 5.0, 6.0, None])
    peak = Peak(lambda: next(measured))
    shares = [peak.share_of(rate) for rate in (1.5, 4.0, 8.0, 10.0, 5.0, 20.0, 40.0, 10.0)]
    # 4 beats 3: measured again, 8. Then 10 and 20 beat what is measured: they are the peak.
    assert shares == [0.5, 0.5, 1.0, 1.0, 0.5, 1.0, 1.0, 0.25]
    assert peak.rate == 40.0
    assert AGAIN == 3


def test_a_training_beside_others_never_tells_more_than_all(tmp_path, dataset, monkeypatch):
    """The measurement got a hundred thousandth of the machine, as beside other programs."""
    monkeypatch.setattr("manyeyes.training.peak.measured_peak", lambda *_: 1e4)
    peak_of.cache_clear()
    try:
        _, result = run(tmp_path, model=small(), dataset=dataset, section=make_section(steps=3))
        lines = (tmp_path / "out/measurements/metrics.jsonl").read_text().splitlines()
        told = [json.loads(line)["mfu_measured"] for line in lines]
        assert 0 < min(told) <= max(told) <= 1.0
        assert 0 < result.details()["utilisation"] <= 1.0
    finally:
        peak_of.cache_clear()


def test_the_utilisation_of_several_processes_is_that_of_one_device(tmp_path, dataset):
    _, result = run(tmp_path, model=small(), dataset=dataset, section=make_section(steps=1))
    two = replace(result, num_processes=2, peak=Peak(lambda: 1e15))
    one = replace(two, num_processes=1)
    assert two.utilisation == pytest.approx(one.utilisation / 2)


def test_a_row_tells_utilisation_against_what_was_measured(monkeypatch):
    monkeypatch.setattr("manyeyes.training.metering.peak_of", lambda *_: Peak(lambda: 1e9))
    meter = Meter(small(), make_section(), 32, world_size=2)
    counts = StepCounts(4, 40, 8, 3, (10, 10, 10, 10))
    outcome = Outcome(1, 2.0, None, 1e-3, 1.0, data_wait=0.5, seconds=2.0, pictures_read=1)
    flops = meter.flops(outcome, counts)
    row = meter.row(outcome, counts, Totals(seconds=2.0), Clock(CPU))
    assert row.mfu_measured == round(flops / 2 / 2.0 / 1e9, 5)
    assert row.data_wait_share == 0.25
    assert row.mfu is None  # no vendor names a peak of this CPU
    unread = Outcome(1, 2.0, None, 1e-3, 1.0, data_wait=0.5, seconds=2.0)
    saved = meter.flops(unread, counts) - flops
    assert saved == pytest.approx(sum(meter.cost.encoder_flops.values()))


LINES = [
    ({"utilisation": 0.414, "data_wait": 0.2}, "sft  5/10 steps  loss 1.500  10 tokens/s  MFU 41%  waits 20% for data  2 s left"),
    ({"utilisation": 0.414, "data_wait": 0.01}, "sft  5/10 steps  loss 1.500  10 tokens/s  MFU 41%  2 s left"),
    ({}, "sft  5/10 steps  loss 1.500  10 tokens/s  2 s left"),
]  # fmt: skip


@pytest.mark.parametrize(("more", "text"), LINES, ids=["waits", "does-not-wait", "older-line"])
def test_the_terminal_shows_utilisation_and_waiting(more, text):
    line = {"event": "step", "stage": "sft", "step": 5, "total": 10, "elapsed": 2.0}
    assert describe({**line, "loss": 1.5, "tokens_per_second": 10.0, **more}) == text


def gradients(dataset, what, patterns):
    model = small(dropout=0.2)
    apply_trainable(model, patterns)
    batch = batch_of(dataset)
    torch.manual_seed(3)
    kept = []
    with (
        recomputing(model, what),
        torch.autograd.graph.saved_tensors_hooks(
            lambda t: kept.append(t.numel()) or t, lambda t: t
        ),
    ):
        model(batch.input_ids, batch.attention_mask, batch.labels, batch.pixels).loss.backward()
    assert not any("forward" in vars(module) for module in model.modules())
    found = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    return found, sum(kept)


WHAT = [
    ("llm", ("*",)),
    ("encoders", ("*",)),
    ("all", ("*",)),
    ("llm", ("projector.*",)),  # a frozen language model, in evaluation mode, passes gradients on
]


@pytest.mark.parametrize(("what", "patterns"), WHAT, ids=["llm", "encoders", "all", "frozen-llm"])
def test_recomputation_keeps_less_and_changes_no_gradient(dataset, what, patterns):
    plain, kept = gradients(dataset, "none", patterns)
    again, kept_less = gradients(dataset, what, patterns)
    assert set(plain) == set(again)
    for name, value in plain.items():
        assert torch.equal(value, again[name]), name
    assert kept_less < kept


def test_blocks_are_the_members_of_the_outermost_lists():
    inner = nn.ModuleList([nn.Linear(1, 1)])
    block = nn.Module()
    block.inner = inner
    root = nn.Sequential(nn.Linear(1, 1), nn.ModuleList([block, block]))
    assert blocks_of(root) == [block, block]


def test_recomputation_does_not_make_it_another_run(tmp_path, dataset):
    first, _ = run(tmp_path, model=small(), dataset=dataset, section=make_section(steps=2))
    section = make_section(steps=2, recompute="all")
    second, result = run(tmp_path, model=small(), dataset=dataset, section=section)
    assert result.resumed_step == 2
    assert digest_tensors(first.named_parameters()) == digest_tensors(second.named_parameters())


def test_a_trace_of_the_steps_asked_for_is_written(tmp_path, dataset, monkeypatch):
    monkeypatch.setenv("MANYEYES_PROFILE", "2-3")
    run(tmp_path, model=small(), dataset=dataset, section=make_section(steps=4))
    path = tmp_path / "out" / "measurements" / "trace-steps-2-3.json.gz"
    events = json.loads(gzip.decompress(path.read_bytes()))["traceEvents"]
    assert any(event.get("name") == "aten::addmm" for event in events)


@pytest.mark.parametrize("text", ["3", "0-2", "5-3", "all"])
def test_steps_to_trace_are_two_numbers(tmp_path, dataset, monkeypatch, text):
    monkeypatch.setenv("MANYEYES_PROFILE", text)
    with pytest.raises(UserError) as caught:
        run(tmp_path, model=small(), dataset=dataset, section=make_section(steps=1))
    assert str(caught.value) == (
        f"MANYEYES_PROFILE is {text!r}; it names the first and the last step to trace, like 3-5."
    )


def test_a_finished_stage_tells_its_utilisation(tmp_path, dataset):
    section = make_section(steps=2, schedule=constant())
    _, result = run(tmp_path, model=small(), dataset=dataset, section=section)
    facts = result.details()
    assert facts["measured_peak_flops"] > 1e8
    assert facts["utilisation"] == round(
        facts["flops"] / result.totals.seconds / result.peak.rate, 4
    )


def state(step, value):
    return State(step, Totals(), {"w": value}, {"exp_avg/w": value})


class Notes:
    def note(self, text):
        raise AssertionError(text)


def test_a_state_that_is_written_beside_training_is_that_of_its_step(tmp_path, monkeypatch):
    go = threading.Event()
    save = state_writer.save_state
    monkeypatch.setattr(state_writer, "save_state", lambda *given: go.wait(600) and save(*given))
    writer = StateWriter(tmp_path, "same", beside=True)
    value = torch.ones(3)
    writer.save(state(1, value))
    value.fill_(2.0)  # training goes on
    assert not (tmp_path / "state" / "step-1").exists()
    go.set()
    writer.wait()
    assert torch.equal(load_state(tmp_path, "same", Notes()).weights["w"], torch.ones(3))


def test_what_went_wrong_beside_training_comes_out_at_the_next_state(tmp_path):
    (tmp_path / "state").write_text("in the way")
    writer = StateWriter(tmp_path, "same", beside=True)
    writer.save(state(1, torch.ones(3)))
    with pytest.raises(Exception, match="the state of step 1 cannot be written"):
        writer.save(state(2, torch.ones(3)))
    writer.wait()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="only glibc can be told")
def test_a_training_step_gets_the_memory_of_the_step_before_and_hands_it_back_in_the_end():
    def step():
        """Use 128 MiB and free them; return how many pages were new."""
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        blocks = [torch.ones(4 * 2**20) for _ in range(8)]
        del blocks
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

    with freed_memory_kept():
        # Of 32,768. A block may find its place taken a few times, until the heap is large enough.
        assert min(step() for _ in range(6)) < 1000
        kept = psutil.Process().memory_info().rss
    assert psutil.Process().memory_info().rss < kept - 100 * 2**20
