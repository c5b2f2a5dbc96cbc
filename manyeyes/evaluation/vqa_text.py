"""Text normalisations of the official VQA scorers, with their accidents kept.

Design decisions:

- Published numbers were made with these scripts, so their mistakes are part of the definition:
  a punctuation rule decided once on the whole original string, a look-behind that is none, a flag
  passed where ``re.sub`` expects a count, odd rows in the contraction table. Mending one of them
  would move every score away from the tables it is compared with.
- Two variants: ``normalise_vqa`` is the VQAv2 scorer's, ``normalise_evalai`` puts one step before
  it (TextVQA, VizWiz; the "EvalAI answer processor").
- No Unicode folding: neither scorer does any.

Source: vqaEval.py of GT-Vision-Lab/VQA and the TextVQA evaluator derived from it; the rules are
restated here, the word tables are data of those scorers.
"""

from __future__ import annotations

import functools
import re

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
"""What the scorers call punctuation. Apostrophe, colon, %, $, #, & and * are not in it."""

NUM_REMEMBERED = 65_536
"""Normalised texts kept: the same few references are compared with many answers."""

_DIGIT_COMMA_DIGIT = re.compile(r"\d,\d")
# Written by the scorers as (?!<=\d)(\.)(?!\d): the first group was meant to look behind, looks
# ahead for the text "<=" + digit instead, and so never prevents a match.
_PERIOD_BEFORE_NO_DIGIT = re.compile(r"\.(?!\d)")
MAX_PERIODS = 32
"""Value of ``re.UNICODE``, which the scorers pass as the count of replacements."""

NUMBER_WORDS = {
    "none": "0", "zero": "0", "one": "1", "two": "2", "three": "3", "four": "4", "five": "5",
    "six": "6", "seven": "7", "eight": "8", "nine": "9", "ten": "10",
}  # fmt: skip
ARTICLES = frozenset({"a", "an", "the"})

# Words that get one apostrophe: the entry is the correct form, the key is the form without it.
_ONE_APOSTROPHE = (
    "ain't", "aren't", "can't", "could've", "couldn't", "didn't", "doesn't", "don't", "hadn't",
    "hasn't", "haven't", "he'd", "he's", "how'd", "how'll", "how's", "isn't", "it'd", "it'll",
    "ma'am", "mightn't", "might've", "mustn't", "must've", "needn't", "not've", "o'clock",
    "oughtn't", "shan't", "should've", "shouldn't", "somebody'll", "somebody's", "someone'd",
    "someone'll", "someone's", "something'd", "something'll", "that's", "there'd", "there're",
    "there's", "they'd", "they'll", "they're", "they've", "'twas", "wasn't", "we've", "weren't",
    "what'll", "what're", "what's", "what've", "when's", "where'd", "where's", "where've",
    "who'd", "who'll", "who's", "who've", "why'll", "why're", "why's", "won't", "would've",
    "wouldn't", "y'all", "you'd", "you'll", "you're", "you've",
)  # fmt: skip
# Words with two apostrophes: either one may be missing.
_TWO_APOSTROPHES = (
    "couldn't've", "hadn't've", "he'd've", "it'd've", "mightn't've", "she'd've", "shouldn't've",
    "somebody'd've", "someone'd've", "something'd've", "there'd've", "they'd've", "we'd've",
    "who'd've", "wouldn't've", "y'all'll", "you'd've",
)  # fmt: skip
# Rows that follow no rule; kept as they are.
_ODD = {
    "ow's'at": "'ow's'at",
    "'ows'at": "'ow's'at",
    "'ow'sat": "'ow's'at",
    "somebody'd": "somebodyd",
    "yall'd've": "y'all'd've",
    "y'alld've": "y'all'd've",
    "y'all'dve": "y'all'd've",
}


def _contractions() -> dict[str, str]:
    """Build the table: form without an apostrophe -> correct form.

    The scorers' rows with capitals (``Im``, ``I'dve``) and those that map a word to itself
    (``let's``) are left out: words are lower-cased before the look-up, so they change nothing.
    """
    table = {word.replace("'", ""): word for word in _ONE_APOSTROPHE}
    for word in _TWO_APOSTROPHES:
        head, middle, tail = word.split("'")
        table[f"{head}{middle}'{tail}"] = word
        table[f"{head}'{middle}{tail}"] = word
    return {**table, **_ODD}


CONTRACTIONS = _contractions()


@functools.lru_cache(maxsize=NUM_REMEMBERED)
def normalise_vqa(text: str) -> str:
    """Normalise as the official VQAv2 scorer: white space, punctuation, numbers, articles.

    ``"U.S.A."`` becomes ``"usa"``, ``"The two dogs"`` becomes ``"2 dogs"``.
    """
    return normalise_words(strip_punctuation(clean_space(text)))


@functools.lru_cache(maxsize=NUM_REMEMBERED)
def normalise_evalai(text: str) -> str:
    """Normalise as the TextVQA and VizWiz scorers: their word step, then :func:`normalise_vqa`.

    ``"John's Dog"`` becomes ``"john 's dog"``.
    """
    words = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return normalise_vqa(words)


def clean_space(text: str) -> str:
    """Turn line breaks and tabs into spaces and strip the ends; inner runs stay."""
    return text.replace("\n", " ").replace("\t", " ").strip()


def strip_punctuation(text: str) -> str:
    """Delete punctuation or replace it by a space, and delete sentence periods.

    A mark next to a space anywhere in the *given* text is deleted everywhere; so is every mark
    as soon as the text has a comma between digits. All others become spaces.
    """
    delete_all = _DIGIT_COMMA_DIGIT.search(text) is not None
    result = text
    for mark in PUNCTUATION:
        delete = delete_all or f"{mark} " in text or f" {mark}" in text
        result = result.replace(mark, "" if delete else " ")
    return _PERIOD_BEFORE_NO_DIGIT.sub("", result, count=MAX_PERIODS)


def normalise_words(text: str) -> str:
    """Lower-case, write number words as digits, drop articles, mend contractions."""
    words = (NUMBER_WORDS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
