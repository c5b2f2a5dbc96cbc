"""The nearest configuration that fits: as little changed as possible, the cheapest change first.

A change has a price in how much it slows training down or how much it asks of the user:
recomputation 1 (it is one word in the recipe, and a third more work), half the micro-batch 2, a
ZeRO stage 2, offload 6 (weights over PCIe in every step), twice the GPUs 8. The fitting setting
with the lowest price is the nearest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from manyeyes.plan.memory import Need, Setting, memory_of

MOST_GPUS = 1024


def nearest(need: Need, setting: Setting, capacity: int, batch: int) -> Setting | None:
    """Return the nearest setting whose memory is within ``capacity`` bytes; None if none is.

    Args:
        need: of the stage.
        setting: where to start; returned itself when it fits.
        capacity: of one GPU.
        batch: the global batch, which micro-batches and GPUs must divide.
    """
    fitting = [
        (price, candidate)
        for price, candidate in _candidates(need, setting, batch)
        if memory_of(need, candidate).total <= capacity
    ]
    return min(fitting, key=lambda pair: pair[0])[1] if fitting else None


def _candidates(need: Need, setting: Setting, batch: int) -> Iterator[tuple[int, Setting]]:
    zeros = range(setting.zero, 4) if need.distributed else (setting.zero,)
    for gpu_price, gpus in _doublings(setting.gpus):
        for half_price, per_device in _halvings(setting.per_device):
            if batch % (gpus * per_device) or (gpus > setting.gpus and not need.distributed):
                continue
            for zero in zeros:
                price = 8 * gpu_price + 2 * half_price + 2 * (zero - setting.zero)
                moved = replace(setting, gpus=gpus, per_device=per_device, zero=zero)
                yield price, moved
                yield price + 1, replace(moved, recompute=True)
                if zero and not setting.offload:
                    yield price + 1 + 6, replace(moved, recompute=True, offload=True)


def _doublings(gpus: int) -> Iterator[tuple[int, int]]:
    count = 0
    while gpus <= MOST_GPUS:
        yield count, gpus
        gpus, count = gpus * 2, count + 1


def _halvings(per_device: int) -> Iterator[tuple[int, int]]:
    count = 0
    while per_device >= 1:
        yield count, per_device
        if per_device == 1:
            return
        per_device, count = per_device // 2, count + 1
