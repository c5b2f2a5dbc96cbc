"""The code of a stage, as far as it counts for its key: versions, and what is not in the lock.

A stage has a version, and so has every part that a recipe chooses from a table: an encoder, a
fusion, a conversation template, a metric, a source of data, a published language model. The key of
a result holds the version of the stage and those of the parts that its slice names, and no others.

``code_lock.json`` says of each the digest of the code it can reach (``source``) at which its
version was last seen to make the recorded results (``make lock``). Where the code that is installed
differs, its digest joins the key: who edits the source never gets a result of before.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from manyeyes import steps
from manyeyes.artifact.manifest import atomic_write_json
from manyeyes.runtime.home import home

EDITED = "edited"
"""Stands behind a version whose code is not that of the lock."""
LOCK = Path(__file__).with_name("code_lock.json")
_COMPILED = steps.PACKAGE / "__pycache__" / "code.json"
_REGISTRY = "manyeyes.model.encoders.registry"
_METRICS = "manyeyes.evaluation.metrics:METRICS"
_TEMPLATES = "manyeyes.data.loading.templates:TEMPLATES"
_PUBLISHED = "manyeyes.model.weights.published:PUBLISHED"
_FUSION = "manyeyes.model.fusion.build:build_fusion"
_SOURCES = {
    "starter": "manyeyes.data.sources.starter.builder:build",
    "dataset": "manyeyes.pipeline.stages.prepare:_take_dataset",
}
STOP = (
    f"{_REGISTRY}:ENCODERS",
    f"{_REGISTRY}:FAMILIES",
    _METRICS,
    _TEMPLATES,
    _PUBLISHED,
    "manyeyes.model.weights.packages:PACKAGES",  # its digests are in the keys (``outside``)
    _FUSION,
    "manyeyes.config.recipe.fusions:FusionSection",
    *_SOURCES.values(),
)
"""Where the parts begin: what no slice names is nobody's code."""
CARRIERS = ("manyeyes.artifact", "manyeyes.errors", "manyeyes.runtime", "manyeyes.store")
"""Modules that carry bytes and tell people, and make no part of a result."""


def code_of(stage: str, recipe_slice: str) -> dict[str, str]:
    """Return what of the code is in a key: stage and parts, each with its version.

    Where the installed code is not the lock's, the digest of it stands behind the version.

    Args:
        stage: name in the step table.
        recipe_slice: canonical JSON of the slice.

    Raises:
        UserError: the slice names what no table has.
    """
    locked, present = _locked(), digests()
    found = {}
    for label in (stage, *parts_of(stage, json.loads(recipe_slice))):
        version = version_of(label)
        entry = {"version": version, "code": present[label]}
        same = locked.get(label) == entry
        found[label] = f"{version}" if same else f"{version} {EDITED} {present[label]}"
    return found


def code_digest(stage: str, recipe_slice: str) -> str:
    """Return a short digest of :func:`code_of`, which stands in a fingerprint."""
    text = json.dumps(code_of(stage, recipe_slice), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def parts_of(stage: str, piece: Mapping[str, Any]) -> Iterator[str]:
    """Yield the parts that a slice names, as ``metric anls``."""
    if stage == "prepare" and "data" in piece:
        yield f"data {piece['data']['kind']}"
    model = piece.get("model")
    if model:
        encoders = list(model["encoders"])
        if model.get("alignment"):
            encoders.append(model["alignment"]["teacher"])
        yield from dict.fromkeys(f"encoder {encoder['spec']}" for encoder in encoders)
        yield f"fusion {model['fusion']['kind']}"
        yield f"template {model['llm']['template']}"
        if f"language-model {model['llm']['weights']}" in known():
            yield f"language-model {model['llm']['weights']}"
    if stage == "eval" and "section" in piece:
        yield from dict.fromkeys(f"metric {name}" for name in piece["section"]["tasks"].values())


@cache
def known() -> dict[str, tuple[str, ...]]:
    """Return every stage and part with the definitions its code is reached from."""
    from manyeyes.data.loading.templates import TEMPLATES
    from manyeyes.evaluation.metrics import METRICS
    from manyeyes.model.encoders.registry import ENCODERS, FAMILIES
    from manyeyes.model.weights.published import PUBLISHED

    found: dict[str, tuple[str, ...]] = {step.name: (step.code,) for step in steps.STEPS}
    for row, spec in ENCODERS.items():
        module, family = f"manyeyes.model.encoders.{spec.family}", FAMILIES[spec.family]
        names = (f"{module}:{family.section}", f"{module}:{family.encoder}")
        found[f"encoder {row}"] = (f"{_REGISTRY}:ENCODERS@{row}", *names)
    for kind, section in _fusions().items():
        arm = f"{_FUSION}@{section.__name__}"
        found[f"fusion {kind}"] = (arm, f"manyeyes.config.recipe.fusions:{section.__name__}")
    found |= {f"template {row}": (f"{_TEMPLATES}@{row}",) for row in TEMPLATES}
    found |= {f"metric {row}": (f"{_METRICS}@{row}",) for row in METRICS}
    found |= {f"language-model {row}": (f"{_PUBLISHED}@{row}",) for row in PUBLISHED}
    found |= {f"data {kind}": (root,) for kind, root in _SOURCES.items()}
    return found


def version_of(label: str) -> int:
    """Return the version of a stage or a part.

    Raises:
        UserError: no table has it.
    """
    kind, _, name = label.partition(" ")
    match kind:
        case "encoder":
            from manyeyes.model.encoders.registry import FAMILIES, find_spec

            return FAMILIES[find_spec(name).family].version
        case "fusion":
            return int(_fusions()[name].version)
        case "template":
            from manyeyes.data.loading.templates import template_named

            return template_named(name).version
        case "metric":
            from manyeyes.evaluation.metrics import metric_named

            return metric_named(name).version
        case "language-model":
            from manyeyes.model.weights.published import VERSION

            return VERSION
        case "data":
            from manyeyes.config.recipe.sections import ImportedData, StarterData

            return StarterData.version if name == "starter" else ImportedData.version
    return steps.step(kind).version


def said(label: str) -> str:
    """Return a stage or a part in words: ``the metric anls``."""
    kind, _, name = label.partition(" ")
    words = {"data": "data source", "language-model": "language model"}
    return f"the {words.get(kind, kind)} {name}" if name else f"the stage {kind}"


@cache
def digests() -> dict[str, str]:
    """Return the digest of the installed code of every stage and part.

    Reading it out of the source takes seconds, so it is kept beside the compiled source, or in the
    home where the package cannot be written, and holds for exactly these files.
    """
    files, notes = _files(), (_COMPILED, home() / "digests" / "code.json")
    for note in notes:
        with suppress(OSError, ValueError, KeyError, TypeError):
            kept = json.loads(note.read_text(encoding="utf-8"))
            if kept["files"] == files:
                return {str(label): str(digest) for label, digest in kept["code"].items()}
    from manyeyes.pipeline.source import Package

    package = Package(steps.PACKAGE)
    found = {
        label: package.digest(roots, stop=STOP, outside=CARRIERS)
        for label, roots in known().items()
    }
    for note in notes:
        with suppress(OSError):
            atomic_write_json(note, {"files": files, "code": dict(found)})
            break
    return found


def entries() -> dict[str, dict[str, int | str]]:
    """Return what the lock would say now."""
    return {
        label: {"version": version_of(label), "code": code} for label, code in digests().items()
    }


@cache
def _locked() -> dict[str, dict[str, int | str]]:
    """Return what the lock says; nothing where it is missing or cannot be read."""
    return read_lock(LOCK)


def read_lock(path: Path) -> dict[str, dict[str, int | str]]:
    """Read a lock; one that is missing or damaged locks nothing."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _files() -> str:
    digest = hashlib.sha256()
    for path in sorted(steps.PACKAGE.rglob("*.py")):
        digest.update(path.relative_to(steps.PACKAGE).as_posix().encode() + b"\0")
        digest.update(hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


@cache
def _fusions() -> dict[str, Any]:
    """Return the section of every fusion by its kind."""
    from typing import get_args

    from manyeyes.config.recipe.fusions import FusionSection

    return {
        get_args(part.model_fields["kind"].annotation)[0]: part for part in get_args(FusionSection)
    }
