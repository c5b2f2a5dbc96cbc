"""Build the starter data: quotas, order of work, and the written dataset.

Design decisions:

- Everything is a function of (seed, scale, image size) and of the installed libraries: no clock,
  no network, no global generator. A broken-off build is simply built again, in half a minute.
- The held-out splits stop growing at scale 1, so that scores of different scales compare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from manyeyes.data.dataset.writer import DatasetWriter
from manyeyes.data.sources.starter.asking import Interviewer
from manyeyes.data.sources.starter.charts import ChartPen
from manyeyes.data.sources.starter.gallery import KINDS, Gallery, Shown
from manyeyes.data.sources.starter.pope import count_objects
from manyeyes.data.sources.starter.quotas import DRAWN_FIRST, PICTURES, SAMPLES, SMALLEST, scaled
from manyeyes.data.sources.starter.sources import SOURCES, generator, load_material
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path

    from manyeyes.data.dataset.sample import Sample, Turn


def build(directory: Path, *, seed: int, scale: float, image_size: int) -> None:
    """Write the starter data into ``directory``, replacing a dataset that is there.

    Args:
        directory: where to; made if missing.
        seed: the same seed gives the same bytes.
        scale: 1 for about ten thousand samples; below 1, all splits shrink; above, training grows.
        image_size: edge of the square pictures in pixels, 64 or more.

    Raises:
        UserError: if a number makes no sense or the folder cannot be written.
    """
    if scale <= 0:
        raise UserError(f"data.scale is {scale:g}; give a number above 0, 1 is the usual size.")
    if seed < 0:
        raise UserError(f"The seed is {seed}; give 0 or more.")
    if image_size < 64:
        raise UserError(
            f"data.image_size is {image_size}; print is unreadable below 64 "
            "pixels, give 64 or more."
        )
    with DatasetWriter(directory) as writer:
        for name, source in SOURCES.items():
            writer.add_source(name, source.licence, source.provenance)
        for sample in _all_samples(writer, seed, scale, image_size):
            writer.add(sample)


def _all_samples(writer: DatasetWriter, seed: int, scale: float, image_size: int) -> list[Sample]:
    """Draw all pictures, then ask about them; training samples come first in the index."""
    material = load_material()
    gallery = Gallery(writer, seed, image_size)
    shown: dict[str, dict[str, list[Shown]]] = {}
    with ChartPen(image_size) as pen:
        for split in DRAWN_FIRST:
            shown[split] = {}
            for kind in KINDS:
                count = max(SMALLEST[kind], scaled(PICTURES[split][kind], split, scale))
                shown[split][kind] = gallery.draw(kind, split, material[split], count, pen)
    conversations: set[tuple[Turn, ...]] = set()
    by_split = {
        split: _split_samples(shown, split, seed, scale, conversations) for split in DRAWN_FIRST
    }
    return [sample for split in reversed(DRAWN_FIRST) for sample in by_split[split]]


def _split_samples(
    shown: dict[str, dict[str, list[Shown]]],
    split: str,
    seed: int,
    scale: float,
    conversations: set[tuple[Turn, ...]],
) -> list[Sample]:
    """Make one split's samples of every task."""
    quota = {task: scaled(count, split, scale) for task, count in SAMPLES[split].items()}
    here = shown[split]
    interviewer = Interviewer(split, generator(seed, "questions", split))
    statistics = count_objects(frozenset(one.objects) for one in shown["train"]["scenes"])
    samples = interviewer.ask_about("numbers", here["numbers"], quota["numbers"])
    samples += interviewer.compare_numbers(here["numbers"], len(samples), quota["two_images"])
    for task in ("charts", "documents", "scenes"):
        samples += interviewer.ask_about(task, here[task], quota[task])
    num_pope = 6 * max(1, round(quota["pope"] / 6))
    samples += interviewer.ask_presence(here["scenes"], statistics, num_pope)
    pictures = [one for kind in KINDS for one in here[kind]]
    samples += interviewer.caption(pictures, min(quota["captions"], len(pictures)))
    samples += interviewer.chat(quota["chat"], conversations)
    return samples
