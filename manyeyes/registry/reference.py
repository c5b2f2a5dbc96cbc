"""References to registered models: ``models:/NAME@alias`` and ``models:/NAME/version``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from manyeyes.errors import UserError

PREFIX = "models:/"


@dataclass(frozen=True)
class Reference:
    """A name with an alias or a version; exactly one of the two is set."""

    name: str
    alias: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"{PREFIX}{self.name}" + (f"@{self.alias}" if self.alias else f"/{self.version}")


def parse(text: str) -> Reference:
    """Read a reference.

    Raises:
        UserError: the text is not one.
    """
    match = re.fullmatch(r"models:/([^/@:\s]+)(?:@([A-Za-z0-9_.-]+)|/([0-9]+))", text)
    if match is None:
        raise UserError(
            f"{text!r} is not a model reference: write models:/NAME@champion (or another alias) "
            "or models:/NAME/3 (a version); 'manyeyes models' lists what there is."
        )
    return Reference(match[1], match[2] or "", match[3] or "")
