"""Rows of ``samples.parquet`` to samples."""

from __future__ import annotations

import gc
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

from manyeyes.data.dataset.sample import SAMPLE_COLUMNS, Sample, Turn
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_SPEAKERS: dict[str, Literal["human", "gpt"]] = {"human": "human", "gpt": "gpt"}


@contextmanager
def collector_at_rest() -> Iterator[None]:
    """Keep Python's cycle collector from looking at the same rows again and again.

    Rows are made by the hundred thousand and hold no cycles; it would take half of the time.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def parse_rows(columns: Mapping[str, Sequence[Any]]) -> list[Sample | UserError]:
    """Make samples of the values of their columns, which are a sample's fields in order.

    In the place of a row whose conversation cannot be read stands the error.
    """
    found: list[Sample | UserError] = []
    for values in zip(*(columns[name] for name in SAMPLE_COLUMNS), strict=True):
        name, split, task, subset, text, *others = values
        try:
            turns = _turns_fast(name, text)
        except UserError as error:
            found.append(error)
            continue
        found.append(Sample(name, split, task, subset, turns, *others))
    return found


def _turns_fast(name: str, text: str) -> tuple[Turn, ...]:
    """Do what :func:`parse_turns` does, which also judges all that is not as it should be."""
    import orjson

    try:
        turns = tuple([Turn(_SPEAKERS[turn["from"]], turn["value"]) for turn in orjson.loads(text)])
    except (ValueError, TypeError, KeyError):
        return parse_turns(name, text)
    if {type(turn.text) for turn in turns} - {str}:
        return parse_turns(name, text)
    return turns


def parse_turns(name: str, text: str) -> tuple[Turn, ...]:
    """Read a sample's conversation.

    Args:
        name: of the sample.
        text: its conversation.

    Raises:
        UserError: if it is not a JSON list of ``from`` (human or gpt) and ``value``.
    """
    try:
        return tuple(_turn(turn) for turn in json.loads(text))
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"sample {name}: its conversation is not a JSON list of turns with 'from' "
            "(human or gpt) and 'value'; correct or remove the row."
        ) from error


def _turn(turn: dict[str, str]) -> Turn:
    speaker, text = turn["from"], turn["value"]
    if not isinstance(text, str):
        raise TypeError(text)
    return Turn(_SPEAKERS[speaker], text)
