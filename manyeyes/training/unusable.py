"""Samples that turn out, while training, to have a picture that cannot be used.

Validation saw every picture, so these are shards that were damaged afterwards. Such a sample is put
into quarantine: it stays in its place with nothing to learn (``manyeyes.data.loading.loader`` says
why), which every process is told before the step's losses are weighted. The list is kept beside the
measurements and cut back with them when a run resumes, so that each sample is counted once however
often training is stopped. Beyond the recipe's share the dataset is broken, and training ends.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from manyeyes.artifact.files import UNUSABLE_FILE
from manyeyes.artifact.manifest import atomic_write_json
from manyeyes.errors import Followed, ManyeyesError, UserError

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from manyeyes.data.loading.batches import Prepared
    from manyeyes.runtime.progress import Progress
    from manyeyes.training.distributed import World

MAX_SHARE = 0.01
"""Of a stage's samples, where the recipe does not say."""
NOTHING: frozenset[int] = frozenset()


class Unusable(BaseModel):
    """One sample."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    step: int
    """The step that met it first, from 1."""
    id: str
    detail: str
    """What is wrong with its picture."""


class Quarantine:
    """The samples that a training could not use so far."""

    def __init__(
        self,
        prepared: Prepared,
        max_share: float | None,
        out: Path,
        progress: Progress,
        world: World,
    ) -> None:
        """Know of none yet.

        Args:
            prepared: the stage's samples.
            max_share: of them that may be unusable; None for ``MAX_SHARE``.
            out: the stage's folder.
            progress: told about each.
            world: the processes that train together.
        """
        self.prepared = prepared
        share = MAX_SHARE if max_share is None else max_share
        self.share = share
        self.most = int(share * len(prepared.samples))
        self.path = out / UNUSABLE_FILE
        self.progress = progress
        self.world = world
        self.found: dict[str, Unusable] = {}

    def resume(self, step: int) -> None:
        """Take up what was found up to the step that training continues from."""
        if not self.world.leads:
            return
        self.found = {one.id: one for one in _read(self.path) if one.step <= step}
        if self.found:
            self._write()
        else:
            self.path.unlink(missing_ok=True)

    def meet(self, step: int, mine: Mapping[int, str], counts: list[int]) -> frozenset[int]:
        """Join what all processes found in a step's samples. Collective where anybody found any.

        Args:
            step: steps done before.
            mine: index of each sample that this process cannot use, and why.
            counts: how many each process has, by rank.

        Returns:
            The indices of the step's samples that nobody learns from.

        Raises:
            UserError: there are more than the recipe allows.
        """
        if not any(counts):
            return NOTHING
        listed = [*mine, *[-1] * (max(counts) - len(mine))]
        told = {int(index) for row in self.world.gather(listed) for index in row}
        indices = frozenset(told - {-1})
        for index in sorted(indices):
            self._add(step + 1, index, mine.get(index, "another process could not use its picture"))
        return indices

    def _add(self, step: int, index: int, detail: str) -> None:
        name = self.prepared.samples[index].id
        if name in self.found:
            return
        self.found[name] = Unusable(step=step, id=name, detail=detail)
        if len(self.found) > self.most:
            raise self._too_many(self.found[name])
        self.progress.note(
            f"sample {name} is in quarantine, its picture cannot be used ({detail.rstrip('.')})"
        )
        if self.world.leads:
            self._write()

    def _too_many(self, last: Unusable) -> ManyeyesError:
        total = len(self.prepared.samples)
        text = (
            f"{len(self.found)} of {total} samples could not be used in training, more than "
            f"max_quarantined {self.share:g} allows ({self.most}). The last is sample {last.id} at "
            f"step {last.step}: {last.detail}"
        )
        if self.world.leads:
            return UserError(text)
        return Followed(text, UserError.exit_code)

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        atomic_write_json(self.path, [one.model_dump() for one in self.found.values()])


def _read(path: Path) -> list[Unusable]:
    """Return what was written; nothing where that is damaged: its samples are met again."""
    try:
        return [Unusable.model_validate(row) for row in json.loads(path.read_text("utf-8"))]
    except (OSError, ValueError, TypeError):
        return []
