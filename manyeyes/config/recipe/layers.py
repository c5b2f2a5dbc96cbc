"""Settings in layers: each value, and the file and line that wrote it.

A recipe's values come from its own file, from the file it extends, from ``--set``, or from the
defaults of the schema. Each source is a :class:`Layer`. Laid over each other they are one tree, in
which every value still knows its place.

How one layer lies over another: mappings are merged key by key; lists are replaced; so are the
mappings whose keys are the user's own names (``sources``, ``tasks``), which are one value each; and
so is a section whose ``kind`` changes, as the keys of one kind say nothing to another.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ruamel.yaml.comments import CommentedMap, CommentedSeq

Key = str | int
Location = tuple[Key, ...]
Source = Literal["own", "base", "set"]
ONE_VALUE = ("sources", "tasks")
"""Mappings of names that the user chose: a mixture is not added to, but replaced."""


def written(location: Sequence[Key]) -> str:
    """Return a location as errors write it: ``model.encoders.0.name``."""
    return ".".join(str(part) if str(part).strip() else repr(part) for part in location)


@dataclass(frozen=True)
class Place:
    """Where a value was written."""

    file: str
    """A file, or the words of ``--set``."""
    line: int | None
    key: Location
    """The key as it stands there: ``prealign.all.steps`` for the steps of each encoder."""
    source: Source

    def __str__(self) -> str:
        """Return ``FILE:LINE: KEY``."""
        place = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{place}: {written(self.key)}" if self.key else place


@dataclass(frozen=True)
class Layer:
    """A tree of settings in plain dicts, lists and scalars, and the place of every value."""

    values: Any
    places: Mapping[Location, Place]
    """The root is always among them."""

    def find(self, location: Sequence[Key]) -> Place:
        """Return the place of a location, or of the nearest that was written around it.

        The key of what was found is continued to the location: what is missing is named, too.
        """
        at = tuple(location)
        length = next(n for n in range(len(at), -1, -1) if at[:n] in self.places)
        place = self.places[at[:length]]
        return Place(place.file, place.line, (*place.key, *at[length:]), place.source)


def read_layer(tree: object, file: str, source: Source) -> Layer:
    """Turn what ruamel read into plain values, with the place of each."""
    places: dict[Location, Place] = {}

    def plain(node: object, at: Location, line: int) -> object:
        places[at] = Place(file, line, at, source)
        if isinstance(node, CommentedMap):
            return {
                key: plain(value, (*at, key), _line_of(node, key, line))
                for key, value in node.items()
            }
        if isinstance(node, CommentedSeq):
            return [
                plain(value, (*at, index), int(node.lc.item(index)[0]) + 1)
                for index, value in enumerate(node)
            ]
        return _scalar(node)

    return Layer(plain(tree, (), 1), places)


def _line_of(node: CommentedMap, key: object, otherwise: int) -> int:
    """Return the line of a key, which may stand in a mapping that is merged in (``<<``)."""
    for one in (node, *node.merge):
        try:
            return int(one.lc.key(key)[0]) + 1
        except (KeyError, AttributeError, TypeError):
            continue
    return otherwise


def _scalar(node: object) -> object:
    """Return a plain value for ruamel's, which remembers how it was written."""
    for plain in (bool, int, float, str):
        if isinstance(node, plain):
            return plain(node)
    return node


def lay_over(lower: Layer, upper: Layer) -> Layer:
    """Return two layers as one; where both have a value, the upper one holds."""
    replaced: set[Location] = set()
    values = _merged(lower.values, upper.values, (), replaced)
    kept = {
        at: place
        for at, place in lower.places.items()
        if not any(at[:length] in replaced for length in range(len(at) + 1))
    }
    return Layer(values, {**kept, **upper.places})


def _merged(lower: Any, upper: Any, at: Location, replaced: set[Location]) -> Any:  # noqa: ANN401
    if not _go_together(lower, upper, at):
        replaced.add(at)
        return upper
    merged = dict(lower)
    for key, value in upper.items():
        inner = (*at, key)
        merged[key] = _merged(lower[key], value, inner, replaced) if key in lower else value
    return merged


def _go_together(lower: object, upper: object, at: Location) -> bool:
    if not (isinstance(lower, dict) and isinstance(upper, dict)) or (at and at[-1] in ONE_VALUE):
        return False
    kind = lower.get("kind")
    return bool(upper.get("kind", kind) == kind)


def put(
    layer: Layer, location: Location, value: object, place: Callable[[Location], Place]
) -> Layer:
    """Return a layer with one value written anew; sections on the way are made where absent."""
    places = {at: one for at, one in layer.places.items() if at[: len(location)] != location}
    for length in range(1, len(location)):
        places.setdefault(location[:length], place(location[:length]))
    for at in _locations(value, location):
        places[at] = place(at)
    return Layer(_written_into(layer.values, location, value), places)


def _locations(value: object, at: Location) -> list[Location]:
    """Return where a value lies, and everything in it."""
    found = [at]
    if isinstance(value, dict):
        found += [one for key, inner in value.items() for one in _locations(inner, (*at, key))]
    elif isinstance(value, list):
        found += [one for i, inner in enumerate(value) for one in _locations(inner, (*at, i))]
    return found


def _written_into(node: object, location: Location, value: object) -> object:
    if not location:
        return value
    key, rest = location[0], location[1:]
    if isinstance(node, list) and isinstance(key, int):
        return [
            _written_into(one, rest, value) if index == key else one
            for index, one in enumerate(node)
        ]
    section = dict(node) if isinstance(node, dict) else {}
    return {**section, key: _written_into(section.get(key), rest, value)}


def tuples(node: object) -> object:
    """Turn lists into tuples, which is what strict sections hold."""
    if isinstance(node, dict):
        return {key: tuples(value) for key, value in node.items()}
    return tuple(tuples(value) for value in node) if isinstance(node, list) else node
