"""Has a training of another process stand still at a place (``tests/pause/sitecustomize.py``)."""

from __future__ import annotations

import json
import os
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
STUCK_SECONDS = 1800.0
"""Far beyond what any machine needs to come to a place: only a hang takes as long."""


def until(condition, process: subprocess.Popen | None = None) -> None:
    """Wait for a condition; fail when the process that is to bring it about ends before."""
    deadline = time.monotonic() + STUCK_SECONDS
    while not condition():
        if process is not None and process.poll() is not None and not condition():
            raise AssertionError(f"it ended with {process.returncode}: {process.communicate()}")
        assert time.monotonic() < deadline, "nothing happens"
        time.sleep(0.02)


@dataclass(frozen=True)
class Pause:
    """A place: ``step`` (done, its state not saved), ``saving`` (half of its state), ``saved``."""

    folder: Path
    """Gets the signs."""
    place: str
    step: int
    stage: str = ""
    """As progress lines name it; any without."""

    @property
    def sign(self) -> Path:
        """What signs are called, up to the rank."""
        return self.folder / f"stands-{self.place}-{self.step}"

    def within(self, environment: dict[str, str]) -> dict[str, str]:
        """Return an environment whose trainings stand still at the place."""
        wanted = {"sign": str(self.sign), "stage": self.stage}
        paths = [str(HERE / "pause"), environment.get("PYTHONPATH", "")]
        return {
            **environment,
            "PAUSE_AT": json.dumps({**wanted, "place": self.place, "step": self.step}),
            "PYTHONPATH": os.pathsep.join(filter(None, paths)),
        }

    def wait(self, process: subprocess.Popen, ranks: int = 1) -> list[int]:
        """Wait until the training stands still; return its processes' numbers, by rank."""
        signs = [Path(f"{self.sign}-{rank}") for rank in range(ranks)]
        until(lambda: all(sign.exists() for sign in signs), process)
        return [int(sign.read_text(encoding="ascii")) for sign in signs]

    def go_on(self) -> None:
        """Let it go on."""
        for sign in self.folder.glob(f"{self.sign.name}-*"):
            sign.unlink()
