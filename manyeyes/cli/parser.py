"""The verbs and their flags. Stage verbs are made from the step table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TypeAlias

from manyeyes import __version__
from manyeyes.steps import STEPS, Step

VERBS: dict[str, str] = {
    "run": "run",
    "compile": "compile",
    **{step.name: "stage" for step in STEPS},
    "check": "check",
    "show": "show",
    "explain": "explain",
    "data": "data",
    "zoo": "zoo",
    "models": "models",
    "lineage": "models",
    "chat": "chat",
}
"""Verb to the module of ``manyeyes.cli`` that runs it."""

STAGE_HELP = {
    "prepare": "make the dataset of a recipe",
    "validate": "hold a dataset against the data contract",
    "prealign": "train one expert and its projector against the frozen language model",
    "pretrain": "join the pre-aligned experts and train a new projector",
    "sft": "fine-tune everything on conversations",
    "eval": "score the model by each task's official metric, beside a blank image",
    "register": "register the model, and make it champion if it passes the gate",
}


def build_parser() -> argparse.ArgumentParser:
    """Build the whole command line."""
    parser = argparse.ArgumentParser(
        prog="manyeyes",
        description="Train multimodal language models that see through "
        "a mixture of vision encoders.",
        epilog="Exit codes: 0 done, 1 the run failed, 2 the input is wrong, 3 a gate said no, "
        "75 stopped but resumable.",
    )
    parser.add_argument("--version", action="version", version=f"manyeyes {__version__}")
    parser.add_argument("--debug", action="store_true", help="show tracebacks")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    _pipeline_verbs(verbs)
    for step in STEPS:
        _stage_verb(verbs, step)
    _recipe_verbs(verbs)
    _data_verbs(verbs)
    _model_verbs(verbs)
    return parser


Verbs: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"


def _verb(verbs: Verbs, name: str, text: str, *, json: bool = True) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = verbs.add_parser(
        name, help=text, description=text.capitalize() + "."
    )
    parser.add_argument(
        "--debug", action="store_true", help=argparse.SUPPRESS, default=argparse.SUPPRESS
    )
    if json:
        parser.add_argument("--json", action="store_true", help="print the result as JSON")
    return parser


def _recipe(parser: argparse.ArgumentParser, *, many: bool = False) -> None:
    if many:
        parser.add_argument("recipes", metavar="RECIPE", nargs="+", type=Path, help="recipe files")
    else:
        parser.add_argument("recipe", metavar="RECIPE", type=Path, help="recipe file")


def _pipeline_verbs(verbs: Verbs) -> None:
    run = _verb(verbs, "run", "run the whole pipeline here, through kfp.local")
    _recipe(run)
    run.add_argument("--out", type=Path, help="folder for the results (default: runs/NAME)")
    compiled = _verb(verbs, "compile", "compile the pipeline to KFP IR YAML", json=False)
    _recipe(compiled)
    compiled.add_argument("-o", "--out", type=Path, required=True, help="file to write")
    compiled.add_argument("--image", help="trainer image with its digest: NAME@sha256:...")


def _stage_verb(verbs: Verbs, step: Step) -> None:
    parser = _verb(verbs, step.name, STAGE_HELP[step.name])
    _recipe(parser)
    if step.per_expert:
        parser.add_argument("--expert", required=True, help="name of the encoder in the recipe")
    for needed in step.inputs:
        parser.add_argument(
            f"--{needed.role}",
            type=Path,
            required=not needed.many,
            default=[] if needed.many else None,
            nargs="*" if needed.many else None,
            help=f"{needed.kind} made by {needed.source}",
        )
    parser.add_argument("--out", type=Path, required=True, help="directory for the result")


def _recipe_verbs(verbs: Verbs) -> None:
    _recipe(_verb(verbs, "check", "check recipes, all problems at once"), many=True)
    show = _verb(verbs, "show", "the resolved recipe, with real shapes and parameter counts")
    _recipe(show)
    explain = _verb(verbs, "explain", "what is cached and what will run, and why")
    _recipe(explain)


def _data_verbs(verbs: Verbs) -> None:
    data = verbs.add_parser("data", help="make datasets", description="Make datasets.")
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    starter = _verb(actions, "starter", "build the starter data from real sources, offline")
    starter.add_argument("--out", type=Path, default=Path("data/starter"))
    starter.add_argument(
        "--scale", type=float, default=1.0, help="1.0 is about ten thousand samples"
    )
    starter.add_argument("--image-size", type=int, default=128, help="pixels a side")
    starter.add_argument("--seed", type=int, default=7)
    imported = _verb(actions, "import", "import conversations in the LLaVA format")
    imported.add_argument("conversations", metavar="FILE", type=Path, help="JSON or JSON lines")
    imported.add_argument(
        "--images", type=Path, required=True, help="folder the image paths refer to"
    )
    imported.add_argument("--out", type=Path, required=True)
    imported.add_argument("--licence", required=True, help="SPDX name of the data's licence")
    imported.add_argument("--source", help="name of the source (default: the file's name)")
    imported.add_argument(
        "--quarantine",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="put up to this share of bad records aside instead of refusing",
    )
    zoo = verbs.add_parser(
        "zoo", help="the tiny pretrained parts", description="The tiny pretrained parts."
    )
    zoo_actions = zoo.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = _verb(zoo_actions, "build", "pretrain the tiny parts again (about an hour)")
    build.add_argument("--out", type=Path, default=Path("zoo"), help="folder for the weights")
    build.add_argument("--parts", nargs="+", help="only these parts")
    build.add_argument("--seed", type=int, default=7)


def _model_verbs(verbs: Verbs) -> None:
    _verb(verbs, "models", "list the registered models")
    lineage = _verb(verbs, "lineage", "what a registered model was made from")
    lineage.add_argument(
        "reference", metavar="MODEL", help="models:/NAME@ALIAS or models:/NAME/VERSION"
    )
    chat = _verb(verbs, "chat", "talk to a model in the terminal")
    chat.add_argument("model", metavar="MODEL", help="checkpoint folder or models:/NAME@ALIAS")
    chat.add_argument("--image", type=Path, action="append", default=[], help="image to ask about")
    chat.add_argument("--question", help="ask once and leave")
    chat.add_argument("--max-new-tokens", type=int, default=32)
