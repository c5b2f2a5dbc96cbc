"""Words that the glossary replaces, and where they still stand."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

from tools.structure.source import Source

GLOSSARY = Path(__file__).parents[2] / "docs" / "glossary.md"
_ROW = re.compile(r"^\|(?P<word>[^|]+)\|(?P<instead>[^|]+)\|(?P<means>[^|]+)\|$")
_WORD = re.compile(r"`([^`]+)`")


def replaced_words(glossary: Path = GLOSSARY) -> dict[str, str]:
    """Return each word that the glossary replaces, with the word to write.

    Words in backticks in the column "not" are identifiers; they are looked for as whole ones.
    """
    found: dict[str, str] = {}
    for line in glossary.read_text(encoding="utf-8").splitlines():
        match = _ROW.match(line)
        if match and not set(match["word"].strip()) <= {"-", " "}:
            for word in _WORD.findall(match["instead"]):
                found[word] = match["word"].strip()
    return found


def private_words(source: Source, words: dict[str, str]) -> Counter[str]:
    """Count the places of each replaced word: identifiers, comments, docstrings and texts."""
    found: Counter[str] = Counter()
    patterns = {word: re.compile(rf"(?<![A-Za-z]){re.escape(word)}(?![A-Za-z])") for word in words}
    for module in source.modules.values():
        for word, pattern in patterns.items():
            found[word] += len(pattern.findall(module.text))
    return +found
