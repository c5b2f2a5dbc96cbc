"""Draw the pictures of one split and store them.

Design decisions:

- The held-out splits are drawn first: when a document's record or a scene's list of objects comes
  up again in a later split, that draw is thrown away. Scans and table rows were dealt before, so
  numbers and charts cannot meet across splits at all.
- What the zoo's parts were trained on is for training alone, whatever the seed: a held-out draw
  that comes upon it is thrown away, too.
- The smallest records (one word, one shape) are few, and training needs all of them; the held-out
  splits start at two.
- Pixels are encoded and written at once; only what can be asked stays in memory.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from manyeyes.data.dataset.annotation import Annotation
from manyeyes.data.sources.starter.documents import compose_document, draw_document
from manyeyes.data.sources.starter.drawing import Drawing, Question, encode_png
from manyeyes.data.sources.starter.learned import was_learned
from manyeyes.data.sources.starter.numbers import draw_number
from manyeyes.data.sources.starter.scenes import compose_scene, draw_scene, scene_entity
from manyeyes.data.sources.starter.sources import Material, generator

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np

    from manyeyes.data.dataset.sample import ImageRef
    from manyeyes.data.dataset.writer import DatasetWriter
    from manyeyes.data.sources.starter.charts import ChartPen

KINDS = ("numbers", "charts", "documents", "scenes")


@dataclass
class Shown:
    """A stored picture, and what was already asked about it."""

    ref: ImageRef
    kind: str
    source: str
    objects: tuple[tuple[str, str], ...]
    """(colour, label) of everything in it."""
    entities: tuple[str, ...]
    caption: str
    questions: tuple[Question, ...]
    asked: set[str] = field(default_factory=set)


class Gallery:
    """Draws pictures, keeps entities apart between splits, and hands the pictures to a writer."""

    def __init__(self, writer: DatasetWriter, seed: int, image_size: int) -> None:
        """Draw for ``writer``, square pictures of ``image_size`` pixels."""
        self._writer = writer
        self._seed = seed
        self._image_size = image_size
        self._split_of: dict[str, str] = {}

    def draw(
        self, kind: str, split: str, material: Material, count: int, pen: ChartPen
    ) -> list[Shown]:
        """Draw and store ``count`` pictures of one kind for one split."""
        rng = generator(self._seed, "pictures", kind, split)
        draw = self._drawer(kind, split, material, pen)
        shown: list[Shown] = []
        seen: set[str] = set()
        while len(shown) < count:
            drawing = draw(rng)
            name = f"{kind}-{split}-image-{len(shown):05d}"
            ref = self._writer.add_image(encode_png(drawing.image), name)
            assert ref.sha256 not in seen, "two drawings came out alike"
            seen.add(ref.sha256)
            self._writer.add_annotation(Annotation(name, split, kind, drawing.objects))
            shown.append(_remember(ref, drawing))
        return shown

    def _drawer(
        self, kind: str, split: str, material: Material, pen: ChartPen
    ) -> Callable[[np.random.Generator], Drawing]:
        fewest = 1 if split == "train" else 2
        match kind:
            case "numbers":
                return lambda rng: draw_number(rng, material, self._image_size)
            case "charts":
                return lambda rng: pen.draw(rng, material)
            case "documents":
                return lambda rng: self._draw_document(rng, split, fewest)
            case "scenes":
                return lambda rng: self._draw_scene(rng, split, fewest)
            case _:
                raise AssertionError(kind)

    def _draw_document(self, rng: np.random.Generator, split: str, fewest: int) -> Drawing:
        while True:
            record = compose_document(rng, fewest)
            if self._takes(record.entity, split):
                return draw_document(rng, record, self._image_size)

    def _draw_scene(self, rng: np.random.Generator, split: str, fewest: int) -> Drawing:
        while True:
            things = compose_scene(rng, fewest)
            if self._takes(scene_entity(things), split):
                return draw_scene(rng, things, self._image_size)

    def _takes(self, entity: str, split: str) -> bool:
        """Say whether a split may show a record or a scene, and keep it from the other splits."""
        if split != "train" and was_learned(entity):
            return False
        return self._split_of.setdefault(entity, split) == split


def _remember(ref: ImageRef, drawing: Drawing) -> Shown:
    return Shown(
        ref=ref,
        kind=drawing.kind,
        source=drawing.source,
        objects=tuple((thing.colour, thing.label) for thing in drawing.objects),
        entities=drawing.entities,
        caption=drawing.caption,
        questions=drawing.questions,
    )
