"""The index: what is asked for is read, and nothing else; a bad row is told when it is read."""

import pickle

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from training_kit import make_dataset

from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.index import ranges
from manyeyes.data.dataset.sample import SAMPLE_COLUMNS
from manyeyes.errors import UserError

BAD_ROW = (
    "sample s3: its conversation is not a JSON list of turns with 'from' (human or gpt) and "
    "'value'; correct or remove the row."
)


@pytest.fixture
def dataset(tmp_path):
    """24 samples with a picture (colours), behind them 6 without (chat)."""
    return make_dataset(tmp_path / "data")


def rewritten(dataset, **columns):
    """Write the index again, with other columns; return the dataset opened afresh."""
    path = dataset.path / "samples.parquet"
    table = pq.read_table(path)
    for name, values in columns.items():
        place = table.column_names.index(name)
        table = table.set_column(place, name, pa.array(values, table.schema.field(name).type))
    pq.write_table(table, path)
    return Dataset.open(dataset.path)


def columns_of(dataset, name):
    return dataset.table().column(name).to_pylist()


def test_nothing_is_decoded_that_nobody_asked_for(dataset):
    samples = dataset.samples("train", tasks={"colours"})
    assert len(samples) == 24
    assert set(samples.source._columns) == {"split", "task"}
    assert samples.shown(5).id == "s5"
    assert [ref.id for ref in samples.shown(5).images] == ["picture-5"]
    assert list(samples.ids())[:2] == ["s0", "s1"]
    assert list(samples.picture_names()) == [ref.sha256 for ref in samples.pictures()]
    assert set(samples.source._columns) == {"split", "task", "id", "images"}
    assert samples[0].id == "s0"
    assert set(samples.source._columns) == set(SAMPLE_COLUMNS)


def test_a_part_of_the_samples_is_made_without_reading(dataset):
    samples = dataset.samples()
    everything = list(samples)
    assert samples[3] == everything[3]
    assert samples[-1] == everything[-1]
    assert samples[4:20:3] == everything[4:20:3]
    assert samples[::-1] == everything[::-1]
    assert samples.chosen(np.array([7, 2, 25])) == [everything[7], everything[2], everything[25]]
    with pytest.raises(IndexError):
        samples[30]


def test_samples_equal_any_sequence_of_the_same_ones(dataset):
    samples = dataset.samples()
    assert samples == list(samples)
    assert tuple(samples) == samples
    assert samples != list(samples)[1:]
    assert samples != list(samples)[::-1]
    assert samples != "samples"


def test_samples_travel_as_a_path_and_rows(dataset):
    samples = dataset.samples(tasks={"chat"})
    samples.shown(0)
    data = pickle.dumps(samples)
    assert len(data) < 2000
    assert pickle.loads(data) == samples  # noqa: S301 - our own bytes


def test_a_bad_row_is_told_when_it_is_read(dataset):
    texts = columns_of(dataset, "conversations")
    texts[3] = '[{"from": "system", "value": "x"}]'
    samples = rewritten(dataset, conversations=texts).samples()
    assert samples[2].id == "s2"
    assert samples.shown(3).id == "s3"
    for read in (lambda: samples[3], lambda: list(samples)):
        with pytest.raises(UserError) as caught:
            read()
        assert str(caught.value) == BAD_ROW
    found = list(samples.attempts())
    assert [str(one) for one in found if isinstance(one, UserError)] == [BAD_ROW]
    assert [one.id for one in found[:3]] == ["s0", "s1", "s2"]


def test_a_column_that_is_missing_is_named(dataset):
    path = dataset.path / "samples.parquet"
    pq.write_table(pq.read_table(path).drop(["licence"]), path)
    with pytest.raises(UserError) as caught:
        Dataset.open(dataset.path).samples()
    assert str(caught.value) == f"{path}: the column licence is missing; make the dataset again."


def test_columns_in_many_chunks_make_no_difference(dataset):
    expected = list(dataset.samples())
    samples = Dataset.open(dataset.path).samples()
    for name in SAMPLE_COLUMNS:  # as Arrow gives a column of more than two gigabytes
        column = samples.source.column(name).chunk(0)
        parts = [column.slice(start, 4) for start in range(0, 30, 4)]
        samples.source._columns[name] = pa.chunked_array(parts)
    assert samples == expected
    order = np.random.default_rng(0).permutation(30)
    assert samples.chosen(order) == [expected[place] for place in order]
    assert samples.shown(23).images == expected[23].images
    assert samples.tasks() == ["chat", "colours"]
    assert samples.of_task("chat").tolist() == list(range(24, 30))
    assert samples.of_task("charts").tolist() == []


def test_a_list_that_is_null_is_empty(dataset):
    images = columns_of(dataset, "images")
    samples = rewritten(
        dataset, images=[*images[:24], *[None] * 6], answers=[None] * 30, task=[None] * 30
    ).samples()
    assert (samples[25].images, samples[25].answers, samples[25].task) == ((), (), None)
    assert samples[5].images == dataset.samples()[5].images
    assert samples.num_images().tolist() == [1] * 24 + [0] * 6
    assert len(samples.source.samples("train", ["chat"], ())) == 0


def test_places_of_pictures_follow_the_samples(dataset):
    images = columns_of(dataset, "images")
    images[24] = [images[3][0], images[1][0]]
    samples = rewritten(dataset, images=images).samples()[22:26]
    assert samples.num_images().tolist() == [1, 1, 2, 0]
    assert samples.picture_places().tolist() == [22, 23, 24, 25]
    assert samples.picture_places(np.array([1, 0, 1, 0])).tolist() == [22, 24]
    assert [ref.id for ref in samples.pictures()] == [
        "picture-22", "picture-23", "picture-3", "picture-1",
    ]  # fmt: skip
    assert ranges(np.array([5, 9, 0]), np.array([2, 0, 3])).tolist() == [5, 6, 0, 1, 2]
