"""``prepare``: make the dataset. The starter data is built; imported data is taken by name."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import assert_never

from manyeyes.artifact.destination import beside, claim_folder
from manyeyes.artifact.manifest import Manifest, open_artifact
from manyeyes.config.recipe import ImportedData, StarterData
from manyeyes.config.recipe.slices import PrepareSlice
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.finish import finish_dataset
from manyeyes.pipeline.stages import Details, StageContext
from manyeyes.runtime.disk import ELSEWHERE, explained
from manyeyes.runtime.home import dataset_folder
from manyeyes.runtime.locks import scratch
from manyeyes.store import open_store
from manyeyes.store.links import share


def prepare(piece: PrepareSlice, context: StageContext) -> Details:
    """Write a Dataset into the context's ``out``.

    Raises:
        UserError: an imported dataset of that name is neither here nor in the store, or is damaged.
    """
    data, out = piece.data, context.out
    match data:
        case StarterData():
            name: str = data.kind
            from manyeyes.data.sources.starter import build

            context.progress.note("building the starter data from real sources")
            build(out, seed=piece.seed, scale=data.scale, image_size=data.image_size)
        case ImportedData():
            name = data.name
            _take_dataset(data.name, out)
        case _:
            assert_never(data)
    return {"name": name, **describe(out)}


def describe(dataset: Path) -> Details:
    """Return what a manifest says of a dataset: counts per split and task."""
    samples = Dataset.open(dataset).samples()
    counts = Counter(f"{sample.split}.{sample.task}" for sample in samples)
    images = set(samples.picture_names())
    return {"samples": len(samples), "images": len(images), "counts": dict(sorted(counts.items()))}


def _take_dataset(name: str, out: Path) -> None:
    """Take a dataset from the data folder, or from the store to which it was pushed."""
    entry = None if dataset_folder(name).exists() else open_store().named(name)
    if entry is None:
        _link_dataset(dataset_folder(name), out)
        return
    with scratch(out.parent, f".{out.name}.") as folder:
        place = folder / name
        open_store().checkout(entry.dir_id, place, link=True)
        _link_dataset(place, out)


def _link_dataset(source: Path, out: Path) -> None:
    """Make a dataset's files those of ``out``, too: they lie on the disk once."""
    for name in open_artifact(source, "dataset").files:
        target = out / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        share(source / name, target)


def starter_dataset(out: Path, *, seed: int, scale: float, image_size: int) -> Manifest:
    """Build the starter data as an artifact of its own (``manyeyes data starter``)."""
    from manyeyes.data.sources.starter import build

    claim_folder(out, replace=False)
    with explained(out, ELSEWHERE), beside(out) as work:
        build(work, seed=seed, scale=scale, image_size=image_size)
        return finish_dataset(work, out, seed=seed, details=describe(work))
