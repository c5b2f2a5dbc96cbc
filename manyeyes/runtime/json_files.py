"""The one reader of JSON that others wrote: manifests, indexes, configs of models.

What cannot be read is one ``JsonError``, whose words stand after "it" and end with what to do; no
words of Python's decoder come out. Beyond what Python's decoder refuses are refused:

- a byte order mark: the libraries that read the same file after us do not accept one;
- whole numbers of more than ``LONGEST_NUMBER`` digits, and ``NaN``. ``Infinity`` is read: configs
  of state space models hold one;
- a key that stands twice with different values, of which each reader takes another.
"""

from __future__ import annotations

import codecs
import json
from typing import TYPE_CHECKING, Any, NoReturn

from manyeyes.errors import shown
from manyeyes.runtime.filetypes import HEAD_BYTES, another_thing, not_utf8
from manyeyes.runtime.plain_files import LARGEST_JSON, read_plain

if TYPE_CHECKING:
    from pathlib import Path

LONGEST_NUMBER = 100
"""Digits of a whole number; no identifier, size or seed has more."""


class JsonError(ValueError):
    """A text is not JSON, or not one that can be trusted; the words stand after "it"."""


def read_json(path: Path, limit: int = LARGEST_JSON) -> Any:  # noqa: ANN401  (what JSON holds)
    """Read a JSON file.

    Raises:
        OSError: as ``read_plain``.
        JsonError: it is not JSON.
    """
    data = read_plain(path, limit)
    other = "empty; get it again" if not data.strip() else not_utf8(data)
    if other is not None:
        raise JsonError(f"is {other}")
    if data.startswith(codecs.BOM_UTF8):
        raise JsonError("begins with a byte order mark; save it as UTF-8 without one")
    try:
        return parse_json(data.decode("utf-8"))
    except JsonError:
        other = another_thing(data[:HEAD_BYTES])
        if other is not None:
            raise JsonError(f"is {other}") from None
        raise


def parse_json(text: str) -> Any:  # noqa: ANN401  (what JSON holds)
    """Read JSON text.

    Raises:
        JsonError: it is not JSON.
    """
    try:
        return json.loads(
            text, parse_int=_integer, parse_constant=_constant, object_pairs_hook=_object
        )
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise JsonError(
            f"is not JSON ({error.msg.removesuffix(' at')} at {place}); get it again"
        ) from None
    except RecursionError:
        raise JsonError("nests deeper than any description does; get it again") from None


def said(error: OSError | ValueError, advice: str) -> str:
    """Say why a file could not be read, and what to do, to stand after its name and a colon.

    Args:
        error: what ``read_json`` raised.
        advice: what to do where the error does not say it.
    """
    if isinstance(error, JsonError):
        return f"it {error}"
    return f"{error.strerror if isinstance(error, OSError) else error}; {advice}"


def _integer(digits: str) -> int:
    if len(digits) > LONGEST_NUMBER:
        number = len(digits.lstrip("-"))
        raise JsonError(f"holds a number of {number} digits; correct it")
    return int(digits)


def _constant(name: str) -> float:
    if name == "NaN":
        raise JsonError("holds NaN, which is no number; correct it")
    return float(name)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        for key, value in pairs:
            if found[key] != value:
                _refuse_twice(key)
    return found


def _refuse_twice(key: str) -> NoReturn:
    raise JsonError(f"has the key {shown(key)} twice, with different values; take one out")
