"""``manyeyes import-weights`` and ``export-projector``: to and from other people's checkpoints."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

import click

from manyeyes.cli.command import json_option, verb
from manyeyes.cli.output import no_greetings, print_json, print_table
from manyeyes.cli.values import PATH, PLACE, TEXT
from manyeyes.errors import UserError, unknown

if TYPE_CHECKING:
    from pydantic import JsonValue

    from manyeyes.config.recipe import Recipe
    from manyeyes.model.weights.exchange.report import ImportReport
    from manyeyes.model.weights.exchange.source import Source

Value = TypeVar("Value")
LLM = "llm"
FILES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".safetensors", ".gguf")
LAYER = re.compile(r"(?:^|model\.)layers\.\d+\.")
"""Names of a language model's own layers."""
SHOWN = 20
"""Keys of a kind that the table shows; --json and import.json have all of them."""


@verb("import-weights")
@click.argument("reference", metavar="SOURCE", type=PLACE, help="file, folder or Hugging Face id")
@click.option("--out", metavar="DIR", type=PATH, required=True, help="folder to make")
@click.option(
    "--as",
    "target",
    metavar="WHAT",
    type=TEXT,
    help="an encoder of the table, llm, or whose names they are with --recipe: llava, eagle, "
    "eve, mgm, cambrian, llava-hr (default: by config.json or the names)",
)
@click.option(
    "--recipe",
    "path",
    metavar="RECIPE",
    type=PATH,
    help="whose model the weights of a system fill",
)
@json_option
def import_weights(
    reference: str, out: Path, target: str | None, path: Path | None, as_json: bool
) -> int:
    """Take published weights in."""
    from manyeyes.artifact.destination import claim_folder
    from manyeyes.cli.loading import load_checked

    claim_folder(out, replace=False)
    if out.suffix in FILES:
        raise UserError(
            f"{out} is to be a folder, which a recipe would take for a file: name it without "
            f"{out.suffix}."
        )
    recipe = load_checked(path) if path else None
    with no_greetings():
        from manyeyes.model.weights.exchange.source import open_source

        source = open_source(reference)
        report = _read_as(source, target or _guess(source, recipe), recipe, out)
    if as_json:
        print_json({**cast("dict[str, JsonValue]", report.to_json()), "out": str(out)})
        return 2 if report.problem else 0
    _print(report)
    if report.problem:
        raise UserError(report.problem)
    print(f"{out}: {len(report.used)} tensors of {report.reference} as {report.target}")
    return 0


def _guess(source: Source, recipe: Recipe | None) -> str:
    """Tell what weights are: with a recipe by their names, without by ``config.json``."""
    from manyeyes.model.weights.exchange.names import recognise

    if recipe is not None:
        return recognise(list(source.shapes))
    if "ForCausalLM" in str(source.config().get("architectures")):
        return LLM
    raise UserError(
        f"What {source.reference!r} is cannot be told from its config.json: say it with --as (an "
        "encoder of the table, or llm), or give the --recipe of the system it is of."
    )


def _read_as(source: Source, target: str, recipe: Recipe | None, out: Path) -> ImportReport:
    from manyeyes.model.encoders import ENCODERS
    from manyeyes.model.weights.exchange import importing
    from manyeyes.model.weights.exchange.names import SYSTEMS

    if target == LLM:
        return importing.import_language_model(source, out).report
    if target in ENCODERS:
        return importing.import_encoder(source, target, out).report
    if target not in SYSTEMS:
        raise unknown("kind of weights", target, [LLM, *ENCODERS, *SYSTEMS])
    if recipe is None:
        raise UserError(f"Weights of {target} fill the model of a recipe: name it with --recipe.")
    # A file of a projector may hold the table of words, too.
    tables = any(key.endswith("embed_tokens.weight") for key in source.shapes)
    whole = tables and any(LAYER.search(key) for key in source.shapes)
    take = importing.import_system if whole else importing.import_projector
    return take(source, recipe, target, out).report


def _print(report: ImportReport) -> None:
    rows = [("used", key, ", ".join(names)) for key, names in _some(report.used)]
    rows += [("not used", key, reason) for key, reason in _some(report.unused)]
    rows += [("elsewhere", part, reference) for part, reference in report.elsewhere.items()]
    rows += [("missing", "", name) for name in report.missing[:SHOWN]]
    rows += [("unexpected", key, "") for key in report.unexpected[:SHOWN]]
    rows += [("misshapen", text, "") for text in report.misshapen[:SHOWN]]
    print_table(f"{report.reference} as {report.target}", ("", "published", "here"), rows)
    counts = {
        "used": len(report.used),
        "not used": len(report.unused),
        "missing": len(report.missing),
        "unexpected": len(report.unexpected),
        "misshapen": len(report.misshapen),
    }
    print(", ".join(f"{number} {word}" for word, number in counts.items()))


def _some(items: dict[str, Value]) -> list[tuple[str, Value]]:
    return list(items.items())[:SHOWN]


@verb("export-projector")
@click.argument("checkpoint", metavar="CHECKPOINT", type=PATH, help="checkpoint folder")
@click.option(
    "-o",
    "--out",
    metavar="FILE",
    type=PATH,
    required=True,
    help="file to make: .bin (a pickle) or .safetensors",
)
@click.option(
    "--as", "target", metavar="SYSTEM", type=TEXT, help="whose names (default: by the fusion)"
)
@json_option
def export_projector_verb(checkpoint: Path, out: Path, target: str | None, as_json: bool) -> int:
    """Write projector and fusion with the authors' names."""
    from manyeyes.artifact.destination import claim_file

    claim_file(out)
    with no_greetings():
        from manyeyes.model.vlm import VisionLanguageModel
        from manyeyes.model.weights.exchange.projector import (
            claim_projector,
            export_projector,
            system_of,
        )

        claim_projector(out)
        model = VisionLanguageModel.from_pretrained(checkpoint)
        system = target or system_of(model)
        tensors = export_projector(model, system, out)
    shapes: dict[str, JsonValue] = {key: list(value.shape) for key, value in tensors.items()}
    if as_json:
        print_json({"out": str(out), "as": system, "tensors": shapes})
        return 0
    print(f"{out}: {len(tensors)} tensors with the names of {system}")
    return 0


COMMANDS = (import_weights, export_projector_verb)
