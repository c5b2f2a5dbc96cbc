"""The README's first screen: its lines for own data and for Python, run as they stand there.

The data are forty small images of one colour; of the recipe only steps and gate are changed.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from pipeline_kit import environment

from manyeyes.artifact.manifest import open_artifact

ROOT = Path(__file__).parents[2]
RECIPE = "recipes/tiny/mine.yaml"
BASE = "recipes/tiny/eagle-x5.yaml"
COLOURS = ("red", "green", "blue", "white")
pytestmark = [pytest.mark.e2e, pytest.mark.xdist_group("own data")]


def block(page, heading, language=""):
    """Return the first code of a section of a page."""
    text = (ROOT / page).read_text("utf-8").split(f"\n## {heading}\n")[1]
    return re.search(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)[1]


def write_data(folder):
    """Write conversations in the LLaVA format and their images."""
    (folder / "images").mkdir()
    records = []
    for number in range(40):
        colour = COLOURS[number % len(COLOURS)]
        image = Image.new("RGB", (64, 64), colour)
        image.paste("black", (number, number, number + 8, number + 16))  # no two are alike
        image.save(folder / f"images/{number}.png")
        asked = {"from": "human", "value": "<image>\nWhat colour is this?"}
        answered = {"from": "gpt", "value": colour}
        split = "test" if number < 8 else "train"
        records.append(
            {"image": f"{number}.png", "split": split, "conversations": [asked, answered]}
        )
    (folder / "talks.json").write_text(json.dumps(records))


def write_recipe(folder):
    """Copy the recipe of the README; the one that it extends trains for two steps."""
    (folder / "recipes/tiny").mkdir(parents=True)
    shutil.copy(ROOT / RECIPE, folder / RECIPE)
    text = (ROOT / BASE).read_text("utf-8")
    text, changed = re.subn(
        r"^( *)(steps|checkpoint_every): \d+$", r"\1\2: 2", text, flags=re.MULTILINE
    )
    assert changed == 6
    # A model of two steps passes no gate that is worth its name; here any does.
    gate = "max_regression: 100.0\n    max_empty: 1.0\n    max_equal: 1.0"
    text, changed = re.subn("min_gain: 0.30", gate, text)
    assert changed == 1
    (folder / BASE).write_text(text)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder in which the README's lines have run, and what they printed."""
    place = tmp_path_factory.mktemp("own")
    write_data(place)
    write_recipe(place)
    (place / ".venv/bin").mkdir(parents=True)
    (place / ".venv/bin/activate").write_text("")
    (place / ".venv/bin/manyeyes").write_text(
        f'#!/bin/sh\nexec "{sys.executable}" -m manyeyes "$@"\n'
    )
    (place / ".venv/bin/manyeyes").chmod(0o755)
    path = f"{place / '.venv/bin'}{os.pathsep}{os.environ['PATH']}"
    answer = subprocess.run(
        ["bash", "-euc", block("README.md", "Your own data, in five lines")],
        cwd=place, env={**environment(place), "PATH": path}, capture_output=True, text=True,
    )  # fmt: skip
    (place / "said.txt").write_text(answer.stdout)
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return place


def run_python(folder, code):
    """Run a page's Python in a folder; return what it printed."""
    answer = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder, env=environment(folder), capture_output=True, text=True,
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_own_data_become_a_model_that_answers(folder):
    for stage, kind in (("prepare", "dataset"), ("sft", "checkpoint"), ("eval", "report")):
        open_artifact(folder / "runs/mine" / stage, kind)
    said = (folder / "said.txt").read_text()
    assert "data/mine: 40 samples, dataset " in said
    assert f"{RECIPE}: ok\n" in said
    assert "Registered models:/mine/1 as " in said
    assert said.endswith("\n")


def test_the_example_of_the_readme_answers(folder):
    shutil.copytree(folder / "runs/mine/sft", folder / "runs/eagle-x5-tiny/sft")
    shutil.copy(folder / "images/0.png", folder / "picture.png")
    answer, parameters = run_python(
        folder, block("README.md", "From Python", "python")
    ).splitlines()
    assert answer
    assert int(parameters) > 1000


def test_the_examples_of_the_page_train_score_and_answer(folder):
    shutil.copy(folder / RECIPE, folder / "recipe.yaml")
    shutil.copy(folder / "images/0.png", folder / "picture.png")
    told, answers = run_python(
        folder, block("docs/python.md", "Training and scores", "python")
    ).splitlines()
    assert told.endswith("out/eval/report.html")
    assert answers.startswith("[")
    assert run_python(folder, block("docs/python.md", "transformers", "python")).count("\n") == 1
