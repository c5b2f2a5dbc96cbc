r"""The values of a JSON list or of JSON lines, one after another, each with its own errors.

Design decisions:

- Which of the two a file is, its first character tells, not its name: ``[`` begins a list.
- Lines end at ``\n`` alone. ``str.splitlines`` also cuts at U+2028, U+0085 and others, which JSON
  allows inside a text.
- One value is parsed at a time. A line that is not JSON, bytes that are not UTF-8 and numbers
  without end are errors of that value, and what comes after it is read. In a list only what is not
  JSON at all ends the reading, because nobody knows where the next value begins.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, NoReturn

from manyeyes.data.dataset.texts import half_character
from manyeyes.errors import UserError, shown
from manyeyes.runtime.filetypes import HEAD_BYTES, another_thing
from manyeyes.runtime.json_files import LONGEST_NUMBER

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydantic import JsonValue

EXPECTED = 'a list of {"id", "image", "conversations"} is needed'
_BLANK = " \t\r\n"
_GAP = re.compile(r"[ \t\r\n]*")
_ESCAPED_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_NO_UTF8 = re.compile("[\udc80-\udcff]")


class RecordError(UserError):
    """One record cannot be used; with a quarantine the import goes on without it."""

    def __init__(self, reason: str, where: str, text: str) -> None:
        """Keep the short reason beside the sentence."""
        super().__init__(f"{where}: {text}")
        self.reason = reason


class BrokenListError(UserError):
    """A list is broken, and nobody knows where its next record begins."""


class _NotJsonError(Exception):
    """A text is not JSON; the words stand after "this is" or "... is"."""

    def __init__(self, text: str, place: int = 0) -> None:
        """Keep the place in the text beside the words."""
        super().__init__(text)
        self.place = place


@dataclass(frozen=True)
class Value:
    """One value of a file."""

    number: int
    """Of the record in a list, of the line in JSON lines."""
    value: JsonValue
    error: RecordError | None = None
    """Why the value cannot be used, where it cannot."""


def read_values(path: Path, data: bytes) -> Iterator[Value]:
    """Yield the values of a JSON list, or of JSON lines.

    Args:
        path: names the file in errors.
        data: its bytes.

    Raises:
        UserError: the file is not text, or not JSON, or neither a list nor lines.
    """
    if not data.strip():
        raise UserError(f"{path} is empty; {EXPECTED}.")
    other = another_thing(data[:HEAD_BYTES])
    if other is not None:
        raise UserError(f"{path} is {other}. Here {EXPECTED}.")
    if 4 * data[:HEAD_BYTES].count(0) > len(data[:HEAD_BYTES]):
        raise UserError(f"{path} is not UTF-8 text; {EXPECTED}.")
    # Bytes that are not UTF-8 become surrogates, which are found in the value that has them.
    text = data.decode("utf-8-sig", "surrogateescape")
    reader = _Reader(path, text)
    start = _skip(text, 0)
    if text[start : start + 1] == "[":
        return reader.elements(start + 1)
    if text[start : start + 1] != "{":
        reader.refuse(start)
    return reader.lines()


class _Reader:
    """Parses one value after another of a text."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.text = text
        self._long: list[int] = []
        """Digits of the numbers that are too long, of the value that is being parsed."""
        self._decoder = json.JSONDecoder(parse_int=self._integer)

    def lines(self) -> Iterator[Value]:
        """Yield the value of each line that is not blank.

        Raises:
            UserError: the file is one object over several lines.
        """
        start, number = 0, 0
        while start < len(self.text):
            number += 1
            end = self.text.find("\n", start)
            end = len(self.text) if end < 0 else end
            line = self.text[start:end]
            start = end + 1
            if line.strip(_BLANK):
                found = self._line(number, line)
                if number == 1 and not _is_talk(found):
                    self._refuse_one_object()
                yield found

    def elements(self, start: int) -> Iterator[Value]:
        """Yield the values of a list whose first one begins at ``start``.

        Raises:
            BrokenListError: from here on it is not JSON.
        """
        text, number, where = self.text, 0, "before record 1"
        place = _skip(text, start)
        try:
            while text[place : place + 1] != "]":
                number += 1
                where = f"in record {number}"
                value, end = self._value(text, place)
                record = f"{self.path}, record {number}"
                yield self._judged(number, record, value, text, place, end)
                where = f"after record {number}"
                place = _skip(text, end)
                if text[place : place + 1] == ",":
                    place = _skip(text, place + 1)
                elif text[place : place + 1] != "]":
                    raise _not_json(text, "Expecting ',' delimiter", place)
            _check_end(text, place + 1)
        except _NotJsonError as error:
            raise self._broken(where, place, error) from None

    def _broken(self, where: str, place: int, error: _NotJsonError) -> BrokenListError:
        """Say where a list breaks: the record that begins at a place, or after it."""
        if _is_cut(self.text, error):
            line, column = _position(self.text, len(self.text))
            return BrokenListError(
                f"{self.path} is cut off {where}: the list has no end (the file ends at line "
                f"{line}, column {column}); fetch or export it again."
            )
        if not error.place:
            line, column = _position(self.text, place)
            where += f" (from line {line}, column {column})"
        return BrokenListError(
            f"{self.path}, {where}: this is {error} As JSON lines, one record a line, "
            "the broken one alone could be put aside with --quarantine."
        )

    def refuse(self, start: int) -> NoReturn:
        """Say why a file that is neither a list nor lines of objects is none.

        Raises:
            UserError: always.
        """
        try:
            self._value(self.text, start)
        except _NotJsonError as error:
            raise UserError(f"{self.path} is {error}") from None
        raise self._no_list()

    def _value(self, text: str, place: int) -> tuple[JsonValue, int]:
        """Parse the value that begins at a place; also return where it ends."""
        self._long.clear()
        try:
            value: JsonValue
            value, end = self._decoder.raw_decode(text, place)
        except json.JSONDecodeError as error:
            raise _not_json(text, error.msg.removesuffix(" at"), error.pos) from None
        except RecursionError:
            raise _NotJsonError(f"nested deeper than any conversation; {EXPECTED}.") from None
        return value, end

    def _line(self, number: int, line: str) -> Value:
        place = _skip(line, 0)
        try:
            value, end = self._value(line, place)
            _check_end(line, end)
        except _NotJsonError as error:
            where = f"{self.path}, line {number}"
            return Value(number, None, RecordError("json", where, f"this is {error}"))
        record = f"{self.path}, record {number}"
        return self._judged(number, record, value, line, place, end)

    def _judged(
        self, number: int, where: str, value: JsonValue, text: str, start: int, end: int
    ) -> Value:
        """Look whether a parsed value holds what nothing can be made of."""
        if self._long:
            problem = f"it holds a number of {max(self._long)} digits; shorten or remove it."
            return Value(number, value, RecordError("number", where, problem))
        if _NO_UTF8.search(text, start, end) or _ESCAPED_SURROGATE.search(text, start, end):
            found = half_character(value)
            if found:
                return Value(number, value, RecordError("encoding", where, _no_text(*found)))
        return Value(number, value)

    def _integer(self, digits: str) -> int:
        if len(digits) > LONGEST_NUMBER:
            self._long.append(len(digits.lstrip("-")))
            return 0
        return int(digits)

    def _refuse_one_object(self) -> None:
        """Tell the one object that a whole file may be from lines that are not JSON."""
        try:
            _, end = self._decoder.raw_decode(self.text, _skip(self.text, 0))
        except (ValueError, RecursionError):
            return
        if _skip(self.text, end) == len(self.text):
            raise self._no_list()

    def _no_list(self) -> UserError:
        return UserError(f"{self.path} holds no JSON list; {EXPECTED}, or one such object a line.")


def _is_talk(found: Value) -> bool:
    return isinstance(found.value, dict) and "conversations" in found.value


def _skip(text: str, place: int) -> int:
    """Return the place of the next character that is no blank of JSON's."""
    found = _GAP.match(text, place)
    assert found is not None
    return found.end()


def _check_end(text: str, place: int) -> None:
    place = _skip(text, place)
    if place < len(text):
        raise _not_json(text, "Extra data", place)


def _not_json(text: str, problem: str, place: int) -> _NotJsonError:
    line, column = _position(text, place)
    return _NotJsonError(
        f"not JSON: {problem} at line {line}, column {column}; correct or export it again.",
        len(text) if problem.startswith("Unterminated string") else place,
    )


def _position(text: str, place: int) -> tuple[int, int]:
    """Return the line and the column of a place, from 1."""
    return text.count("\n", 0, place) + 1, place - text.rfind("\n", 0, place)


def _is_cut(text: str, error: _NotJsonError) -> bool:
    """Say whether nothing is wrong but that the text ends."""
    return error.place > 0 and _skip(text, error.place) == len(text)


def _no_text(place: str, code: int) -> str:
    """Say what is wrong with a half character, or with a byte that stands for one."""
    where = shown(place)[1:-1]
    if _NO_UTF8.match(chr(code)):
        return f"{where} holds the byte 0x{code - 0xDC00:02x}, which is not UTF-8; correct it."
    return f"{where} holds \\u{code:04x}, half of a character; correct it."
