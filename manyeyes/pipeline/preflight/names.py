"""Names: does every row of a table that a recipe names exist, and are its parts here?"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from manyeyes.artifact.files import WEIGHTS_FILE, WEIGHTS_INDEX_FILE
from manyeyes.data.contract.needs import Key, trainings
from manyeyes.data.loading.templates import template_named
from manyeyes.errors import UserError, suggest
from manyeyes.evaluation.metrics import metric_named
from manyeyes.model.encoders.registry import find_spec
from manyeyes.model.weights.packages import PREFIX as PACKAGE
from manyeyes.model.weights.packages import find_package, package_file
from manyeyes.model.weights.zoo import PREFIX as ZOO
from manyeyes.model.weights.zoo import resolve
from manyeyes.pipeline.preflight.subject import Found, Subject

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

HUB_NAME = re.compile(r"[\w][\w.-]*/[\w.-]+")
"""How the Hugging Face hub names a repository."""
RANDOM_WORDS = ("none", "null", "no", "false", "scratch", "init", "new", "rand", "random")
OWNERS = (ZOO.removesuffix(":"), PACKAGE.removesuffix(":"))
"""Nobody's name on the hub that we mean: a slash is written for the colon."""
FORMS = f"{ZOO}NAME, {PACKAGE}NAME, a hub id (OWNER/NAME), a folder"


def unknown(subject: Subject) -> Iterator[Found]:
    """Find names that no table has, and references to weights that can mean nothing."""
    looked_up: list[tuple[Key, str, Callable[[str], object]]] = []
    for place, encoder in subject.encoders.items():
        looked_up.append(((*place, "spec"), encoder.spec, find_spec))
        looked_up.append(((*place, "weights"), encoder.weights, _encoder_weights))
    for place, model in subject.models.items():
        looked_up.append(((*place, "llm", "weights"), model.llm.weights, _language_weights))
        looked_up.append(((*place, "llm", "template"), model.llm.template, template_named))
    for place, section in trainings(subject.recipe).items():
        if section.template is not None:
            looked_up.append(((*place, "template"), section.template, template_named))
    for task, metric in subject.recipe.evaluation.tasks.items():
        looked_up.append((("eval", "tasks", task), metric, metric_named))
    for key, name, find in looked_up:
        try:
            find(name)
        except UserError as error:
            yield Found(key, str(error))


def absent(subject: Subject) -> Iterator[Found]:
    """Find weights that are not on this machine."""
    places = {(*place, "weights"): one.weights for place, one in subject.encoders.items()}
    for place, model in subject.models.items():
        places[(*place, "llm", "weights")] = model.llm.weights
        if model.projector.weights is not None:
            places[(*place, "projector", "weights")] = model.projector.weights
    seen: set[str] = set()
    for key, reference in places.items():
        found = None if reference in seen else _absence(key, reference)
        seen.add(reference)
        if found is not None:
            yield found


def is_hub(reference: str) -> bool:
    """Say whether a reference means a repository of the Hugging Face hub."""
    other = reference == "random" or reference.startswith((ZOO, PACKAGE, "/", "."))
    return not other and not Path(reference).exists() and not _is_file_name(reference)


def in_hub_cache(repository: str, *files: str) -> bool:
    """Say whether one of a repository's files is in the local cache of the hub."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        return any(isinstance(try_to_load_from_cache(repository, file), str) for file in files)
    except HFValidationError:
        return False


def _absence(key: Key, reference: str) -> Found | None:
    if reference == "random" or reference.startswith(ZOO):
        return None
    if reference.startswith(PACKAGE):
        try:
            package_file(reference)
        except UserError as error:
            return Found(key, str(error), absent=True)
        return None
    if not is_hub(reference):
        if Path(reference).exists():
            return None
        return Found(
            key, f"There are no weights at {reference}: the path does not exist.", absent=True
        )
    if in_hub_cache(reference, "config.json", WEIGHTS_FILE, WEIGHTS_INDEX_FILE):
        return None
    text = f"{reference} is not on this machine"
    if os.environ.get("HF_HUB_OFFLINE", "") in ("", "0"):
        return Found(key, f"{text}; a run fetches it from the Hugging Face hub.", note=True)
    return Found(
        key, f"{text}, and HF_HUB_OFFLINE forbids to fetch it: unset it, or put a copy into the "
        "cache of the hub.", absent=True,
    )  # fmt: skip


def _encoder_weights(reference: str) -> None:
    if reference == "random" or _is_known(reference):
        return
    if reference.casefold() in RANDOM_WORDS:
        raise UserError(
            f"the weights {reference!r} would be read as a name of the Hugging Face hub; write "
            "random for new ones."
        )
    raise _no_reference(reference, f"{FORMS}, or random", (ZOO, PACKAGE, "random"))


def _language_weights(reference: str) -> None:
    if _is_known(reference):
        return
    if reference.casefold() in RANDOM_WORDS:
        raise UserError(
            f"the weights {reference!r} are none of a language model, which cannot start from "
            f"nothing: write {FORMS}."
        )
    if re.fullmatch(r"[\w][\w.-]*", reference):  # the hub's oldest models have no owner: gpt2
        return
    raise _no_reference(reference, FORMS, (ZOO, PACKAGE))


def _is_known(reference: str) -> bool:
    """Say whether a reference has one of the forms; a name of a table must be in it.

    Raises:
        UserError: the zoo or the table of packages has no such name.
    """
    if reference.startswith(ZOO):
        resolve(reference)
        return True
    if reference.startswith(PACKAGE):
        find_package(reference)
        return True
    local = reference.startswith(("/", ".")) or Path(reference).exists()
    owner = reference.partition("/")[0]
    hub = HUB_NAME.fullmatch(reference) is not None and owner not in OWNERS
    return local or _is_file_name(reference) or hub


def _is_file_name(reference: str) -> bool:
    return reference.endswith((".safetensors", ".bin", ".pt", ".pth", ".gguf"))


def _no_reference(reference: str, forms: str, words: tuple[str, ...]) -> UserError:
    owner, _, name = reference.partition("/")
    if owner in OWNERS:
        return UserError(
            f"the weights {reference!r} have no such form; did you mean '{owner}:{name}'?"
        )
    start = reference.split(":", maxsplit=1)[0] + ":" if ":" in reference else reference
    hint = suggest(start, words)
    return UserError(
        f"the weights {reference!r} are nothing that is known: write {forms}{hint or '.'}"
    )
