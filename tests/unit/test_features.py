"""Kept features: the same bits, from whatever run they come; damaged ones are none."""

import json
import multiprocessing
import os
import time

import pytest
import torch
from training_kit import (
    constant,
    deepspeed,
    make_codec,
    make_dataset,
    make_model,
    make_section,
    run,
)

from manyeyes.config.recipe import Batch
from manyeyes.data.loading import canvases
from manyeyes.data.loading.batches import prepare
from manyeyes.data.loading.workers import Workers
from manyeyes.errors import UserError
from manyeyes.training import feature_store
from manyeyes.training import features as features_module
from manyeyes.training.feature_store import Shelf, features_folder, size_limit
from manyeyes.training.features import Draws
from manyeyes.training.freeze import apply_trainable, digest_tensors

SOURCES = {"colours": 3.0, "chat": 1.0}


@pytest.fixture(scope="module")
def dataset(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("features") / "data")


@pytest.fixture(autouse=True)
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MANYEYES_FEATURES_GIB", raising=False)
    return tmp_path / "home" / "features"


def section(**changes):
    values = {"train": ("projector.*",), "steps": 6, "schedule": constant(), "feature_cache": "on"}
    return make_section(**{**values, **changes})


def trained(folder, dataset, model=None, **changes):
    """Return (digest of the weights, losses, pictures read in each step)."""
    model = model or make_model()
    model, _ = run(folder, model=model, dataset=dataset, section=section(**changes))
    text = (folder / "out" / "measurements" / "metrics.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    losses = [row["loss"] for row in rows]
    return digest_tensors(model.named_parameters()), losses, [row["pictures_read"] for row in rows]


def entries(place):
    return sorted(path for path in place.rglob("*") if path.is_file() and len(path.name) == 64)


def decision(folder):
    return json.loads((folder / "out" / "measurements" / "features.json").read_text())


@pytest.mark.parametrize(("precision", "steps"), [("float32", 10), ("bfloat16", 1)])
def test_with_and_without_cold_and_warm_give_the_same_bits(
    tmp_path, dataset, place, precision, steps
):
    settings = {"precision": precision, "steps": steps}
    off = trained(tmp_path / "off", dataset, feature_cache="off", **settings)
    assert not place.exists()
    cold = trained(tmp_path / "cold", dataset, **settings)
    assert len(entries(place)) == 2 * len({e.name for e in entries(place)})  # two experts
    warm = trained(tmp_path / "warm", dataset, **settings)
    assert off[:2] == cold[:2] == warm[:2]
    assert sum(off[2]) == 0
    assert sum(cold[2]) < sum(warm[2])


def test_a_picture_alone_in_its_batch_gives_the_same_bits_from_disk(tmp_path, dataset):
    """A convolution lays the map of one picture out otherwise than those of several."""
    settings = {"batch": Batch(size=16, per_device=2, accumulation=8), "steps": 2}
    settings["sources"] = {"colours": 1.0, "chat": 2.0}
    weights = {
        trained(tmp_path / name, dataset, make_model(experts=("clip",)), **settings, **kept)[0]
        for name, kept in (("off", {"feature_cache": "off"}), ("cold", {}), ("warm", {}))
    }
    assert len(weights) == 1


def test_what_was_read_is_not_counted_as_work(tmp_path, dataset):
    _, first = run(tmp_path / "cold", model=make_model(), dataset=dataset, section=section())
    _, second = run(tmp_path / "warm", model=make_model(), dataset=dataset, section=section())
    assert second.totals.flops < first.totals.flops


def test_another_mixture_shares_what_it_has_in_common(tmp_path, dataset, place):
    trained(tmp_path / "both", dataset)
    before = entries(place)
    _, _, read = trained(tmp_path / "one", dataset, model=make_model(experts=("clip",)))
    assert entries(place) == before
    assert sum(read) > 0
    other = make_model(seed=3, experts=("clip",))
    _, _, read = trained(tmp_path / "other", dataset, model=other, steps=1)
    assert sum(read) == 0  # other weights, other features
    assert len(entries(place)) > len(before)


def test_damaged_entries_are_computed_again(tmp_path, dataset, place):
    first = trained(tmp_path / "first", dataset)
    damage = [
        b"",
        b"{}\n",
        b"no entry at all",
        b'{"dtype": "torch.float32", "shape": [1], "crc": 0}\n1234',
    ]
    for number, path in enumerate(entries(place)):
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(damage[number % 5] if number % 5 < 4 else bytes(data))
    again = trained(tmp_path / "again", dataset)
    assert first == again  # also in what was read: every entry was made again
    assert sum(trained(tmp_path / "third", dataset)[2]) > sum(first[2])


def test_a_resumed_run_ends_as_one_in_one_go(tmp_path, dataset):
    whole = trained(tmp_path / "whole", dataset, feature_cache="off", steps=8)
    run(tmp_path / "cut", model=make_model(), dataset=dataset, section=section(steps=8))
    (tmp_path / "cut" / "out" / "state" / "step-8").rename(tmp_path / "gone")
    cut = trained(tmp_path / "cut", dataset, feature_cache="off", steps=8)
    assert whole[:2] == cut[:2]  # on or off is no other run


def test_pictures_are_computed_alone_where_a_batch_gives_other_bits(tmp_path, dataset, monkeypatch):
    """A device whose sums depend on the batch: what is kept must not depend on it."""

    def uneven(expert, pixels):
        maps = features_module_look(expert, pixels)
        return maps + 1e-3 * (len(pixels) - 1)

    features_module_look = features_module.look
    monkeypatch.setattr(features_module, "look", uneven)
    cold = trained(tmp_path / "cold", dataset)
    assert trained(tmp_path / "warm", dataset)[:2] == cold[:2]
    assert decision(tmp_path / "warm")["same_bits"] is False
    trained(tmp_path / "auto", dataset, feature_cache="auto")
    assert decision(tmp_path / "auto")["why"] == "batches of another size give other bits"


COSTS = [
    (120, 0.02, (0.001, 0.001), True, "it pays"),
    (120, 0.001, (0.02, 0.02), False, "it does not pay"),
    (120, 0.02, (0.5, 0.001), False, "it does not pay"),
    (1, 0.02, (0.0, 0.0), False, "each picture is drawn once"),
]


@pytest.mark.parametrize(("steps", "compute", "disk", "keep", "why"), COSTS)
def test_auto_keeps_what_pays(dataset, monkeypatch, steps, compute, disk, keep, why):
    probe = features_module._probe
    monkeypatch.setattr(features_module, "_probe", lambda *given: (True, compute, probe(*given)[2]))
    monkeypatch.setattr(features_module, "_disk_times", lambda *_: (*disk, 1000))
    model = make_model(experts=("clip",)).requires_grad_(requires_grad=False)
    settings = section(steps=steps, feature_cache="auto")
    found = features_module.find_features(model, settings, "canvas", torch.device("cpu"))
    prepared = prepare(dataset, make_codec(), SOURCES)
    made = features_module.decide(found, prepared, 32, torch.device("cpu"))
    assert (made.keep, made.why) == (keep, why)


def test_auto_takes_what_a_sweep_left_even_if_each_picture_is_drawn_once(tmp_path, dataset):
    trained(tmp_path / "sweep", dataset, steps=40)
    trained(tmp_path / "after", dataset, steps=2, feature_cache="auto")
    assert decision(tmp_path / "after")["share_kept_before"] == 1.0


OBSTACLES = [
    ({"train": ("projector.*", "encoders.clip.*")}, "the encoder clip trains in this stage"),
    ({"engine": deepspeed(3)}, "zero 3 shares the encoders' weights out"),
]


@pytest.mark.parametrize(("changes", "reason"), OBSTACLES, ids=["training-encoder", "zero-3"])
def test_on_is_refused_where_nothing_can_be_kept(changes, reason):
    model, wanted = make_model(), section(**changes)
    apply_trainable(model, wanted.train)
    with pytest.raises(UserError) as caught:
        features_module.find_features(model, wanted, "canvas", torch.device("cpu"))
    assert str(caught.value) == f"feature_cache: on is not possible here, {reason}; write auto."


def test_a_fusion_that_looks_into_encoders_keeps_nothing(monkeypatch):
    from manyeyes.model.fusion.base import Fusion

    class Looking(Fusion):
        def see(self, experts, pixels):
            return []

    model = make_model()
    model.requires_grad_(False)
    model.fusion = Looking()
    model.config.fusion = {"kind": "mixture_of_resolution"}
    device = torch.device("cpu")
    assert features_module.find_features(model, section(feature_cache="auto"), "", device) is None
    with pytest.raises(UserError) as caught:
        features_module.find_features(model, section(), "", device)
    assert str(caught.value) == (
        "feature_cache: on is not possible here, the fusion mixture_of_resolution looks into the "
        "encoders; write auto."
    )


def test_draws_count_pictures_and_not_samples(dataset):
    prepared = prepare(dataset, make_codec(), SOURCES)
    draws = Draws.of(prepared, section(steps=20))
    assert (draws.pictures, draws.distinct) == (60.0, 24)  # 3 of 4 samples of 20 x 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_a_shelf_gives_back_every_bit(dtype):
    shelf = Shelf("a" * 32)
    given = torch.randn(5, 3, 2).to(dtype)
    shelf.put("b" * 64, given.transpose(0, 1))
    found = shelf.get("b" * 64)
    assert found.dtype == dtype
    assert torch.equal(found, given.transpose(0, 1))
    assert shelf.get("c" * 64) is None


def names(start, num):
    return [f"{number:064x}" for number in range(start, start + num)]


def test_a_full_shelf_keeps_what_it_has_and_takes_no_more(place):
    shelf = Shelf("a" * 32, limit=20_000)
    for name in names(0, 10):
        shelf.put(name, torch.zeros(1000))
    kept = [name for name in names(0, 10) if shelf.has(name)]
    assert kept == names(0, 4)
    assert sum(path.stat().st_size for path in entries(place)) <= 20_000


def test_room_comes_from_the_shelf_that_was_unused_longest(place):
    for age, name in enumerate("xyz"):
        Shelf(name * 32, limit=10**6).put("b" * 64, torch.zeros(1000))
        used = time.time() - 7200 + 600 * age
        os.utime(place / (name * 32) / "used", (used, used))
    Shelf("u" * 32, limit=10**6).put("b" * 64, torch.zeros(1000))  # in use
    Shelf("n" * 32, limit=18_000).put("b" * 64, torch.zeros(1000))
    assert sorted(path.name[0] for path in place.iterdir()) == ["n", "u", "y", "z"]


def test_a_disk_that_refuses_ends_the_keeping_and_not_the_training(monkeypatch, place):
    shelf = Shelf("a" * 32)
    shelf.put("b" * 64, torch.zeros(10))

    def refuse(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(feature_store.Path, "write_bytes", refuse)
    shelf.put("c" * 64, torch.zeros(10))
    monkeypatch.undo()
    shelf.put("d" * 64, torch.zeros(10))
    assert [
        path.name for path in place.rglob("*") if path.is_file() and path.name[0] in "bcd."
    ] == ["b" * 64]


def write_all(folder, seed, num):
    os.environ["MANYEYES_HOME"] = folder
    shelf = Shelf("a" * 32)
    order = torch.randperm(num, generator=torch.Generator().manual_seed(seed)).tolist()
    for number in order:
        shelf.put(f"{number:064x}", torch.full((2000,), float(number)))
        found = shelf.get(f"{order[0]:064x}")
        assert found is not None
        assert found[0] == order[0]


def test_writers_at_the_same_time_leave_whole_entries(place):
    context = multiprocessing.get_context("fork")
    writers = [
        context.Process(target=write_all, args=(str(place.parent), seed, 60)) for seed in range(3)
    ]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert [writer.exitcode for writer in writers] == [0, 0, 0]
    shelf = Shelf("a" * 32)
    for number, name in enumerate(names(0, 60)):
        assert torch.equal(shelf.get(name), torch.full((2000,), float(number)))
    assert not list(place.rglob("*.tmp"))


@pytest.mark.parametrize(("text", "gib"), [("0.5", 0.5), ("", 20.0), ("many", 20.0)])
def test_the_limit_is_the_environments_or_half_of_what_is_free(monkeypatch, text, gib):
    monkeypatch.setenv("MANYEYES_FEATURES_GIB", text)
    monkeypatch.setattr(
        feature_store.shutil,
        "disk_usage",
        lambda _: feature_store.shutil._ntuple_diskusage(0, 0, 2**50),
    )
    assert size_limit(features_folder()) == gib * 2**30
    monkeypatch.setattr(
        feature_store.shutil,
        "disk_usage",
        lambda _: feature_store.shutil._ntuple_diskusage(0, 0, 1000),
    )
    assert size_limit(features_folder()) == 500


@pytest.fixture
def decoded(monkeypatch):
    """Count the pictures that are decoded in this process."""
    made = []
    right = canvases._make_canvas

    def counting(dataset, to_canvas, ref):
        made.append(ref.sha256)
        return right(dataset, to_canvas, ref)

    monkeypatch.setattr(canvases, "_make_canvas", counting)
    return made


@pytest.mark.parametrize("packing", [None, {"tokens": 64}], ids=["padded", "packed"])
def test_pictures_whose_features_are_kept_are_not_decoded(tmp_path, dataset, decoded, packing):
    batch = {"size": 4, "per_device": 4, "accumulation": 1, "packing": packing}
    cold = trained(tmp_path / "cold", dataset, batch=batch)
    assert decoded
    decoded.clear()
    warm = trained(tmp_path / "warm", dataset, batch=batch)
    assert decoded == []
    assert warm[:2] == cold[:2]


def test_workers_have_no_picture_to_decode_where_all_are_kept(tmp_path, dataset, monkeypatch):
    cold = trained(tmp_path / "cold", dataset)
    asked = []
    right = Workers.run

    def watched(self, jobs):
        def seen():
            for job in jobs:
                asked.append(job)
                yield job

        return right(self, seen())

    monkeypatch.setattr(Workers, "run", watched)
    assert trained(tmp_path / "warm", dataset, workers=1)[:2] == cold[:2]
    assert set(asked) == {()}


def test_a_picture_is_decoded_after_all_where_its_entry_is_damaged(
    tmp_path, dataset, place, decoded
):
    cold = trained(tmp_path / "cold", dataset)
    decoded.clear()
    damaged = entries(place)[0]
    damaged.write_bytes(b"")
    assert trained(tmp_path / "warm", dataset)[:2] == cold[:2]
    assert damaged.name in decoded
    assert damaged.stat().st_size > 0


def test_a_damaged_entry_of_a_damaged_picture_ends_the_training(
    tmp_path, dataset, place, monkeypatch
):
    trained(tmp_path / "cold", dataset)
    for path in entries(place):
        path.write_bytes(b"")
    monkeypatch.setattr(
        canvases, "_make_canvas", lambda *_: (torch.zeros(3, 32, 32), "p in x.tar: cut off.")
    )
    with pytest.raises(UserError) as caught:
        trained(tmp_path / "warm", dataset)
    assert str(caught.value) == "p in x.tar: cut off."


def test_what_waits_to_be_written_counts_as_there(tmp_path, dataset, monkeypatch):
    fast = trained(tmp_path / "fast", dataset, steps=16)
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "other"))
    put = Shelf.put

    def slow(self, *entry):
        time.sleep(0.02)
        put(self, *entry)

    monkeypatch.setattr(Shelf, "put", slow)
    assert trained(tmp_path / "slow", dataset, steps=16) == fast
    assert sum(fast[2]) > 0


def test_an_entry_that_cannot_be_made_ends_the_training(tmp_path, dataset, monkeypatch):
    right = feature_store._encode
    made = []

    def fails_later(features):
        made.append(1)
        if len(made) > 4:  # the first ones are for measuring
            raise RuntimeError("no bytes")
        return right(features)

    monkeypatch.setattr(feature_store, "_encode", fails_later)
    with pytest.raises(RuntimeError, match="no bytes"):
        trained(tmp_path / "run", dataset)
