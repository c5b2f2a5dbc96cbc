"""Packs hold a step's very samples, within the budget, with the same work for every process."""

import numpy as np
import pytest

from manyeyes.data.loading.batches import BatchPlan, Share
from manyeyes.data.loading.packing import PackPlan, pack
from manyeyes.errors import UserError

SHAPES = {
    # (visual tokens of a picture, most of a sample's text, pictures of a sample)
    "llava": ((576, 576), 1400, (1, 1)),
    "eagle": ((1024, 1024), 1000, (1, 1)),
    "eve": ((100, 2300), 2000, (1, 1)),
    "several": ((64, 64), 1000, (1, 4)),
}


def made(shape, num, seed=0):
    """Return (lengths, numbers of pictures); a fifth of the samples is text alone."""
    visual, most, pictures = SHAPES[shape]
    generator = np.random.default_rng(seed)
    words = np.minimum(np.exp(generator.normal(np.log(190), 0.9, num)).astype(int) + 20, most)
    images = generator.integers(pictures[0], pictures[1] + 1, num) * (generator.random(num) > 0.19)
    lengths = words + images * generator.integers(visual[0], visual[1] + 1, num)
    return lengths.tolist(), images.tolist()


def loads(packs, values):
    return [sum(values[index] for index in members) for members in packs]


@pytest.mark.parametrize("multiple", [1, 2, 8])
@pytest.mark.parametrize("budget", [4500, 8192, 1_000_000])
@pytest.mark.parametrize("shape", SHAPES)
def test_packs_hold_every_sample_once_within_the_budget(shape, budget, multiple):
    lengths, images = made(shape, 64)
    packs = pack(lengths, images, budget, multiple)
    assert sorted(index for members in packs for index in members) == list(range(64))
    assert len(packs) % multiple == 0
    assert all(packs)
    assert max(loads(packs, lengths)) <= budget
    assert pack(lengths, images, budget, multiple) == packs


@pytest.mark.parametrize(("processes", "size"), [(8, 128), (32, 256)])
@pytest.mark.parametrize("shape", SHAPES)
def test_processes_wait_little_for_each_other(shape, processes, size):
    real = slowest = 0
    for seed in range(20):
        lengths, images = made(shape, size, seed)
        packs = pack(lengths, images, 8192, processes)
        turns = np.array(loads(packs, lengths)).reshape(-1, processes)
        real, slowest = real + turns.sum(), slowest + turns.max(axis=1).sum() * processes
        # Nobody waits for pictures longer than it must: at most one sample's more than the mean.
        assert max(loads(packs, images)) < sum(images) / len(packs) + SHAPES[shape][2][1]
    assert real / slowest >= 0.97


@pytest.mark.parametrize("shape", SHAPES)
def test_where_every_process_can_have_a_picture_it_has_one(shape):
    for seed in range(20):
        lengths, images = made(shape, 64, seed)
        packs = pack(lengths, images, 1_000_000, 16)
        assert all(loads(packs, images))


def test_as_few_packs_as_the_budget_allows():
    assert len(pack([10] * 8, [0] * 8, 20)) == 4
    assert len(pack([10] * 8, [0] * 8, 80)) == 1
    assert len(pack([10] * 8, [0] * 8, 80, 2)) == 2
    assert len(pack([6, 6, 6], [0] * 3, 9)) == 3


def test_the_budget_decides_where_pictures_and_positions_are_at_odds():
    # The sample of six pictures goes alone by their number, but its positions leave much room.
    lengths, images = [40, 90, 90, 50], [6, 1, 1, 1]
    packs = pack(lengths, images, 100, 1)
    assert sorted(loads(packs, lengths)) == [90, 90, 90]


def test_a_sample_longer_than_the_budget_is_refused():
    with pytest.raises(UserError) as caught:
        pack([10, 300], [0, 1], 256)
    assert str(caught.value) == (
        "batch.packing allows 256 tokens in a pack, but a sample has 300; raise tokens to 300 "
        "or lower max_length."
    )


def test_no_samples_make_no_packs():
    assert pack([], [], 10, 4) == ()


def plans(processes, budget=400, seed=3):
    lengths, images = made("several", 60)
    lengths = [min(length, 380) for length in lengths]
    keys = tuple((int(i > 0), i, n) for i, n in zip(images, lengths, strict=True))
    plain = BatchPlan(seed, (tuple(range(60)),), (1.0,), keys, micro_size=4, num_micro=4)
    return plain, PackPlan(plain, tuple(lengths), tuple(images), budget, processes)


@pytest.mark.parametrize("processes", [1, 2, 4])
def test_a_packed_step_has_the_samples_of_the_unpacked_one(processes):
    plain, packed = plans(processes)
    for step in range(12):
        unpacked = sorted(index for micro in plain.step(step) for index in micro)
        assert sorted(index for members in packed.step(step) for index in members) == unpacked


def test_packs_depend_on_seed_and_step_alone():
    forward = [plans(2)[1].step(step) for step in range(10)]
    resumed = plans(2)[1]
    assert [resumed.step(step) for step in reversed(range(10))] == forward[::-1]


def test_processes_share_the_packs_equally_and_pictures_come_last():
    _, packed = plans(2)
    for step in range(12):
        packs = packed.step(step)
        mine = [packed.places(step, Share(rank, 2, pictures_last=True)) for rank in range(2)]
        assert len(mine[0]) == len(mine[1])
        assert sorted([*mine[0], *mine[1]]) == list(range(len(packs)))
        shown = [packed.has_pictures(packs[place]) for place in range(len(packs))]
        assert shown == sorted(shown)
