"""Runs the real command line in a folder of its own, on a recipe cut down to seconds."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
TINY = ROOT / "recipes/tiny/eagle-x5.yaml"
LONG = ROOT / "tests/recipes/long.yaml"
"""The same recipe as it was written before there were defaults: every key stands in it."""


def small_recipe(folder: Path, *, prealign_steps=2, pretrain_steps=3, sft_steps=6) -> Path:
    """Write the tiny recipe with little data and few steps; mechanism and keys stay."""
    text = LONG.read_text(encoding="utf-8")
    out, section = [], ""
    steps = {"prealign": prealign_steps, "pretrain": pretrain_steps, "sft": sft_steps}
    for line in text.splitlines():
        if line and not line.startswith((" ", "#")):
            section = line.split(":")[0]
        indent = line[: len(line) - len(line.lstrip())]
        key = line.strip().split(":")[0]
        value = {
            "scale": "0.05",
            "min_samples": "100",
            "limit": "6",
            "examples": "2",
            "steps": str(steps.get(section, 0)),
            "checkpoint_every": "2",
            "size": "8",
            "per_device": "8",
            # A model of few steps is no champion by the shipped gate; here any is.
            "max_regression": "100.0",
            "min_gain": "null\n    max_empty: 1.0\n    max_equal: 1.0",
        }.get(key)
        out.append(f"{indent}{key}: {value}" if value and line.strip() != f"{key}:" else line)
    path = folder / "recipe.yaml"
    path.write_text("\n".join(out) + "\n", encoding="utf-8")
    return path


def environment(folder: Path) -> dict[str, str]:
    """Return the environment of a command whose state lies in ``folder``."""
    return {
        **os.environ,
        "MANYEYES_HOME": str(folder / ".manyeyes"),
        "PYTHONPATH": str(ROOT),
        "MLFLOW_TRACKING_URI": "",
        "OMP_NUM_THREADS": "1",
    }


def manyeyes(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run one command in ``folder``."""
    return subprocess.run(
        [sys.executable, "-m", "manyeyes", *map(str, arguments)],
        cwd=folder,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
    )


def succeed(folder: Path, *arguments: object) -> str:
    """Run one command that must succeed; return what it printed."""
    answer = manyeyes(folder, *arguments)
    assert answer.returncode == 0, f"{arguments}\n{answer.stdout}\n{answer.stderr}"
    return answer.stdout


def succeed_json(folder: Path, *arguments: object):
    """Run one command with ``--json`` and return what it printed, read back."""
    return json.loads(succeed(folder, *arguments, "--json"))
