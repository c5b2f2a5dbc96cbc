"""torch and oneDNN are limited alike; otherwise attention in bfloat16 fails on some processors."""

import os
import subprocess
import sys

import pytest

from manyeyes.runtime.instruction_set import limit_alike

GIVEN = {
    "nothing": ({}, None),
    "avx2": ({"ATEN_CPU_CAPABILITY": "avx2"}, "AVX2"),
    "default": ({"ATEN_CPU_CAPABILITY": "default"}, "SSE41"),
    "avx512": ({"ATEN_CPU_CAPABILITY": "avx512"}, None),
    "a limit of its own": (
        {"ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX512_CORE"},
        "AVX512_CORE",
    ),
}


@pytest.mark.parametrize(("given", "expected"), GIVEN.values(), ids=GIVEN)
def test_onednn_gets_torchs_limit(monkeypatch, given, expected):
    for name in ("ATEN_CPU_CAPABILITY", "ONEDNN_MAX_CPU_ISA"):
        monkeypatch.delenv(name, raising=False)
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    limit_alike()
    assert os.environ.get("ONEDNN_MAX_CPU_ISA") == expected


ATTEND = """
from manyeyes.runtime.instruction_set import limit_alike
limit_alike()
import torch
query = torch.ones(2, 4, 600, 32, dtype=torch.bfloat16)
assert torch.nn.functional.scaled_dot_product_attention(query, query, query).sum() > 0
print(torch.backends.cpu.get_cpu_capability())
"""


@pytest.mark.parametrize("capability", ["avx2", "default"])
def test_attention_in_bfloat16_works_under_a_limit(capability):
    kept = {name: value for name, value in os.environ.items() if name != "ONEDNN_MAX_CPU_ISA"}
    answer = subprocess.run(
        [sys.executable, "-c", ATTEND],
        env={**kept, "ATEN_CPU_CAPABILITY": capability},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stderr
    assert answer.stdout == f"{capability.upper()}\n"
