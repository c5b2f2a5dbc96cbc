"""Threads that work beside a training leave it its cores.

Torch splits an operation over a team of as many threads as there are cores, and each thread of the
program that does so has a team of its own. Threads of a team spin while they wait for each other,
but libgomp stops that as soon as all teams together have more threads than there are cores: then
every operation of the model sleeps and wakes, and a step of a small model takes nearly twice as
long (docs/log.md, 2026-11-22).
"""

from __future__ import annotations

import torch
from threadpoolctl import threadpool_limits


def take_one_core() -> None:
    """Have torch split no operation of the calling thread from now on; other threads' stay."""
    torch.get_num_threads()  # asked for the first time in a thread, torch sets the number it knows
    threadpool_limits(1, user_api="openmp")
