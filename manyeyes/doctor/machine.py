"""The facts about this machine that the local checks judge, gathered in one place.

No torch: whether the processor computes in bfloat16 is read from the kernel's list of its features.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from manyeyes.config.recipe import Recipe
from manyeyes.config.recipe.sections import TrainSection
from manyeyes.runtime.home import home

LOCK_FILE = Path(__file__).parents[2] / "requirements.lock"
CPU_INFO = Path("/proc/cpuinfo")
MEMORY_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


@dataclass(frozen=True)
class Machine:
    """What the local checks look at."""

    python: tuple[int, int, int]
    lock: Path
    """The list of exact versions; absent where only the package is installed."""
    cores: int
    """Cores this process may use."""
    memory: int
    """Bytes that are free for us, a container's limit included."""
    cpu_flags: frozenset[str] | None
    """Features of the processor; None where the system does not list them."""
    environment: Mapping[str, str]
    folder: Path
    """Where the command runs; results lie in ``runs`` below it."""
    home: Path
    recipe: Recipe | None

    def stages(self) -> dict[str, TrainSection]:
        """Return the training sections of the recipe by name; empty without a recipe."""
        return {} if self.recipe is None else self.recipe.trainings


def this_machine(recipe: Recipe | None) -> Machine:
    """Gather the facts."""
    major, minor, micro = sys.version_info[:3]
    return Machine(
        python=(major, minor, micro),
        lock=LOCK_FILE,
        cores=num_cores(),
        memory=free_memory(),
        cpu_flags=read_cpu_flags(CPU_INFO),
        environment=dict(os.environ),
        folder=Path.cwd(),
        home=home(),
        recipe=recipe,
    )


def num_cores() -> int:
    """Return the cores this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_memory(limits: tuple[Path, ...] = MEMORY_LIMITS) -> int:
    """Return the free bytes, or the limit of the container where it is lower."""
    import psutil

    found = int(psutil.virtual_memory().available)
    for path in limits:
        try:
            text = path.read_text(encoding="ascii").strip()
        except OSError:
            continue
        if text.isdigit():
            found = min(found, int(text))
    return found


def read_cpu_flags(path: Path) -> frozenset[str] | None:
    """Return the processor's features as Linux lists them; None where it does not."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return None
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return None
