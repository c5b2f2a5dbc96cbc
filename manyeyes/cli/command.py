"""What every verb is made of: its class, the options that many have, and the groups of verbs.

Design decisions:

- click reads the words; an option stands beside the function that uses it, and has its type.
- A verb's module is imported when the verb is used, and imports what it works with inside its
  functions: ``manyeyes --help``, ``manyeyes VERB --help`` and completion answer at once.
- What click would say in a block of usage, :mod:`manyeyes.cli.usage` says in one sentence.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import click

from manyeyes.cli.usage import listed, looks_like_option, name_of
from manyeyes.cli.values import PATH, TEXT
from manyeyes.cli.verbs import PANELS, VERBS

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

Function = TypeVar("Function", bound=Callable[..., Any])
WIDTH = 100
"""Widest line of a help page."""


@dataclass
class Call:
    """What is known of one call of the command line while its words are read."""

    debug: bool = False
    began: bool = False
    """The words were right, and a verb does its work."""


class Several(click.Option):
    """An option with ``multiple`` that takes as many words as follow: ``--experts A B C``."""

    def make_metavar(self, ctx: click.Context) -> str:
        """Say that several may follow."""
        return f"{super().make_metavar(ctx)}..."


class Worded(click.Command):
    """A command in the words of this program."""

    def get_help_option(self, ctx: click.Context) -> click.Option | None:
        """Return ``--help``."""
        option = super().get_help_option(ctx)
        if option is not None:
            option.help = "print this help"
        return option

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words; a mistake knows its command, also where click leaves it out.

        Raises:
            click.UsageError: they cannot be read; ``usage.sentence`` says why.
        """
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise


class Verb(Worded):
    """One verb. What is missing or too much is told at once, and ``--debug`` may follow it."""

    allow_extra_args = True

    def get_params(self, ctx: click.Context) -> list[click.Parameter]:
        """Return what the verb takes."""
        return [*super().get_params(ctx), _DEBUG]

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words.

        Raises:
            click.UsageError: they cannot be read; ``usage.sentence`` says why.
        """
        words = args if ctx.resilient_parsing else self._plain(ctx, args)
        rest = super().parse_args(ctx, words)
        if rest and not ctx.resilient_parsing:
            path = ctx.command_path
            raise click.UsageError(
                f"{path} does not take {rest[0]!r}; {path} --help says what it takes.", ctx
            )
        return rest

    def _plain(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Make every option's value a word of its own; click would take ``--json`` for a value."""
        options = [one for one in self.get_params(ctx) if isinstance(one, click.Option)]
        valued = {name: one for one in options if not one.is_flag for name in one.opts}
        plain: list[str] = []
        rest = list(args)
        while rest:
            word = rest.pop(0)
            name, sign, value = word.partition("=")
            option = valued.get(name)
            if word == "--":
                return [*plain, word, *rest]
            if option is None:
                plain.append(word)
            elif sign:
                plain += [name, value]
            elif isinstance(option, Several):
                while rest and not looks_like_option(rest[0]):
                    plain += [name, rest.pop(0)]
            else:
                plain += [name, _value_of(option, rest, ctx)]
        return plain

    def invoke(self, ctx: click.Context) -> object:
        """Do the work, and note that it began."""
        ctx.ensure_object(Call).began = True
        return super().invoke(ctx)


def _value_of(option: click.Option, rest: list[str], ctx: click.Context) -> str:
    """Take an option's value from the words that follow."""
    name = name_of(option)
    if not rest:
        metavar = option.make_metavar(ctx)
        raise click.UsageError(f"{name} needs a value: write {name} {metavar}.", ctx)
    if looks_like_option(rest[0]):
        raise click.UsageError(
            f"{name} needs a value, and {rest[0]!r} looks like an option; if it is the value, "
            f"write {name}={rest[0]}.",
            ctx,
        )
    return rest.pop(0)


class Group(Worded, click.Group):
    """Verbs under one name."""

    command_class = Verb

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the words; without one, say what there is.

        Raises:
            click.UsageError: they cannot be read.
        """
        if not args and not self.invoke_without_command and not ctx.resilient_parsing:
            names = listed(self.list_commands(ctx), "or")
            raise click.UsageError(f"{ctx.command_path} needs an action: {names}.", ctx)
        return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb that the first word names.

        Raises:
            click.NoSuchCommand: there is none.
        """
        command = self.get_command(ctx, args[0])
        if command is None and not ctx.resilient_parsing:
            raise click.NoSuchCommand(args[0], ctx=ctx)
        return (args[0] if command else None), command, args[1:]


class Program(Group):
    """All verbs, from the table; a verb's module is imported when the verb is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002
        """Return the verbs in the table's order."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        """Import a verb."""
        row = VERBS.get(cmd_name)
        if row is None:
            return None
        module = importlib.import_module(f"manyeyes.cli.{row.module}")
        commands: tuple[click.Command, ...] = module.COMMANDS
        return next(one for one in commands if one.name == cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        """Write the panels."""
        width = max(len(name) for name in VERBS)
        for panel, rows in PANELS.items():
            with formatter.section(panel):
                formatter.write_dl([(f"{name:<{width}}", row.text) for name, row in rows.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """Complete a verb without importing any."""
        from click.shell_completion import CompletionItem

        rows = {name: row for name, row in VERBS.items() if name.startswith(incomplete)}
        verbs = [CompletionItem(name, help=row.text) for name, row in rows.items()]
        return verbs + click.Command.shell_complete(self, ctx, incomplete)


def verb(name: str) -> Callable[[Callable[..., Any]], Verb]:
    """Make a function a verb of the table; its parameters are the options that decorate it."""
    return click.command(name, cls=Verb, help=as_sentence(VERBS[name].text))


def as_sentence(text: str) -> str:
    """Write a line of help as a sentence; ``capitalize`` would write ``kfp ir yaml``."""
    return f"{text[0].upper()}{text[1:]}."


def debug_option(*, hidden: bool = False) -> click.Option:
    """Make ``--debug``, which stands before or after the verb."""

    def note(ctx: click.Context, _parameter: click.Parameter, value: bool) -> None:
        if value:
            ctx.ensure_object(Call).debug = True

    return click.Option(
        ["--debug"],
        is_flag=True,
        expose_value=False,
        hidden=hidden,
        callback=note,
        help="show tracebacks",
    )


recipe_argument = click.argument("path", metavar="RECIPE", type=PATH, help="recipe file")
set_option = click.option(
    "--set",
    "overrides",
    metavar="KEY=VALUE",
    type=TEXT,
    multiple=True,
    help="put another value into the recipe, like sft.steps=10; may be given again",
)
json_option = click.option("--json", "as_json", is_flag=True, help="print the result as JSON")
_DEBUG = debug_option(hidden=True)
