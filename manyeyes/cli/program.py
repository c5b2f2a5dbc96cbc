"""The command line as a whole: ``manyeyes VERB``."""

from __future__ import annotations

import click

from manyeyes.cli.command import WIDTH, Program, debug_option
from manyeyes.version import __version__

NAME = "manyeyes"
COMPLETE = "_MANYEYES_COMPLETE"
"""What a shell sets to ask for completions; click's own name for it."""


@click.group(
    NAME,
    cls=Program,
    params=[debug_option()],
    help="Train multimodal language models that see through a mixture of vision encoders.",
    epilog="Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 3 a gate said no, "
    "75 stopped but resumable.",
    invoke_without_command=True,
    subcommand_metavar="VERB ...",
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": WIDTH},
)
@click.version_option(__version__, message=f"{NAME} %(version)s", help="print the version")
@click.pass_context
def program(context: click.Context) -> None:
    """Print the help where no verb is given; a verb does the rest."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())
