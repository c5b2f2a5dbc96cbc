r"""Read conversations in LLaVA's JSON form, strictly.

Design decisions:

- A record is right or it is refused with one sentence that names the file, the record and what to
  do. Nothing is repaired in silence: the one thing LLaVA and Eagle repair too, an image without a
  placeholder, gets its ``<image>\n`` in front of the first question and is counted.
- Records are numbered from 1; in JSON lines the number is the line's.
- ``id``, ``image`` (one path or a list), ``split``, ``task``, ``answers`` and ``entities`` are
  understood beside ``conversations``; what else a record holds is left alone.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from manyeyes.data.sample import IMAGE_PLACEHOLDER, SPLITS, Turn
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from pydantic import JsonValue

SPEAKERS: dict[str, Literal["human", "gpt"]] = {"human": "human", "gpt": "gpt"}
_EXPECTED = 'a list of {"id", "image", "conversations"} is needed'


class RecordError(UserError):
    """One record cannot be used; with a quarantine the import goes on without it."""

    def __init__(self, reason: str, where: str, text: str) -> None:
        """Keep the short reason beside the sentence."""
        super().__init__(f"{where}: {text}")
        self.reason = reason


@dataclass(frozen=True)
class Record:
    """One record as it was read, before its pictures are looked at."""

    where: str
    """Its place, for errors: the file, the record's number and its id."""
    id: str
    turns: tuple[Turn, ...]
    images: tuple[str, ...]
    """Paths below the folder of pictures, in the order of the placeholders."""
    split: str = "train"
    task: str = ""
    answers: tuple[str, ...] = ()
    entities: tuple[str, ...] = ()
    num_placeholders_added: int = 0


@dataclass
class Reader:
    """Turns raw values into records and remembers the ids it has seen."""

    file: Path
    _ids: set[str] = field(default_factory=set)

    def read(self, number: int, value: JsonValue) -> Record:
        """Check one raw value.

        Raises:
            RecordError: it is not a usable record.
        """
        where = f"{self.file}, record {number}"
        if not isinstance(value, dict):
            raise RecordError("record", where, f"this is not a JSON object; {_EXPECTED}.")
        name = self._claim(where, number, value.get("id"))
        where = f"{where} (id {name!r})"
        images = _images(where, value.get("image"))
        turns = _turns(where, value.get("conversations"))
        turns, num_added = _with_placeholders(where, turns, len(images))
        split = value.get("split", "train")
        if split not in SPLITS:
            raise RecordError(
                "split", where, f"its split is {split!r}; use one of {', '.join(SPLITS)}."
            )
        return Record(
            where=where,
            id=name,
            turns=turns,
            images=images,
            split=str(split),
            task=str(value.get("task") or ""),
            answers=_words(where, "answers", value) or (turns[-1].text,),
            entities=_words(where, "entities", value),
            num_placeholders_added=num_added,
        )

    def _claim(self, where: str, number: int, given: JsonValue) -> str:
        """Return the record's id, made from its number where it has none."""
        if given is None:
            given = f"{self.file.stem}-{number:07d}"
        if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
            raise RecordError("id", where, f"its id is {given!r}; give it a text or a number.")
        name = str(given)
        if name in self._ids:
            raise RecordError(
                "id", where, f"its id {name!r} was used before; give every record its own."
            )
        self._ids.add(name)
        return name


def read_values(path: Path) -> Iterator[tuple[int, JsonValue]]:
    """Yield each raw record with its number: of the record in JSON, of the line in JSON lines.

    Raises:
        UserError: the file cannot be read, is not JSON, or is not a list.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UserError(f"Cannot read {path}: {error.strerror}; check the path.") from None
    except UnicodeDecodeError:
        raise UserError(f"{path} is not UTF-8 text; {_EXPECTED}.") from None
    if path.suffix == ".jsonl" or (path.suffix != ".json" and text.lstrip()[:1] == "{"):
        for number, line in enumerate(text.splitlines(), start=1):
            if line.strip():
                yield number, _parse(line, f"{path}, line {number}")
        return
    values = _parse(text, str(path))
    if not isinstance(values, list):
        raise UserError(f"{path} holds no JSON list; {_EXPECTED}, or name JSON lines .jsonl.")
    yield from enumerate(values, start=1)


def _parse(text: str, where: str) -> JsonValue:
    try:
        value: JsonValue = json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(
            f"{where} is not JSON: {error.msg} at line {error.lineno}, column {error.colno}; "
            "correct or export it again."
        ) from None
    except (RecursionError, ValueError):
        raise UserError(f"{where} nests deeper than any conversation; {_EXPECTED}.") from None
    return value


def _images(where: str, value: JsonValue) -> tuple[str, ...]:
    if value is None:
        return ()
    paths = value if isinstance(value, list) else [value]
    if not all(isinstance(path, str) and path for path in paths):
        raise RecordError(
            "image", where, f"its image is {value!r}; give a path or a list of paths."
        )
    return tuple(str(path) for path in paths)


def _turns(where: str, value: JsonValue) -> tuple[Turn, ...]:
    """Check the conversation: who speaks when, and that something is said."""
    if value is None:
        raise RecordError("conversation", where, "it has no conversations; add or remove it.")
    if not isinstance(value, list) or not value:
        raise RecordError(
            "conversation", where, "its conversations are not a list of turns; correct it."
        )
    turns = tuple(_turn(where, number, turn) for number, turn in enumerate(value, start=1))
    speakers = [turn.speaker for turn in turns]
    if speakers != ["human", "gpt"] * (len(turns) // 2):
        raise RecordError(
            "roles",
            where,
            f"the speakers are {', '.join(speakers)}, but human and gpt must alternate, human "
            "first and gpt last; correct or remove it.",
        )
    return turns


def _turn(where: str, number: int, value: JsonValue) -> Turn:
    if not isinstance(value, dict) or not isinstance(value.get("value"), str):
        raise RecordError(
            "conversation",
            where,
            f'turn {number} is not {{"from", "value"}} with text; correct it.',
        )
    speaker = SPEAKERS.get(str(value.get("from")))
    if speaker is None:
        raise RecordError(
            "roles", where, f"turn {number} is from {value.get('from')!r}; use human or gpt."
        )
    text = str(value["value"])
    if not text.strip():
        what = "answer" if speaker == "gpt" else "question"
        raise RecordError("empty_text", where, f"the {what} in turn {number} is empty; fill it.")
    if speaker == "gpt" and IMAGE_PLACEHOLDER in text:
        raise RecordError(
            "placeholders",
            where,
            f"the answer in turn {number} holds {IMAGE_PLACEHOLDER}; only questions show images.",
        )
    return Turn(speaker, text)


def _with_placeholders(
    where: str, turns: tuple[Turn, ...], num_images: int
) -> tuple[tuple[Turn, ...], int]:
    """Return the turns with one placeholder per image, and how many had to be added."""
    found = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns)
    if found == num_images:
        return turns, 0
    if found == 0:
        first = Turn("human", f"{IMAGE_PLACEHOLDER}\n" * num_images + turns[0].text)
        return (first, *turns[1:]), num_images
    raise RecordError(
        "placeholders",
        where,
        f"it holds {IMAGE_PLACEHOLDER} {found} times, but names {num_images} images; "
        "write it once for each.",
    )


def _words(where: str, key: str, record: dict[str, JsonValue]) -> tuple[str, ...]:
    values = record.get(key) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise RecordError(key, where, f"its {key} are {values!r}; give a list of texts.")
    return tuple(str(value) for value in values)
