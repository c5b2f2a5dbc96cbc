"""manyeyes trains multimodal language models that see through a mixture of vision encoders.

From Python: ``load`` (a trained model), ``load_recipe``, ``train``, ``evaluate`` and ``Recipe``.
They are imported when they are used (``manyeyes.api``), so ``import manyeyes`` costs nothing.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from manyeyes.version import __version__ as __version__

if TYPE_CHECKING:
    from manyeyes.api import Recipe, evaluate, load, load_recipe, train

__all__ = ["Recipe", "evaluate", "load", "load_recipe", "train"]


def __getattr__(name: str) -> object:
    """Give one of the names above.

    Raises:
        AttributeError: there is no such name.
    """
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from manyeyes import api

    found: object = getattr(api, name)
    return found


def __dir__() -> list[str]:
    """List the names above with those of the packages that are imported already."""
    return sorted({*__all__, *globals()} - {"TYPE_CHECKING", "annotations"})
