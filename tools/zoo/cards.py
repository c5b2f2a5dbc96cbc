"""Cards and the manifest: what each part is and can do, and the hash of every file."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.runtime.json_files import read_json

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from tools.zoo.fit import Schedule

MANIFEST = "manifest.json"
LICENCE = "Apache-2.0"


@dataclass(frozen=True)
class Card:
    """What a part's card says."""

    name: str
    what: str
    objective: str
    data: str
    schedule: Schedule
    seconds: float
    seed: int
    num_parameters: int
    measured: str
    """What the accuracies are accuracies of."""
    accuracies: Mapping[str, float]


def write_card(folder: Path, card: Card) -> None:
    """Write `README.md` into the part's folder."""
    schedule = card.schedule
    made = (
        f"For {schedule.steps:,} steps of {schedule.batch_size}, learning rate "
        f"{schedule.learning_rate:g} (AdamW, cosine), seed {card.seed}: "
        f"{card.seconds / 60:.0f} minutes on one core."
    )
    lines = [
        f"# {card.name}",
        "",
        f"{card.what} {card.num_parameters:,} parameters, stored in half precision.",
        "",
        f"- Trained by {card.objective}.",
        f"- Trained on {card.data}.",
        f"- {made}",
        f"- Licence of the weights: {LICENCE}. The data come from tables and digit scans that ship",
        "  with scikit-learn (BSD-3-Clause; scans CC-BY-4.0) and from drawings of our own.",
        f"- Made again by `python -m tools.zoo --parts {card.name}`.",
        "- Good for the tiny recipes and the tests of this repository. It knows a closed world of",
        "  some two hundred words and nothing else.",
        "",
        f"Measured on the starter data's validation split ({card.measured}):",
        "",
        "| | accuracy |",
        "|---|---|",
        *(f"| {name} | {value:.1%} |" for name, value in card.accuracies.items()),
        "",
    ]
    text = "\n".join(lines)
    atomic_write_text(folder / "README.md", text)


def is_zoo(root: Path) -> bool:
    """Say whether a folder holds finished parts of a zoo and nothing else."""
    try:
        listed = set(read_json(root / MANIFEST)["files"])
    except (OSError, ValueError, KeyError, TypeError):
        return False
    files = {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}
    return files <= listed | {MANIFEST}


def write_manifest(root: Path) -> None:
    """Write `manifest.json`: size and sha256 of every file of every part."""
    files = {
        path.relative_to(root).as_posix(): {
            "size": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in sorted(root.glob("*/*"))
        if path.is_file()
    }
    atomic_write_text(root / MANIFEST, json.dumps({"files": files}, indent=1) + "\n")
