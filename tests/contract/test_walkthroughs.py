"""CONTRIBUTING's walkthroughs hold: the files they name are those that know a fusion or a system."""

import re
import subprocess
from pathlib import Path
from typing import get_args

import pytest

from manyeyes.config.recipe import FusionSection, load_recipe
from manyeyes.kubeflow.pipelines.ablation import fusions

ROOT = Path(__file__).parents[2]
KINDS = [
    get_args(section.model_fields["kind"].annotation)[0] for section in get_args(FusionSection)
]
TINY = sorted((ROOT / "recipes/tiny").glob("*.yaml"))


def section(title):
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    return text.split(f"## Walkthrough: {title}\n")[1].split("\n## ")[0]


def numbered_files(title):
    return re.findall(r"^\d\. `([^`]+)`", section(title), flags=re.MULTILINE)


def test_a_fusion_is_three_files_and_a_system_is_three():
    assert numbered_files("add a fusion") == [
        "manyeyes/config/recipe/fusions.py",
        "manyeyes/model/fusion/deformable_attention.py",
        "manyeyes/model/fusion/build.py",
    ]
    assert len(numbered_files("add a system")) == 3


@pytest.mark.parametrize("title", ["add a fusion", "add a system"])
def test_every_file_a_walkthrough_names_is_there(title):
    for name in re.findall(r"`((?:manyeyes|tests|pipelines|docs)/[^`]+)`", section(title)):
        assert (ROOT / name).exists(), name


def test_the_code_knows_a_fusion_in_the_three_files_only():
    """Look for deformable attention's class and kind, as somebody would who copies it."""
    found = subprocess.run(
        ["grep", "-rliE", "deformable_?attention", "manyeyes", "--include=*.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    # The package re-exports the first fusions; a new one need not stand there.
    assert sorted(set(found) - {"manyeyes/config/recipe/__init__.py"}) == [
        "manyeyes/config/recipe/fusions.py",
        "manyeyes/model/fusion/build.py",
        "manyeyes/model/fusion/deformable_attention.py",
    ]


def test_the_fusion_table_knows_every_fusion_that_joins_encoders():
    lines = {variant.fusion.kind for variant in fusions("one", "two")}
    assert set(KINDS) - lines <= {"patch_embedding"}  # EVE's joins none


@pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
def test_a_tiny_system_is_built_from_its_recipe_alone(path):
    import torch

    from manyeyes.model.vlm import VisionLanguageModel

    model = load_recipe(path).model
    with torch.device("meta"):
        built = VisionLanguageModel.from_recipe(model, seed=0, load=False)
    assert list(built.experts) == [encoder.name for encoder in model.encoders]
