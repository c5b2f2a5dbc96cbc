r"""Conversations in LLaVA's JSON form, strictly.

Design decisions:

- A record is right or it is refused with one sentence that names the file, the record and what to
  do. Nothing is repaired in silence: the one thing LLaVA and Eagle repair too, an image without a
  placeholder, gets its ``<image>\n`` in front of the first question and is counted.
- Records are numbered from 1; in JSON lines the number is the line's.
- ``id``, ``image`` (one path or a list; ``images`` is the same), ``split``, ``task``, ``answers``
  and ``entities`` are understood beside ``conversations``. A key that would change what is learned
  if it were left out (another name for pictures, a system prompt, a video) is refused by name;
  what else a record holds is counted by its key and told.
- ``<image>`` is a placeholder in the questions of a record with pictures. In an answer, and in a
  record without pictures, it is a word like others; but where a record says nothing of pictures
  and writes it as placeholders are written, on a line of its own, its picture was forgotten.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

from manyeyes.data.dataset.sample import IMAGE_PLACEHOLDER, SPLITS, Turn
from manyeyes.data.dataset.texts import control_tokens, name_problem
from manyeyes.data.sources.json_values import EXPECTED, RecordError, Value
from manyeyes.errors import shown, suggest

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue

SPEAKERS: dict[str, Literal["human", "gpt"]] = {"human": "human", "gpt": "gpt"}
READ = ("id", "image", "images", "conversations", "split", "task", "answers", "entities")
"""The keys of a record that are read."""
PICTURES = (
    "image_path", "image_paths", "image_file", "image_files", "image_list", "image_url", "img",
    "imgs", "img_path", "img_paths", "picture", "pictures", "photo", "photos",
)  # fmt: skip
"""Keys that others call a record's pictures by."""
SYSTEM = ("system", "system_prompt", "system_message")
NO_PICTURES = ("video", "videos", "video_path", "audio", "audios", "speech")
"""Keys of what is not learned from here."""
TALKS = ("messages", "conversation", "dialogue", "dialog", "turns", "instruction")
"""Keys that others call a conversation by."""
_LOOKALIKE = re.compile(r"<\|?\s*(?:image|img|picture)[ _-]?\d*\s*/?\|?>", re.IGNORECASE)


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
    num_literal_placeholders: int = 0
    """Times that ``<image>`` is a word."""
    lookalike: str = ""
    """What a question holds in place of the placeholder that was added, like ``<img>``."""
    control_tokens: tuple[str, ...] = ()
    """What is spelled like a control token in its texts."""
    numbered: bool = False
    """Its id was used before, and got a number."""


@dataclass
class Reader:
    """Turns values into records and remembers the ids it has seen."""

    file: Path
    number_ids: bool = False
    """Ids that were used before get a number instead of being refused."""
    not_read: Counter[str] = field(default_factory=Counter)
    """Key to the number of records that hold it in vain."""
    _ids: set[str] = field(default_factory=set)

    def read(self, found: Value) -> Record:
        """Check one value.

        Raises:
            RecordError: it is not a usable record.
        """
        if found.error is not None:
            raise found.error
        where, value = f"{self.file}, record {found.number}", found.value
        if not isinstance(value, dict):
            raise RecordError("record", where, f"this is not a JSON object; {EXPECTED}.")
        name, numbered = self._claim(where, found.number, value.get("id"))
        where = f"{where} (id {shown(name)})"
        _refuse_unread(where, value)
        images = _images(where, value)
        turns = _turns(where, value.get("conversations"))
        literal = _literal_placeholders(where, value, turns, len(images))
        turns, num_added = _with_placeholders(where, turns, len(images))
        record = Record(
            where=where,
            id=name,
            turns=turns,
            images=images,
            split=_split(where, value.get("split")),
            task=_task(where, value.get("task")),
            answers=_words(where, "answers", value) or (turns[-1].text,),
            entities=_words(where, "entities", value),
            num_placeholders_added=num_added,
            num_literal_placeholders=literal,
            lookalike=_lookalike(turns) if num_added else "",
            control_tokens=_control_tokens(turns),
            numbered=numbered,
        )
        self._count_keys(value)
        return record

    def _claim(self, where: str, number: int, given: JsonValue) -> tuple[str, bool]:
        """Return the record's id, and whether it had to be told from an earlier one."""
        if given is None:
            given = f"{self.file.stem}-{number:07d}"
        if isinstance(given, bool) or not isinstance(given, str | int) or given == "":
            raise RecordError("id", where, f"its id is {shown(given)}; give it a text or a number.")
        name = str(given)
        problem = name_problem(name)
        if problem:
            raise RecordError("id", where, f"its id {shown(name)} {problem}.")
        numbered = name in self._ids
        if numbered and not self.number_ids:
            raise RecordError(
                "id",
                where,
                f"its id {shown(name)} was used before; give every record its own, or let "
                "--number-ids do it.",
            )
        counted, count = name, 1
        while counted in self._ids:
            count += 1
            counted = f"{name}-{count}"
        self._ids.add(counted)
        return counted, numbered

    def _count_keys(self, value: dict[str, JsonValue]) -> None:
        """Count the keys that are not read, of the record and of its turns."""
        self.not_read.update(key for key in value if key not in READ)
        turns = value["conversations"]
        assert isinstance(turns, list)
        keys = dict.fromkeys(key for turn in turns if isinstance(turn, dict) for key in turn)
        self.not_read.update(f"conversations.{key}" for key in keys if key not in ("from", "value"))


def _refuse_unread(where: str, record: dict[str, JsonValue]) -> None:
    """Refuse what is not read and must not be left out.

    Raises:
        RecordError: the record has such a key.
    """
    has_picture = bool(record.get("image") or record.get("images"))
    has_talk = record.get("conversations") is not None
    for key in (key for key, value in record.items() if value):
        if key in SYSTEM:
            problem = "its system prompt under {!r} is not read (the template has one); remove it."
            raise RecordError("system", where, problem.format(key))
        if key in NO_PICTURES:
            problem = "it names something under {!r}, but only pictures are read; remove it."
            raise RecordError("video", where, problem.format(key))
        if key in PICTURES and not has_picture:
            problem = "its picture under {!r} is not read; call the key image."
            raise RecordError("image", where, problem.format(key))
        if key in TALKS and not has_talk:
            problem = (
                "its conversation under {!r} is not read; call the key conversations and write "
                '[{{"from": "human", "value": ...}}, {{"from": "gpt", "value": ...}}].'
            )
            raise RecordError("conversation", where, problem.format(key))


def _images(where: str, record: dict[str, JsonValue]) -> tuple[str, ...]:
    """Return the paths of a record's pictures; an empty text or list and null are none."""
    found: list[tuple[str, ...]] = []
    for key in ("image", "images"):
        value = record.get(key)
        if value is None or value in ("", []):
            continue
        paths = value if isinstance(value, list) else [value]
        if not all(isinstance(path, str) and path for path in paths):
            raise RecordError(
                "image", where, f"its {key} is {shown(value)}; give a path or a list of paths."
            )
        found.append(tuple(str(path) for path in paths))
    if len(set(found)) > 1:
        raise RecordError("image", where, "its image and its images differ; keep one of the keys.")
    return found[0] if found else ()


def _split(where: str, value: JsonValue) -> str:
    if value is None:
        return SPLITS[0]
    if isinstance(value, str) and value in SPLITS:
        return value
    hint = suggest(value, SPLITS) if isinstance(value, str) else ""
    problem = f"its split is {shown(value)}; use one of {', '.join(SPLITS)}{hint or '.'}"
    raise RecordError("split", where, problem)


def _task(where: str, value: JsonValue) -> str:
    if value is None:
        return ""
    if not isinstance(value, str):
        raise RecordError("task", where, f"its task is {shown(value)}; give one text.")
    problem = name_problem(value)
    if problem:
        raise RecordError("task", where, f"its task {shown(value)} {problem}.")
    return value


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
        said = ", ".join(speakers[:8]) + (", ..." if len(speakers) > 8 else "")
        raise RecordError(
            "roles",
            where,
            f"the speakers are {said}, but human and gpt must alternate, human "
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
            "roles", where, f"turn {number} is from {shown(value.get('from'))}; use human or gpt."
        )
    text = str(value["value"])
    what = "answer" if speaker == "gpt" else "question"
    if not text.strip():
        raise RecordError("empty_text", where, f"the {what} in turn {number} is empty; fill it.")
    if "\0" in text:
        raise RecordError(
            "encoding", where, f"the {what} in turn {number} holds a NUL character; take it out."
        )
    return Turn(speaker, text)


def _literal_placeholders(
    where: str, record: dict[str, JsonValue], turns: tuple[Turn, ...], num_images: int
) -> int:
    """Count the placeholders that are words.

    Raises:
        RecordError: the record says nothing of pictures, and writes one as a placeholder.
    """
    asked = [turn.text for turn in turns if turn.speaker == "human"]
    answered = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns if turn.speaker == "gpt")
    if num_images:
        return answered
    silent = not {"image", "images"} & record.keys()
    if silent and any(
        line.strip() and not line.replace(IMAGE_PLACEHOLDER, "").strip()
        for text in asked
        if IMAGE_PLACEHOLDER in text
        for line in text.split("\n")
    ):
        raise RecordError(
            "placeholders",
            where,
            f"it holds {IMAGE_PLACEHOLDER} on a line of its own, but names no image; name it, or "
            'say with "image": [] that there is none and the word is meant.',
        )
    return answered + sum(text.count(IMAGE_PLACEHOLDER) for text in asked)


def _with_placeholders(
    where: str, turns: tuple[Turn, ...], num_images: int
) -> tuple[tuple[Turn, ...], int]:
    """Return the turns with one placeholder per image, and how many had to be added."""
    found = sum(turn.text.count(IMAGE_PLACEHOLDER) for turn in turns if turn.speaker == "human")
    if found == num_images or not num_images:
        return turns, 0
    if found == 0:
        first = Turn("human", f"{IMAGE_PLACEHOLDER}\n" * num_images + turns[0].text)
        return (first, *turns[1:]), num_images
    raise RecordError(
        "placeholders",
        where,
        f"its questions hold {IMAGE_PLACEHOLDER} {found} times, but it names {num_images} images; "
        "write it once for each, and the word itself in another way.",
    )


def _lookalike(turns: tuple[Turn, ...]) -> str:
    """Return what may have been meant as a placeholder."""
    asked = " ".join(turn.text for turn in turns if turn.speaker == "human")
    found = (match.group() for match in _LOOKALIKE.finditer(asked))
    return next((word for word in found if word != IMAGE_PLACEHOLDER), "")


def _control_tokens(turns: tuple[Turn, ...]) -> tuple[str, ...]:
    """Return what is spelled like a control token, placeholders aside."""
    found = (token for turn in turns for token in control_tokens(turn.text))
    return tuple(token for token in found if token != IMAGE_PLACEHOLDER)


def _words(where: str, key: str, record: dict[str, JsonValue]) -> tuple[str, ...]:
    """Return a list of texts; numbers become texts."""
    values = record.get(key) or []
    if not isinstance(values, list) or not all(
        isinstance(value, str)
        or (isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value))
        for value in values
    ):
        raise RecordError(key, where, f"its {key} are {shown(values)}; give a list of texts.")
    texts = tuple(str(value) for value in values)
    if any("\0" in text for text in texts):
        raise RecordError("encoding", where, f"its {key} hold a NUL character; take it out.")
    return texts
