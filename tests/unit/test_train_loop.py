"""Training as a whole, with the real model at its smallest."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from training_kit import (
    constant,
    make_codec,
    make_dataset,
    make_model,
    make_section,
    run,
)

from manyeyes.config.recipe import Batch
from manyeyes.data.loading.batches import BatchPlan, prepare
from manyeyes.errors import Interrupted, ManyeyesError, UserError
from manyeyes.runtime.progress import PROGRESS_FILE, Progress
from manyeyes.training import checkpoint
from manyeyes.training.freeze import digest_frozen, digest_tensors
from manyeyes.training.loop import Run
from manyeyes.training.metering import StepCounts
from manyeyes.training.work import Work

SOURCES = {"colours": 3.0, "chat": 1.0}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("training") / "data")


def small(seed=0):
    return make_model(seed, experts=("clip",))


def rows(folder):
    text = (folder / "out" / "measurements" / "metrics.jsonl").read_text()
    return [json.loads(line) for line in text.splitlines()]


def weights(model):
    return {name: value.detach().clone() for name, value in model.named_parameters()}


def notes_of(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line["text"] for line in lines if line["event"] == "note"]


def test_training_learns_and_measures_every_step(tmp_path, dataset):
    section = make_section(steps=30, schedule=constant(), learning_rate=3e-3)
    _, result = run(tmp_path, model=small(), dataset=dataset, section=section)
    curve = rows(tmp_path)
    assert [row["step"] for row in curve] == list(range(1, 31))
    assert result.loss < 0.6 * curve[0]["loss"]
    assert result.loss == pytest.approx(sum(row["loss"] for row in curve[-3:]) / 3)
    assert result.totals.samples == 120
    assert result.totals.tokens == sum(row["tokens"] for row in curve)
    assert result.processor.canvas_size == 32
    assert all(row["flops"] > 0 and row["peak_memory"] > 0 for row in curve)
    assert [row["elapsed"] for row in curve] == sorted(row["elapsed"] for row in curve)


STAGES = [
    (("encoders.clip.*", "projector.*"), {"encoders.clip", "projector.0", "projector.2"}),
    (("projector.*",), {"projector.0", "projector.2"}),
    (("llm.*",), {"llm.model", "llm.lm_head"}),
]


@pytest.mark.parametrize(("patterns", "moved"), STAGES)
def test_frozen_means_frozen(tmp_path, dataset, patterns, moved):
    model = make_model(experts=("clip", "convnext"))
    before = weights(model)
    section = make_section(steps=3, train=patterns, schedule=constant())
    model, _ = run(tmp_path, model=model, dataset=dataset, section=section)
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    after = weights(model)
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert {".".join(name.split(".")[:2]) for name in changed} == moved
    assert not changed & frozen
    assert digest_tensors((n, before[n]) for n in before if n in frozen) == digest_frozen(model)
    assert all(p.grad is None for n, p in model.named_parameters() if n in frozen)


def make_run(tmp_path, model, section):
    from manyeyes.runtime.progress import Progress
    from manyeyes.training.freeze import apply_trainable

    apply_trainable(model, section.train)
    return Run(model, section, 0, tmp_path, Progress("test"), 32)


def batches_of(dataset, micro_size, num_micro):
    from manyeyes.data.loading.canvases import PixelCache
    from manyeyes.data.loading.loader import BatchLoader
    from manyeyes.model.processor import Processor

    prepared = prepare(dataset, make_codec(), SOURCES)
    plan = BatchPlan.of(prepared, SOURCES, seed=0, micro_size=micro_size, num_micro=num_micro)
    processor = Processor(canvas_size=32)
    cache = PixelCache(dataset, lambda image: processor.pixels([image])[0])
    return BatchLoader(prepared, plan, cache, 0, 1)


def test_loss_and_gradient_do_not_depend_on_how_a_step_is_cut(tmp_path, dataset):
    """Answers of 2 to 7 tokens: a mean of means would differ by several percent."""
    loader = batches_of(dataset, 8, 1)
    whole = loader.plan.step(0)[0]
    cuts = [[whole], [whole[:4], whole[4:]], [whole[:1], whole[1:3], whole[3:]]]
    gradients, losses = [], []
    for cut in cuts:
        a_run = make_run(tmp_path, small(), make_section())
        places = tuple(range(len(cut)))
        counts = StepCounts.of(loader.prepared, cut)
        work = Work(tuple(cut), (places,), 0, (False,) * len(cut), counts)
        losses.append(
            sum(a_run.accumulate(0, work, [*map(loader.make_micro, cut)], loader)[0].text)
        )
        named = a_run.engine.parameters.items()
        gradients.append({n: p.grad.clone() for n, p in named if p.grad is not None})
    for loss, gradient in zip(losses[1:], gradients[1:], strict=True):
        assert loss == pytest.approx(losses[0], rel=1e-5)
        assert set(gradient) == set(gradients[0])
        for name, value in gradient.items():
            torch.testing.assert_close(value, gradients[0][name], rtol=1e-3, atol=1e-6)


def test_counted_positions_are_those_the_model_learns(tmp_path, dataset):
    model = small()
    loader = batches_of(dataset, 8, 3)
    for indices, batch in zip(loader.plan.step(0), loader.make(0), strict=True):
        counts = StepCounts.of(loader.prepared, [indices])
        assert counts.supervised == batch.num_supervised
        assert counts.tokens == batch.num_tokens
        assert counts.images == (0 if batch.pixels is None else len(batch.pixels))
        output = model(batch.input_ids, batch.attention_mask, batch.labels, batch.pixels)
        assert int(output.num_supervised) == batch.num_supervised
        assert int(output.attention_mask.sum()) == batch.num_tokens


def test_a_batch_of_text_gives_a_projector_nothing_to_learn(tmp_path, dataset):
    section = make_section(steps=2, train=("projector.*",), sources={"chat": 1.0})
    model = small()
    before = weights(model)
    model, _ = run(tmp_path, model=model, dataset=dataset, section=section)
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(tmp_path, dataset):
    section = make_section(steps=3)
    first, _ = run(tmp_path / "a", model=small(), dataset=dataset, section=section, seed=1)
    second, _ = run(tmp_path / "b", model=small(), dataset=dataset, section=section, seed=1)
    third, _ = run(tmp_path / "c", model=small(), dataset=dataset, section=section, seed=2)
    digests = [digest_tensors(m.named_parameters()) for m in (first, second, third)]
    assert digests[0] == digests[1] != digests[2]


def test_gradients_are_clipped_and_reported_unclipped(tmp_path, dataset):
    section = make_section(steps=1, gradient_clipping=1e-9, schedule=constant(), weight_decay=0.0)
    model = small()
    run(tmp_path, model=model, dataset=dataset, section=section)
    assert rows(tmp_path)[0]["grad_norm"] > 0.1


def test_bfloat16_keeps_float32_weights(tmp_path, dataset):
    section = make_section(steps=2, precision="bfloat16")
    model, result = run(tmp_path, model=small(), dataset=dataset, section=section)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert result.loss > 0


@pytest.mark.parametrize(
    ("precision", "supported", "warned"),
    [("bfloat16", False, True), ("bfloat16", True, False), ("float32", False, False)],
)
def test_a_precision_the_processor_only_emulates_is_noted(
    tmp_path, dataset, monkeypatch, precision, supported, warned
):
    progress = tmp_path / "progress.jsonl"
    progress.touch()
    monkeypatch.setenv(PROGRESS_FILE, str(progress))
    monkeypatch.setattr("manyeyes.training.loop.has_bfloat16", lambda _: supported)
    section = make_section(steps=1, precision=precision)
    run(tmp_path, model=small(), dataset=dataset, section=section)
    text = (
        "this processor has no bfloat16 arithmetic, so a step takes about ten times as long; "
        "precision: float32 is faster here"
    )
    assert notes_of(progress) == ([text] if warned else [])


def test_a_loss_that_is_not_finite_stops_before_any_weight_changes(tmp_path, dataset):
    model = small()
    with torch.no_grad():
        model.projector[0].weight.fill_(float("nan"))
    before = weights(model)
    with pytest.raises(ManyeyesError) as caught:
        run(tmp_path, model=model, dataset=dataset, section=make_section(sources={"colours": 1.0}))
    path = tmp_path / "out" / "measurements" / "failed-step.json"
    failed = json.loads(path.read_text())
    shown = ", ".join(failed["samples"][:3])
    assert str(caught.value) == (
        f"The loss became nan at step 1 on the samples {shown} and 1 more (all in {path}); "
        "lower the learning rate, or look at these samples."
    )
    assert failed["step"] == 1
    assert len(failed["samples"]) == 4
    assert torch.equal(before["llm.lm_head.weight"], model.llm.lm_head.weight)
    assert not (tmp_path / "out" / "state").exists()


def test_a_pattern_that_matches_nothing_is_refused(tmp_path, dataset):
    with pytest.raises(UserError) as caught:
        run(tmp_path, model=small(), dataset=dataset, section=make_section(train=("projecter.*",)))
    assert str(caught.value) == (
        "train: the pattern 'projecter.*' matches no parameter; did you mean 'projector.*'? "
        "The model has encoders.*, llm.*, projector.*."
    )


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_and_the_same_call_ends_as_if_never_stopped(tmp_path, dataset, number):
    section = make_section(steps=8, checkpoint_every=100)
    whole, _ = run(tmp_path / "whole", model=small(), dataset=dataset, section=section)

    class SignalAtTwo(Progress):
        def step(self, step, total, **facts):
            if step == 2:
                os.kill(os.getpid(), number)

    handlers = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Interrupted) as caught:
        run(
            tmp_path / "cut",
            model=small(),
            dataset=dataset,
            section=section,
            progress=SignalAtTwo("test"),
        )
    assert str(caught.value) == (
        f"Stopped by {number.name} after step 2 of 8; the state is saved and the same command "
        "continues from there."
    )
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == handlers
    again, result = run(tmp_path / "cut", model=small(), dataset=dataset, section=section)
    assert result.resumed_step == 2
    assert digest_tensors(again.named_parameters()) == digest_tensors(whole.named_parameters())
    losses = [[row["loss"] for row in rows(tmp_path / name)] for name in ("whole", "cut")]
    assert losses[0] == losses[1]


def test_a_finished_run_that_is_called_again_trains_nothing(tmp_path, dataset, monkeypatch):
    section = make_section(steps=4)
    first, _ = run(tmp_path, model=small(), dataset=dataset, section=section)
    monkeypatch.setattr(Run, "step", None)
    second, result = run(tmp_path, model=small(), dataset=dataset, section=section)
    assert result.resumed_step == 4
    assert digest_tensors(first.named_parameters()) == digest_tensors(second.named_parameters())


@pytest.mark.parametrize("change", ["section", "seed", "model"])
def test_a_state_of_another_run_is_not_continued(tmp_path, dataset, monkeypatch, change):
    monkeypatch.setenv(PROGRESS_FILE, str(tmp_path / "progress.jsonl"))
    run(tmp_path, model=small(), dataset=dataset, section=make_section(steps=2), seed=1)
    _, result = run(
        tmp_path,
        model=small(seed=9 if change == "model" else 0),
        dataset=dataset,
        section=make_section(steps=2, learning_rate=2e-3 if change == "section" else 1e-3),
        seed=2 if change == "seed" else 1,
    )
    assert result.resumed_step == 0
    assert notes_of(tmp_path / "progress.jsonl") == [
        "step-2 belongs to other settings or inputs; it is not continued"
    ]
    assert [row["step"] for row in rows(tmp_path)] == [1, 2]


def test_how_often_states_are_saved_does_not_make_it_another_run(tmp_path, dataset):
    run(tmp_path, model=small(), dataset=dataset, section=make_section(steps=2))
    section = make_section(steps=2, checkpoint_every=1)
    _, result = run(tmp_path, model=small(), dataset=dataset, section=section)
    assert result.resumed_step == 2


def test_global_batch_is_reached_by_accumulation(tmp_path, dataset):
    section = make_section(steps=2, batch=Batch(size=8, per_device=2, accumulation=4))
    _, result = run(tmp_path, model=small(), dataset=dataset, section=section)
    assert result.totals.samples == 16


def test_a_full_disk_costs_the_new_state_and_not_the_old(tmp_path, dataset, monkeypatch):
    section = make_section(steps=6, checkpoint_every=2)
    whole, _ = run(tmp_path / "whole", model=small(), dataset=dataset, section=section)
    write = checkpoint.save_file

    def disk_full(tensors, path):
        if "step-4" in str(path):
            Path(path).write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        write(tensors, path)

    monkeypatch.setattr(checkpoint, "save_file", disk_full)
    with pytest.raises(ManyeyesError) as caught:
        run(tmp_path / "cut", model=small(), dataset=dataset, section=section)
    state = tmp_path / "cut" / "out" / "state"
    assert str(caught.value) == (
        f"There is no room to write {state} (No space left on device): free some space and run the "
        "same command again; what was finished is kept."
    )
    assert [path.name for path in state.iterdir()] == ["step-2"]
    monkeypatch.setattr(checkpoint, "save_file", write)
    again, result = run(tmp_path / "cut", model=small(), dataset=dataset, section=section)
    assert result.resumed_step == 2
    assert digest_tensors(again.named_parameters()) == digest_tensors(whole.named_parameters())


def test_what_is_kept_of_a_failed_step_goes_when_the_stage_succeeds(tmp_path, dataset):
    broken = small()
    with torch.no_grad():
        broken.projector[0].weight.fill_(float("nan"))
    section = make_section(steps=2, sources={"colours": 1.0})
    with pytest.raises(ManyeyesError):
        run(tmp_path, model=broken, dataset=dataset, section=section)
    kept = tmp_path / "out" / "measurements" / "failed-step"
    assert load_file(kept / "batch-0.safetensors")["pixels"].shape == (4, 3, 32, 32)
    weights = load_file(kept / "state" / "step-0" / "weights.safetensors")
    assert weights["projector.0.weight"].isnan().all()
    run(tmp_path, model=small(), dataset=dataset, section=section)
    assert not kept.exists()
    assert not kept.with_suffix(".json").exists()
