"""What a stage reads from outside the pipeline, and the digest of its content.

A recipe names things that it does not hold: a dataset in the data folder, weights in a folder, a
model on the hub. A name is no content, so each of them has its digest in the key of every stage
that reads it. What is wrong (a folder that is not there, a damaged dataset) is an error before any
stage runs. What is merely absent on this machine, as a model of the hub is on a laptop that submits
to a cluster, has no digest here, and the key is known only where the stage runs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manyeyes.artifact.file_digest import sha256_of
from manyeyes.artifact.verified import open_verified
from manyeyes.errors import UserError
from manyeyes.model.weights.hub import cached_revision, fetched_revision, is_hub_name
from manyeyes.model.weights.packages import PREFIX as PACKAGE_PREFIX
from manyeyes.model.weights.packages import find_package
from manyeyes.model.weights.zoo import PREFIX as ZOO_PREFIX
from manyeyes.model.weights.zoo import resolve
from manyeyes.runtime.home import dataset_folder
from manyeyes.steps import TRAININGS
from manyeyes.store import open_store

NOTHING = "none"
"""In a readable fingerprint: the stage reads nothing from outside."""
UNKNOWN = "?"
"""In a readable fingerprint: the machine that wrote it does not have all that the stage reads."""
NOT_WEIGHTS = (".md", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".tmp")
"""Files of a weights folder that nothing here reads."""


@dataclass(frozen=True)
class Source:
    """One thing that a stage reads from outside."""

    name: str
    """What the recipe calls it."""
    label: str
    """What a person calls it: ``data/mine``, ``the weights WORK/clip``."""
    digest: str | None
    """Of its content, or its revision; None where it is absent here."""
    absent: str = ""
    """What is absent, and what to do."""
    on_hub: bool = False
    """It may be absent here without anything being wrong."""


def outside_of(stage: str, recipe_slice: str, *, fetch: bool = False) -> list[Source]:
    """Return what a stage reads from outside, by label.

    Args:
        stage: name in the step table.
        recipe_slice: canonical JSON of the slice.
        fetch: ask the hub for the revision of a model that is not in the cache of this machine.

    Raises:
        UserError: a folder that is named is not there, or a dataset is damaged.
    """
    piece = json.loads(recipe_slice)
    found = [_weights(reference, fetch=fetch) for reference in _references(stage, piece)]
    data = piece.get("data", {})
    if stage == "prepare" and data.get("kind") == "dataset":
        found.append(_dataset(str(data["name"])))
    return sorted(found, key=lambda source: source.name)


def outside_elsewhere(stage: str, recipe_slice: str) -> list[Source]:
    """Return what a stage reads on another machine: weights have a digest if they are pinned.

    The folders and the hub's cache of this machine are not those of a cluster. A dataset's name
    never changes its content in a store, so what this machine knows of it counts: where the other
    one has different data, the step says so.

    Raises:
        UserError: a dataset of this machine is damaged.
    """
    if stage == "prepare":
        return outside_of(stage, recipe_slice)
    references = _references(stage, json.loads(recipe_slice))
    return sorted(map(_pinned, references), key=lambda source: source.name)


def _pinned(reference: str) -> Source:
    if reference.startswith((ZOO_PREFIX, PACKAGE_PREFIX)):
        return _weights(reference, fetch=False)
    return Source(reference, f"the weights {reference}", None)


def outside_text(sources: Sequence[Source]) -> str:
    """Return what stands in a readable fingerprint: one digest of all, NOTHING or UNKNOWN."""
    if not sources:
        return NOTHING
    if any(source.digest is None for source in sources):
        return UNKNOWN
    facts = [[source.name, source.digest] for source in sources]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:32]


def refuse_absent(sources: Sequence[Source]) -> None:
    """Refuse to run a stage that reads what this machine does not have.

    Raises:
        UserError: something is absent.
    """
    for source in sources:
        if source.digest is None:
            raise UserError(source.absent)


def _references(stage: str, piece: Mapping[str, Any]) -> Iterator[str]:
    """Yield every reference to weights that a training stage loads."""
    if stage not in TRAININGS or "model" not in piece:
        return
    model = piece["model"]
    named = [model["llm"]["weights"]]  # also for its tokenizer
    if stage != "sft":
        named += [encoder["weights"] for encoder in model["encoders"]]
    if stage == "pretrain":
        named.append(model["projector"].get("weights"))
    if model.get("alignment"):
        named.append(model["alignment"]["teacher"]["weights"])
    for reference in dict.fromkeys(named):
        if reference is not None and reference != "random":
            yield str(reference)


def _weights(reference: str, *, fetch: bool) -> Source:
    if reference.startswith(ZOO_PREFIX):
        return Source(reference, reference, _folder_digest(resolve(reference)))
    if reference.startswith(PACKAGE_PREFIX):
        package = find_package(reference)
        return Source(reference, reference, f"{package.version} {package.sha256}")
    label, path = f"the weights {reference}", Path(reference)
    if is_hub_name(reference):
        label = f"the hub model {reference}"
        revision = (fetched_revision if fetch else cached_revision)(reference)
        return Source(
            reference,
            label,
            revision,
            f"The hub model {reference} is not here: {_ADVICE}",
            on_hub=True,
        )
    try:
        if path.is_dir():
            return Source(reference, label, _folder_digest(path))
        if path.is_file():
            return Source(reference, label, sha256_of(path))
    except OSError as error:
        raise UserError(f"Cannot read {error.filename} ({error.strerror}), of {label}.") from None
    raise UserError(
        f"There are no weights at {reference}: the path does not exist. Correct the recipe, or "
        f"bring them there (manyeyes import-weights SOURCE --out {reference})."
    )


_ADVICE = (
    "it is neither a folder nor a model in the Hugging Face cache, and the hub was not reached. "
    "Correct the name, or fetch it with `hf download`, where the stage shall run."
)


def _folder_digest(folder: Path) -> str:
    """Digest the files of a folder by name and content, without hidden ones and cards."""
    lines = []
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if any(part.startswith(".") for part in name.parts) or path.suffix in NOT_WEIGHTS:
            continue
        if path.is_file():
            lines.append(f"{name.as_posix()}\0{sha256_of(path)}")
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _dataset(name: str) -> Source:
    folder = dataset_folder(name)
    label = str(folder)
    if not folder.exists():
        entry = open_store().named(name)
        if entry is not None:
            return Source(name, label, entry.digest)
        return Source(
            name,
            label,
            None,
            f"There is no dataset {name!r}: {folder} does not exist, and the content store has "
            "none of this name. Make it with manyeyes data import, or push it to the store.",
        )
    return Source(name, label, open_verified(folder, "dataset").digest)
