"""The verbs and their flags. Stage verbs are made from the step table."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any, TypeAlias

from manyeyes import __version__
from manyeyes.steps import STEPS, Step

VERBS: dict[str, str] = {
    "run": "run",
    "compile": "compile",
    "submit": "submit",
    "status": "remote",
    "logs": "remote",
    "cancel": "remote",
    "resume": "submit",
    **{step.name: "stage" for step in STEPS},
    "check": "check",
    "show": "show",
    "plan": "plan",
    "explain": "explain",
    "dvc": "dvc",
    "keys": "dvc",
    "data": "data",
    "models": "models",
    "lineage": "models",
    "chat": "chat",
    "import-weights": "weights",
    "export-projector": "weights",
    "doctor": "doctor",
    "du": "storage",
    "gc": "storage",
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


class Parser(argparse.ArgumentParser):
    """Refuses ``--out=--``, which Python 3.11 takes for an option without a value, and fails on."""

    def _get_values(self, action: argparse.Action, arg_strings: list[str]) -> Any:  # noqa: ANN401
        if action.option_strings and "--" in arg_strings:
            raise argparse.ArgumentError(action, "its value cannot be '--'; give another one")
        return super()._get_values(action, arg_strings)


def build_parser() -> argparse.ArgumentParser:
    """Build the whole command line."""
    parser: argparse.ArgumentParser = Parser(
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
    _cluster_verbs(verbs)
    for step in STEPS:
        _stage_verb(verbs, step)
    _recipe_verbs(verbs)
    _data_verbs(verbs)
    _model_verbs(verbs)
    _weights_verbs(verbs)
    _doctor_verb(verbs)
    _storage_verbs(verbs)
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
    compiled = _verb(verbs, "compile", "compile the pipeline to KFP IR YAML")
    _recipe(compiled)
    compiled.add_argument("-o", "--out", type=Path, required=True, help="file to write")
    compiled.add_argument("--profile", help="where it shall run (default: this machine)")
    compiled.add_argument(
        "--gitops", action="store_true", help="write Kubernetes resources for kubectl apply"
    )


def _cluster_verbs(verbs: Verbs) -> None:
    submit = _verb(verbs, "submit", "run the pipeline on a cluster")
    _recipe(submit)
    submit.add_argument("--profile", required=True, help="the cluster: a name or a .yaml file")
    submit.add_argument(
        "--set", action="append", default=[], metavar="NAME=VALUE", help="set a pipeline input"
    )
    _submitted(_verb(verbs, "status", "the tasks of a run on a cluster, with states and times"))
    logs = _verb(verbs, "logs", "what the tasks of a run on a cluster print")
    _submitted(logs)
    logs.add_argument("-f", "--follow", action="store_true", help="go on until the run ends")
    logs.add_argument("--step", help="only this step")
    _submitted(_verb(verbs, "cancel", "stop a run on a cluster"))
    resume = _verb(verbs, "resume", "continue an ended run on a cluster")
    _submitted(resume)
    for started in (submit, resume):
        started.add_argument("--wait", action="store_true", help="wait until the run ends")


def _submitted(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "run_or_recipe",
        metavar="RUN",
        nargs="?",
        help="recipe, run id or run name (default: what was submitted last)",
    )
    parser.add_argument("--profile", help="its cluster, for a run that was started elsewhere")


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
    if step.name == "register":
        parser.add_argument(
            "--keep-candidate",
            action="store_true",
            help="exit code 0 also where the gate does not say yes: the model is registered as "
            "candidate, which is a result, too",
        )


def _recipe_verbs(verbs: Verbs) -> None:
    _recipe(_verb(verbs, "check", "check recipes, all problems at once"), many=True)
    show = _verb(verbs, "show", "the resolved recipe, with real shapes and parameter counts")
    _recipe(show)
    plan = _verb(verbs, "plan", "what a launch will need: memory, time, cost; 3 if it does not fit")
    _recipe(plan)
    plan.add_argument(
        "--gpus", metavar="NxNAME", help="the GPUs, like 32xA100-80G; without it they are listed"
    )
    plan.add_argument(
        "--mfu", type=float, default=0.4, help="utilisation to reckon with (default: 0.4)"
    )
    plan.add_argument("--price", type=float, help="of one GPU for an hour")
    plan.add_argument(
        "--dataset", type=Path, help="finished dataset whose lengths to use (default: data/NAME)"
    )
    explain = _verb(verbs, "explain", "what is cached and what will run, and why")
    _recipe(explain)
    dvc = _verb(verbs, "dvc", "write the pipeline of a recipe for DVC")
    _recipe(dvc)
    dvc.add_argument(
        "-o", "--out", type=Path, default=Path("dvc.yaml"), help="file (default: dvc.yaml)"
    )
    keys = _verb(verbs, "keys", "write what each stage depends on besides its inputs, for DVC")
    _recipe(keys)
    keys.add_argument("--out", type=Path, required=True, help="folder for one file per stage")


def _data_verbs(verbs: Verbs) -> None:
    data = verbs.add_parser(
        "data",
        help="make datasets; move artifacts to and from the content store",
        description="Make datasets; move artifacts to and from the content store.",
    )
    actions = data.add_subparsers(dest="action", metavar="ACTION", required=True)
    starter = _verb(actions, "starter", "build the starter data from real sources, offline")
    starter.add_argument(
        "--out",
        type=Path,
        default=Path("data/starter"),
        help="folder for the dataset (default: data/starter)",
    )
    starter.add_argument(
        "--scale", type=float, default=1.0, help="1.0 (default) is about ten thousand samples"
    )
    starter.add_argument("--image-size", type=int, default=128, help="pixels a side (default: 128)")
    starter.add_argument("--seed", type=int, default=7, help="another one, other data (default: 7)")
    imported = _verb(actions, "import", "import conversations in the LLaVA format")
    imported.add_argument("conversations", metavar="FILE", type=Path, help="JSON or JSON lines")
    imported.add_argument(
        "--images", type=Path, required=True, help="folder the image paths refer to"
    )
    imported.add_argument("--out", type=Path, required=True, help="folder for the dataset")
    imported.add_argument("--licence", required=True, help="SPDX name of the data's licence")
    imported.add_argument("--source", help="name of the source (default: the file's name)")
    imported.add_argument(
        "--quarantine",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="put up to this share of bad records aside instead of refusing",
    )
    imported.add_argument(
        "--number-ids",
        action="store_true",
        help="let ids repeat, as LLaVA's do: the second one gets '-2' added",
    )
    _store_verbs(actions)


def _store_verbs(actions: Verbs) -> None:
    pull = _verb(actions, "pull", "bring an artifact from the content store")
    pull.add_argument(
        "what",
        metavar="DIGEST_OR_POINTER",
        help="content digest or fingerprint, MD5.dir, models:/NAME@ALIAS, or a pointer: "
        "pointer.json, its folder, a .dvc file",
    )
    pull.add_argument("--out", type=Path, help="folder for it (default: its digest's first 12)")
    push = _verb(actions, "push", "put a finished artifact into the content store")
    push.add_argument("directory", metavar="DIR", type=Path, help="a Dataset, Checkpoint or Report")
    push.add_argument("--name", help="a dataset's name in recipes (default: the folder's name)")


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
    chat.add_argument(
        "--max-new-tokens", type=int, default=32, metavar="N", help="longest answer (default: 32)"
    )
    chat.add_argument(
        "--ocr", action="store_true", help="add the text of the pictures to the question"
    )
    chat.add_argument(
        "--draw", metavar="PIPELINE", help="draw what the answer asks for: folder or hub id"
    )
    chat.add_argument(
        "--draw-to",
        type=Path,
        default=Path("drawn.png"),
        metavar="FILE",
        help="file for the drawing (default: drawn.png)",
    )


def _weights_verbs(verbs: Verbs) -> None:
    taken = _verb(verbs, "import-weights", "take in published weights, every key accounted for")
    taken.add_argument("source", metavar="SOURCE", help="file, folder or Hugging Face id")
    taken.add_argument("--out", type=Path, required=True, help="folder to make")
    taken.add_argument(
        "--as",
        dest="target",
        metavar="WHAT",
        help="an encoder of the table, llm, or whose names they are with --recipe: llava, eagle, "
        "eve, mgm, cambrian, llava-hr (default: by config.json or the names)",
    )
    taken.add_argument("--recipe", type=Path, help="whose model the weights of a system fill")
    given = _verb(verbs, "export-projector", "write projector and fusion with the authors' names")
    given.add_argument("checkpoint", metavar="CHECKPOINT", type=Path, help="checkpoint folder")
    given.add_argument(
        "-o",
        "--out",
        type=Path,
        required=True,
        help="file to make: .bin (a pickle) or .safetensors",
    )
    given.add_argument(
        "--as", dest="target", metavar="SYSTEM", help="whose names (default: by the fusion)"
    )


def _doctor_verb(verbs: Verbs) -> None:
    doctor = _verb(verbs, "doctor", "what is missing here or on the cluster, and how to mend it")
    doctor.add_argument(
        "recipe", metavar="RECIPE", nargs="?", type=Path, help="check what this recipe needs too"
    )
    doctor.add_argument("--profile", help="profile of a cluster: a name, or a file in YAML")
    doctor.add_argument(
        "--pod", action="store_true", help="print a pod that runs doctor inside the cluster"
    )


def _storage_verbs(verbs: Verbs) -> None:
    _verb(verbs, "du", "who holds how much of the content store of this machine")
    collected = _verb(verbs, "gc", "what nobody holds any more; a list, unless --apply")
    collected.add_argument("--apply", "--yes", action="store_true", help="remove it")
    collected.add_argument(
        "--older-than",
        type=_days,
        default=30.0,
        metavar="DAYS",
        help="keep unfinished work and records of runs for so long (default: 30)",
    )
    collected.add_argument(
        "--forget",
        action="append",
        default=[],
        metavar="PLACE",
        help="do not ask this pointer, folder of pointers, project or registry any more: it is "
        "gone for good",
    )


def _days(text: str) -> float:
    try:
        days = float(text)
    except ValueError:
        days = -1.0
    if not 0 <= days < float("inf"):
        raise argparse.ArgumentTypeError(f"give a number of days, not {text!r}")
    return days
