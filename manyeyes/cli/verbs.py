"""The table of verbs: panel, name, module and one line of help. No verb is imported for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class VerbRow:
    """One verb."""

    module: str
    """Module of ``manyeyes.cli`` that has it among its ``COMMANDS``."""
    text: str
    """What it does, in one line."""


PANELS: dict[str, dict[str, VerbRow]] = {
    "Pipeline": {
        "run": VerbRow("run", "run the whole pipeline here, through kfp.local"),
        "check": VerbRow("check", "check recipes and tell all problems at once"),
        "show": VerbRow("show", "the resolved recipe, with real shapes and parameter counts"),
        "plan": VerbRow(
            "plan", "memory, FLOPs, time and cost of a launch; exit code 3 if it does not fit"
        ),
        "explain": VerbRow("explain", "what is cached, what will run, and why"),
        "dvc": VerbRow("dvc", "write the pipeline of a recipe for DVC"),
        "keys": VerbRow("dvc", "write what each stage depends on besides its inputs, for DVC"),
    },
    "Stages": {
        "prepare": VerbRow("stage", "make the dataset of a recipe"),
        "validate": VerbRow("stage", "hold a dataset against the data contract"),
        "prealign": VerbRow(
            "stage", "train one expert and its projector against the frozen language model"
        ),
        "pretrain": VerbRow("stage", "join the pre-aligned experts and train a new projector"),
        "sft": VerbRow("stage", "fine-tune everything on conversations"),
        "eval": VerbRow(
            "stage", "score the model by each task's official metric, beside a blank image"
        ),
        "register": VerbRow(
            "stage", "register the model, and make it champion if it passes the gate"
        ),
    },
    "Cluster": {
        "compile": VerbRow("compile", "compile the pipeline to KFP IR YAML"),
        "submit": VerbRow("submit", "run the pipeline on a cluster"),
        "status": VerbRow("remote", "the tasks of a run on a cluster, with states and times"),
        "logs": VerbRow("remote", "what the tasks of a run on a cluster print"),
        "cancel": VerbRow("remote", "stop a run on a cluster"),
        "resume": VerbRow("submit", "continue an ended run on a cluster"),
    },
    "Data": {
        "data": VerbRow("data", "make datasets; move artifacts to and from the content store"),
    },
    "Models": {
        "models": VerbRow("models", "list the registered models"),
        "lineage": VerbRow("models", "what a registered model was made from"),
        "chat": VerbRow("chat", "talk to a model in the terminal"),
        "import-weights": VerbRow("weights", "take in published weights, every key accounted for"),
        "export-projector": VerbRow(
            "weights", "write projector and fusion with the authors' names"
        ),
    },
    "Tools": {
        "doctor": VerbRow("doctor", "what is missing here or on the cluster, and how to mend it"),
        "du": VerbRow("storage", "who holds how much of the content store of this machine"),
        "gc": VerbRow("storage", "what nobody holds any more; a list, unless --apply"),
        "completion": VerbRow("completion", "print what lets a shell complete verbs and options"),
    },
}
"""Heading of ``manyeyes --help`` to its verbs. The stages stand in pipeline order."""

VERBS: dict[str, VerbRow] = {name: row for panel in PANELS.values() for name, row in panel.items()}
