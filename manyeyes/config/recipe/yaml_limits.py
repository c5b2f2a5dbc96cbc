"""What a YAML file must not be before it is built: endless.

A few lines of aliases stand for more values than a machine holds, and twenty thousand brackets for
more depth than Python has. So the file's events are counted first, which builds nothing and stops
at the first that is too much.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.events import (
    AliasEvent,
    CollectionEndEvent,
    CollectionStartEvent,
    DocumentStartEvent,
    Event,
    ScalarEvent,
)

MOST_CHARACTERS = 400_000
"""ruamel takes seconds for these on a busy machine, and a published recipe has 10,000."""
MOST_DEPTH = 50
MOST_VALUES = 10_000
"""Values of a file, with what its aliases stand for."""
LONGEST_NUMBER = 100
"""Digits."""
_BRACKETS = re.compile(rf"(?:[\[{{][ \t]*){{{MOST_DEPTH + 1}}}")
"""Looked for beforehand: ruamel takes seconds to see that they are no key."""
_HALF = re.compile("[\ud800-\udfff]")
_OWN_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {f"{_OWN_TAG}{name}" for name in ("str", "int", "float", "bool", "null")}


class TooMuchError(Exception):
    """A file holds what no file of settings can hold; the words stand behind its place."""

    def __init__(self, line: int, problem: str) -> None:
        """Keep the line, counted from 1."""
        super().__init__(problem)
        self.line = line


def check_limits(text: str) -> None:
    """Count a text's values, aliases followed, without building any.

    Raises:
        TooMuchError: it is too large, too deep, stands for too much, is more than one document,
            or has a tag.
        YAMLError: it is no YAML.
    """
    if len(text) > MOST_CHARACTERS:
        raise TooMuchError(1, f"it has {len(text)} characters, more than {MOST_CHARACTERS}")
    brackets = _BRACKETS.search(text)
    if brackets:
        line = text.count("\n", 0, brackets.start()) + 1
        raise TooMuchError(line, f"it nests deeper than {MOST_DEPTH} levels")
    counter = _Counter()
    for event in YAML(typ="rt", pure=True).parse(text):
        counter.take(event)


@dataclass
class _Counter:
    """Counts values; of each open collection how many it holds, and the anchor that names it."""

    open: list[list[Any]] = field(default_factory=lambda: [[0, None]])
    sizes: dict[str, int] = field(default_factory=dict)
    """Anchor to the number of values it stands for."""
    documents: int = 0

    def take(self, event: Event) -> None:
        line = event.start_mark.line + 1 if event.start_mark else 1
        if isinstance(event, DocumentStartEvent):
            self.documents += 1
            if self.documents > 1:
                raise TooMuchError(line, "a second document begins here; write it to another file")
        elif isinstance(event, AliasEvent):
            if event.anchor not in self.sizes:
                raise TooMuchError(line, f"*{event.anchor} names nothing that ended before it")
            self._add(line, self.sizes[event.anchor])
        elif isinstance(event, ScalarEvent):
            _check_scalar(line, event)
            self._add(line, 1)
            self._name(event.anchor, 1)
        elif isinstance(event, CollectionStartEvent):
            self._begin(line, event)
        elif isinstance(event, CollectionEndEvent):
            size, anchor = self.open.pop()
            self._name(anchor, size)
            self._add(line, size)

    def _begin(self, line: int, event: CollectionStartEvent) -> None:
        _check_tag(line, event)
        if len(self.open) > MOST_DEPTH:
            raise TooMuchError(line, f"it nests deeper than {MOST_DEPTH} levels")
        self.open.append([1, event.anchor])

    def _add(self, line: int, number: int) -> None:
        self.open[-1][0] += number
        if self.open[-1][0] > MOST_VALUES:
            raise TooMuchError(
                line, f"with what its aliases stand for it has more than {MOST_VALUES} values"
            )

    def _name(self, anchor: str | None, size: int) -> None:
        if anchor is not None:
            self.sizes[anchor] = size


def _check_scalar(line: int, event: ScalarEvent) -> None:
    _check_tag(line, event)
    half = _HALF.search(str(event.value))
    if half:
        raise TooMuchError(line, f"it holds \\u{ord(half.group()):04x}, half of a character")
    digits = str(event.value).lstrip("+-").replace("_", "")
    if event.style is None and len(digits) > LONGEST_NUMBER and digits.isdigit():
        raise TooMuchError(line, f"a number of {len(digits)} digits is no setting")


def _check_tag(line: int, event: ScalarEvent | CollectionStartEvent) -> None:
    tag = None if event.tag is None else str(event.tag)
    if tag is not None and tag not in ("!", *_PLAIN_TAGS):
        shown = tag.replace(_OWN_TAG, "!!")
        raise TooMuchError(line, f"the tag {shown} is not read; remove it")
