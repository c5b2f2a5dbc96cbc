"""The table of verbs: panel, name, module and one line of help. No verb is imported for it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Row:
    """One verb."""

    module: str
    """Module of ``manyeyes.cli`` that has it among its ``COMMANDS``."""
    text: str
    """What it does, in one line."""


PANELS: dict[str, dict[str, Row]] = {
    "Pipeline": {
        "run": Row("run", "run the whole pipeline here, through kfp.local"),
        "check": Row("check", "check recipes and tell all problems at once"),
        "show": Row("show", "the resolved recipe, with real shapes and parameter counts"),
        "plan": Row(
            "plan", "memory, FLOPs, time and cost of a launch; exit code 3 if it does not fit"
        ),
        "explain": Row("explain", "what is cached, what will run, and why"),
        "dvc": Row("dvc", "write the pipeline of a recipe for DVC"),
        "keys": Row("dvc", "write what each stage depends on besides its inputs, for DVC"),
    },
    "Stages": {
        "prepare": Row("stage", "make the dataset of a recipe"),
        "validate": Row("stage", "hold a dataset against the data contract"),
        "prealign": Row(
            "stage", "train one expert and its projector against the frozen language model"
        ),
        "pretrain": Row("stage", "join the pre-aligned experts and train a new projector"),
        "sft": Row("stage", "fine-tune everything on conversations"),
        "eval": Row(
            "stage", "score the model by each task's official metric, beside a blank image"
        ),
        "register": Row("stage", "register the model, and make it champion if it passes the gate"),
    },
    "Cluster": {
        "compile": Row("compile", "compile the pipeline to KFP IR YAML"),
        "submit": Row("submit", "run the pipeline on a cluster"),
        "status": Row("remote", "the tasks of a run on a cluster, with states and times"),
        "logs": Row("remote", "what the tasks of a run on a cluster print"),
        "cancel": Row("remote", "stop a run on a cluster"),
        "resume": Row("submit", "continue an ended run on a cluster"),
    },
    "Data": {
        "data": Row("data", "make datasets; move artifacts to and from the content store"),
    },
    "Models": {
        "models": Row("models", "list the registered models"),
        "lineage": Row("models", "what a registered model was made from"),
        "chat": Row("chat", "talk to a model in the terminal"),
        "import-weights": Row("weights", "take in published weights, every key accounted for"),
        "export-projector": Row("weights", "write projector and fusion with the authors' names"),
    },
    "Tools": {
        "doctor": Row("doctor", "what is missing here or on the cluster, and how to mend it"),
        "du": Row("storage", "who holds how much of the content store of this machine"),
        "gc": Row("storage", "what nobody holds any more; a list, unless --apply"),
        "completion": Row("completion", "print what lets a shell complete verbs and options"),
    },
}
"""Heading of ``manyeyes --help`` to its verbs. The stages stand in pipeline order."""

VERBS: dict[str, Row] = {name: row for panel in PANELS.values() for name, row in panel.items()}
