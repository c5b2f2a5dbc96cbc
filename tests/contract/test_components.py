"""The KFP components agree with the step table and contain no logic of their own."""

import ast
import configparser
import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from kfp.dsl.types.type_annotations import InputAnnotation, OutputAnnotation

from manyeyes import steps
from manyeyes.config.recipe import load_recipe
from manyeyes.config.recipe.slices import slice_json
from manyeyes.kubeflow.pipelines import document
from manyeyes.kubeflow.pipelines.containerize import kfp_config
from manyeyes.kubeflow.pipelines.training import COMPONENTS
from manyeyes.pipeline.fingerprint import fingerprint_text, open_parents
from manyeyes.pipeline.worker import protect
from manyeyes.store import open_store
from manyeyes.store.pointer import open_input, read_input

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).parent / "toy"
STAGES = [step.name for step in steps.STEPS]
SCHEMAS = {"dataset": "Dataset", "checkpoint": "Model", "report": "Artifact"}


def parameters(name: str) -> dict[str, object]:
    return {
        key: parameter.annotation
        for key, parameter in inspect.signature(COMPONENTS[name]).parameters.items()
    }


def marked(name: str, mark: type) -> dict[str, str]:
    return {
        key: document._type_name(annotation.__origin__)
        for key, annotation in parameters(name).items()
        if mark in getattr(annotation, "__metadata__", ())
    }


@pytest.mark.parametrize("stage", STAGES)
def test_a_component_reads_what_the_step_table_says(stage: str) -> None:
    expected = {
        needed.role: f"List[{SCHEMAS[needed.kind]}]" if needed.many else SCHEMAS[needed.kind]
        for needed in steps.step(stage).inputs
    }
    assert marked(stage, InputAnnotation) == expected


@pytest.mark.parametrize("stage", STAGES)
def test_a_component_writes_one_artifact_of_the_kind_the_step_table_says(stage: str) -> None:
    assert list(marked(stage, OutputAnnotation).values()) == [SCHEMAS[steps.step(stage).writes]]


@pytest.mark.parametrize("stage", STAGES)
def test_a_component_takes_its_slice_and_its_fingerprint(stage: str) -> None:
    given = parameters(stage)
    assert given["recipe_slice"] is str
    assert given["fingerprint"] is str
    assert ("expert" in given) == steps.step(stage).per_expert


def test_every_component_folder_is_in_the_table() -> None:
    folders = {path.parent.name for path in (ROOT / "components").glob("*/component.py")}
    assert folders == set(COMPONENTS)


@pytest.mark.parametrize("name", COMPONENTS)
def test_a_component_is_a_signature_and_one_call(name: str) -> None:
    tree = ast.parse((ROOT / "components" / name / "component.py").read_text())
    modules = {node.module for node in tree.body if isinstance(node, ast.ImportFrom)}
    assert modules <= {"kfp.dsl", "typing"}
    (function,) = [node for node in tree.body if isinstance(node, ast.FunctionDef)]
    assert function.decorator_list == []
    _doc, imported, last = function.body
    assert isinstance(imported, ast.ImportFrom)
    assert imported.module == "manyeyes.pipeline.worker"
    calls = [node for node in ast.walk(last) if isinstance(node, ast.Call)]
    assert len(calls) == 1


@pytest.mark.parametrize("path", document.pages(), ids=lambda path: path.parent.name)
def test_the_readme_of_a_component_is_the_one_made_from_it(path: Path) -> None:
    assert path.read_text() == document.pages()[path], (
        "run: python -m manyeyes.kubeflow.pipelines.document"
    )


def test_kfp_config_names_the_file_of_every_component() -> None:
    config = configparser.ConfigParser()
    config.read_string(kfp_config())
    listed = dict(config["Components"])
    assert listed == {name: f"components/{name}/component.py" for name in sorted(COMPONENTS)}
    assert all((ROOT / path).is_file() for path in listed.values())


class Container:
    """Runs step functions the way an image does: by name, from ``kfp_config.ini`` in the cwd."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "kfp_config.ini").write_text(kfp_config())
        (folder / "components").symlink_to(ROOT / "components")

    def call(self, name: str, parameters: dict[str, object], artifacts: dict[str, object]) -> str:
        """Execute one step and return its output parameter."""
        out = self.folder / "out" / parameters.get("expert", name)
        (output,) = marked(name, OutputAnnotation)
        description = {
            "inputs": {
                "parameterValues": parameters,
                "artifacts": {key: artifact(value) for key, value in artifacts.items()},
            },
            "outputs": {
                "artifacts": {output: artifact(out)},
                "parameters": {"Output": {"outputFile": f"{out}.digest"}},
                "outputFile": f"{out}.json",
            },
        }
        command = ["-m", "kfp.dsl.executor_main", "--executor_input", json.dumps(description)]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(TOY), str(ROOT)]),
            "MANYEYES_HOME": str(self.folder / "home"),
            "_KFP_RUNTIME": "true",
        }
        done = subprocess.run(
            [sys.executable, *command, "--function_to_execute", name],
            cwd=self.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        written = json.loads(Path(f"{out}.json").read_text())
        return str(written["parameterValues"]["Output"])


def artifact(path: object) -> dict[str, object]:
    paths = path if isinstance(path, list) else [path]
    kind = {"schemaTitle": "system.Artifact", "schemaVersion": "0.0.1"}
    return {
        "artifacts": [{"name": "x", "type": kind, "uri": str(one), "metadata": {}} for one in paths]
    }


def test_every_stage_runs_as_a_containerized_component(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "home"))
    store = open_store()  # steps leave pointers into it
    recipe = load_recipe(ROOT / "recipes/tiny/eagle-x5.yaml")
    container = Container(tmp_path)
    made: dict[str, list[Path]] = {}
    for step in steps.STEPS:
        made[step.name] = []
        for expert in ["clip", "sam"] if step.per_expert else [None]:
            inputs = {
                needed.role: made[needed.source] if needed.many else made[needed.source][0]
                for needed in step.inputs
            }
            opened = open_parents(
                step.name, inputs, lambda path, kind: open_input(store, path, kind)
            )
            digests = opened.digests
            text = slice_json(recipe, step.name, expert)
            _, rest = fingerprint_text(step.name, text, digests).split(".", 1)
            key = f"code-of-{step.name}.{rest}"
            given: dict[str, object] = {"recipe_slice": protect(text), "fingerprint": key}
            if expert:
                given["expert"] = expert
            if step.name == "pretrain":
                given["expert_digests"] = [
                    read_input(store, path).digest for path in reversed(made["prealign"])
                ]
            digest = container.call(step.name, given, inputs)
            out = tmp_path / "out" / (expert or step.name)
            assert read_input(store, out).digest == digest
            assert read_input(store, out).stage == step.name
            made[step.name].append(out)
