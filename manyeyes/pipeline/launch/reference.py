"""What a training process is told: which stage, and its inputs by reference.

Nothing of bulk travels with a job: the recipe's slice is a few kilobytes of JSON in an environment
variable, the inputs are names in the store, and the result is found there under its fingerprint. A
ConfigMap would be one more object to adopt, to own and to delete.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from typing import Literal

from pydantic import ValidationError

from manyeyes.config.recipe.base import Section
from manyeyes.errors import UserError

STAGE_CALL = "MANYEYES_STAGE_CALL"
"""Holds the JSON of a :class:`StageReference`, for the processes that train."""
MAX_BYTES = 100_000
"""Linux limits one environment variable to 128 KiB."""


class StageReference(Section):
    """One execution of one stage, by reference."""

    run: str
    """Name of the pipeline run."""
    stage: str
    expert: str | None
    recipe_slice: str
    """Canonical JSON of what the stage sees of the recipe."""
    inputs: dict[str, tuple[str, ...]]
    """Role to the artifacts: their paths, or the fingerprints under which the store has them."""
    inputs_by: Literal["path", "fingerprint"] = "fingerprint"
    out: str | None = None
    """Where the result shall lie; None for a folder of the process's home."""
    fingerprint: str
    """Readable fingerprint, which the processes check again."""
    key: str
    """sha256 of it: the result's name in the store."""

    def text(self) -> str:
        """Return the JSON for the environment.

        Kubernetes expands ``$(NAME)`` in the values of variables; a dollar can only stand inside a
        JSON string, where an escape is free.

        Raises:
            UserError: it is too long for an environment variable.
        """
        text = json.dumps(self.model_dump(mode="json")).replace("$", "\\u0024")
        if len(text) > MAX_BYTES:
            raise UserError(
                f"The recipe's part for stage {self.stage} is {len(text)} bytes of JSON, but a job "
                f"can be handed {MAX_BYTES}; shorten the recipe."
            )
        return text


def read_stage_reference(environment: Mapping[str, str] = os.environ) -> StageReference:
    """Return what this process shall train.

    Raises:
        UserError: the variable is missing or does not hold a reference.
    """
    try:
        return StageReference.model_validate_json(environment.get(STAGE_CALL, ""))
    except ValidationError:
        raise UserError(
            f"{STAGE_CALL} does not say which stage to train; this program is started by the "
            "launcher, not by hand."
        ) from None
