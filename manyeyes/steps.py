"""The step table: which stages exist, what each reads and writes, and what it depends on.

Every skin is checked against this table: the command line verbs, ``dvc.yaml`` and the KFP
pipeline. ``explain`` and the fingerprints read it too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from manyeyes.errors import unknown

PACKAGE = Path(__file__).parent
ArtifactKind = Literal["dataset", "checkpoint", "report"]
"""What a stage writes."""


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
    version: int
    """Rises when the stage makes something else of the same inputs: results of before then do not
    count. A change that leaves the results as they are needs no new one (``make lock``)."""
    code: str
    """``module:function``: what can be reached from it is its code (``code_lock``)."""
    per_expert: bool = False
    torch: bool = False
    """It computes with torch: on a cluster it needs the trainer image, not the control image."""


DATASET = Input("dataset", "dataset", "prepare")
VALIDATION = Input("validation", "report", "validate")

STEPS: tuple[Step, ...] = (
    Step(
        name="prepare",
        inputs=(),
        writes="dataset",
        slice_keys=("seed", "data"),
        version=1,
        code="manyeyes.pipeline.stages.prepare:prepare",
    ),
    Step(
        name="validate",
        inputs=(DATASET,),
        writes="report",
        slice_keys=("seed", "validate"),
        version=1,
        code="manyeyes.pipeline.stages.validate:validate",
    ),
    Step(
        name="prealign",
        inputs=(DATASET, VALIDATION),
        writes="checkpoint",
        slice_keys=("seed", "model", "prealign.experts.{expert}"),
        version=1,
        code="manyeyes.pipeline.stages.prealign:prealign",
        per_expert=True,
        torch=True,
    ),
    Step(
        name="pretrain",
        inputs=(DATASET, VALIDATION, Input("experts", "checkpoint", "prealign", many=True)),
        writes="checkpoint",
        slice_keys=("seed", "model", "pretrain"),
        version=1,
        code="manyeyes.pipeline.stages.pretrain:pretrain",
        torch=True,
    ),
    Step(
        name="sft",
        inputs=(DATASET, VALIDATION, Input("checkpoint", "checkpoint", "pretrain")),
        writes="checkpoint",
        slice_keys=("seed", "model", "sft"),
        version=1,
        code="manyeyes.pipeline.stages.sft:sft",
        torch=True,
    ),
    Step(
        name="eval",
        inputs=(DATASET, VALIDATION, Input("checkpoint", "checkpoint", "sft")),
        writes="report",
        slice_keys=("seed", "model", "eval"),
        version=1,
        code="manyeyes.pipeline.stages.eval:evaluate",
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
        version=1,
        code="manyeyes.pipeline.stages.register:register",
    ),
)

TRAININGS = tuple(one.name for one in STEPS if one.writes == "checkpoint")
"""Names of the stages that train."""


def step(name: str) -> Step:
    """Return one step by name.

    Raises:
        UserError: no such stage.
    """
    for candidate in STEPS:
        if candidate.name == name:
            return candidate
    raise unknown("stage", name, [candidate.name for candidate in STEPS])


@dataclass(frozen=True)
class Task:
    """One stage of one recipe; a stage that runs once per encoder is a task for each of them."""

    stage: str
    """Name in the step table."""
    expert: str | None = None
    """The encoder, where the stage runs once for each."""

    @classmethod
    def named(cls, stage: str, name: str) -> Task:
        """Return the task that a manifest tells of.

        Args:
            stage: the manifest's stage.
            name: the manifest's name: of the encoder, or of the stage once more.
        """
        return cls(stage, None if name == stage else name)

    @property
    def step(self) -> Step:
        """The stage's row of the step table."""
        return step(self.stage)

    @property
    def label(self) -> str:
        """Its name for people and in records: ``sft``, ``prealign:clip``."""
        return f"{self.stage}:{self.expert}" if self.expert else self.stage

    @property
    def slug(self) -> str:
        """Its name as a part of file names: ``sft``, ``prealign-clip``."""
        return slug_of(self.label)


def slug_of(label: str) -> str:
    """Return a label as a part of file names."""
    return label.replace(":", "-")
