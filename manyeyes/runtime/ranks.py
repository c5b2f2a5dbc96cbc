"""Which of the processes of one training this is, as torchrun says it in the environment.

Nothing but the environment is read here, so that the runner and the command line can ask without
importing torch. Without torchrun a process is alone: number 0 of 1.
"""

from __future__ import annotations

import os


def rank() -> int:
    """Number of this process among all of the training; 0 writes, the others only train."""
    return int(os.environ["RANK"]) if is_launched() else 0


def world_size() -> int:
    """How many processes train together."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else 1


def local_rank() -> int:
    """Number of this process on its machine: which of its accelerators it uses."""
    return int(os.environ.get("LOCAL_RANK", "0")) if is_launched() else 0


def local_world_size() -> int:
    """How many processes of the training share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if is_launched() else 1


def is_launched() -> bool:
    """Tell whether a launcher such as torchrun started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ
