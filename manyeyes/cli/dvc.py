"""``manyeyes dvc`` writes a recipe's ``dvc.yaml``; its stage ``keys`` is ``manyeyes keys``.

DVC reruns a stage when a file that it depends on changed. What our keys hold besides the inputs
(versions of code, the slice of the recipe, what is outside) stands in one small file per stage,
which the stage ``keys`` writes anew each time: so DVC and ``manyeyes run`` agree on what is stale.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from manyeyes import steps
from manyeyes.artifact.files import METRICS_FILE
from manyeyes.cli.command import json_option, recipe_argument, set_option, verb
from manyeyes.cli.output import print_json
from manyeyes.cli.values import PATH
from manyeyes.errors import UserError
from manyeyes.runtime.plain_files import read_plain_text

if TYPE_CHECKING:
    from pydantic import JsonValue

    from manyeyes.config.recipe import Recipe

HEAD = """\
# Skin 2 of 3: the pipeline for DVC. Do not edit, but write it again:
#
#   manyeyes dvc {recipe}
#   dvc repro               run what changed; a result in the content store is taken, not made again
#   dvc repro sft           up to one stage
#   dvc metrics show        the scores
#   manyeyes models         who is champion; a model that the gate refuses stays a candidate, and
#                           that is a result like another: dvc repro ends well
#
# `keys` always runs and takes a second: it writes what a stage depends on besides its inputs.
"""
BEGINNING = HEAD.splitlines()[0]


@verb("dvc")
@recipe_argument
@click.option(
    "-o",
    "--out",
    metavar="FILE",
    type=PATH,
    default=Path("dvc.yaml"),
    show_default=True,
    help="file to write",
)
@set_option
@json_option
def dvc(path: Path, out: Path, overrides: tuple[str, ...], as_json: bool) -> int:
    """Write ``dvc.yaml``."""
    from manyeyes.cli.loading import load_checked

    recipe = load_checked(path, overrides=overrides)
    _write_pipeline(out, pipeline_text(recipe, path, overrides))
    _tell([out], as_json=as_json)
    return 0


@verb("keys")
@recipe_argument
@click.option(
    "--out", metavar="DIR", type=PATH, required=True, help="folder for one file per stage"
)
@set_option
@json_option
def keys(path: Path, out: Path, overrides: tuple[str, ...], as_json: bool) -> int:
    """Write the files of the keys."""
    from manyeyes.cli.loading import load_checked

    _tell(list(_write_keys(load_checked(path, overrides=overrides), out)), as_json=as_json)
    return 0


def _tell(written: Sequence[Path], *, as_json: bool) -> None:
    if as_json:
        print_json([str(path) for path in written])
    else:
        print("\n".join(f"wrote {path}" for path in written))


def _write_pipeline(path: Path, text: str) -> None:
    """Write the file, unless it would replace one that somebody wrote by hand.

    Raises:
        UserError: it would, or it cannot be written.
    """
    from manyeyes.artifact.manifest import atomic_write_text

    try:
        if path.exists() and not read_plain_text(path).startswith(BEGINNING):
            raise UserError(
                f"{path} is not a file that manyeyes dvc wrote: remove it, or give another one "
                "with --out."
            )
        atomic_write_text(path, text)
    except (OSError, UnicodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not text"
        raise UserError(f"Cannot write {path} ({reason}): give another file with --out.") from None


def _write_keys(recipe: Recipe, folder: Path) -> Iterator[Path]:
    """Write per stage what its key holds besides its inputs.

    Raises:
        UserError: what the stage reads from outside is wrong or absent, or a file is somebody's.
    """
    from manyeyes.artifact.destination import claim_files
    from manyeyes.artifact.manifest import atomic_write_json
    from manyeyes.config.recipe.slices import slice_digest, slice_json
    from manyeyes.pipeline.code_lock import code_of
    from manyeyes.pipeline.outside import outside_of, refuse_absent

    files = _key_files(recipe)
    claim_files(folder, files.values(), _is_key_file)
    for task, name in files.items():
        text = slice_json(recipe, task.stage, task.expert)
        sources = outside_of(task.stage, text, fetch=True)
        refuse_absent(sources)
        facts: dict[str, JsonValue] = {
            "code": {**code_of(task.stage, text)},
            "slice": slice_digest(text),
            "outside": {source.name: source.digest for source in sources},
        }
        atomic_write_json(folder / name, facts)
        yield folder / name


def _key_files(recipe: Recipe) -> dict[steps.Task, str]:
    """Return the file's name of every stage, and of every expert of a stage."""
    from manyeyes.config.recipe.slices import tasks_of

    return {task: f"{task.slug}.json" for task in tasks_of(recipe)}


def _is_key_file(text: str) -> bool:
    try:
        found = json.loads(text)
    except ValueError:
        return False
    return isinstance(found, dict) and {"code", "slice", "outside"} == found.keys()


def pipeline_text(recipe: Recipe, path: Path, overrides: Sequence[str] = ()) -> str:
    """Return the ``dvc.yaml`` of a recipe.

    Args:
        recipe: the recipe.
        path: where it lies, from the folder of ``dvc.yaml``.
        overrides: what ``--set`` puts into it; every stage is given the same.

    Raises:
        UserError: DVC would take the path or an override for a template.
    """
    if "${" in str(path) or "\n" in str(path):
        raise UserError(f"DVC cannot use the path {str(path)!r}: rename the recipe's file.")
    for override in overrides:
        if "${" in override or "\n" in override:
            raise UserError(f"DVC cannot use {override!r}: write it into the recipe's file.")
    root = f"artifacts/{recipe.name}"
    words = [shlex.quote(path.as_posix()), *(f"--set {shlex.quote(one)}" for one in overrides)]
    given = " ".join(words)
    lines = [HEAD.format(recipe=given), "stages:", *_keys_stage(recipe, given, root)]
    for step in steps.STEPS:
        if not step.per_expert or recipe.prealign.experts:
            lines += ["", *_stage(recipe, step, given, root)]
    lines += ["", "metrics:", f"  - {root}/eval/{METRICS_FILE}"]
    return "\n".join(lines) + "\n"


def _keys_stage(recipe: Recipe, path: str, root: str) -> Iterator[str]:
    yield "  keys:"
    yield from _command([f"manyeyes keys {path}", f"--out {root}/keys"])
    yield "    always_changed: true"
    yield "    outs:"
    for name in _key_files(recipe).values():
        yield f"      - {root}/keys/{name}:"
        yield "          cache: false"


def _stage(recipe: Recipe, step: steps.Step, path: str, root: str) -> Iterator[str]:
    experts = list(recipe.prealign.experts)
    item = "${item.expert}"
    yield f"  {step.name}:"
    if step.per_expert:
        yield from ("    matrix:", "      expert:", *(f"        - {name}" for name in experts))
    words = [f"manyeyes {step.name} {path}"]
    if step.per_expert:
        words.append(f"--expert {item}")
    needed: list[str] = []
    for one in step.inputs:
        places = [f"{root}/{one.source}"]
        if one.many:
            places = [f"{root}/{one.source}/{name}" for name in experts]
        if places:
            words += [f"--{one.role}", *places] if one.many else [f"--{one.role} {places[0]}"]
        needed += places
    if step.name == "register":
        words.append("--keep-candidate")
    out = f"{root}/{step.name}/{item}" if step.per_expert else f"{root}/{step.name}"
    yield from _command([*words, f"--out {out}"])
    key = steps.Task(step.name, item if step.per_expert else None).slug
    yield from (
        "    deps:",
        *(f"      - {place}" for place in [*needed, f"{root}/keys/{key}.json"]),
    )
    yield from ("    outs:", f"      - {out}")


def _command(words: Sequence[str]) -> Iterator[str]:
    yield "    cmd: >-"
    for word in words:
        yield f"      {word}"


COMMANDS = (dvc, keys)
