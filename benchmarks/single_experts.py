"""Does the mixture lead? Each expert alone, with the same budget, beside all of them together.

For every encoder of a recipe, a recipe with that encoder alone is written and run: the same data,
language model, stages, steps and batches; only the mixture differs. Prints one table of scores on
the test split and writes it to ``runs/single-experts/``. Results are cached like any run's.

    python -m benchmarks.single_experts recipes/tiny/eagle-x5.yaml
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from manyeyes.artifact.destination import claim_folder
from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.artifact.marker import reserve
from manyeyes.cli.output import print_table
from manyeyes.config.recipe import Recipe, load_recipe, recipe_yaml
from manyeyes.errors import GateRefused, UserError

OUT = Path("runs/single-experts")
TABLE = "table.json"


def alone(recipe: Recipe, name: str) -> Recipe:
    """Return the recipe with one expert of the mixture."""
    encoders = tuple(encoder for encoder in recipe.model.encoders if encoder.name == name)
    register = recipe.registration.model_copy(
        update={"model_name": f"{recipe.registration.model_name}-{name}"}
    )
    return recipe.model_copy(
        update={
            "name": f"{recipe.name}-{name}",
            "model": recipe.model.model_copy(update={"encoders": encoders}),
            "prealign": recipe.prealign.model_copy(
                update={"experts": {name: recipe.prealign.experts[name]}}
            ),
            "registration": register,
        }
    )


def scores_of(recipe: Recipe) -> dict[str, float]:
    """Run a recipe in processes of its own and return its scores per task."""
    path = OUT / f"{recipe.name}.yaml"
    atomic_write_text(path, recipe_yaml(recipe))
    command = [sys.executable, "-m", "manyeyes", "run", str(path), "--json"]
    answer = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if answer.returncode not in (0, GateRefused.exit_code):  # a model that is no champion is scored
        raise SystemExit(f"{recipe.name} ended with {answer.returncode}.")
    scores: dict[str, float] = json.loads(answer.stdout)["scores"]
    return scores


def main() -> int:
    """Run and print."""
    recipe = load_recipe(Path(sys.argv[1]))
    names = list(recipe.prealign.experts)
    try:
        claim_folder(OUT)
    except UserError as error:
        raise SystemExit(str(error)) from None
    written = [recipe, *(alone(recipe, name) for name in names)]
    reserve(OUT, [TABLE, *(f"{one.name}.yaml" for one in written)])
    table = {name: scores_of(alone(recipe, name)) for name in names}
    table["mixture"] = scores_of(recipe)
    tasks = [*recipe.evaluation.tasks, "average"]
    rows = [(name, *(f"{scores[task]:.1f}" for task in tasks)) for name, scores in table.items()]
    print_table("each expert alone, same budget", ("expert", *tasks), rows)
    atomic_write_text(OUT / TABLE, json.dumps(table, indent=2) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
