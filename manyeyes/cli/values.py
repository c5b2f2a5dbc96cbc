"""The types of what is given on the command line. A value that cannot be one is a sentence.

An empty value is refused everywhere: it comes from a variable of the shell that is not set, and
``Path("")`` would be the working directory. ``--`` is refused because it ends the options.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import click

from manyeyes.errors import shown

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    Parameter = click.Parameter | None
    Context = click.Context | None


Value = TypeVar("Value", bound=str | Path)


class NamedFile(click.ParamType[Value]):
    """What may be a file, so that shells complete it as one."""

    def shell_complete(
        self,
        ctx: click.Context,  # noqa: ARG002  (click's signature)
        param: click.Parameter,  # noqa: ARG002
        incomplete: str,
    ) -> list[CompletionItem]:
        """Leave it to the shell."""
        from click.shell_completion import CompletionItem

        return [CompletionItem(incomplete, type="file")]


class PathType(NamedFile[Path]):
    """A path, in whatever bytes the file system has it."""

    name = "path"

    def convert(self, value: str | Path, param: Parameter, ctx: Context) -> Path:
        """Return the path."""
        return value if isinstance(value, Path) else Path(_given(value, param, ctx))


class PlaceType(NamedFile[str]):
    """A path, or a name or address in its place: a model, a profile, weights."""

    name = "place"

    def convert(self, value: str, param: Parameter, ctx: Context) -> str:
        """Return it as it was written."""
        return _given(value, param, ctx)


class TextType(click.ParamType[str]):
    """A text, in UTF-8."""

    name = "text"

    def convert(self, value: str, param: Parameter, ctx: Context) -> str:
        """Return the text."""
        text = _given(value, param, ctx)
        try:
            text.encode()
        except UnicodeError:
            message = f"is {shown(text)}, which is not UTF-8; write it in UTF-8"
            raise click.BadParameter(message, ctx, param) from None
        return text


class WholeNumber(click.ParamType[int]):
    """A whole number between two bounds."""

    name = "number"

    def __init__(self, least: int, most: int = 2**63 - 1) -> None:
        self.least, self.most = least, most

    def convert(self, value: str | int, param: Parameter, ctx: Context) -> int:
        """Return the number."""
        if isinstance(value, int):
            return value
        try:
            number = int(_given(value, param, ctx))
        except ValueError:
            message = f"is {shown(value)}; give a whole number"
            raise click.BadParameter(message, ctx, param) from None
        if number < self.least:
            raise click.BadParameter(f"is {number}; give {self.least} or more", ctx, param)
        if number > self.most:
            raise click.BadParameter(f"is {number}; give {self.most} or less", ctx, param)
        return number


class FiniteNumber(click.ParamType[float]):
    """A finite number, not below 0."""

    name = "number"

    def __init__(self, what: str = "a number, 0 or more", most: float = math.inf) -> None:
        self.what, self.most = what, most

    def convert(self, value: str | float, param: Parameter, ctx: Context) -> float:
        """Return the number."""
        if isinstance(value, float):
            return value
        try:
            number = float(_given(value, param, ctx))
        except ValueError:
            message = f"is {shown(value)}; give {self.what}"
            raise click.BadParameter(message, ctx, param) from None
        if not (math.isfinite(number) and 0.0 <= number <= self.most):
            raise click.BadParameter(f"is {number:g}; give {self.what}", ctx, param)
        return number


PATH, PLACE, TEXT = PathType(), PlaceType(), TextType()


def _given(value: str, param: Parameter, ctx: Context) -> str:
    """Return what was written, unless it cannot be a value."""
    if not value:
        raise click.BadParameter("is empty; give a value", ctx, param)
    if value == "--":
        raise click.BadParameter("cannot be '--'; give another value", ctx, param)
    return value
