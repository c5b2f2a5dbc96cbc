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


TITLES = re.findall(
    r"^## Walkthrough: (.*)$", (ROOT / "CONTRIBUTING.md").read_text("utf-8"), flags=re.MULTILINE
)


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


def test_a_metric_and_a_template_are_one_file_and_their_tests():
    assert numbered_files("add a metric") == [
        "manyeyes/evaluation/metrics.py",
        "tests/unit/vectors/metrics.json",
        "tests/unit/test_metrics.py",
    ]
    assert numbered_files("add a prompt template") == [
        "manyeyes/data/loading/templates.py",
        "tests/unit/test_templates.py",
    ]


@pytest.mark.parametrize("title", TITLES)
def test_every_file_a_walkthrough_names_is_there(title):
    for name in re.findall(r"`((?:manyeyes|tests|pipelines|docs|recipes)/[^`<]+)`", section(title)):
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


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("relaxed_accuracy", "manyeyes/evaluation/metrics.py"),
        ("vicuna_v1", "manyeyes/data/loading/templates.py"),
    ],
)
def test_the_code_knows_a_metric_and_a_template_in_one_file_only(name, file):
    found = subprocess.run(
        ["grep", "-rl", name, "manyeyes", "--include=*.py"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split()  # fmt: skip
    assert found == [file]


PAGES = sorted(path.name for path in (ROOT / "docs").glob("*.md") if path.name != "README.md")


@pytest.mark.parametrize("page", PAGES)
def test_the_index_names_every_page_in_one_line(page):
    lines = (ROOT / "docs/README.md").read_text("utf-8").splitlines()
    assert len([line for line in lines if line.startswith(f"- [{page}]({page}): ")]) == 1


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "docs/README.md"])
def test_every_link_of_a_page_leads_somewhere(page):
    text = (ROOT / page).read_text("utf-8")
    links = [link for link in re.findall(r"\]\(([^)#]+)\)", text) if "://" not in link]
    assert links
    assert not [link for link in links if not (ROOT / page).parent.joinpath(link).exists()]
