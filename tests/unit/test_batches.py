"""The plan is a function of seed and step; batches keep order, padding and pictures right."""

import io
import itertools
from collections import Counter

import numpy as np
import pytest
import torch
from PIL import Image

from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.sample import ImageRef, Sample, Turn
from manyeyes.data.dataset.writer import DatasetWriter
from manyeyes.data.loading.batches import BatchPlan, collate, prepare
from manyeyes.data.loading.canvases import PixelCache, canvas_side
from manyeyes.data.loading.conversation import IGNORED, IMAGE_TOKEN, Codec, Encoded
from manyeyes.data.loading.loader import BLACK, BatchLoader
from manyeyes.errors import UserError


class Letters:
    """A tokenizer with one id per character."""

    bos_token_id, eos_token_id = 1, 2

    def __call__(self, text, *, add_special_tokens):
        return {"input_ids": [[ord(letter) for letter in item] for item in text]}

    def convert_ids_to_tokens(self, ids):
        return chr(ids)


def plan(sizes=(40, 10, 25), weights=(1.0, 1.0, 0.5), micro_size=4, num_micro=2, seed=3, window=4):
    starts = np.cumsum([0, *sizes])
    pools = tuple(tuple(range(a, b)) for a, b in itertools.pairwise(starts))
    lengths = np.random.default_rng(0).integers(10, 60, int(starts[-1]))
    keys = tuple((int(i % 5 > 0), int(i % 5 > 0), int(length)) for i, length in enumerate(lengths))
    return BatchPlan(seed, pools, weights, keys, micro_size, num_micro, window)


def drawn(a_plan, steps):
    return [index for step in steps for micro in a_plan.step(step) for index in micro]


def test_plan_depends_on_seed_and_step_alone():
    first, second = plan(), plan()
    forward = [first.step(step) for step in range(30)]
    backward = [second.step(step) for step in reversed(range(30))]
    assert forward == backward[::-1]
    assert plan(seed=4).step(0) != forward[0]


def test_every_step_has_its_micro_batches_full():
    a_plan = plan()
    for step in range(20):
        assert [len(micro) for micro in a_plan.step(step)] == [4, 4]


@pytest.mark.parametrize("weights", [(1.0, 1.0, 0.5), (5.0, 0.1, 1.0), (1.0, 0.0, 0.0)])
def test_sources_are_drawn_in_proportion(weights):
    a_plan = plan(weights=weights)
    of_source = [0] * 40 + [1] * 10 + [2] * 25
    for num_windows in (1, 3, 10):
        indices = drawn(a_plan, range(4 * num_windows))
        counts = Counter(of_source[index] for index in indices)
        for source, weight in enumerate(weights):
            assert abs(counts[source] - weight / sum(weights) * len(indices)) < 2


def test_a_source_gives_all_samples_before_it_repeats_one():
    indices = drawn(plan(sizes=(20,), weights=(1.0,), micro_size=5, num_micro=1), range(12))
    for epoch in range(3):
        assert sorted(indices[epoch * 20 : epoch * 20 + 20]) == list(range(20))
    assert indices[:20] != indices[20:40]


def test_micro_batches_are_of_similar_length_and_seldom_mix_text_with_pictures():
    grouped, loose = (
        plan(sizes=(400,), weights=(1.0,)),
        plan(sizes=(400,), weights=(1.0,), window=1),
    )

    def spread(a_plan):
        keys = [
            [tuple(a_plan.keys[i]) for i in micro]
            for step in range(40)
            for micro in a_plan.step(step)
        ]
        mixed = sum(len({key[0] for key in micro}) > 1 for micro in keys)
        return np.mean([max(micro)[2] - min(micro)[2] for micro in keys]), mixed

    assert spread(grouped)[0] < 0.6 * spread(loose)[0]
    assert spread(grouped)[1] <= 40 // 4


def encoded(ids, labels, length):
    return Encoded(np.array(ids), np.array(labels), length, ids.count(IMAGE_TOKEN), False)


def text_sample(name, task="chat"):
    turns = (Turn("human", "hi"), Turn("gpt", "ho"))
    return Sample(name, "train", task, "", turns, (), (), "src", "CC0-1.0", ())


def test_collate_pads_on_the_right_and_counts_real_tokens():
    items = [
        encoded([1, IMAGE_TOKEN, 7, 2], [IGNORED, IGNORED, 7, 2], 19),
        encoded([1, 5], [IGNORED, 5], 2),
    ]
    pixels = torch.zeros((1, 3, 4, 4), dtype=torch.uint8)
    batch = collate([text_sample("a"), text_sample("b")], items, pixels)
    assert batch.sample_ids == ("a", "b")
    assert batch.input_ids.tolist() == [[1, IMAGE_TOKEN, 7, 2], [1, 5, 0, 0]]
    assert batch.labels.tolist() == [[-100, -100, 7, 2], [-100, 5, -100, -100]]
    assert batch.attention_mask.tolist() == [[1, 1, 1, 1], [1, 1, 0, 0]]
    assert (batch.num_tokens, batch.num_supervised, batch.lengths) == (21, 3, (19, 2))


def canvas(image):
    return torch.from_numpy(np.array(image)).permute(2, 0, 1).contiguous()


def make_dataset(path, num=12, damaged=None):
    with DatasetWriter(path) as writer:
        for i in range(num):
            buffer = io.BytesIO()
            Image.new("RGB", (8, 8), (i, 2 * i, 3 * i)).save(buffer, "PNG")
            ref = writer.add_image(buffer.getvalue(), f"image-{i}")
            if i == damaged:
                ref = ImageRef(**{**vars(ref), "sha256": "0" * 64})
            turns = (Turn("human", f"<image>\nwhich {'x' * i}"), Turn("gpt", str(i)))
            writer.add(
                Sample(f"s{i}", "train", "numbers", "", turns, (ref,), (), "src", "CC0-1.0", ())
            )
        for i in range(4):
            writer.add(text_sample(f"t{i}"))
    return Dataset.open(path)


CODEC = Codec(Letters(), "plain_chat", 60, 4)
SOURCES = {"numbers": 3.0, "chat": 1.0}


def loader(dataset, start=0, stop=6, codec=CODEC):
    prepared = prepare(dataset, codec, SOURCES)
    a_plan = BatchPlan.of(prepared, SOURCES, seed=1, micro_size=4, num_micro=1)
    return BatchLoader(prepared, a_plan, PixelCache(dataset, canvas), start, stop)


def test_loader_gives_each_sample_its_own_pictures(tmp_path):
    with loader(make_dataset(tmp_path / "data")) as batches:
        for (batch,) in batches:
            shown = [int(name[1:]) for name in batch.sample_ids if name.startswith("s")]
            if batch.pixels is None:
                assert shown == []
            else:
                assert batch.pixels[:, 1, 3, 3].tolist() == [2 * i for i in shown]
                assert int((batch.input_ids == IMAGE_TOKEN).sum()) == len(shown)
            assert batches.data_wait >= 0.0


def test_some_batches_are_text_alone(tmp_path):
    with loader(make_dataset(tmp_path / "data"), stop=12) as batches:
        assert any(batch.pixels is None for (batch,) in batches)


def test_loader_that_starts_late_continues_the_same_order(tmp_path):
    dataset = make_dataset(tmp_path / "data")
    with loader(dataset) as batches:
        whole = [batch.sample_ids for (batch,) in batches]
    with loader(dataset, start=3) as batches:
        assert [batch.sample_ids for (batch,) in batches] == whole[3:]


@pytest.mark.parametrize("start", [0, 3])
def test_a_sample_whose_picture_cannot_be_used_stays_with_nothing_to_learn(tmp_path, start):
    whole = make_dataset(tmp_path / "whole")
    damaged = make_dataset(tmp_path / "data", damaged=4)
    num_met = 0
    with loader(whole, start, 8) as right, loader(damaged, start, 8) as batches:
        for (expected,), (batch,) in zip(right, batches, strict=True):
            assert batch.sample_ids == expected.sample_ids
            assert torch.equal(batch.input_ids, expected.input_ids)
            bad = [name == "s4" for name in batch.sample_ids]
            assert [batches.prepared.samples[i].id for i in batches.unusable] == ["s4"] * any(bad)
            for row, is_bad in enumerate(bad):
                learned = batch.labels[row] != IGNORED
                assert torch.equal(batch.labels[row], expected.labels[row]) is not is_bad
                assert bool(learned.any()) is not is_bad
            if any(bad):
                num_met += 1
                (why,) = batches.unusable.values()
                assert why == (
                    f"image-4 in {tmp_path}/data/shards/images-00000.tar: the bytes do not have "
                    "the recorded sha256; fetch it again."
                )
                (black,) = (batch.pixels != expected.pixels).flatten(1).any(1).nonzero().flatten()
                assert not batch.pixels[black].any()
                assert batch.pictures[black] == BLACK
                assert batch.num_supervised < expected.num_supervised
    assert num_met


def test_a_missing_shard_is_the_end_and_no_matter_of_one_sample(tmp_path):
    dataset = make_dataset(tmp_path / "data")
    (tmp_path / "data" / "shards" / "images-00000.tar").unlink()
    with pytest.raises(UserError) as caught, loader(dataset) as batches:
        for _ in batches:
            pass
    assert str(caught.value) == (
        f"{tmp_path}/data/shards/images-00000.tar: the shard cannot be opened (No such file or "
        "directory); fetch or make the dataset again."
    )


def test_leaving_early_stops_the_thread(tmp_path):
    with loader(make_dataset(tmp_path / "data"), stop=10_000) as batches:
        next(iter(batches))
    assert not batches._thread.is_alive()


def test_cache_keeps_pictures_up_to_its_limit(tmp_path):
    dataset = make_dataset(tmp_path / "data")
    refs = [sample.images[0] for sample in dataset.samples("train", tasks={"numbers"})]
    cache = PixelCache(dataset, canvas, limit=3 * 8 * 8 * 2)
    first = cache.get(refs)
    assert cache.missing(refs) == tuple(refs[2:])
    assert torch.equal(cache.get(refs).pixels, first.pixels)


def test_samples_without_anything_to_learn_are_counted_and_left_out(tmp_path):
    codec = Codec(Letters(), "plain_chat", 32, 4)
    prepared = prepare(make_dataset(tmp_path / "data"), codec, SOURCES)
    # <s> + " user" + picture 4 + " which " + x * i + " assistant" + " i" + </s>
    assert prepared.unlearnable == tuple(f"s{i}" for i in range(5, 12))
    assert len(prepared.samples) == 9
    assert prepared.num_truncated > 0


def test_excluded_samples_are_not_trained_on(tmp_path):
    prepared = prepare(make_dataset(tmp_path / "data"), CODEC, SOURCES, excluded={"s3", "t0"})
    assert {"s3", "t0"}.isdisjoint(sample.id for sample in prepared.samples)


def test_a_task_without_samples_is_refused(tmp_path):
    with pytest.raises(UserError) as caught:
        prepare(make_dataset(tmp_path / "data"), CODEC, {"numbers": 1.0, "charts": 1.0})
    assert str(caught.value) == (
        "sources names the task 'charts', but the dataset has nothing of it to train on; "
        "it has chat, numbers."
    )


def test_canvas_side_is_the_longest_edge_within_the_limit(tmp_path):
    with DatasetWriter(tmp_path) as writer:
        for name, size in (("tall", (8, 100)), ("wide", (120, 9))):
            buffer = io.BytesIO()
            Image.new("RGB", size).save(buffer, "PNG")
            refs = (writer.add_image(buffer.getvalue(), f"picture-{name}"),)
            writer.add(Sample(name, "train", name, "", (), refs, (), "src", "CC0-1.0", ()))
        writer.add(text_sample("words"))
    dataset = Dataset.open(tmp_path)
    assert canvas_side(dataset.samples(), 448) == 120
    assert canvas_side(dataset.samples(tasks={"tall", "chat"}), 448) == 100
    assert canvas_side(dataset.samples(), 64) == 64
    assert canvas_side(dataset.samples(tasks={"chat"}), 448) == 448
