"""The profile of a dataset: one pass over index and shards that makes one column per question.

Design decisions:

- The expensive part (parsing conversations, hashing and decoding pictures) is done once, here.
  Everything after it is arithmetic on columns, by our own masks and by Great Expectations alike.
- Each distinct picture is decoded once, however many samples show it.
- Pictures are compared by their pixels as a model sees them, texts without regard to case, white
  space and Unicode's compatibility forms: another compression or metadata, or a space at the end,
  makes no other sample. What is said about the samples still names the files as they are.
- A row that cannot be read gets harmless values in the columns that depend on it: one fault, one
  reason.
- The index's schema is written out again: a check that used the writer's schema would share the
  writer's mistakes.
- Of two samples that share what must not be shared, the one for testing stays: taking away
  training data is cheap, a changed test set is another test.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import defaultdict
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any

from manyeyes.artifact.files import SAMPLES_FILE
from manyeyes.data.dataset.images import decode, read_size
from manyeyes.data.dataset.sample import IMAGE_PLACEHOLDER, ImageRef
from manyeyes.data.dataset.texts import control_tokens
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Sequence

    import pandas as pd
    import pyarrow as pa
    from PIL import Image

    from manyeyes.data.dataset.dataset import Dataset
    from manyeyes.runtime.progress import Progress

KEEPING_ORDER = ("test", "val", "train")
"""Which split keeps a sample that two splits share."""


@dataclass
class Profile:
    """Columns over the samples of a dataset, one row per sample, in index order."""

    frame: pd.DataFrame
    notes: dict[str, dict[int, str]]
    """Column to row number to what exactly is wrong there."""
    num_pictures: int
    """Distinct pictures."""


@dataclass(frozen=True)
class Talk:
    """What reading one conversation showed; the defaults break no rule."""

    conversation_readable: bool = True
    roles_alternate: bool = True
    no_text_empty: bool = True
    placeholders_match: bool = True
    num_turns: int = 2
    num_characters: int = 1
    num_control_tokens: int = 0
    """Spellings like that of a control token, which are learned as plain text."""
    notes: dict[str, str] = field(default_factory=dict)
    """Column to what exactly is wrong."""


@dataclass(frozen=True)
class Picture:
    """What decoding one picture showed."""

    pixels: int = 0
    """Width times height by the picture's own header; 0 if it could not be read."""
    problem: str = ""
    """Why it cannot be decoded; a picture above the limit is not tried."""
    size_note: str = ""
    """How the index contradicts the picture's size."""
    content: str = ""
    """Digest of its size and pixels; of one that was not decoded, its file's."""


def profile(dataset: Dataset, max_pixels: int, progress: Progress) -> Profile:
    """Read every sample and decode every distinct picture.

    Args:
        dataset: the dataset.
        max_pixels: pictures above this are measured by their header and not decoded.
        progress: told how many pictures are done.

    Raises:
        UserError: the index is unreadable, lacks a column, or one has the wrong type.
    """
    import pandas as pd

    table = _checked(dataset)
    rows = table.to_pydict()
    notes: dict[str, dict[int, str]] = defaultdict(dict)
    columns: dict[str, list[Any]] = {
        name: rows[name] for name in ("id", "split", "task", "licence")
    }
    images = [[image or {} for image in many or []] for many in rows["images"]]
    columns |= _conversation_columns(rows["conversations"], images, notes)
    pictures = _decode_all(dataset, images, max_pixels, progress)
    columns |= _picture_columns(images, pictures, notes)
    frame = pd.DataFrame(columns)
    for name in ("id", "split", "task", "licence"):
        frame[name] = frame[name].fillna("").astype(str)
    frame["id_unique"] = ~frame["id"].duplicated(keep=False) & (frame["id"] != "")
    shown = [[(pictures[_key(image)].content, str(image.get("sha256"))) for image in many]
             for many in images]  # fmt: skip
    contents = [
        f"{normalised(text or '')}\0{','.join(pixels for pixels, _ in many)}"
        for text, many in zip(rows["conversations"], shown, strict=True)
    ]
    frame["sample_unique"] = _first_of_equals(frame["split"], contents, notes)
    frame["images_in_one_split"] = _in_one_split(frame["split"], shown, "image", notes)
    entities = [[(name, name) for name in many or []] for many in rows["entities"]]
    frame["entities_in_one_split"] = _in_one_split(frame["split"], entities, "entity", notes)
    return Profile(frame, dict(notes), num_pictures=len(pictures))


def normalised(conversation: str) -> str:
    """Return what a conversation says, for comparison: case, spaces and forms of letters aside.

    A text that is no conversation is returned as it is.
    """
    turns = _turns(conversation)
    if turns is None:
        return conversation
    return "\0".join(f"{who}\0{_plain(text)}" for who, text in turns)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def index_schema() -> pa.Schema:
    """Return what ``samples.parquet`` must hold."""
    import pyarrow as pa

    text, number = pa.string(), pa.int64()
    image = pa.struct(
        [("id", text), ("shard", text), ("offset", number), ("size", number), ("sha256", text),
         ("width", number), ("height", number)]
    )  # fmt: skip
    return pa.schema(
        [("id", text), ("split", text), ("task", text), ("subset", text), ("conversations", text),
         ("images", pa.list_(image)), ("answers", pa.list_(text)), ("source", text),
         ("licence", text), ("entities", pa.list_(text))]
    )  # fmt: skip


def _checked(dataset: Dataset) -> pa.Table:
    """Read the index with the types of the contract; narrower integers are widened."""
    import pyarrow as pa

    table, columns = dataset.table(), []
    schema = index_schema()
    for wanted in schema:
        column = table.column(wanted.name)
        try:
            columns.append(column.cast(wanted.type))
        except pa.ArrowException:
            raise UserError(
                f"{dataset.path / SAMPLES_FILE}: the column {wanted.name} has the type "
                f"{column.type}, but {wanted.type} is needed; make the dataset again."
            ) from None
    return pa.Table.from_arrays(columns, schema=schema)


def _conversation_columns(
    texts: Sequence[str | None],
    images: Sequence[Sequence[dict[str, Any]]],
    notes: dict[str, dict[int, str]],
) -> dict[str, list[Any]]:
    """Answer the questions about what is said."""
    talks = [_listen(text, len(many)) for text, many in zip(texts, images, strict=True)]
    for row, talk in enumerate(talks):
        for column, note in talk.notes.items():
            notes[column][row] = note
    names = [entry.name for entry in fields(Talk) if entry.name != "notes"]
    return {name: [getattr(talk, name) for talk in talks] for name in names}


def _listen(text: str | None, num_images: int) -> Talk:
    """Measure one conversation."""
    turns = _turns(text)
    if turns is None:
        return Talk(conversation_readable=False)
    speakers = [speaker for speaker, _ in turns]
    alternate = speakers == ["human", "gpt"] * (len(turns) // 2)
    num_asked = sum(value.count(IMAGE_PLACEHOLDER) for who, value in turns if who == "human")
    # Where no picture is shown, and in answers, it is a word.
    match = num_asked == num_images or not num_images
    notes = {}
    if not alternate:
        notes["roles_alternate"] = f"the speakers are {', '.join(speakers)}"
    if not match:
        notes["placeholders_match"] = (
            f"{num_asked} {IMAGE_PLACEHOLDER} in questions, but {num_images} images"
        )
    return Talk(
        roles_alternate=alternate,
        no_text_empty=all(value.strip() for _, value in turns),
        placeholders_match=match,
        num_turns=len(turns),
        num_characters=sum(len(value) for _, value in turns),
        num_control_tokens=sum(
            token != IMAGE_PLACEHOLDER for _, value in turns for token in control_tokens(value)
        ),
        notes=notes,
    )


def _turns(text: str | None) -> list[tuple[str, str]] | None:
    """Read a conversation as (speaker, text) pairs; None if it is not one."""
    try:
        turns = [(turn["from"], turn["value"]) for turn in json.loads(text or "")]
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    known = all(who in ("human", "gpt") and isinstance(value, str) for who, value in turns)
    return turns if known and turns else None


def _decode_all(
    dataset: Dataset,
    images: Sequence[Sequence[dict[str, Any]]],
    max_pixels: int,
    progress: Progress,
) -> dict[tuple[Any, ...], Picture]:
    """Decode each distinct picture once, in the order of the shards."""
    distinct = {_key(image) for many in images for image in many}
    ordered = sorted(distinct, key=lambda key: (str(key[0]), key[1] or 0, str(key)))
    pictures = {}
    for number, key in enumerate(ordered, start=1):
        pictures[key] = _look(dataset, key, max_pixels)
        progress.step(number, len(ordered), unit="pictures")
    return pictures


_FIELDS = ("shard", "offset", "size", "sha256", "width", "height")


def _key(image: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(image.get(name) for name in _FIELDS)


def _look(dataset: Dataset, key: tuple[Any, ...], max_pixels: int) -> Picture:
    """Read, measure and decode one picture."""
    shard, offset, size, sha256, width, height = key
    content = f"file {sha256}"
    if any(value is None for value in key):
        problem = f"the index lacks its {_FIELDS[key.index(None)]}"
        return Picture(problem=problem, content=content)
    ref = ImageRef(f"the picture at byte {offset}", shard, offset, size, sha256, width, height)
    nowhere = Picture(
        problem=f"the place {offset}+{size} is not in the shard {shard}", content=content
    )
    if size < 0:  # which the system reports as it does a disk that fails
        return nowhere
    try:
        data = dataset.read_bytes(ref)
        real_width, real_height = read_size(data, ref.id)
        if real_width * real_height <= max_pixels:
            content = _pixels(decode(data, ref.id, max_pixels))
    except UserError as error:
        return Picture(problem=str(error), content=content)
    except (OSError, ValueError, OverflowError):
        return nowhere
    note = ""
    if (real_width, real_height) != (width, height):
        note = f"the index says {width} x {height}, the picture is {real_width} x {real_height}"
    return Picture(pixels=real_width * real_height, size_note=note, content=content)


def _pixels(image: Image.Image) -> str:
    """Return a digest of a picture's size and pixels; two files may show the same ones."""
    digest = hashlib.sha256(f"{image.width} x {image.height}".encode())
    digest.update(image.tobytes())
    return digest.hexdigest()


def _picture_columns(
    images: Sequence[Sequence[dict[str, Any]]],
    pictures: dict[tuple[Any, ...], Picture],
    notes: dict[str, dict[int, str]],
) -> dict[str, list[Any]]:
    """Answer the questions about what is shown."""
    columns: dict[str, list[Any]] = {
        "images_decode": [], "image_pixels": [], "image_sizes_true": []
    }  # fmt: skip
    for row, many in enumerate(images):
        seen = [pictures[_key(image)] for image in many]
        problems = [picture.problem for picture in seen if picture.problem]
        untrue = [picture.size_note for picture in seen if picture.size_note]
        columns["images_decode"].append(not problems)
        columns["image_pixels"].append(max((picture.pixels for picture in seen), default=0))
        columns["image_sizes_true"].append(not untrue)
        if problems:
            notes["images_decode"][row] = "; ".join(problems)
        if untrue:
            notes["image_sizes_true"][row] = "; ".join(untrue)
    return columns


def _rank(split: pd.Series[str]) -> pd.Series[int]:
    order = {name: rank for rank, name in enumerate(KEEPING_ORDER)}
    return split.map(lambda name: order.get(name, len(order)))


def _first_of_equals(
    split: pd.Series[str], content: Sequence[str], notes: dict[str, dict[int, str]]
) -> pd.Series[bool]:
    """Mark the samples that say and show nothing an earlier kept one does not."""
    import pandas as pd

    frame = pd.DataFrame({"content": content, "rank": _rank(split)})
    ordered = frame.sort_values("rank", kind="stable")
    kept = ~ordered["content"].duplicated(keep="first")
    first = {text: row for row, text in ordered.loc[kept, "content"].items()}
    repeated = kept.sort_index()
    for row in repeated.index[~repeated]:
        notes["sample_unique"][int(row)] = f"the same as sample number {first[content[row]]}"
    return repeated


def _in_one_split(
    split: pd.Series[str],
    values: Sequence[Sequence[tuple[str, str]]],
    what: str,
    notes: dict[str, dict[int, str]],
) -> pd.Series[bool]:
    """Mark the samples whose values all stay in one split, or that are in the split that keeps.

    A value is what is compared, and what it is called.
    """
    import pandas as pd

    column = "images_in_one_split" if what == "image" else "entities_in_one_split"
    rows = [row for row, many in enumerate(values) for _ in many]
    pairs = [pair for many in values for pair in many]
    frame = pd.DataFrame(pairs, columns=["value", "name"]).assign(row=rows)
    frame["rank"] = _rank(split).to_numpy()[rows] if rows else []
    lowest = frame.groupby("value")["rank"].transform("min") if rows else frame["rank"]
    leaking = frame[frame["rank"] > lowest].drop_duplicates("row")
    keepers = (*KEEPING_ORDER, "another split")
    for row, name, rank in zip(leaking["row"], leaking["name"], lowest[leaking.index], strict=True):
        notes[column][int(row)] = f"{what} {name} is also in {keepers[int(rank)]}"
    return pd.Series(~split.index.isin(leaking["row"]), index=split.index)
