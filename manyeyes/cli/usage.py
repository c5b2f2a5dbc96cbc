"""What is said about a command that cannot be read: one sentence, without a block of usage."""

from __future__ import annotations

import re
from collections.abc import Sequence

import click

from manyeyes.errors import unknown


def sentence(error: click.UsageError) -> str:
    """Say what is wrong with the words of a command, and what would be right."""
    context = error.ctx
    if context is None:
        return error.message
    path = context.command_path
    match error:
        case click.NoSuchOption():
            return str(unknown(f"option of {path}", error.option_name, _options(context)))
        case click.NoSuchCommand():
            group = context.command
            assert isinstance(group, click.Group)
            what = "verb" if context.parent is None else f"action of {path}"
            return str(unknown(what, error.command_name, group.list_commands(context)))
        case click.MissingParameter():
            names = listed([name_of(one) for one in _missing(context)])
            return f"{path} needs {names}; {path} --help says what it takes."
        case click.BadOptionUsage():
            return f"{error.option_name} takes no value; write {error.option_name} alone."
        case click.BadParameter(param=click.Parameter() as parameter):
            return f"{name_of(parameter)} {error.message}."
    return error.message


def name_of(parameter: click.Parameter) -> str:
    """Return a parameter's name as it is written: ``--out``, or ``RECIPE``."""
    if isinstance(parameter, click.Argument):
        return parameter.human_readable_name.strip("[].")
    return max(parameter.opts, key=len)


def listed(names: Sequence[str], last: str = "and") -> str:
    """Write names as a sentence does: ``a, b and c``."""
    *first, final = names
    return f"{', '.join(first)} {last} {final}" if first else final


def looks_like_option(word: str) -> bool:
    """Say whether a word is meant as an option: not a negative number, not a text with spaces."""
    return len(word) > 1 and word[0] == "-" and " " not in word and not _NEGATIVE.fullmatch(word)


_NEGATIVE = re.compile(r"-\d+|-\d*\.\d+")


def _options(context: click.Context) -> list[str]:
    given = context.command.get_params(context)
    options = [one for one in given if isinstance(one, click.Option) and not one.hidden]
    return [name for one in options for name in one.opts]


def _missing(context: click.Context) -> list[click.Parameter]:
    """Return what has to be given and was not: click keeps what it has read before the first."""
    needed = [one for one in context.command.params if one.required]
    return [one for one in needed if one.name not in context.params]
