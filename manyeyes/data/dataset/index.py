"""The index of a dataset, ``samples.parquet``, read no further than somebody asks.

Design decisions:

- A column is decoded when it is first needed and kept as Arrow has it, a row becomes a ``Sample``
  when it is asked for. A stage that finds its tokens made (``token_store``) reads who its samples
  are and what they show, and never the texts, which are most of the index.
- What is needed of every sample comes as arrays: tasks, and sizes and places of pictures.
- Whoever goes through all samples gets them a block at a time, so that at no moment there are more
  of them than a block and what the caller keeps.
- Only the path and the row numbers are pickled: another process reads the same file.
"""

from __future__ import annotations

import hashlib
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import islice, pairwise
from typing import TYPE_CHECKING, Any, overload

import numpy as np

from manyeyes.data.dataset.rows import collector_at_rest, parse_rows
from manyeyes.data.dataset.sample import SAMPLE_COLUMNS, ImageRef, Sample
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator
    from pathlib import Path

    import pyarrow as pa
    from numpy.typing import NDArray

BLOCK = 4096
"""Rows that are made into samples together."""
_PIECE = 1 << 24
"""Bytes that are read at once for the digest."""
_REF_FIELDS = ("id", "shard", "offset", "size", "sha256", "width", "height")


@dataclass(frozen=True)
class Shown:
    """A sample without its words."""

    id: str
    images: tuple[ImageRef, ...]


class Index:
    """The columns of ``samples.parquet``, each decoded on first use."""

    def __init__(self, path: Path) -> None:
        """Name the file; it is opened when something of it is needed."""
        self.path = path
        self._columns: dict[str, pa.ChunkedArray] = {}
        # The thread that makes batches and the one that trains both ask.
        self._lock = threading.RLock()

    def __reduce__(self) -> tuple[type[Index], tuple[Path]]:
        """Pickle the path."""
        return Index, (self.path,)

    def __len__(self) -> int:
        """Return the number of rows."""
        return int(self._file.metadata.num_rows)

    def column(self, name: str) -> pa.ChunkedArray:
        """Return one column, with a chunk for each row group.

        Raises:
            UserError: the file is no parquet file, or is damaged.
        """
        with self._lock:
            if name not in self._columns:
                with self._readable():
                    self._columns[name] = self._file.read(columns=[name]).column(0)
            return self._columns[name]

    def forget(self, name: str) -> None:
        """Let go of a column that is large and not needed for a while."""
        with self._lock:
            self._columns.pop(name, None)

    @cached_property
    def digest(self) -> str:
        """The file's sha256."""
        digest = hashlib.sha256()
        with self._readable():
            for start in range(0, self._source.size(), _PIECE):
                digest.update(self._source.read_at(_PIECE, start))
        return digest.hexdigest()

    @cached_property
    def pictures(self) -> Pictures:
        """The pictures of all rows."""
        return Pictures(self.column("images"))

    def samples(
        self, split: str | None, tasks: Collection[str] | None, exclude: Collection[str]
    ) -> Samples:
        """Choose samples; see :meth:`manyeyes.data.dataset.dataset.Dataset.samples`."""
        chosen = np.ones(len(self), dtype=bool)
        if split is not None:
            chosen &= self._is_in("split", [split])
        if tasks is not None:
            chosen &= self._is_in("task", tasks)
        if exclude:
            chosen &= ~self._is_in("id", exclude)
        return Samples(self, np.flatnonzero(chosen))

    def take(self, name: str, rows: NDArray[np.int64]) -> list[Any]:
        """Return the values of a column in some rows."""
        values: list[Any] = _take(self.column(name), rows).to_pylist()
        return values

    def _is_in(self, name: str, values: Iterable[str]) -> NDArray[np.bool_]:
        import pyarrow as pa
        import pyarrow.compute as pc

        found = pc.is_in(self.column(name), value_set=pa.array(list(values), pa.string()))
        mask: NDArray[np.bool_] = found.to_numpy()
        return mask

    @cached_property
    def _source(self) -> Any:  # noqa: ANN401  # pyarrow has no types
        """The file, opened once: what is read later is of the same index."""
        import pyarrow as pa

        with self._readable():
            return pa.OSFile(str(self.path))

    @cached_property
    def _file(self) -> Any:  # noqa: ANN401  # pyarrow has no types
        import pyarrow.parquet as pq

        source = self._source
        with self._readable():
            file = pq.ParquetFile(source)
        names = file.schema_arrow.names
        missing = [name for name in SAMPLE_COLUMNS if name not in names]
        if missing:
            raise UserError(
                f"{self.path}: the column {missing[0]} is missing; make the dataset again."
            )
        return file

    @contextmanager
    def _readable(self) -> Iterator[None]:
        import pyarrow as pa

        try:
            yield
        except (OSError, pa.ArrowException) as error:
            raise UserError(
                f"{self.path}: this is not a readable parquet file; "
                "fetch or make the dataset again."
            ) from error


class Pictures:
    """The pictures of all rows, one after another."""

    def __init__(self, column: pa.ChunkedArray) -> None:
        """Take the column ``images``: a list of structures for each row."""
        import pyarrow as pa
        import pyarrow.compute as pc

        counts = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
        self.starts: NDArray[np.int64] = np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
        """Place of the first picture of each row, and the number of all."""
        flat = pa.chunked_array([part.flatten() for part in column.chunks], column.type.value_type)
        self._fields = {name: pc.struct_field(flat, name) for name in _REF_FIELDS}

    @cached_property
    def sizes(self) -> NDArray[np.int64]:
        """(pictures, 2): widths and heights in pixels."""
        return np.stack([self._numbers("width"), self._numbers("height")], axis=1)

    def refs(self, places: NDArray[np.int64]) -> list[ImageRef]:
        """Return the pictures at some places."""
        parts = [_take(self._fields[name], places) for name in _REF_FIELDS]
        return list(map(ImageRef, *(part.to_pylist() for part in parts)))

    def of_row(self, row: int) -> list[ImageRef]:
        """Return the pictures of one row."""
        start, stop = self.starts[row : row + 2].tolist()
        return self.refs(np.arange(start, stop))

    def sha256(self, places: NDArray[np.int64]) -> pa.Array:
        """Return what identifies the pictures at some places."""
        return _take(self._fields["sha256"], places)

    def distinct(self, places: NDArray[np.int64]) -> pa.Array:
        """Return the sha256 of the pictures at some places, each once, in order."""
        return self.sha256(places).unique()

    def _numbers(self, name: str) -> NDArray[np.int64]:
        import pyarrow.compute as pc

        numbers = pc.fill_null(self._fields[name], 0).to_numpy()
        return np.asarray(numbers, dtype=np.int64)


class Samples(Sequence[Sample]):
    """Some rows of an index, in the index's order, as samples."""

    def __init__(self, source: Index, rows: NDArray[np.int64]) -> None:
        """Choose rows; nothing is read."""
        self.source = source
        self.rows = rows

    def __len__(self) -> int:
        """Return how many samples there are."""
        return len(self.rows)

    @overload
    def __getitem__(self, place: int) -> Sample: ...
    @overload
    def __getitem__(self, place: slice) -> Samples: ...
    def __getitem__(self, place: int | slice) -> Sample | Samples:
        """Read one sample, or choose a part of them.

        Raises:
            UserError: the row cannot be read.
        """
        if isinstance(place, slice):
            return Samples(self.source, self.rows[place])
        (found,) = self._read(np.array([self.rows[place]]))
        return _readable(found)

    def __iter__(self) -> Iterator[Sample]:
        """Read the samples one after another.

        Raises:
            UserError: a row cannot be read.
        """
        return map(_readable, self.attempts())

    def __eq__(self, other: object) -> bool:
        """Compare with any sequence of samples."""
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]  # like a list's

    def attempts(self) -> Iterator[Sample | UserError]:
        """Read the samples; in the place of one that cannot be read stands the error."""
        for start in range(0, len(self), BLOCK):
            yield from self._read(self.rows[start : start + BLOCK])

    def chosen(self, places: NDArray[np.int64]) -> Samples:
        """Return the samples at some places."""
        return Samples(self.source, self.rows[places])

    def ids(self) -> Iterator[str]:
        """Yield the names of the samples."""
        for start in range(0, len(self), BLOCK):
            yield from self.source.take("id", self.rows[start : start + BLOCK])

    def of_task(self, name: str) -> NDArray[np.int64]:
        """Return the places of the samples of a task."""
        codes, names = self._tasks
        return np.flatnonzero(codes == names.index(name)) if name in names else _NONE

    def tasks(self) -> list[str]:
        """Return the tasks that any of the samples has, sorted."""
        codes, names = self._tasks
        return sorted(names[code] for code in np.unique(codes).tolist())

    def num_images(self) -> NDArray[np.int64]:
        """Return how many pictures each sample has."""
        starts = self.source.pictures.starts
        return starts[self.rows + 1] - starts[self.rows]

    def picture_places(self, counts: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
        """Return the places in ``source.pictures`` of the samples' pictures, one after another.

        Args:
            counts: how many of each sample's pictures, the first ones; all if None.
        """
        firsts = self.source.pictures.starts[self.rows]
        return ranges(firsts, self.num_images() if counts is None else counts)

    def picture_names(self) -> Iterator[str]:
        """Yield the sha256 of all pictures that the samples show."""
        places = self.picture_places()
        for start in range(0, len(places), BLOCK):
            yield from self.source.pictures.sha256(places[start : start + BLOCK]).to_pylist()

    def pictures(self) -> list[ImageRef]:
        """Return all pictures that the samples show."""
        return self.source.pictures.refs(self.picture_places())

    def shown(self, place: int) -> Shown:
        """Return a sample's name and pictures."""
        row = int(self.rows[place])
        name = self.source.column("id")[row].as_py()
        return Shown(name, tuple(self.source.pictures.of_row(row)))

    @cached_property
    def _tasks(self) -> tuple[NDArray[np.int64], list[str]]:
        """Number of each sample's task, and the tasks' names."""
        import pyarrow.compute as pc

        named = pc.fill_null(self.source.column("task"), "")
        coded = pc.dictionary_encode(named).unify_dictionaries()
        codes = np.concatenate([np.asarray(part.indices) for part in coded.chunks] or [_NONE])
        return codes[self.rows], coded.chunk(0).dictionary.to_pylist() if coded.num_chunks else []

    def _read(self, rows: NDArray[np.int64]) -> list[Sample | UserError]:
        """Make samples of rows."""
        with collector_at_rest():
            source = self.source
            columns = {name: source.take(name, rows) for name in SAMPLE_COLUMNS if name != "images"}
            firsts = source.pictures.starts[rows]
            counts = source.pictures.starts[rows + 1] - firsts
            refs = iter(source.pictures.refs(ranges(firsts, counts)))
            columns["images"] = [tuple(islice(refs, count)) for count in counts.tolist()]
            columns["answers"] = [tuple(one or ()) for one in columns["answers"]]
            columns["entities"] = [tuple(one or ()) for one in columns["entities"]]
            return parse_rows(columns)


_NONE = np.empty(0, dtype=np.int64)


def ranges(firsts: NDArray[np.int64], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return ``firsts[i], firsts[i] + 1, ...``, ``counts[i]`` numbers, for each i in turn."""
    ends = np.cumsum(counts, dtype=np.int64)
    numbers = np.arange(ends[-1] if len(ends) else 0, dtype=np.int64)
    moved: NDArray[np.int64] = numbers + np.repeat(firsts - (ends - counts), counts)
    return moved


def _take(column: pa.ChunkedArray, places: NDArray[np.int64]) -> pa.Array:
    """Return the values at some places.

    Chunk by chunk: Arrow would join all chunks of a column for a few values of it.
    """
    import pyarrow as pa

    if not len(places):
        return pa.array([], column.type)
    if len(places) == 1:
        return column.slice(int(places[0]), 1).chunk(0)
    if column.num_chunks == 1:
        return column.chunk(0).take(pa.array(places))
    ends = np.cumsum([len(chunk) for chunk in column.chunks])
    chunk_of = np.searchsorted(ends, places, side="right")
    parts = []
    cuts = [0, *(np.flatnonzero(np.diff(chunk_of)) + 1).tolist(), len(places)]
    for first, last in pairwise(cuts):
        number = int(chunk_of[first])
        chunk = column.chunk(number)
        parts.append(chunk.take(pa.array(places[first:last] - (ends[number] - len(chunk)))))
    return parts[0] if len(parts) == 1 else pa.concat_arrays(parts)


def _readable(found: Sample | UserError) -> Sample:
    if isinstance(found, UserError):
        raise found
    return found
