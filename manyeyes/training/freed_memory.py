"""Memory that a step frees is kept for the next step, on a CPU.

A training step asks for the same tensors as the step before. The C library hands large blocks, and
what is free at the end of its heap, back to the system at once; the next step gets them again page
by page, each zeroed by the kernel at its first touch: 38,000 pages in 12 steps of a tiny mixture's
fine-tuning, a twentieth of its time (docs/log.md). While a training runs, the heap may grow and
does not shrink, and only blocks over 32 MiB, the most glibc allows, come from elsewhere. What is
computed, and the most that is in use at one time, stay the same.

An accelerator's memory has a caching allocator of its own and is not concerned; other C libraries
have none of these switches, and nothing changes there.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

# Of glibc's malloc.h.
_TRIM_THRESHOLD = -1
_MMAP_THRESHOLD = -3
_LARGEST = 2**31 - 1
_LARGEST_MMAP_THRESHOLD = 32 * 1024 * 1024


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep freed memory in a block of code; hand it back at its end.

    Afterwards the limits are those that glibc reaches by itself once large blocks were freed: once
    told a limit, it no longer moves it.
    """
    library = ctypes.CDLL(None)
    if not hasattr(library, "mallopt") or not hasattr(library, "malloc_trim"):
        yield
        return
    library.mallopt(_MMAP_THRESHOLD, _LARGEST_MMAP_THRESHOLD)
    library.mallopt(_TRIM_THRESHOLD, _LARGEST)
    try:
        yield
    finally:
        library.mallopt(_TRIM_THRESHOLD, 2 * _LARGEST_MMAP_THRESHOLD)
        library.malloc_trim(0)
