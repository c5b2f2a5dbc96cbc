"""``make lock``: renew ``manyeyes/code_lock.json``, if the code still does what is recorded.

A stage or a part whose code changed is renewed where its version rose, or where its golden run
gives the recorded results; elsewhere it is refused, and nothing is written.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path

import golden_kit

from manyeyes.artifact.manifest import atomic_write_json
from manyeyes.pipeline import code_lock

PLACES = {
    "encoder": "manyeyes/model/encoders/registry.py (FAMILIES)",
    "fusion": "manyeyes/config/recipe/fusions.py",
    "template": "manyeyes/data/loading/templates.py",
    "metric": "manyeyes/evaluation/metrics.py (METRICS)",
    "language-model": "manyeyes/model/weights/published.py",
    "data": "manyeyes/config/recipe/sections.py",
}
"""Where the version of a part stands; a stage's stands in ``manyeyes/steps.py``."""


def moved(locked, now):
    """Return the stages and parts whose entry in the lock is not that of the code."""
    return [label for label, entry in now.items() if locked.get(label) != entry]


def refusal(label, locked, entry, recorded, result, kernels):
    """Say why an entry cannot be renewed; nothing where it can.

    Args:
        label: the stage or the part.
        locked: its entry in the lock; None where it is new.
        entry: what its entry would be.
        recorded: what its golden run gave, of this instruction set; None where nothing is recorded.
        result: what it gives now.
        kernels: the name of the instruction set.
    """
    if locked is None or entry["version"] > locked["version"]:
        return ""
    where = PLACES.get(label.split(" ")[0], "manyeyes/steps.py")
    if entry["version"] < locked["version"]:
        return (
            f"The version of {code_lock.said(label)} fell from {locked['version']} to "
            f"{entry['version']}: a version only rises ({where})."
        )
    if recorded is None:
        return (
            f"Nothing is recorded of {code_lock.said(label)} on {kernels}: run `make lock` where it is, "
            f"with ATEN_CPU_CAPABILITY=avx2 perhaps, or raise its version in {where}."
        )
    changed = golden_kit.difference(recorded, result)
    if not changed:
        return ""
    return (
        f"{code_lock.said(label).capitalize()} gives other results than are recorded ({changed}): raise "
        f"its version in {where} and run `make lock` again."
    )


def main() -> int:
    """Renew the lock and the records, or say why not."""
    locked, now = code_lock.read_lock(code_lock.LOCK), code_lock.entries()
    labels = moved(locked, now)
    gone = sorted(set(locked) - set(now))
    if not labels and not gone:
        sys.stdout.write("The lock is that of the code.\n")
        return 0
    sys.stdout.write(f"Running {len(labels)} golden runs: {', '.join(labels)}\n")
    with tempfile.TemporaryDirectory(prefix="manyeyes-lock-") as name:
        os.environ |= {"MANYEYES_HOME": f"{name}/home", "MLFLOW_TRACKING_URI": ""}
        found = golden_kit.results(labels, Path(name))
    records = json.loads(golden_kit.RESULTS.read_text()) if golden_kit.RESULTS.exists() else {}
    kernels = golden_kit.instruction_set()
    mine = records.setdefault(kernels, {})
    refusals = [
        refusal(label, locked.get(label), now[label], mine.get(label), found[label], kernels)
        for label in labels
    ]
    if any(refusals):
        sys.stderr.write("\n".join(filter(None, refusals)) + "\n")
        return 2
    for label in [*labels, *gone]:
        risen = (
            label not in locked
            or label in gone
            or locked[label]["version"] != now[label]["version"]
        )
        for record in records.values() if risen else []:
            record.pop(label, None)  # of another version: it says nothing any more
        if label in found:
            mine.setdefault(label, found[label])
    atomic_write_json(code_lock.LOCK, dict(now))
    atomic_write_json(golden_kit.RESULTS, records)
    sys.stdout.write(f"Renewed {len(labels)} entries of the lock, removed {len(gone)}.\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
