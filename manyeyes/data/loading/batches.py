"""Batches: which samples train together at which step, and their tensors.

Design decisions:

- The plan is a function of the seed and the step, with no state of its own: a run that resumes at
  step N asks for step N and gets what the first run would have got. The seed systems draw from the
  global random state, so their order after a resume is another one.
- Sources are mixed in exact proportion: within every window of steps each source has its share of
  samples to the nearest one, and it gives all its samples before it repeats any.
- Inside a window samples are cut into micro-batches by length, text apart from pictures, so that
  little is padded and a batch of text needs no vision at all (the seed systems send a black picture
  through every tower for each text row). The micro-batches are then shuffled. The window is short:
  a long one pads less but makes each batch a batch of one task.
- Pictures stay uint8 up to the device: a fourth of the bytes of float32, and each encoder
  normalises in its own way anyway. ``loader`` makes batches ahead of the model.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from manyeyes.data.loading.conversation import check
from manyeyes.data.loading.token_store import tokens_of
from manyeyes.data.loading.tokens import IGNORED, UNREADABLE, Encodings, Rows
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping, Sequence

    from numpy.typing import NDArray

    from manyeyes.data.dataset.dataset import Dataset
    from manyeyes.data.dataset.index import Samples, Shown
    from manyeyes.data.dataset.sample import Sample
    from manyeyes.data.loading.conversation import Codec
    from manyeyes.data.loading.tokens import Encoded

WINDOW = 4
"""Steps whose samples are grouped by length together."""


@dataclass(frozen=True)
class Prepared:
    """The training samples of one stage, encoded; samples with nothing to learn are left out."""

    samples: Samples
    encoded: Encodings
    num_truncated: int
    unlearnable: tuple[str, ...]
    """Ids of the samples left out because no position of theirs is learned."""


def prepare(
    dataset: Dataset, codec: Codec, sources: Mapping[str, float], excluded: Collection[str] = ()
) -> Prepared:
    """Select and encode the training samples of a stage.

    Args:
        dataset: where they are.
        codec: how they become ids.
        sources: sampling weight per task.
        excluded: ids of samples that validation put into quarantine.

    Raises:
        UserError: a task has no sample to train on.
    """
    everything = dataset.samples("train")
    chosen = dataset.samples("train", tasks=set(sources), exclude=set(excluded))
    encoded = _encode(chosen, everything, codec, sorted(sources))
    learnable = encoded.num_supervised > 0
    samples = chosen.chosen(np.flatnonzero(learnable))
    for task in sources:
        if not len(samples.of_task(task)):
            raise UserError(
                f"sources names the task {task!r}, but the dataset has nothing of it to train on; "
                f"it has {', '.join(everything.tasks())}."
            )
    encoded = encoded.at(np.flatnonzero(learnable))
    return Prepared(
        samples=samples,
        encoded=encoded,
        num_truncated=int(encoded.truncated.sum()),
        unlearnable=tuple(chosen.chosen(np.flatnonzero(~learnable)).ids()),
    )


def _encode(chosen: Samples, everything: Samples, codec: Codec, tasks: Sequence[str]) -> Encodings:
    """Look up the tokens of samples and cut them to the longest length."""
    table_of = np.zeros(len(chosen), np.int64)
    rows = np.zeros(len(chosen), np.int64)
    tables = []
    for number, task in enumerate(tasks):
        whole = everything.chosen(everything.of_task(task))
        tables.append(tokens_of(whole, codec.tokenizer, codec.template))
        mine = chosen.of_task(task)
        table_of[mine] = number
        rows[mine] = np.searchsorted(whole.rows, chosen.rows[mine])
    chosen.source.forget("conversations")  # the texts, which training does not need
    found = Rows(tuple(tables), table_of, rows)
    for place in np.flatnonzero(found.read("images") == UNREADABLE).tolist():
        check(chosen[place])
    costs = codec.visual_tokens(chosen.source.pictures.sizes[chosen.picture_places()])
    return Encodings(found, costs, codec.max_length)


@dataclass(frozen=True)
class Share:
    """Which micro-batches of every step one of several processes computes."""

    rank: int = 0
    size: int = 1
    """Processes; they divide the micro-batches of a step."""
    pictures_last: bool = False
    """Text before pictures, so that processes meet the same modules at the same time as often as
    can be, and the last micro-batch reaches every parameter that the step reaches at all."""


@dataclass
class BatchPlan:
    """Which samples form the micro-batches of each step: a pure function of (seed, step)."""

    seed: int
    pools: Sequence[Sequence[int] | NDArray[np.int64]]
    """Per source the indices of its samples."""
    weights: tuple[float, ...]
    """Per source its sampling weight."""
    keys: NDArray[np.int64]
    """(samples, 3): what similar samples share: has pictures, number of pictures, length."""
    micro_size: int
    num_micro: int
    window: int = WINDOW
    _given: list[tuple[int, ...]] = field(default_factory=list, repr=False)

    def __post_init__(self) -> None:
        """Normalise the weights and prepare the per-window memo (a memo, not a state)."""
        total = sum(self.weights)
        self.weights = tuple(weight / total for weight in self.weights)
        self.keys = np.asarray(self.keys)
        self._given.append((0,) * len(self.pools))
        self._permutation = lru_cache(maxsize=2 * len(self.pools))(self._permute)
        self._window_batches = lru_cache(maxsize=2)(self._draw_window)

    @classmethod
    def of(
        cls,
        prepared: Prepared,
        sources: Mapping[str, float],
        *,
        seed: int,
        micro_size: int,
        num_micro: int,
    ) -> BatchPlan:
        """Make the plan for prepared samples.

        Args:
            prepared: the samples.
            sources: sampling weight per task.
            seed: of the run.
            micro_size: samples per micro-batch.
            num_micro: micro-batches per step.
        """
        names = sorted(sources)
        images = prepared.encoded.num_images
        return cls(
            seed=seed,
            pools=[prepared.samples.of_task(name) for name in names],
            weights=tuple(sources[name] for name in names),
            keys=np.stack([images > 0, images, prepared.encoded.lengths], axis=1),
            micro_size=micro_size,
            num_micro=num_micro,
        )

    @property
    def packed(self) -> bool:
        """False: each sample is a row of its own."""
        return False

    def step(self, step: int) -> tuple[tuple[int, ...], ...]:
        """Return the sample indices of each micro-batch of a step; steps count from 0."""
        number, place = divmod(step, self.window)
        batches = self._window_batches(number)
        return batches[place * self.num_micro : (place + 1) * self.num_micro]

    def places(self, step: int, share: Share) -> tuple[int, ...]:
        """Return which micro-batches of a step a process computes, in its order.

        The step itself is the same for every share: processes only divide it.
        """
        places = list(range(self.num_micro))
        if share.pictures_last:
            batches = self.step(step)
            places.sort(key=lambda place: self.has_pictures(batches[place]))
        return tuple(places[share.rank :: share.size])

    def has_pictures(self, indices: Sequence[int]) -> bool:
        """Tell whether a micro-batch shows any picture."""
        return bool(self.keys[list(indices), 0].any())

    def _draw_window(self, number: int) -> tuple[tuple[int, ...], ...]:
        drawn = np.array(self._draw(number), np.int64)
        generator = np.random.default_rng([self.seed, 1, number])
        # Shuffled first, so that samples with equal keys are in random order after the stable sort.
        drawn = drawn[generator.permutation(len(drawn))]
        order: list[int] = drawn[np.lexsort(self.keys[drawn].T[::-1])].tolist()
        size = self.micro_size
        batches = [tuple(order[i : i + size]) for i in range(0, len(order), size)]
        return tuple(batches[i] for i in generator.permutation(len(batches)))

    def _draw(self, number: int) -> list[int]:
        """Return the samples of a window: each source's next ones, in the order of its epochs."""
        while len(self._given) <= number + 1:
            self._given.append(self._next_counts(self._given[-1]))
        drawn = []
        bounds = zip(self._given[number], self._given[number + 1], strict=True)
        for source, (start, stop) in enumerate(bounds):
            pool = self.pools[source]
            for position in range(start, stop):
                epoch, place = divmod(position, len(pool))
                drawn.append(int(pool[self._permutation(source, epoch)[place]]))
        return drawn

    def _next_counts(self, given: tuple[int, ...]) -> tuple[int, ...]:
        """Add one window to what each source has given: always to the source furthest behind."""
        num_draws = self.window * self.micro_size * self.num_micro
        total = sum(given) + num_draws
        behind = [weight * total - count for weight, count in zip(self.weights, given, strict=True)]
        counts = list(given)
        for _ in range(num_draws):
            source = max(range(len(behind)), key=behind.__getitem__)
            counts[source] += 1
            behind[source] -= 1.0
        return tuple(counts)

    def _permute(self, source: int, epoch: int) -> NDArray[np.int64]:
        generator = np.random.default_rng([self.seed, 2, source, epoch])
        return generator.permutation(len(self.pools[source]))


@dataclass(frozen=True)
class Batch:
    """The tensors of one micro-batch: right-padded rows, or one row of samples end to end."""

    sample_ids: tuple[str, ...]
    input_ids: Tensor
    """(B, N) int64, one ``IMAGE_TOKEN`` per picture."""
    attention_mask: Tensor
    """(B, N) int64, 1 on real positions."""
    labels: Tensor
    """(B, N) int64, ``IGNORED`` where nothing is learned."""
    pixels: Tensor | None
    """uint8 (num_images, 3, S, S) in the order of the placeholders; None for text alone, and where
    what the encoders make of the pictures is kept."""
    image_sizes: Tensor | None
    """(num_images, 2) int64, widths and heights in pixels before they were laid out on canvases."""
    lengths: tuple[int, ...]
    """Real positions per sample once the pictures are spliced in."""
    num_supervised: int
    packed: bool = False
    """The samples stand end to end in one row (B is 1) and must not see each other."""
    pictures: tuple[str, ...] = ()
    """sha256 of each picture, in the same order."""

    @property
    def num_images(self) -> int:
        """Pictures of the batch."""
        return len(self.pictures) if self.pixels is None else self.pixels.shape[0]

    @property
    def num_tokens(self) -> int:
        """Real positions of the batch, padding left out."""
        return sum(self.lengths)


def collate(
    samples: Sequence[Sample | Shown],
    encoded: Sequence[Encoded],
    pixels: Tensor | None,
    *,
    packed: bool = False,
) -> Batch:
    """Stack samples into a batch, padded on the right to the longest, or lay them end to end.

    Args:
        samples: the samples.
        encoded: their ids and labels.
        pixels: uint8 (num_images, 3, S, S), or None where there are no pictures, or none needed.
        packed: make one row of them all.
    """
    # In one stretch first: a tensor of each row takes five times as long.
    ids = torch.from_numpy(np.concatenate([item.input_ids for item in encoded], dtype=np.int64))
    learned = torch.from_numpy(np.concatenate([item.labels for item in encoded], dtype=np.int64))
    widths = torch.tensor([len(item.input_ids) for item in encoded])
    if packed:
        # Nothing predicts a sample's first position: what stands before it is another's end.
        learned[widths.cumsum(0) - widths] = IGNORED
        input_ids, labels = ids.unsqueeze(0), learned.unsqueeze(0)
        attention_mask = torch.ones_like(input_ids)
    else:
        real = torch.arange(int(widths.max())) < widths.unsqueeze(1)
        input_ids = torch.zeros(real.shape, dtype=torch.long).masked_scatter_(real, ids)
        labels = torch.full(real.shape, IGNORED).masked_scatter_(real, learned)
        attention_mask = real.long()
    sizes = [
        (ref.width, ref.height)
        for sample, item in zip(samples, encoded, strict=True)
        for ref in sample.images[: item.num_images]
    ]
    return Batch(
        sample_ids=tuple(sample.id for sample in samples),
        input_ids=input_ids,
        attention_mask=attention_mask,
        labels=labels,
        pixels=pixels,
        image_sizes=torch.tensor(sizes, dtype=torch.long).view(-1, 2) if sizes else None,
        lengths=tuple(item.length for item in encoded),
        num_supervised=sum(item.num_supervised for item in encoded),
        packed=packed,
        pictures=tuple(
            ref.sha256
            for sample, item in zip(samples, encoded, strict=True)
            for ref in sample.images[: item.num_images]
        ),
    )
