"""The zoo: tiny pretrained parts that ship with the library.

Nobody aligns random encoders to a random language model, so a demonstration that starts from noise
shows nothing. Each part here was trained first for what its big sibling was trained for
(`tools.zoo`), and a recipe names it as `zoo:NAME` where a full-size recipe names a hub id.
Finding a part needs no torch, so that a misspelt name is refused before anything heavy is imported.
"""

from __future__ import annotations

from pathlib import Path

from manyeyes.artifact.files import WEIGHTS_FILE
from manyeyes.errors import UserError, unknown

PREFIX = "zoo:"
WEIGHTS = Path(__file__).parent / "weights"
LANGUAGE_PART = "llama-tiny"
PARTS: dict[str, str] = {
    LANGUAGE_PART: "next-token prediction on conversations about written-out scenes",
    "clip-tiny": "image-text contrast",
    "convnext-tiny": "classification",
    "sam-tiny": "masks from boxes",
    "eva02-tiny": "detection",
    "pix2struct-tiny": "reading rendered text",
}


def resolve(reference: str) -> Path:
    """Return the folder of the part that `zoo:NAME` names.

    Raises:
        UserError: the reference is no `zoo:` reference, or names no part, or the part's weights are
            not installed.
    """
    if not reference.startswith(PREFIX):
        raise UserError(f"'{reference}' is not a zoo reference; write {PREFIX}NAME.")
    name = reference.removeprefix(PREFIX)
    if name not in PARTS:
        raise unknown("part of the zoo", name, PARTS)
    folder = WEIGHTS / name
    if not (folder / WEIGHTS_FILE).is_file():
        raise UserError(
            f"The weights of '{reference}' are missing from {folder}; install manyeyes again."
        )
    return folder
