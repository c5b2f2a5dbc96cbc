"""Vision encoders: one table (``registry``), one file per family, one contract (``base``).

The names below are resolved on first use, so that the table can be read without importing torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from manyeyes.model.encoders.registry import ENCODERS, find_spec
from manyeyes.model.encoders.spec import EncoderSpec

if TYPE_CHECKING:
    from manyeyes.model.encoders.base import Encoder
    from manyeyes.model.encoders.build import build_encoder, encoder_from_spec, section_spec

__all__ = [
    "ENCODERS",
    "Encoder",
    "EncoderSpec",
    "build_encoder",
    "encoder_from_spec",
    "find_spec",
    "section_spec",
]


def __getattr__(name: str) -> object:
    """Import what needs torch when it is asked for."""
    if name == "Encoder":
        from manyeyes.model.encoders.base import Encoder

        return Encoder
    if name in {"build_encoder", "encoder_from_spec", "section_spec"}:
        from manyeyes.model.encoders import build

        return getattr(build, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
