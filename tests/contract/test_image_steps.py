"""Every step runs by its container's command, in a folder laid out as its image is.

The chain is real, on one expert and a handful of samples. The steps of the control image run in a
Python without torch. What a container adds to this, and a test cannot, is Debian and the GPU.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
from image_kit import lay_out
from pipeline_kit import small_recipe
from ruamel.yaml import YAML

from manyeyes import steps
from manyeyes.config.recipe import Recipe, load_recipe
from manyeyes.config.recipe.slices import slice_json
from manyeyes.kubeflow.pipelines.training import COMPONENTS
from manyeyes.pipeline.fingerprint import fingerprint_text, open_parents
from manyeyes.pipeline.worker import protect
from manyeyes.store import Store
from manyeyes.store.pointer import open_input, read_input
from tools.images.image_locks import NOT_IN_CONTROL

CONTROL_STEPS = ("prepare", "validate", "experts", "register", "finalize")
OUTPUTS = {
    "prepare": "dataset",
    "validate": "validation",
    "prealign": "checkpoint",
    "pretrain": "checkpoint",
    "sft": "model",
    "eval": "report",
    "register": "registration",
}
WITHOUT_TORCH = Path(__file__).parent / "without_torch"


def one_expert(folder: Path) -> Recipe:
    """Return the tiny recipe with one expert, one step a stage and next to no data."""
    path = small_recipe(folder, prealign_steps=1, pretrain_steps=1, sft_steps=1)
    yaml = YAML()
    document = yaml.load(path)
    document["model"]["encoders"] = document["model"]["encoders"][:1]
    name = document["model"]["encoders"][0]["name"]
    document["prealign"]["experts"] = {name: document["prealign"]["experts"][name]}
    document["eval"]["limit"] = 1
    yaml.dump(document, path)
    return load_recipe(path)


class Pod:
    """Runs the steps of one image, each as its container would."""

    def __init__(self, image: str, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        environment = lay_out(image, folder)
        if image == "control":
            environment["PYTHONPATH"] += os.pathsep + str(WITHOUT_TORCH)
            environment["MISSING_PACKAGES"] = " ".join(NOT_IN_CONTROL)
        self.environment = {**environment, "OMP_NUM_THREADS": "1"}

    def call(self, name: str, description: Mapping[str, object]) -> None:
        """Run one step."""
        command = [sys.executable, "-m", "kfp.dsl.executor_main"]
        arguments = ["--executor_input", json.dumps(description), "--function_to_execute", name]
        done = subprocess.run(
            [*command, *arguments],
            cwd=self.folder / "app",
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{name}\n{done.stdout}\n{done.stderr}"

    def files(self) -> list[str]:
        return sorted(str(path) for path in (self.folder / "app").rglob("*"))


class Cluster:
    """Two images and one folder of artifacts and of state, as the steps of a run share them."""

    def __init__(self, folder: Path) -> None:
        self.recipe = one_expert(folder)
        self.artifacts = folder / "artifacts"
        self.pods = {image: Pod(image, folder / image) for image in ("control", "trainer")}
        for pod in self.pods.values():
            pod.environment["MANYEYES_HOME"] = str(folder / "home")
        self.store = Store(folder / "home/store")  # where the pointers that steps leave point to
        self.made: dict[str, Path] = {}

    def run(self, name: str, inputs: Mapping[str, object], artifacts: Mapping[str, Path]) -> object:
        """Run one step on its image; return its output parameter."""
        out = self.artifacts / name
        outputs: dict[str, object] = {"outputFile": f"{out}.json"}
        if name in OUTPUTS:
            outputs["artifacts"] = {OUTPUTS[name]: artifact(out)}
        if name != "finalize":
            outputs["parameters"] = {"Output": {"outputFile": f"{out}.parameter"}}
        given = {role: artifact(path) for role, path in artifacts.items()}
        image = "control" if name in CONTROL_STEPS else "trainer"
        description = {
            "inputs": {"parameterValues": dict(inputs), "artifacts": given},
            "outputs": outputs,
        }
        self.pods[image].call(name, description)
        return json.loads(Path(f"{out}.json").read_text()).get("parameterValues", {}).get("Output")

    def stage(self, step: steps.Step) -> None:
        """Run one stage on what the stages before it made."""
        expert = next(iter(self.recipe.prealign.experts)) if step.per_expert else None
        inputs = {needed.role: self.made[needed.source] for needed in step.inputs}
        paths = {
            needed.role: [inputs[needed.role]] if needed.many else inputs[needed.role]
            for needed in step.inputs
        }
        opened = open_parents(
            step.name, paths, lambda path, kind: open_input(self.store, path, kind)
        )
        text = slice_json(self.recipe, step.name, expert)
        given: dict[str, object] = {
            "recipe_slice": protect(text),
            "fingerprint": fingerprint_text(step.name, text, opened.digests),
        }
        if expert:
            given["expert"] = expert
        if step.name == "pretrain":
            given["expert_digests"] = [read_input(self.store, self.made["prealign"]).digest]
        digest = self.run(step.name, given, inputs)
        self.made[step.name] = self.artifacts / step.name
        assert read_input(self.store, self.made[step.name]).digest == digest


def artifact(path: Path) -> dict[str, object]:
    kind = {"schemaTitle": "system.Artifact", "schemaVersion": "0.0.1"}
    return {"artifacts": [{"name": "x", "type": kind, "uri": str(path), "metadata": {}}]}


def test_every_step_runs_in_its_image(tmp_path: Path) -> None:
    cluster = Cluster(tmp_path)
    before = {image: pod.files() for image, pod in cluster.pods.items()}
    for step in steps.STEPS:
        cluster.stage(step)
    plan = [{"expert": "clip", "recipe_slice": "{}", "fingerprint": "code.slice.{dataset}"}]
    items = cluster.run("experts", {"plan": plan, "dataset": "d", "validation": "v"}, {})
    assert items == [{**plan[0], "fingerprint": "code.slice.d"}]
    cluster.run("finalize", {"status": {"state": "SUCCEEDED"}}, {})
    assert set(COMPONENTS) == {*cluster.made, "experts", "finalize"}
    assert {image: pod.files() for image, pod in cluster.pods.items()} == before


@pytest.mark.parametrize("name", NOT_IN_CONTROL)
def test_the_stand_in_for_the_control_image_really_lacks(name: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", f"import {name}"],
        env={
            **os.environ,
            "PYTHONPATH": str(WITHOUT_TORCH),
            "MISSING_PACKAGES": " ".join(NOT_IN_CONTROL),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.stderr.endswith(f"ModuleNotFoundError: {name} is not in the control image\n")
