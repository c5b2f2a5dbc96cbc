"""How many functions stand between ``manyeyes sft`` and the model's forward pass.

Nothing is guessed from the source: a small pipeline is run up to ``sft``, and the stack is read
inside ``forward``. The system is EVE's, because it has one encoder to pre-align. It takes about a
minute of one core.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from ruamel.yaml import YAML

RECIPE = "recipes/tiny/eve.yaml"
INPUTS = {
    "prepare": (),
    "validate": ("--dataset", "prepare"),
    "prealign": ("--expert", "patches", "--dataset", "prepare", "--validation", "validate"),
    "pretrain": ("--dataset", "prepare", "--validation", "validate", "--experts", "prealign"),
    "sft": ("--dataset", "prepare", "--validation", "validate", "--checkpoint", "pretrain"),
}
LOOK = """
import sys
from manyeyes.model.vlm import VisionLanguageModel

def forward(self, *given, **named):
    frame, names = sys._getframe(), ["VisionLanguageModel.forward"]
    while frame := frame.f_back:
        file = frame.f_code.co_filename
        if "/manyeyes/" in file and "/site-packages/" not in file.rpartition("/manyeyes/")[0]:
            names.append(frame.f_code.co_qualname)
    open("hops.txt", "w").write("\\n".join(reversed(names)))
    raise SystemExit(0)

VisionLanguageModel.forward = forward
from manyeyes.cli import main
sys.exit(main(sys.argv[1:]))
"""


def hops(root: Path) -> list[str]:
    """Return the functions of the package on the stack, from the verb to ``forward``.

    Raises:
        subprocess.CalledProcessError: a stage failed.
    """
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        _write_recipe(root / RECIPE, place / "recipe.yaml")
        environment = {
            **os.environ,
            "PYTHONPATH": str(root),
            "MANYEYES_HOME": str(place / "home"),
            "MLFLOW_TRACKING_URI": "",
            "OMP_NUM_THREADS": "1",
        }
        *before, last = INPUTS
        for stage in before:
            _run(["-m", "manyeyes", *_arguments(stage)], place, environment)
        _run(["-c", LOOK, *_arguments(last)], place, environment)
        return (place / "hops.txt").read_text(encoding="utf-8").split("\n")


def _write_recipe(recipe: Path, target: Path) -> None:
    """Write a recipe with little data and one step a stage."""
    yaml = YAML()
    text = yaml.load(recipe.read_text(encoding="utf-8"))
    text["data"]["scale"] = 0.05
    text["validate"]["min_samples"] = 1
    prealign = text["prealign"]
    once = prealign["all"] if "all" in prealign else prealign["experts"]["patches"]
    for section in (once, text["pretrain"], text["sft"]):
        section["steps"] = 1
    with target.open("w", encoding="utf-8") as file:
        yaml.dump(text, file)


def _arguments(stage: str) -> list[str]:
    return [stage, "recipe.yaml", *INPUTS[stage], "--out", stage]


def _run(arguments: list[str], place: Path, environment: dict[str, str]) -> None:
    subprocess.run([sys.executable, *arguments], cwd=place, env=environment, check=True)
