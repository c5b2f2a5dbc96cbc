"""Fingerprints: the one key of every cache.

A step's fingerprint covers its code, its recipe slice, what it reads from outside (``outside``) and
its parents' content. Its readable form ``CODE.SLICE.OUTSIDE.PARENT+PARENT`` is what the KFP step
gets as a parameter; the sha256 of that text is the key in the content store, the manifest and the
MLflow tag. ``OUTSIDE`` is ``?`` where the machine that builds a pipeline cannot know it: the step
then finds it out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from manyeyes import steps
from manyeyes.artifact.manifest import Manifest, open_artifact
from manyeyes.config.recipe import Recipe
from manyeyes.config.recipe.slices import slice_digest, slice_json, tasks_of
from manyeyes.errors import UserError
from manyeyes.pipeline.code_lock import code_digest
from manyeyes.pipeline.outside import UNKNOWN, outside_of, outside_text
from manyeyes.steps import ArtifactKind

Paths = Mapping[str, Path | Sequence[Path]]


def given_paths(inputs: Paths) -> list[Path]:
    """Return the path of every input, as it was given."""
    return [path for one in inputs.values() for path in ([one] if isinstance(one, Path) else one)]


OUTSIDE_FIELD = 2
Opener = Callable[[Path, ArtifactKind], Manifest]


@dataclass(frozen=True)
class Parents:
    """The opened inputs of a stage."""

    paths: dict[str, Path]
    """Role to directory, which may hold a pointer alone; experts have the roles ``expert.NAME``."""
    manifests: dict[str, Manifest]

    @property
    def notes(self) -> tuple[str, ...]:
        """What is allowed and worth telling: a checkpoint that was trained on another dataset."""
        dataset = self.manifests.get("dataset")
        return tuple(
            f"{self.paths[role]} was trained on another dataset ({_short(trained)}) than the one "
            f"given here ({_short(dataset.digest)}): its training may have held what is asked here"
            for role, manifest in self.manifests.items()
            if dataset is not None and manifest.kind == "checkpoint"
            if (trained := manifest.parents.get("dataset", dataset.digest)) != dataset.digest
        )

    @property
    def digests(self) -> dict[str, str]:
        """Role to content digest."""
        return {role: manifest.digest for role, manifest in self.manifests.items()}


def open_parents(stage: str, inputs: Paths, opener: Opener = open_artifact) -> Parents:
    """Open and check every input of a stage.

    Args:
        stage: name in the step table.
        inputs: role to path, or to paths for one input per expert.
        opener: reads and checks the artifact at a path.

    Raises:
        UserError: an input is missing, unknown, unfinished, damaged, or of the wrong kind or stage,
            or it was made of something else than the other inputs.
    """
    parents = Parents({}, {})
    step = steps.step(stage)
    unknown = sorted(set(inputs) - {needed.role for needed in step.inputs})
    if unknown:
        raise UserError(f"Stage {stage} takes no input {unknown[0]!r}.")
    for needed in step.inputs:
        if needed.role not in inputs:
            raise UserError(f"Stage {stage} needs --{needed.role}: the {needed.source} artifact.")
        given = inputs[needed.role]
        for path in [given] if isinstance(given, Path) else given:
            manifest = opener(path, needed.kind)
            if manifest.stage != needed.source:
                raise UserError(
                    f"{path} was made by {manifest.stage}, but {stage} needs the output of "
                    f"{needed.source} as --{needed.role}."
                )
            role = f"expert.{manifest.name}" if needed.many else needed.role
            if role in parents.paths:
                raise UserError(f"{path} is a second checkpoint of expert {manifest.name!r}.")
            parents.paths[role], parents.manifests[role] = path, manifest
    _check_descent(parents)
    return parents


DESCENT = {"validation": "dataset", "report": "checkpoint"}
"""Input -> the other input that it speaks of: it must have been made of that very content."""


def _check_descent(parents: Parents) -> None:
    """Refuse a report that was made of something else than what it is given with.

    Raises:
        UserError: such a report.
    """
    for role, of in DESCENT.items():
        if role not in parents.manifests or of not in parents.manifests:
            continue
        report, subject = parents.manifests[role], parents.manifests[of]
        made_of = report.parents.get(of, "")
        if made_of != subject.digest:
            about = f"the {of} {_short(made_of)}" if made_of else f"no {of} that it names"
            raise UserError(
                f"{parents.paths[role]} was made by {report.stage} of {about}, not of "
                f"{parents.paths[of]} ({_short(subject.digest)}): run {report.stage} on this {of} "
                f"and give its result as --{role}."
            )


def _short(digest: str) -> str:
    return digest[:12]


def fingerprint_text(
    stage: str, recipe_slice: str, digests: Mapping[str, str], outside: str | None = None
) -> str:
    """Return the readable fingerprint, parents ordered by role.

    Args:
        stage: name in the step table.
        recipe_slice: canonical JSON of the slice.
        digests: role to the content digest of an input.
        outside: what ``outside_text`` says; absent: it is looked up on this machine.

    Raises:
        UserError: what the stage reads from outside is wrong.
    """
    if outside is None:
        outside = outside_text(outside_of(stage, recipe_slice))
    parents = "+".join(digest for _, digest in sorted(digests.items()))
    return f"{code_digest(stage, recipe_slice)}.{slice_digest(recipe_slice)}.{outside}.{parents}"


def key_of(text: str) -> str:
    """Return the key in the content store: sha256 of a readable fingerprint."""
    return hashlib.sha256(text.encode()).hexdigest()


def fingerprint(
    stage: str, recipe_slice: str, digests: Mapping[str, str], outside: str | None = None
) -> str:
    """Return the fingerprint: sha256 of its readable form."""
    return key_of(fingerprint_text(stage, recipe_slice, digests, outside))


def is_known(text: str) -> bool:
    """Say whether a readable fingerprint names all that the stage reads from outside."""
    return text.split(".", 3)[OUTSIDE_FIELD] != UNKNOWN


def agreed(given: str | None, own: str) -> str | None:
    """Return the readable fingerprint on which two machines agree; None where they do not.

    Args:
        given: of the machine that built the pipeline; it may not know what is outside.
        own: of this machine, which may not know it either (a step that lets others train).
    """
    if given is None or given == own:
        return own
    theirs, ours = given.split(".", 3), own.split(".", 3)
    if len(theirs) != len(ours):
        return None
    for fields in (theirs, ours):
        if fields[OUTSIDE_FIELD] == UNKNOWN:
            fields[OUTSIDE_FIELD] = (ours if fields is theirs else theirs)[OUTSIDE_FIELD]
    return ".".join(ours) if theirs == ours else None


def run_key(recipe: Recipe) -> str:
    """Name of a recipe's pipeline run: the same recipe continues the same run."""
    text = "".join(slice_json(recipe, task.stage, task.expert) for task in tasks_of(recipe))
    return f"{recipe.name}-{slice_digest(text)[:8]}"
