"""Worker processes: the same batches whatever their number; one that dies is replaced."""

import io
import os
import signal

import numpy as np
import psutil
import pytest
import torch
from decoding_kit import canvas, deadly
from PIL import Image

from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.sample import Sample, Turn
from manyeyes.data.dataset.writer import DatasetWriter
from manyeyes.data.loading import workers
from manyeyes.data.loading.batches import BatchPlan, Prepared
from manyeyes.data.loading.canvases import PixelCache
from manyeyes.data.loading.loader import BatchLoader
from manyeyes.data.loading.tokens import IMAGE_TOKEN, Encoded, Encodings
from manyeyes.data.loading.workers import num_workers
from manyeyes.errors import ManyeyesError, UserError

pytestmark = pytest.mark.xdist_group("decoding")
TURNS = (Turn("human", "<image>\nwhat?"), Turn("gpt", "that"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("decoding") / "data"
    with DatasetWriter(folder) as writer:
        for i in range(20):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (i, 2 * i, 3 * i)).save(buffer, "PNG")
            shown = (writer.add_image(buffer.getvalue(), f"image-{i}"),) if i % 4 else ()
            writer.add(Sample(f"s{i}", "train", "t", "", TURNS, shown, (), "s", "CC0-1.0", ()))
    return folder


def loader(data, num, start=0, stop=6, to_canvas=canvas, limit=8 * 8 * 3 * 5, **options):
    """Return a loader over 20 samples; the cache holds five of their pictures."""
    dataset = Dataset.open(data)
    samples = dataset.samples()
    encoded = Encodings.of([
        Encoded(np.array([1, *[IMAGE_TOKEN] * len(s.images), 7]),
                np.array([*[-100] * (1 + len(s.images)), 7]),
                2 + len(s.images), len(s.images), truncated=False)
        for s in samples
    ])  # fmt: skip
    keys = tuple((len(s.images), len(s.images), 2) for s in samples)
    plan = BatchPlan(0, (tuple(range(20)),), (1.0,), keys, 2, 2)
    prepared = Prepared(samples, encoded, 0, ())
    cache = PixelCache(dataset, to_canvas, limit)
    return BatchLoader(prepared, plan, cache, start, stop, workers=num, **options)


def content(batch):
    pixels = None if batch.pixels is None else batch.pixels[:, :, 0, 0].tolist()
    return batch.sample_ids, pixels


def drawn(batches):
    return [[content(batch) for batch in step] for step in batches]


def helpers():
    """Return the workers of this process: grandchildren, by way of the fork server."""
    return [
        process
        for process in psutil.Process().children(recursive=True)
        if process.ppid() != os.getpid() and process.status() != psutil.STATUS_ZOMBIE
    ]


def test_the_batches_are_the_same_whatever_the_number_of_workers(data):
    with loader(data, 0) as batches:
        expected = drawn(batches)
    torch.manual_seed(3)
    untouched = torch.get_rng_state()
    with loader(data, 2) as batches:
        assert drawn(batches) == expected
    assert torch.equal(torch.get_rng_state(), untouched)
    with loader(data, 1, start=4) as batches:
        assert drawn(batches) == expected[4:]
    assert helpers() == []


def test_decoding_beside_a_training_takes_one_core_and_leaves_it_the_others(data):
    found = []

    def counted(picture):
        found.append(torch.get_num_threads())
        return canvas(picture)

    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with loader(data, 0, to_canvas=counted) as batches:
            drawn(batches)
            while_it_runs = torch.get_num_threads()
    finally:
        torch.set_num_threads(before)
    assert found
    assert set(found) == {1}
    assert while_it_runs == 3


def test_a_killed_worker_is_replaced_and_nothing_is_lost(data):
    with loader(data, 0, stop=40) as batches:
        expected = drawn(batches)
    notes = []
    with loader(data, 2, stop=40, limit=0, note=notes.append) as batches:
        steps = iter(batches)
        first = [content(batch) for batch in next(steps)]
        os.kill(helpers()[0].pid, signal.SIGKILL)
        assert [first, *drawn(steps)] == expected
    assert notes == ["a worker that decodes pictures died; all were started again"]
    assert helpers() == []


def test_workers_that_always_die_end_the_training_in_one_sentence(data, monkeypatch):
    monkeypatch.setattr(workers, "LOSSES", 0)
    with pytest.raises(ManyeyesError) as caught, loader(data, 1, to_canvas=deadly) as batches:
        drawn(batches)
    assert str(caught.value) == (
        "Workers that decode pictures died 1 times: give the training more memory (in /dev/shm, "
        "too), or set workers to a lower number; the same command continues from the last state."
    )


def test_what_a_worker_cannot_read_is_said_as_it_is_without_workers(data, tmp_path):
    (tmp_path / "shards").mkdir()
    (tmp_path / "samples.parquet").write_bytes((data / "samples.parquet").read_bytes())
    with pytest.raises(UserError) as caught, loader(tmp_path, 1) as batches:
        drawn(batches)
    assert str(caught.value) == (
        f"{tmp_path}/shards/images-00000.tar: the shard cannot be opened (No such file or "
        "directory); fetch or make the dataset again."
    )


def test_leaving_early_leaves_no_process(data):
    with loader(data, 2, stop=10_000) as batches:
        next(iter(batches))
        assert len(helpers()) == 2
    assert helpers() == []


@pytest.mark.parametrize(
    ("wanted", "cores", "processes", "num"),
    [(None, 2, 1, 0), (None, 4, 1, 2), (None, 64, 1, 8), (None, 64, 8, 4), (0, 64, 1, 0), (3, 2, 1, 3)],
)  # fmt: skip
def test_the_number_of_workers_follows_the_machine(monkeypatch, wanted, cores, processes, num):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _pid: set(range(cores)), raising=False)
    for name, value in (("RANK", 0), ("WORLD_SIZE", processes), ("LOCAL_WORLD_SIZE", processes)):
        monkeypatch.setenv(name, str(value))
    assert num_workers(wanted) == num
