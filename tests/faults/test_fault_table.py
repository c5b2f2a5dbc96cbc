"""Faults that only a running training can meet, one after the other.

docs/training.md lists all faults with the test of each; here are those that have none elsewhere.
"""

import errno
import itertools
import json
import os
import resource
import threading
import time

import pytest
import torch
from s3_kit import fake_s3
from training_kit import make_dataset, make_model, make_section, run

from manyeyes.artifact.files import CURVES_FILE
from manyeyes.data.loading.canvases import PixelCache
from manyeyes.errors import ManyeyesError, UserError
from manyeyes.runtime.progress import Progress
from manyeyes.store import open_store
from manyeyes.store.keeping import keeper, kept
from manyeyes.training.freeze import digest_tensors

pytestmark = [pytest.mark.faults, pytest.mark.xdist_group("fault-table")]
STEPS, EVERY = 10, 4
SECTION = make_section(steps=STEPS, checkpoint_every=EVERY, sources={"colours": 1.0})


class Misfortune(Progress):
    """Progress that does something when a step is done."""

    def __init__(self, at, deed):
        super().__init__("test")
        self.at, self.deed = at, deed

    def step(self, step, total, **facts):
        if step == self.at:
            self.deed()


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data"))


def model():
    return make_model(experts=("clip",))


def rows(folder):
    return [json.loads(line) for line in (folder / "out" / CURVES_FILE).read_text().splitlines()]


def train(folder, dataset, **options):
    """Train and return (digest of the weights, losses, where it began)."""
    options = {"model": model(), "dataset": dataset, "section": SECTION, **options}
    trained, result = run(folder, **options)
    digest = digest_tensors(trained.named_parameters())
    return digest, [row["loss"] for row in rows(folder)], result.resumed_step


@pytest.fixture(scope="module")
def calm(dataset, tmp_path_factory):
    """What comes out where nothing goes wrong: digest and losses."""
    return train(tmp_path_factory.mktemp("calm"), dataset)[:2]


def states(folder):
    return sorted(path.name for path in (folder / "out" / "state").iterdir())


def test_a_limit_that_the_state_outgrows_costs_the_new_state_and_not_the_old(
    tmp_path, dataset, calm
):
    """A real refusal of the system, in the middle of a file that a library writes."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, limits[1]))

    try:
        with pytest.raises(UserError) as caught:
            train(tmp_path, dataset, progress=Misfortune(EVERY + 1, limit))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert str(caught.value) == (
        f"There is no room to write {tmp_path / 'out' / 'state'} ({os.strerror(errno.EFBIG)}): "
        "raise the limit (ulimit -f) and run the same command again; what was finished is kept."
    )
    assert states(tmp_path) == [f"step-{EVERY}"]
    assert train(tmp_path, dataset) == (*calm, EVERY)


POISONED = [
    pytest.param("projector.0.weight", "loss", "nan", id="loss"),
    pytest.param("gradient", "gradient", "inf", id="gradient"),
]


@pytest.mark.parametrize(("where", "what", "value"), POISONED)
def test_what_is_not_finite_at_a_known_step_stops_there_and_keeps_the_evidence(
    tmp_path, dataset, calm, where, what, value
):
    broken = model()

    def poison():
        if where == "gradient":
            weight = broken.projector[0].weight
            weight.register_hook(lambda gradient: torch.full_like(gradient, float("inf")))
        else:
            with torch.no_grad():
                dict(broken.named_parameters())[where].fill_(float("nan"))

    with pytest.raises(ManyeyesError) as caught:
        train(tmp_path, dataset, model=broken, progress=Misfortune(6, poison))
    measurements = tmp_path / "out" / "measurements"
    failed = json.loads((measurements / "failed-step.json").read_text())
    assert (failed["step"], failed[what], len(failed["samples"])) == (7, value, 4)
    assert str(caught.value) == (
        f"The {what} became {value} at step 7 on the samples {', '.join(failed['samples'][:3])} "
        f"and 1 more (all in {measurements / 'failed-step.json'}); lower the learning rate, or "
        "look at these samples."
    )
    evidence = {path.name for path in (measurements / "failed-step").iterdir()}
    assert evidence == {"batch-0.safetensors", "state"}
    assert states(tmp_path) == [f"step-{EVERY}"]
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert train(tmp_path, dataset) == (*calm, EVERY)
    assert not (measurements / "failed-step.json").exists()


@pytest.mark.parametrize(
    "error", [UserError("The picture is gone."), MemoryError("no more")], ids=["known", "unknown"]
)
def test_a_worker_that_fails_ends_the_training_at_the_step_it_worked_for(
    tmp_path, dataset, calm, monkeypatch, error
):
    """The thread that makes batches is ahead; the steps before the broken one are still done."""
    get, asked = PixelCache.get, itertools.count(1)

    def failing(self, refs):
        assert threading.current_thread().name == "batches"
        if next(asked) == 7:  # one micro-batch a step
            raise error
        return get(self, refs)

    with monkeypatch.context() as patch:
        patch.setattr(PixelCache, "get", failing)
        with pytest.raises(type(error)) as caught:
            train(tmp_path, dataset)
    assert caught.value is error
    assert [row["step"] for row in rows(tmp_path)] == [1, 2, 3, 4, 5, 6]
    assert not [thread for thread in threading.enumerate() if thread.name == "batches"]
    assert train(tmp_path, dataset) == (*calm, EVERY)


JUMPS = {"back": (0.0, -86400.0), "forth": (0.0, 86400.0), "to and fro": (3e9, 0.0, -1e6)}


@pytest.mark.parametrize("jumps", JUMPS.values(), ids=JUMPS)
def test_a_clock_that_jumps_changes_neither_order_nor_durations(
    tmp_path, dataset, calm, monkeypatch, jumps
):
    """Every look at the clock finds another day; the run is also stopped and continued."""
    now, jump = time.time, itertools.cycle(jumps)
    monkeypatch.setattr(time, "time", lambda: now() + next(jump))

    def fail():
        raise UserError("Stopped here.")

    began = time.monotonic()
    with pytest.raises(UserError):
        train(tmp_path, dataset, progress=Misfortune(9, fail))
    assert states(tmp_path) == ["step-4", "step-8"]
    assert train(tmp_path, dataset) == (*calm, 8)
    elapsed = [row["elapsed"] for row in rows(tmp_path)]
    assert elapsed == sorted(elapsed)
    assert 0 < elapsed[-1] < time.monotonic() - began


def test_a_slow_store_does_not_slow_the_training(tmp_path, dataset, calm, monkeypatch):
    """Not one upload is answered before the last step: states wait, steps do not."""
    monkeypatch.setattr("manyeyes.store.keeping.WATCH_SECONDS", 0.01)
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("MANYEYES_STORE", "s3://team/store")
    with fake_s3() as s3:
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        states_kept = keeper(open_store(), "a" * 64)
        s3.fail("PUT", "/state/", "slow", times=10**6)
        with kept(states_kept, tmp_path / "out"):
            assert s3.count("PUT") == 0
            found = train(tmp_path, dataset, progress=Misfortune(EVERY + 1, s3.arrived.wait))
            assert found == (*calm, 0)
            assert s3.count("PUT", "/state/") == 1
            assert s3.objects == {}
            s3.released.set()
        states_kept.send_newest(tmp_path / "out")
        assert [key for key in s3.objects if key.endswith(f"/step-{STEPS}.json")]
        assert keeper(open_store(), "a" * 64).bring(tmp_path / "elsewhere") == STEPS
