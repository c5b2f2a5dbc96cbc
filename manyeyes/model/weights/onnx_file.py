"""Reads tensors and node names out of an ONNX file, and nothing else of it.

An ONNX file is a protocol buffer: tagged fields, each a number or a length and bytes. A reader of
the few fields that matter here is shorter than the dependency, and it interprets nothing: no graph
is run, no external file is opened, every length is checked against what encloses it.

Field numbers are those of ``onnx.proto`` (onnx/onnx, IR version 7): ModelProto.graph 7;
GraphProto.node 1, .initializer 5; NodeProto.input 1, .name 3, .op_type 4; TensorProto.dims 1,
.data_type 2, .name 8, .raw_data 9.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from numpy.typing import NDArray

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_FLOAT = 1
"""TensorProto.DataType: the one type that weights have here."""
_LONGEST_VARINT = 10


@dataclass(frozen=True)
class Node:
    """One operation of a graph."""

    name: str
    operation: str
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class OnnxFile:
    """What a converter needs of a model."""

    nodes: tuple[Node, ...]
    tensors: dict[str, NDArray[numpy.float32]]
    """The float32 initialisers by name; integers (shapes, axes) are left out."""


def read_onnx(path: Path) -> OnnxFile:
    """Read an ONNX file.

    Raises:
        ValueError: the file is no ONNX model, or is cut off, or keeps its tensors elsewhere.
    """
    data = path.read_bytes()
    graphs = [value for number, value in _fields(memoryview(data)) if number == 7]
    if len(graphs) != 1 or isinstance(graphs[0], int):
        raise ValueError("it has no graph")
    nodes: list[Node] = []
    tensors: dict[str, NDArray[numpy.float32]] = {}
    for number, value in _fields(graphs[0]):
        if isinstance(value, int):
            continue
        if number == 1:
            nodes.append(_node(value))
        elif number == 5:
            tensors.update(_tensor(value))
    return OnnxFile(tuple(nodes), tensors)


def _node(data: memoryview) -> Node:
    texts: dict[int, list[str]] = {1: [], 3: [""], 4: [""]}
    for number, value in _fields(data):
        if number in texts and not isinstance(value, int):
            texts[number].append(str(value, "utf-8"))
    return Node(name=texts[3][-1], operation=texts[4][-1], inputs=tuple(texts[1]))


def _tensor(data: memoryview) -> dict[str, NDArray[numpy.float32]]:
    """Return {name: values} of a float32 initialiser, nothing for another type."""
    shape: list[int] = []
    kind, name = 0, ""
    raw: memoryview | None = None
    for number, value in _fields(data):
        if number == 1:
            shape += [value] if isinstance(value, int) else list(_varints(value))
        elif number == 2 and isinstance(value, int):
            kind = value
        elif number == 8 and not isinstance(value, int):
            name = str(value, "utf-8")
        elif number == 9 and not isinstance(value, int):
            raw = value
    if kind != _FLOAT:
        return {}
    if raw is None or len(raw) != 4 * int(numpy.prod(shape, dtype=numpy.int64)):
        raise ValueError(f"its tensor {name!r} does not hold the values of its shape")
    return {name: numpy.frombuffer(raw, dtype="<f4").reshape(shape)}


def _fields(data: memoryview) -> Iterator[tuple[int, int | memoryview]]:
    """Yield (field number, value) of one message."""
    place = 0
    while place < len(data):
        tag, place = _varint(data, place)
        number, kind = tag >> 3, tag & 7
        if kind == _VARINT:
            value, place = _varint(data, place)
            yield number, value
            continue
        if kind == _BYTES:
            length, place = _varint(data, place)
        elif kind in {_FIXED32, _FIXED64}:
            length = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError("it is no protocol buffer")
        if place + length > len(data):
            raise ValueError("it is cut off")
        yield number, data[place : place + length]
        place += length


def _varints(data: memoryview) -> Iterator[int]:
    """Yield the numbers of a packed field."""
    place = 0
    while place < len(data):
        value, place = _varint(data, place)
        yield value


def _varint(data: memoryview, place: int) -> tuple[int, int]:
    """Return one number, seven bits a byte and the lowest first, and the place behind it."""
    value = 0
    for index, byte in enumerate(data[place : place + _LONGEST_VARINT]):
        value |= (byte & 127) << (7 * index)
        if byte < 128:
            return value, place + index + 1
    raise ValueError("it is cut off")
