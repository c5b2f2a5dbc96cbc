"""``python tests/record_slices.py`` records the slices of every shipped recipe.

A slice is what a stage's key holds of a recipe. Its digest may change only with a decision: then
every result of that recipe is made again. How a recipe is written down must not change it.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RECORD = ROOT / "tests/golden/slices.json"


def shipped() -> list[Path]:
    """Return the path of every shipped recipe."""
    return sorted((ROOT / "recipes").rglob("*.yaml"))


def slices_of(path: Path) -> dict[str, str]:
    """Return the digest of every slice of a recipe by its stage, and the name of its run."""
    from manyeyes.config.recipe import load_recipe
    from manyeyes.config.recipe.slices import slice_digest, slice_json, tasks_of
    from manyeyes.pipeline.fingerprint import run_key

    recipe = load_recipe(path)
    found = {
        task.label: slice_digest(slice_json(recipe, task.stage, task.expert))
        for task in tasks_of(recipe)
    }
    return {**found, "run": run_key(recipe)}


def main() -> int:
    """Write the record anew."""
    found = {path.relative_to(ROOT).as_posix(): slices_of(path) for path in shipped()}
    RECORD.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    sys.stdout.write(f"wrote {RECORD.relative_to(ROOT)}: {len(found)} recipes\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
