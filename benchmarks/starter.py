"""The starter data with the tiny recipe's tokenizer: a small build's lengths, or a workload."""

from __future__ import annotations

from typing import TYPE_CHECKING

from benchmarks.sampling import Lengths, of_prepared
from benchmarks.workload import Workload
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.loading.batches import prepare
from manyeyes.data.loading.canvases import canvas_side
from manyeyes.data.loading.conversation import Codec
from manyeyes.data.sources.starter import build
from manyeyes.model.transformer import load_tokenizer

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

TASKS = ("numbers", "charts", "documents", "scenes", "pope", "captions", "chat")
PICTURE_SIZE = 128


def starter_lengths(folder: Path, scale: float) -> Lengths:
    """Build the starter data and read off the lengths of its training split.

    Args:
        folder: to build in.
        scale: 1 for about nine thousand samples.
    """
    build(folder / "starter", seed=0, scale=scale, image_size=PICTURE_SIZE)
    dataset = Dataset.open(folder / "starter")
    return of_prepared(prepare(dataset, _codec(), dict.fromkeys(TASKS, 1.0)))


def starter_workload(folder: Path, tasks: Sequence[str]) -> Workload:
    """Build the whole starter data, unless ``folder`` holds it, and take some tasks of it.

    Args:
        folder: of the dataset.
        tasks: each sample of which an epoch has once.
    """
    if not folder.is_dir():
        build(folder, seed=0, scale=1.0, image_size=PICTURE_SIZE)
    dataset, codec = Dataset.open(folder), _codec()
    samples = dataset.samples("train")
    sources = {task: float(len(samples.of_task(task))) for task in tasks}
    prepared = prepare(dataset, codec, sources)
    side = canvas_side(prepared.samples, PICTURE_SIZE)
    return Workload(dataset, codec, prepared, sources, side)


def _codec() -> Codec:
    return Codec(load_tokenizer("zoo:llama-tiny"), "plain_chat", 256, 64)
