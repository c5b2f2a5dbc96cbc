"""The table of GPUs, and how a user writes a number of them (``32xA100-80G``)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from manyeyes.errors import UserError, unknown

GIB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One kind of device."""

    memory: int
    """Bytes a program can use, as torch reports them: less than what is on the box."""
    peak_flops: float
    """Dense bfloat16 operations per second, from the vendor's data sheet."""


GPUS: dict[str, Gpu] = {
    "A100-40G": Gpu(int(39.4 * GIB), 312e12),
    "A100-80G": Gpu(int(79.1 * GIB), 312e12),
    "A800-80G": Gpu(int(79.1 * GIB), 312e12),
    "H100-80G": Gpu(int(79.1 * GIB), 989e12),
    "H800-80G": Gpu(int(79.1 * GIB), 989e12),
    "H200-141G": Gpu(int(139.8 * GIB), 989e12),
    "B200-180G": Gpu(int(178.0 * GIB), 2250e12),
    "L40S-48G": Gpu(int(44.4 * GIB), 362e12),
    "A6000-48G": Gpu(int(47.4 * GIB), 155e12),
    "A10-24G": Gpu(int(22.0 * GIB), 125e12),
    "L4-24G": Gpu(int(22.0 * GIB), 121e12),
    "RTX4090-24G": Gpu(int(23.5 * GIB), 165e12),
}


@dataclass(frozen=True)
class Fleet:
    """So many devices of one kind; one process on each."""

    count: int
    name: str

    @property
    def gpu(self) -> Gpu:
        """The kind."""
        return GPUS[self.name]

    def __str__(self) -> str:
        return f"{self.count}x{self.name}"


def parse_fleet(text: str | None) -> Fleet:
    """Read ``32xA100-80G``; a name alone is one device.

    Raises:
        UserError: it is not written like that, or the table has no such device.
    """
    if text is None:
        raise UserError(
            f"--gpus is missing: say how many of which, like 32xA100-80G; known are "
            f"{', '.join(GPUS)}."
        )
    match = re.fullmatch(r"(?:([1-9]\d*)x)?([A-Za-z][\w-]*)", text.strip())
    if match is None:
        raise UserError(f"--gpus {text!r}: write a number and a name, like 32xA100-80G.")
    names = {name.lower(): name for name in GPUS}
    name = names.get(match[2].lower())
    if name is None:
        raise unknown("GPU", match[2], GPUS)
    return Fleet(int(match[1] or 1), name)
