"""The processor's instructions: what torch is told not to use, oneDNN must not use either.

``ATEN_CPU_CAPABILITY=avx2`` makes results comparable between machines. torch asks oneDNN whether
the processor multiplies bfloat16 in tiles (AMX), and oneDNN looks at the processor alone; then
torch's attention packs for instructions it was told to leave, and fails ("pack_vnni2 is only
supported when avx512 is supported", torch 2.13). oneDNN reads its limit once, so it has to be set
before anything is computed.
"""

from __future__ import annotations

import os

TORCH = "ATEN_CPU_CAPABILITY"
ONEDNN = "ONEDNN_MAX_CPU_ISA"
LIMITS = {"avx2": "AVX2", "default": "SSE41"}
"""What torch may be limited to, and the same for oneDNN."""


def limit_alike() -> None:
    """Limit oneDNN as torch is limited, unless its own limit is given."""
    limit = LIMITS.get(os.environ.get(TORCH, ""))
    if limit is not None:
        os.environ.setdefault(ONEDNN, limit)
