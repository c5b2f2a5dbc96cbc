"""Weights that cannot be a model's: numbers that are none, codes without their scales, other files.

Such weights load like others, and what comes of them looks like a wrong learning rate or bad data.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch

from manyeyes.errors import UserError
from manyeyes.runtime.filetypes import HEAD_BYTES, another_thing
from manyeyes.runtime.plain_files import open_plain

if TYPE_CHECKING:
    from pathlib import Path

CODES = (torch.int8, torch.uint8)
"""Kinds of numbers that a model's own tensors never are."""
_ANSWER = re.compile(rb'(?:\s*\{\s*"|[A-Z][a-z]+ )[\x20-\x7e\s]*')
"""Words or JSON; a pickle may be text too, but begins otherwise."""


def check_numbers(place: str, key: str, tensor: torch.Tensor) -> None:
    """Look at the numbers of a tensor.

    Args:
        place: the file or reference it is from.
        key: its name there.
        tensor: of any shape and kind.

    Raises:
        UserError: there are NaN or infinite numbers, or quantised codes.
    """
    if tensor.dtype in CODES:
        raise UserError(
            f"{place}: {key!r} holds quantised codes ({str(tensor.dtype).removeprefix('torch.')}) "
            "without their scales: get the weights in a floating-point form."
        )
    if not tensor.is_floating_point() or not tensor.numel():
        return
    # A sum takes one look at the memory; only where it is none are the numbers counted.
    if torch.isfinite(tensor.float().sum() if tensor.element_size() < 2 else tensor.sum()):
        return
    number = int((~torch.isfinite(tensor.float())).sum())
    if number:
        raise UserError(
            f"{place}: {key!r} holds {number} numbers of {tensor.numel()} that are NaN or "
            "infinite: nothing can be computed with them; get the weights again."
        )


def refuse_another_thing(path: Path) -> None:
    """Name a file that is no weights by what it is.

    Raises:
        UserError: it is a pointer, a page, an archive or the like.
    """
    try:
        with open_plain(path) as file:
            head = file.read(HEAD_BYTES)
    except OSError:  # whoever reads it says so
        return
    other = another_thing(head)
    if not head:
        other = "empty; fetch it again"
    elif other is None and _ANSWER.fullmatch(head) and path.suffix != ".json":
        other = "text (the answer of a web server?); fetch the file itself"
    if other is not None and not head.startswith(b"PK\x03\x04"):  # torch's own
        raise UserError(f"{path} is {other}.")
