"""``manyeyes run``: the whole pipeline here, through kfp.local."""

from __future__ import annotations

from pathlib import Path

import click

from manyeyes.cli.command import json_option, recipe_argument, set_option, verb
from manyeyes.cli.values import PATH


@verb("run")
@recipe_argument
@click.option("--out", metavar="DIR", type=PATH, help="folder for the results (default: runs/NAME)")
@set_option
@json_option
def run(path: Path, out: Path | None, overrides: tuple[str, ...], as_json: bool) -> int:
    """Run a recipe from data to registered model, or say that nothing is to be done."""
    from manyeyes.cli.whole_run import run_and_tell

    return run_and_tell(path, out, overrides, as_json=as_json)


COMMANDS = (run,)
