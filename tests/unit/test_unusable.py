"""Pictures that go bad while a stage trains: left out, counted, told, and limited."""

import json

import pytest
import torch
from training_kit import make_codec, make_dataset, make_section, run

from manyeyes.artifact.files import UNUSABLE_FILE
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.loading.batches import BatchPlan, prepare
from manyeyes.data.loading.canvases import PixelCache
from manyeyes.data.loading.loader import BatchLoader
from manyeyes.errors import Interrupted, UserError
from manyeyes.model.processor import Processor
from manyeyes.runtime.progress import Progress
from manyeyes.training import loop
from manyeyes.training.losses import shares_of
from manyeyes.training.metering import StepCounts
from manyeyes.training.unusable import Quarantine

CUT = "s22"
"""The first sample whose picture lies behind the end of the shard once it is cut."""


@pytest.fixture
def damaged(tmp_path):
    """Return a dataset of 30 samples whose shard ends before the last two pictures."""
    dataset = make_dataset(tmp_path / "data")
    refs = {sample.id: sample.images[0] for sample in dataset.samples() if sample.images}
    shard = tmp_path / "data" / "shards" / refs[CUT].shard
    with shard.open("r+b") as file:
        file.truncate(refs[CUT].offset + 5)
    return Dataset.open(tmp_path / "data")


def detail(folder, name):
    number = name.removeprefix("s")
    return (
        f"picture-{number} in {folder}/data/shards/images-00000.tar: the shard ends before the "
        "picture; fetch it again."
    )


def metrics(out):
    lines = (out / "measurements" / "metrics.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def weights(model):
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_they_are_left_out_counted_and_told(tmp_path, damaged):
    progress = Progress("sft")
    section = make_section(max_quarantined=0.1)
    _, result = run(tmp_path, dataset=damaged, section=section, progress=progress)
    assert sorted(result.quarantined) == ["s22", "s23"]
    assert result.details()["samples_quarantined"] == 2
    kept = json.loads((tmp_path / "out" / UNUSABLE_FILE).read_text())
    assert {row["id"]: row["detail"] for row in kept} == {
        name: detail(tmp_path, name) for name in ("s22", "s23")
    }
    rows = metrics(tmp_path / "out")
    assert sum(row["quarantined"] for row in rows) >= 2
    assert result.totals.samples == sum(4 - row["quarantined"] for row in rows)
    assert {row["step"] for row in kept} <= {row["step"] for row in rows if row["quarantined"]}
    said = [note for note in progress.notes if "quarantine" in note]
    assert len(said) == 2
    assert (
        f"sample s22 is in quarantine, its picture cannot be used ({detail(tmp_path, 's22')[:-1]})"
        in said
    )


def test_a_resumed_run_leaves_out_the_same_and_counts_each_once(tmp_path, damaged, monkeypatch):
    section = make_section(max_quarantined=0.1)
    (tmp_path / "whole").mkdir()
    whole, expected = run(tmp_path / "whole", dataset=damaged, section=section)
    taken = loop.Run.step

    def step(self, number, *rest):
        if number == 11:  # the state of step 8 is the last one
            raise Interrupted("killed")
        return taken(self, number, *rest)

    monkeypatch.setattr(loop.Run, "step", step)
    with pytest.raises(Interrupted):
        run(tmp_path, dataset=damaged, section=section)
    monkeypatch.setattr(loop.Run, "step", taken)
    model, result = run(tmp_path, dataset=damaged, section=section)
    assert result.resumed_step == 8
    assert result.quarantined == expected.quarantined
    assert result.totals.samples == expected.totals.samples
    assert torch.equal(weights(model), weights(whole))


def test_more_than_the_recipe_allows_ends_the_stage(tmp_path, damaged):
    with pytest.raises(UserError) as caught:
        run(tmp_path, dataset=damaged)
    name = "s22" if "sample s22" in str(caught.value) else "s23"
    step = int(str(caught.value).split("at step ")[1].split(":")[0])
    assert str(caught.value) == (
        "1 of 30 samples could not be used in training, more than max_quarantined 0.01 allows (0). "
        f"The last is sample {name} at step {step}: {detail(tmp_path, name)}"
    )


def test_the_loss_of_a_step_is_the_mean_over_the_other_samples(damaged):
    prepared = prepare(damaged, make_codec(), {"colours": 1.0})
    plan = BatchPlan.of(prepared, {"colours": 1.0}, seed=0, micro_size=4, num_micro=6)
    cache = PixelCache(damaged, Processor(32).canvas)
    with BatchLoader(prepared, plan, cache, 0, 1) as loader:
        (batches,) = loader
    bad = set(loader.unusable)
    assert {prepared.samples[i].id for i in bad} == {"s22", "s23"}
    counts = StepCounts.of(prepared, plan.step(0), bad)
    num_bad = sum(index in bad for micro in plan.step(0) for index in micro)
    assert (counts.samples, counts.quarantined) == (24 - num_bad, num_bad)
    shares = torch.stack([shares_of(batch, counts) for batch in batches]).sum(0)
    assert torch.allclose(shares, torch.ones(2))


def test_what_one_process_finds_all_of_them_leave_out(tmp_path, damaged):
    prepared = prepare(damaged, make_codec(), {"colours": 1.0})

    class Two:
        leads = True

        def gather(self, values):
            return [list(values), [7.0, -1.0]]

    quarantine = Quarantine(prepared, 0.5, tmp_path, Progress("sft"), Two())
    assert quarantine.meet(4, {}, [0, 0]) == frozenset()
    assert quarantine.meet(4, {3: "broken.", 5: "cut off."}, [2, 1]) == {3, 5, 7}
    ids = [prepared.samples[index].id for index in (3, 5, 7)]
    assert json.loads((tmp_path / UNUSABLE_FILE).read_text()) == [
        {"step": 5, "id": ids[0], "detail": "broken."},
        {"step": 5, "id": ids[1], "detail": "cut off."},
        {"step": 5, "id": ids[2], "detail": "another process could not use its picture"},
    ]
    quarantine.resume(4)
    assert not quarantine.found
    assert not (tmp_path / UNUSABLE_FILE).exists()
