"""Samples as token ids: whole in a table, and as much of each as a longest length leaves.

Design decisions:

- A table knows nothing of the longest length nor of how many positions a picture takes. So whoever
  shares tokenizer and template shares the table: all stages, all experts, all fusions.
- Everything lies end to end in arrays, five bytes a token: half a million conversations of Python
  numbers would fill a machine, and an array can lie on disk as well (``token_store``).
- What of each sample is kept is found for all of them at once; only the tokens of those that are
  too long are looked at.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, overload

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from numpy.typing import NDArray

IMAGE_TOKEN = -200
"""Stands in ``input_ids`` for one picture; no vocabulary has it."""
IGNORED = -100
"""Label of a position that is not learned."""
UNREADABLE = -1
"""Stands for the number of pictures of a sample that cannot be encoded."""


@dataclass(frozen=True, eq=False)
class Encoded:
    """One sample as the language model reads it."""

    input_ids: NDArray[np.int32]
    """Token ids, ``IMAGE_TOKEN`` once per picture."""
    labels: NDArray[np.int32]
    """The id to be learned at each place, or ``IGNORED``."""
    length: int
    """Positions once the pictures are spliced in."""
    num_images: int
    """Pictures kept: the first ones of the sample."""
    truncated: bool
    """Something did not fit into the longest length."""

    def __eq__(self, other: object) -> bool:
        """Compare everything."""
        if not isinstance(other, Encoded):
            return NotImplemented
        return (
            np.array_equal(self.input_ids, other.input_ids)
            and np.array_equal(self.labels, other.labels)
            and (self.length, self.num_images, self.truncated)
            == (other.length, other.num_images, other.truncated)
        )

    __hash__ = None  # type: ignore[assignment]  # like an array's

    @property
    def num_supervised(self) -> int:
        """Positions that are learned; the first position has nothing before it to predict it."""
        return int(np.count_nonzero(self.labels[1:] != IGNORED))


@dataclass(frozen=True, eq=False)
class Tokens:
    """Samples as ids, nothing cut off, one after another."""

    ids: NDArray[np.int32]
    """Of all samples, ``IMAGE_TOKEN`` once per picture."""
    learned: NDArray[np.bool_]
    """Per id whether it is learned."""
    counts: NDArray[np.int64]
    """Ids of each sample."""
    images: NDArray[np.int64]
    """Pictures of each sample, or ``UNREADABLE``."""
    supervised: NDArray[np.int64]
    """Learned positions of each sample; its first one has nothing before it to predict it."""

    @classmethod
    def made(
        cls,
        ids: NDArray[np.int32],
        learned: NDArray[np.bool_],
        counts: NDArray[np.int64],
        images: NDArray[np.int64],
    ) -> Tokens:
        """Count what is learned of each sample."""
        before = np.concatenate([[0], np.cumsum(learned)])
        ends = np.cumsum(counts)
        firsts = np.minimum(ends - counts + 1, ends)
        return cls(ids, learned, counts, images, before[ends] - before[firsts])

    @classmethod
    def joined(cls, parts: Iterable[Tokens]) -> Tokens:
        """Lay tables end to end."""
        columns = zip(*(part.arrays() for part in (_EMPTY, *parts)), strict=True)
        return cls(*(np.concatenate(column) for column in columns))

    @classmethod
    def of(cls, items: Sequence[Encoded]) -> Tokens:
        """Make a table of encoded samples as they are."""
        return cls.joined(
            cls.made(
                np.asarray(item.input_ids, np.int32),
                np.asarray(item.labels) != IGNORED,
                np.array([len(item.input_ids)]),
                np.array([item.num_images]),
            )
            for item in items
        )

    def __len__(self) -> int:
        """Return the number of samples."""
        return len(self.counts)

    @cached_property
    def starts(self) -> NDArray[np.int64]:
        """Place of each sample's first id, and the number of all ids."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    @cached_property
    def digest(self) -> str:
        """sha256 over the arrays' own."""
        return joined_digest(hashlib.sha256(array.data).hexdigest() for array in self.arrays())

    def arrays(self) -> tuple[NDArray[Any], ...]:
        """Return the arrays, in the order of their names."""
        return tuple(getattr(self, name) for name in DTYPES)


DTYPES = {
    "ids": np.dtype("<i4"),
    "learned": np.dtype("?"),
    "counts": np.dtype("<i8"),
    "images": np.dtype("<i8"),
    "supervised": np.dtype("<i8"),
}
_NOTHING = np.empty(0, np.int64)
_EMPTY = Tokens(np.empty(0, np.int32), np.empty(0, bool), _NOTHING, _NOTHING, _NOTHING)


def joined_digest(digests: Iterable[str]) -> str:
    """Return the digest of a table from those of its arrays."""
    return hashlib.sha256("\n".join(digests).encode()).hexdigest()


@dataclass(frozen=True, eq=False)
class Rows:
    """Samples chosen from some tables."""

    tables: tuple[Tokens, ...]
    table_of: NDArray[np.int64]
    """Number of each sample's table."""
    rows: NDArray[np.int64]
    """Its row in there."""

    @classmethod
    def all_of(cls, tokens: Tokens) -> Rows:
        """Choose everything in a table."""
        return cls((tokens,), np.zeros(len(tokens), np.int64), np.arange(len(tokens)))

    def read(self, name: str) -> NDArray[np.int64]:
        """Return a property of each sample's row: counts, images, supervised or starts."""
        values = np.zeros(len(self.rows), np.int64)
        for number, table in enumerate(self.tables):
            mine = self.table_of == number
            values[mine] = getattr(table, name)[self.rows[mine]]
        return values


class Encodings(Sequence[Encoded]):
    """Samples as the language model reads them, each made when it is asked for."""

    def __init__(self, chosen: Rows, costs: NDArray[np.int64], max_length: int) -> None:
        """Cut samples to a longest length.

        Args:
            chosen: the samples, all of which could be encoded.
            costs: positions of each of their pictures, one sample's after another's.
            max_length: longest sequence in positions, pictures spliced in.
        """
        self.chosen = chosen
        self.starts = chosen.read("starts")
        """Place of each sample's first id in its table."""
        self.kept = chosen.read("counts")
        """Ids of each sample that are kept."""
        self.num_images = chosen.read("images")
        """Pictures of each sample that are kept."""
        self.num_supervised = chosen.read("supervised")
        """Learned positions of each sample."""
        ends = np.cumsum(self.num_images)
        spliced = np.concatenate([[0], np.cumsum(costs - 1)])
        self.lengths = self.kept + spliced[ends] - spliced[ends - self.num_images]
        """Positions of each sample once the pictures are spliced in."""
        self.truncated = self.lengths > max_length
        """Whether something of each sample did not fit."""
        for place in np.flatnonzero(self.truncated).tolist():
            shown = costs[ends[place] - self.num_images[place] : ends[place]]
            self._cut(place, shown, max_length)

    @classmethod
    def of(cls, items: Sequence[Encoded]) -> Encodings:
        """Take encoded samples as they are."""
        costs = np.ones(sum(item.num_images for item in items), np.int64)
        made = cls(Rows.all_of(Tokens.of(items)), costs, 1 << 62)
        made.lengths = np.array([item.length for item in items], np.int64)
        made.truncated = np.array([item.truncated for item in items], bool)
        return made

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self.kept)

    @overload
    def __getitem__(self, place: int) -> Encoded: ...
    @overload
    def __getitem__(self, place: slice) -> list[Encoded]: ...
    def __getitem__(self, place: int | slice) -> Encoded | list[Encoded]:
        """Return a sample, or some."""
        if isinstance(place, slice):
            return [self[one] for one in range(len(self))[place]]
        ids, learned = self._tokens(place)
        return Encoded(
            ids,
            np.where(learned, ids, np.int32(IGNORED)),
            int(self.lengths[place]),
            int(self.num_images[place]),
            bool(self.truncated[place]),
        )

    def __iter__(self) -> Iterator[Encoded]:
        """Yield the samples."""
        return (self[place] for place in range(len(self)))

    def at(self, places: NDArray[np.int64]) -> Encodings:
        """Return the samples at some places."""
        part = object.__new__(Encodings)
        part.chosen = Rows(
            self.chosen.tables, self.chosen.table_of[places], self.chosen.rows[places]
        )
        for name in ("starts", "kept", "num_images", "num_supervised", "lengths", "truncated"):
            setattr(part, name, getattr(self, name)[places])
        return part

    @property
    def digest(self) -> str:
        """A digest of all ids and labels, their order, and where they are cut."""
        chosen = self.chosen
        arrays = (chosen.table_of, chosen.rows, self.kept, self.lengths)
        parts = [hashlib.sha256(np.ascontiguousarray(one).data).hexdigest() for one in arrays]
        return joined_digest([*(table.digest for table in chosen.tables), *parts])

    def _tokens(self, place: int) -> tuple[NDArray[np.int32], NDArray[np.bool_]]:
        """Return what is kept of a sample: ids, and which of them are learned."""
        table = self.chosen.tables[self.chosen.table_of[place]]
        part = slice(self.starts[place], self.starts[place] + self.kept[place])
        return table.ids[part], table.learned[part]

    def _cut(self, place: int, costs: NDArray[np.int64], max_length: int) -> None:
        """Drop ids from a sample's end, never a part of a picture."""
        ids, learned = self._tokens(place)
        positions = np.ones(len(ids), np.int64)
        positions[ids == IMAGE_TOKEN] = costs
        taken = np.cumsum(positions)
        kept = int(np.searchsorted(taken, max_length, side="right"))
        self.kept[place] = kept
        self.lengths[place] = taken[kept - 1] if kept else 0
        self.num_images[place] = np.count_nonzero(ids[:kept] == IMAGE_TOKEN)
        self.num_supervised[place] = np.count_nonzero(learned[1:kept])
