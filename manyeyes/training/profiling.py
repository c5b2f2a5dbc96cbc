"""A trace of chosen steps, for chrome://tracing and its like.

``MANYEYES_PROFILE=3-5`` writes ``measurements/trace-steps-3-5.json.gz`` with every operation of the
steps 3 to 5 (counted from 1). A variable and no key of the recipe, because a recipe says what is
computed, and looking at it must not make it another result.
"""

from __future__ import annotations

import os
import re
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

import torch

from manyeyes.artifact.files import MEASUREMENTS
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from pathlib import Path
    from types import TracebackType

PROFILE = "MANYEYES_PROFILE"


class Tracer:
    """Traces the steps that it was asked for; told of each step that is done."""

    def __init__(self, out: Path, first: int, last: int) -> None:
        self.path = out / MEASUREMENTS / f"trace-steps-{first}-{last}.json.gz"
        self.first, self.last = first, last
        self._profile: torch.profiler.profile | None = None

    def __enter__(self) -> Tracer:
        """Begin, where the first step is the first of all."""
        self.done(0)
        return self

    def done(self, step: int) -> None:
        """Begin before the first step of the trace and write it behind the last."""
        if self._profile is not None and step >= self.last:
            self._write()
        elif self._profile is None and self.first - 1 <= step < self.last:
            self._profile = torch.profiler.profile(record_shapes=True)
            self._profile.start()

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Write what there is, if the run ended inside the trace."""
        if self._profile is not None:
            self._write()

    def _write(self) -> None:
        assert self._profile is not None
        self._profile.stop()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._profile.export_chrome_trace(str(self.path))
        self._profile = None


class NoTracer:
    """Traces nothing."""

    def done(self, step: int) -> None:
        """Do nothing."""


def tracing(out: Path, *, leads: bool) -> AbstractContextManager[Tracer | NoTracer]:
    """Return the tracer that the environment asks for; only one process traces.

    Raises:
        UserError: the variable is not two step numbers.
    """
    wanted = os.environ.get(PROFILE, "")
    if not wanted:
        return nullcontext(NoTracer())
    found = re.fullmatch(r"(\d+)-(\d+)", wanted)
    if not found or not 1 <= int(found[1]) <= int(found[2]):
        raise UserError(
            f"{PROFILE} is {wanted!r}; it names the first and the last step to trace, like 3-5."
        )
    return Tracer(out, int(found[1]), int(found[2])) if leads else nullcontext(NoTracer())
