r"""Text that strangers wrote: what can be kept, and what looks like a control token in it.

Design decisions:

- Everything kept is Unicode that can be written as UTF-8. Python's ``str`` can hold halves of a
  character (lone surrogates, from JSON's ``"\ud83d"`` or from a file name that is not UTF-8), which
  no file, table or terminal takes. They are found where text comes in.
- Names (ids, tasks, sources) end up in tables, terminals and pages, so they hold no control
  characters and are not endless.
- What looks like a control token is counted by its spelling. Whether it is one for a language
  model, ``conversation`` knows; there it is plain text in any case.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pydantic import JsonValue

LONGEST_NAME = 500
"""Characters of an id, a task or the name of a source."""

_SURROGATE = re.compile("[\ud800-\udfff]")
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f]")
_TOKEN = re.compile(
    r"<\|[^|<>\s]{1,40}\|>|</?s>|<(?:pad|unk|bos|eos|mask|cls|sep|start_of_turn|end_of_turn|"
    r"begin_of_text|end_of_text|image|image_pad|video)>|\[/?INST\]|<</?SYS>>"
)


def printable(text: str) -> str:
    """Return a text that can be written anywhere: halves of characters become their escapes."""
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def is_whole(text: str) -> bool:
    """Tell whether a text can be written as UTF-8."""
    return _SURROGATE.search(text) is None


def half_character(value: JsonValue, place: str = "") -> tuple[str, int] | None:
    """Find half a character in a value: the place (``conversations[2].value``) and its number."""
    stack: list[tuple[str, JsonValue]] = [(place, value)]
    while stack:
        where, one = stack.pop()
        if isinstance(one, str):
            found = _SURROGATE.search(one)
            if found:
                return where, ord(found.group())
        elif isinstance(one, list):
            stack += [(f"{where}[{number}]", part) for number, part in enumerate(one, start=1)]
        elif isinstance(one, dict):
            for key, part in one.items():
                stack += [(f"a key of {where or 'the record'}", key)]
                stack += [(f"{where}.{key}" if where else key, part)]
    return None


def name_problem(name: str) -> str | None:
    """Say why a text cannot be a name; None if it can.

    The words stand after "it" and tell what to do.
    """
    if not is_whole(name):
        return "holds half a character (a lone surrogate); write it as UTF-8"
    found = _CONTROL.search(name)
    if found:
        return f"holds the control character {found.group()!r}; take it out"
    if len(name) > LONGEST_NAME:
        return f"has {len(name)} characters; give at most {LONGEST_NAME}"
    return None


def control_tokens(text: str) -> list[str]:
    """Return what is spelled like a control token, in order: ``</s>``, ``<|im_end|>`` and kin."""
    return _TOKEN.findall(text)
