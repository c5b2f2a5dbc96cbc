"""The step table: which stages exist, what each reads and writes, and what it depends on.

Every skin is checked against this table: the command line verbs, ``dvc.yaml`` and the KFP
pipeline. ``explain`` and the fingerprints read it too. ``code`` names the source files whose
change makes a stage run again; a change elsewhere (the report's layout, say) does not retrain.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from manyeyes.errors import unknown

if TYPE_CHECKING:
    # The command line is built from this table: importing pydantic would double its start-up.
    from manyeyes.artifact import ArtifactKind

PACKAGE = Path(__file__).parent


@dataclass(frozen=True)
class Input:
    """One artifact a stage reads."""

    role: str
    """Its name in signatures, flags (``--role``), KFP inputs and manifests."""
    kind: ArtifactKind
    source: str
    """The stage that makes it."""
    many: bool = False
    """One per expert."""


@dataclass(frozen=True)
class Step:
    """One box of the pipeline."""

    name: str
    inputs: tuple[Input, ...]
    writes: ArtifactKind
    slice_keys: tuple[str, ...]
    """Recipe keys the stage sees; ``{expert}`` stands for the expert's name."""
    code: tuple[str, ...]
    """Files and folders of the package it depends on."""
    per_expert: bool = False
    torch: bool = False
    """It computes with torch: on a cluster it needs the trainer image, not the control image."""


_DATA_CODE = ("data", "recipe/base.py", "recipe/optimization.py", "recipe/sections.py")
_MODEL_CODE = ("model", "train", "zoo/weights", "recipe/fusions.py", *_DATA_CODE)

DATASET = Input("dataset", "dataset", "prepare")
VALIDATION = Input("validation", "report", "validate")

STEPS: tuple[Step, ...] = (
    Step(
        name="prepare",
        inputs=(),
        writes="dataset",
        slice_keys=("seed", "data"),
        code=("stages/prepare.py", *_DATA_CODE),
    ),
    Step(
        name="validate",
        inputs=(DATASET,),
        writes="report",
        slice_keys=("seed", "validate"),
        code=("stages/validate.py", *_DATA_CODE),
    ),
    Step(
        name="prealign",
        inputs=(DATASET, VALIDATION),
        writes="checkpoint",
        slice_keys=("seed", "model", "prealign.experts.{expert}"),
        code=("stages/prealign.py", "stages/training.py", *_MODEL_CODE),
        per_expert=True,
        torch=True,
    ),
    Step(
        name="pretrain",
        inputs=(DATASET, VALIDATION, Input("experts", "checkpoint", "prealign", many=True)),
        writes="checkpoint",
        slice_keys=("seed", "model", "pretrain"),
        code=("stages/pretrain.py", "stages/training.py", *_MODEL_CODE),
        torch=True,
    ),
    Step(
        name="sft",
        inputs=(DATASET, VALIDATION, Input("checkpoint", "checkpoint", "pretrain")),
        writes="checkpoint",
        slice_keys=("seed", "model", "sft"),
        code=("stages/sft.py", "stages/training.py", *_MODEL_CODE),
        torch=True,
    ),
    Step(
        name="eval",
        inputs=(DATASET, VALIDATION, Input("checkpoint", "checkpoint", "sft")),
        writes="report",
        slice_keys=("seed", "model", "eval"),
        code=(
            "stages/eval.py",
            "stages/reporting.py",
            "evaluate",
            "model",
            "recipe/fusions.py",
            *_DATA_CODE,
        ),
        torch=True,
    ),
    Step(
        name="register",
        inputs=(
            Input("checkpoint", "checkpoint", "sft"),
            Input("report", "report", "eval"),
        ),
        writes="report",
        slice_keys=("name", "register"),
        code=(
            "stages/register.py",
            "track",
            "serve",
            "recipe/optimization.py",
            "recipe/sections.py",
        ),
    ),
)


def step(name: str) -> Step:
    """Return one step by name.

    Raises:
        UserError: no such stage.
    """
    for candidate in STEPS:
        if candidate.name == name:
            return candidate
    raise unknown("stage", name, [candidate.name for candidate in STEPS])


@cache
def code_digest(name: str) -> str:
    """Return a short digest of the source files one stage depends on."""
    files: set[Path] = set()
    for entry in step(name).code:
        path = PACKAGE / entry
        files.update([path] if path.is_file() else _sources(path))
    digest = hashlib.sha256()
    for path in sorted(files):
        digest.update(path.relative_to(PACKAGE).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()[:16]


def _sources(folder: Path) -> list[Path]:
    return [
        path
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and path.suffix != ".md"
    ]
