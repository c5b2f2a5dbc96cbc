"""``manyeyes completion``: what lets a shell complete verbs, options and files."""

from __future__ import annotations

import click

from manyeyes.cli.command import verb
from manyeyes.cli.values import TEXT
from manyeyes.errors import unknown

SHELLS = ("bash", "zsh", "fish")


def _matching(_context: click.Context, _parameter: click.Parameter, incomplete: str) -> list[str]:
    return [shell for shell in SHELLS if shell.startswith(incomplete)]


@verb("completion")
@click.argument(
    "shell", metavar="SHELL", type=TEXT, shell_complete=_matching, help=", ".join(SHELLS)
)
def completion(shell: str) -> int:
    """Print the script for a shell to read.

    Raises:
        UserError: there is none for this shell.
    """
    from click.shell_completion import get_completion_class

    from manyeyes.cli.program import COMPLETE, NAME, program

    kind = get_completion_class(shell) if shell in SHELLS else None
    if kind is None:
        raise unknown("shell", shell, SHELLS)
    click.echo(kind(program, {}, NAME, COMPLETE).source())
    return 0


COMMANDS = (completion,)
