"""The data contract's rules: one table that the quarantine and Great Expectations both read.

A rule says which values of one profile column are allowed. Our own mask finds the rows that break
it, fast and with a reason each; the expectation made from the same rule gives the verdict.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, assert_never

from manyeyes.data.dataset.sample import SPLITS

if TYPE_CHECKING:
    import numpy as np
    import pandas as pd

    from manyeyes.config.recipe import ValidateSection


@dataclass(frozen=True)
class IsTrue:
    """The column answers yes."""


@dataclass(frozen=True)
class Between:
    """The column's number is from ``low`` to ``high``, both included."""

    low: int
    high: int


@dataclass(frozen=True)
class OneOf:
    """The column's word is one of these."""

    values: tuple[str, ...]


Allowed = IsTrue | Between | OneOf


@dataclass(frozen=True)
class Rule:
    """One rule of the contract."""

    reason: str
    """Name of its breach in the quarantine and the metrics."""
    column: str
    allowed: Allowed
    text: str
    """What the rule asks for, in words."""


def rules(section: ValidateSection) -> tuple[Rule, ...]:
    """Return the contract with a recipe's thresholds."""
    yes = IsTrue()
    turns, characters = Between(2, section.max_turns), Between(1, section.max_characters)
    pixels = Between(0, section.max_image_pixels)
    return (
        Rule("id", "id_unique", yes, "every sample has an id of its own"),
        Rule("split", "split", OneOf(SPLITS), "every sample is in a known split"),
        Rule("licence", "licence", OneOf(section.licences), "the licence is allowed"),
        Rule("conversation", "conversation_readable", yes, "the conversation is a list of turns"),
        Rule("roles", "roles_alternate", yes, "human and gpt alternate, gpt has the last word"),
        Rule("empty_text", "no_text_empty", yes, "no question or answer is empty"),
        Rule("placeholders", "placeholders_match", yes, "one <image> in the questions per image"),
        Rule("num_turns", "num_turns", turns, "the conversation has not too many turns"),
        Rule(
            "num_characters",
            "num_characters",
            characters,
            "the conversation has not too many characters",
        ),
        Rule("image", "images_decode", yes, "every image is whole and can be decoded"),
        Rule("image_pixels", "image_pixels", pixels, "no image is too large"),
        Rule("image_size", "image_sizes_true", yes, "the index tells the true size of the image"),
        Rule(
            "duplicate",
            "sample_unique",
            yes,
            "no sample repeats another: the same pixels, and the same text but for case and spaces",
        ),
        Rule(
            "leaked_image",
            "images_in_one_split",
            yes,
            "no image occurs in two splits, compared by its pixels",
        ),
        Rule("leaked_entity", "entities_in_one_split", yes, "no entity occurs in two splits"),
    )


def breaches(rule: Rule, frame: pd.DataFrame) -> np.ndarray:
    """Return, per sample, whether it breaks the rule (bool, one per row)."""
    column = frame[rule.column]
    match rule.allowed:
        case IsTrue():
            good = column.astype(bool)
        case Between(low, high):
            good = column.between(low, high)
        case OneOf(values):
            good = column.isin(values)
        case _:
            assert_never(rule.allowed)
    bad: np.ndarray = ~good.to_numpy(dtype=bool)
    return bad


def breach_text(rule: Rule, value: object) -> str:
    """Say what is wrong with one value, where the profile made no note of it."""
    match rule.allowed:
        case IsTrue():
            return f"not true that {rule.text}"
        case Between(low, high):
            return f"{value} is not from {low} to {high}"
        case OneOf(values):
            return f"{str(value)!r} is not one of {', '.join(values)}"
        case _:
            assert_never(rule.allowed)
