"""The pipeline on a cluster: the laptop's graph, and what a profile says of each task."""

import itertools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from manyeyes import steps
from manyeyes.config.profile import ClusterProfile, load_profile
from manyeyes.config.profile.sections import STEP_NAMES
from manyeyes.config.recipe import Recipe, load_recipe
from manyeyes.errors import UserError
from manyeyes.kubeflow.pipelines import lint
from manyeyes.kubeflow.pipelines.compile import (
    Compiled,
    compile_pipeline,
    manifest_yaml,
    pipeline_yaml,
)
from manyeyes.kubeflow.pipelines.compile import read_documents as read
from manyeyes.pipeline.fingerprint import run_key
from manyeyes.pipeline.launch.settings import TrainJob, read_launch
from manyeyes.runtime.home import WHOLE_RECIPE

ROOT = Path(__file__).parents[2]
RECIPE = ROOT / "recipes/tiny/eagle-x5.yaml"
CLUSTERS = ("gke-like", "on-prem")


def shallow(function: Callable[..., str], *arguments: object) -> str:
    """Call in a thread: kfp looks through the whole stack at every setting, and pytest's is deep."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function, *arguments).result()


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(RECIPE)


@pytest.fixture(scope="module", params=CLUSTERS)
def profile(request: pytest.FixtureRequest) -> ClusterProfile:
    found = load_profile(request.param)
    assert isinstance(found, ClusterProfile)
    return found


@pytest.fixture(scope="module")
def documents(recipe: Recipe, profile: ClusterProfile) -> list[dict[str, Any]]:
    return read(shallow(pipeline_yaml, recipe, profile))


def container(documents: list[dict[str, Any]], name: str) -> dict[str, Any]:
    return documents[0]["deploymentSpec"]["executors"][f"exec-{name}"]["container"]


def settings(documents: list[dict[str, Any]], name: str) -> dict[str, Any]:
    platform = documents[1]["platforms"]["kubernetes"]["deploymentSpec"]
    return platform["executors"][f"exec-{name}"]


def task(documents: list[dict[str, Any]], name: str) -> dict[str, Any]:
    spec = documents[0]
    dags = [spec["root"], *(part for part in spec["components"].values() if "dag" in part)]
    (found,) = [dag["dag"]["tasks"][name] for dag in dags if name in dag["dag"]["tasks"]]
    return found


# ---- one definition ------------------------------------------------------------------------------

ANY = r"[^/]+"
EXECUTOR = rf"deploymentSpec/executors/{ANY}/container"
CHANNEL = rf"pipelinechannel--{ANY}_(nodes|tolerations|gpus)"
ALLOWED = {
    "image": [rf"0/{EXECUTOR}/image"],
    "kind": [rf"0/{EXECUTOR}/command"],
    "kubernetes": [
        rf"0/{EXECUTOR}/(resources|env)",
        rf"0/(root|components/{ANY})/dag/tasks/{ANY}/retryPolicy",
        # the inputs that a profile adds, handed down to the tasks whose settings read them
        rf"0/root/inputDefinitions(/parameters/{ANY}_(nodes|tolerations|gpus))?",
        rf"0/components/{ANY}/inputDefinitions(/parameters/{CHANNEL})?",
        rf"0/(root|components/{ANY})/dag/tasks/{ANY}/inputs/parameters/({CHANNEL}|accelerator_count)",
        rf"0/root/dag/tasks/{ANY}/inputs(/parameters/{CHANNEL})?",
        r"1",
    ],
}
"""What may differ between laptop and cluster: why, and at which paths of the documents."""


def differences(here: Any, there: Any, path: str = "") -> Iterator[str]:
    """Yield the paths at which two documents differ, as deep as their shapes agree."""
    if isinstance(here, dict) and isinstance(there, dict):
        for key in sorted({*here, *there}):
            inner = f"{path}/{key}".lstrip("/")
            if key not in here or key not in there:
                yield inner
            else:
                yield from differences(here[key], there[key], inner)
    elif here != there:
        yield path


def reason(path: str) -> str | None:
    """Say why the documents may differ at a path."""
    for name, patterns in ALLOWED.items():
        if any(re.fullmatch(pattern, path) for pattern in patterns):
            return name
    return None


def test_laptop_and_cluster_differ_in_image_kind_and_kubernetes_settings_alone(
    recipe: Recipe, documents: list[dict[str, Any]]
) -> None:
    here = {
        str(index): part for index, part in enumerate(read(shallow(pipeline_yaml, recipe, None)))
    }
    there = {str(index): part for index, part in enumerate(documents)}
    found = list(differences(here, there))
    assert [path for path in found if reason(path) is None] == []
    assert {reason(path) for path in found} == set(ALLOWED)
    for name in STEP_NAMES:  # every task differs in each of the ways, none was forgotten
        place = f"0/deploymentSpec/executors/exec-{name}/container"
        assert {f"{place}/{key}" for key in ("image", "command", "env", "resources")} <= {*found}


def test_a_changed_graph_is_no_allowed_difference(documents: list[dict[str, Any]]) -> None:
    changed = json.loads(json.dumps(documents[0]))
    tasks = changed["components"]["comp-exit-handler-1"]["dag"]["tasks"]
    tasks["sft"]["inputs"]["parameters"]["fingerprint"]["runtimeValue"]["constant"] = "other"
    tasks["sft"]["dependentTasks"].remove("prepare")
    del tasks["eval"]["inputs"]["artifacts"]["validation"]
    found = list(differences({"0": documents[0]}, {"0": changed}))
    assert len(found) == 3
    assert [reason(path) for path in found] == [None, None, None]


def test_no_more_than_twelve_tasks_besides_the_experts(documents: list[dict[str, Any]]) -> None:
    assert len(documents[0]["deploymentSpec"]["executors"]) <= 12


COMPILE = """
import sys
from pathlib import Path
from manyeyes.config.profile import load_profile
from manyeyes.config.recipe import load_recipe
from manyeyes.kubeflow.pipelines.compile import compile_pipeline
recipe, profile, out = load_recipe(Path(sys.argv[1])), load_profile(sys.argv[2]), Path(sys.argv[3])
compile_pipeline(recipe, None, out / "laptop.yaml")
compile_pipeline(recipe, profile, out / "cluster.yaml")
compile_pipeline(recipe, profile, out / "gitops.yaml", gitops=True)
"""


def test_compiling_in_several_processes_gives_the_same_bytes(tmp_path: Path) -> None:
    folders = [tmp_path / str(index) for index in range(3)]
    for folder in folders:
        subprocess.run(
            [sys.executable, "-c", COMPILE, str(RECIPE), "gke-like", str(folder)],
            check=True, cwd=ROOT, env={**os.environ, "PYTHONHASHSEED": folder.name},
        )  # fmt: skip
    for name in ("laptop.yaml", "cluster.yaml", "gitops.yaml"):
        assert len({(folder / name).read_bytes() for folder in folders}) == 1


# ---- what a profile says of each task ------------------------------------------------------------


def test_the_image_of_a_task_follows_the_step_table(
    documents: list[dict[str, Any]], profile: ClusterProfile
) -> None:
    jobs = profile.train_jobs.stages if profile.train_jobs else {}
    torch = {step.name for step in steps.STEPS if step.torch} - set(jobs)
    for name in STEP_NAMES:
        image = profile.images.trainer if name in torch else profile.images.control
        assert container(documents, name)["image"] == image
        assert container(documents, name)["command"] == ["python3", "-m", "kfp.dsl.executor_main"]
        assert container(documents, name)["args"][-1] == name


def test_steps_without_torch_are_those_whose_code_imports_none() -> None:
    blocked = "import sys; sys.modules['torch'] = None; sys.modules['transformers'] = None\n"
    names = [step.name for step in steps.STEPS if not step.torch]
    imports = "".join(f"import manyeyes.pipeline.stages.{name}\n" for name in names)
    script = (
        blocked
        + "import manyeyes.pipeline.runner, manyeyes.pipeline.worker, manyeyes.pipeline.finalize\n"
        + imports
    )
    subprocess.run([sys.executable, "-c", script], check=True, cwd=ROOT)
    assert names == ["prepare", "validate", "register"]


def test_a_task_gets_its_nodes_gpus_and_tolerations_from_pipeline_inputs(
    documents: list[dict[str, Any]], profile: ClusterProfile
) -> None:
    inputs = documents[0]["root"]["inputDefinitions"]["parameters"]
    for name, placement in profile.steps.items():
        pool = placement.pool.replace("-", "_")
        prefix = "" if name == "finalize" else "pipelinechannel--"
        given = settings(documents, name)
        assert given["nodeSelector"] == {
            "nodeSelectorJson": {"componentInputParameter": f"{prefix}{pool}_nodes"}
        }
        assert given["tolerations"] == [
            {"tolerationJson": {"componentInputParameter": f"{prefix}{pool}_tolerations"}}
        ]
        found = profile.pools[placement.pool]
        assert inputs[f"{pool}_nodes"]["defaultValue"] == found.node_selector
        assert inputs[f"{pool}_tolerations"]["defaultValue"] == [
            toleration.model_dump(exclude_none=True) for toleration in found.tolerations
        ]
        resources = container(documents, name)["resources"]
        assert resources["resourceCpuLimit"] == resources["resourceCpuRequest"] == placement.cpu
        assert resources["resourceMemoryLimit"] == placement.memory
        assert resources["resourceMemoryRequest"] == placement.memory
        if placement.gpus:
            # KFP's driver reads the text of this value: a number would have none
            assert inputs[f"{name}_gpus"]["parameterType"] == "STRING"
            assert inputs[f"{name}_gpus"]["defaultValue"] == str(placement.gpus)
            assert resources["accelerator"]["resourceType"] == found.gpu
            assert resources["accelerator"]["resourceCount"] == (
                f"{{{{$.inputs.parameters['pipelinechannel--{name}_gpus']}}}}"
            )
        else:
            assert "accelerator" not in resources


def test_a_task_gets_its_patience_pull_policy_user_and_labels(
    documents: list[dict[str, Any]], profile: ClusterProfile
) -> None:
    for name, placement in profile.steps.items():
        given = settings(documents, name)
        assert given["activeDeadlineSeconds"] == str(placement.timeout_minutes * 60)
        assert given["imagePullPolicy"] == profile.images.pull_policy
        assert [one["secretName"] for one in given.get("imagePullSecret", [])] == [
            *profile.images.pull_secrets
        ]
        assert given["securityContext"] == {
            "runAsUser": "1000", "runAsGroup": "1000", "runAsNonRoot": True,
        }  # fmt: skip
        assert given["podMetadata"]["labels"] == {
            "app.kubernetes.io/part-of": "manyeyes",
            "app.kubernetes.io/component": name,
        }
        assert task(documents, name)["retryPolicy"] == {
            "maxRetryCount": placement.retries,
            "backoffDuration": "60s",
            "backoffFactor": 2.0,
            "backoffMaxDuration": "3600s",
        }
        cached = task(documents, name)["cachingOptions"].get("enableCache", False)
        assert cached == (placement.caching and name not in {"register", "finalize"})


def test_a_task_gets_its_volumes(documents: list[dict[str, Any]], profile: ClusterProfile) -> None:
    storage = profile.storage
    for name, placement in profile.steps.items():
        given = settings(documents, name)
        mounts = {one["mountPath"]: one for one in given["emptyDirMounts"]}
        assert storage.scratch_path in mounts
        if storage.claim:
            assert given["pvcMount"][0]["mountPath"] == storage.cache_path
            assert given["pvcMount"][0]["constant"] == storage.claim
        else:
            assert storage.cache_path in mounts
        assert ("/dev/shm" in mounts) == bool(placement.shared_memory)
        if placement.shared_memory:
            assert mounts["/dev/shm"]["medium"] == "Memory"
            assert mounts["/dev/shm"]["sizeLimit"] == placement.shared_memory


def variables(documents: list[dict[str, Any]], name: str) -> dict[str, str]:
    return {one["name"]: one["value"] for one in container(documents, name)["env"]}


def test_the_environment_of_a_pod_on_a_managed_cluster(recipe: Recipe) -> None:
    profile = load_profile("gke-like")
    assert isinstance(profile, ClusterProfile)
    found = read(shallow(pipeline_yaml, recipe, profile))
    expected = {
        "MANYEYES_RUN": run_key(recipe),
        "MANYEYES_HOME": "/scratch/manyeyes",
        "HOME": "/scratch",
        "TMPDIR": "/scratch",
        "XDG_CACHE_HOME": "/scratch/.cache",
        "HF_HOME": "/cache/huggingface",
        "OMP_NUM_THREADS": "11",
        "MANYEYES_STORE": "s3://example-manyeyes/dvc",
        "MANYEYES_CACHE": "/cache",
        "MANYEYES_CACHE_LIMIT": "400Gi",
        "AWS_REGION": "europe-west4",
        "AWS_DEFAULT_REGION": "europe-west4",
        "AWS_ENDPOINT_URL": "https://storage.googleapis.com",
        "MLFLOW_TRACKING_URI": "http://mlflow.team-vision.svc.cluster.local:5000",
    }
    assert variables(found, "eval") == expected
    torchrun = '{"kind":"torchrun","processes":8}'
    # Trainings look at what later stages need (ADR 8); what they launch passes it on.
    whole = {WHOLE_RECIPE: recipe.model_dump_json(by_alias=True, exclude_none=True)}
    assert variables(found, "prealign") == {**expected, **whole, "MANYEYES_LAUNCH": torchrun}
    launching = variables(found, "sft")
    job = read_launch(launching)
    del launching["MANYEYES_LAUNCH"]
    assert launching == {**expected, **whole, "OMP_NUM_THREADS": "1"}
    assert isinstance(job, TrainJob)
    assert (job.nodes, job.processes_per_node, job.image) == (4, 8, profile.images.trainer)
    assert job.environment == {k: v for k, v in expected.items() if k != "OMP_NUM_THREADS"}
    assert [(mount.name, mount.path) for mount in job.mounts] == [
        ("shm", "/dev/shm"),
        ("cache", "/cache"),
        ("scratch", "/scratch"),
    ]
    assert {secret.variable for secret in job.secrets} == {
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "MLFLOW_TRACKING_USERNAME",
        "MLFLOW_TRACKING_PASSWORD",
        "HF_TOKEN",
    }


def test_secrets_reach_the_tasks_that_need_them_by_name_alone(recipe: Recipe) -> None:
    profile = load_profile("gke-like")
    assert isinstance(profile, ClusterProfile)
    found = read(shallow(pipeline_yaml, recipe, profile))
    s3 = {"manyeyes-s3": ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"]}
    mlflow = {"manyeyes-mlflow": ["MLFLOW_TRACKING_USERNAME", "MLFLOW_TRACKING_PASSWORD"]}
    hub = {"huggingface": ["HF_TOKEN"]}
    expected = dict.fromkeys(STEP_NAMES, s3 | mlflow | hub)
    expected |= {"finalize": s3 | mlflow, "experts": {}}
    assert {
        name: {
            one["secretName"]: [key["envVar"] for key in one["keyToEnv"]]
            for one in settings(found, name).get("secretAsEnv", [])
        }
        for name in STEP_NAMES
    } == expected


# ---- refusals ------------------------------------------------------------------------------------


def test_a_secret_of_the_submitter_is_never_compiled_in(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    profile = load_profile("on-prem")
    assert isinstance(profile, ClusterProfile)
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "mlflow.rack.example.org")
    with pytest.raises(UserError) as error:
        compile_pipeline(recipe, profile, tmp_path / "out.yaml")
    assert str(error.value) == (
        "There is the value of $MLFLOW_TRACKING_PASSWORD in the compiled pipeline, and KFP shows "
        "it to everyone who can see a run; put it into a Kubernetes secret and name that under "
        "secrets in the profile."
    )
    assert list(tmp_path.iterdir()) == []


def test_resources_for_a_laptop_are_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        compile_pipeline(recipe, None, tmp_path / "out.yaml", gitops=True)
    assert str(error.value) == (
        "--gitops writes resources of a cluster: name its profile with --profile."
    )


def test_settings_that_read_no_input_are_found(documents: list[dict[str, Any]]) -> None:
    spec, platform = json.loads(json.dumps(documents))
    del spec["components"]["comp-for-loop-2"]["inputDefinitions"]["parameters"][
        next(key for key in settings(documents, "prealign")["nodeSelector"]["nodeSelectorJson"].values())
    ]  # fmt: skip
    executors = platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]
    executors["exec-lost"] = executors["exec-sft"]
    found = lint.platform_problems(spec, platform)
    assert len(found) == 2
    assert found[0].startswith("The Kubernetes settings of exec-prealign read the input ")
    assert found[1] == "There are Kubernetes settings for exec-lost, which does not exist."


# ---- Kubernetes resources ------------------------------------------------------------------------


def test_the_resources_hold_the_very_pipeline(recipe: Recipe, profile: ClusterProfile) -> None:
    compiled = Compiled("eagle-x5-tiny", shallow(pipeline_yaml, recipe, profile))
    spec, platform = read(compiled.text)
    pipeline, version = read(shallow(manifest_yaml, recipe, profile, compiled.text))
    namespace = profile.kubeflow.namespace
    assert pipeline == {
        "apiVersion": "pipelines.kubeflow.org/v2beta1",
        "kind": "Pipeline",
        "metadata": {"name": "eagle-x5-tiny", "namespace": namespace},
        "spec": {"displayName": "eagle-x5-tiny"},
    }
    assert version["kind"] == "PipelineVersion"
    assert version["metadata"] == {"name": compiled.version, "namespace": namespace}
    assert version["spec"]["pipelineName"] == "eagle-x5-tiny"
    assert version["spec"]["pipelineSpec"] == spec
    assert version["spec"]["platformSpec"] == platform


def test_versions_are_named_by_their_content(recipe: Recipe) -> None:
    names = set()
    for name, seed in itertools.product(CLUSTERS, (7, 8)):
        profile = load_profile(name)
        assert isinstance(profile, ClusterProfile)
        changed = recipe.model_copy(update={"seed": seed})
        compiled = Compiled("eagle-x5-tiny", shallow(pipeline_yaml, changed, profile))
        assert compiled.version == f"eagle-x5-tiny-{compiled.digest[:12]}"
        names.add(compiled.version)
    assert len(names) == 4


def test_the_shipped_profiles_are_commented_and_differ() -> None:
    shapes = []
    for name in CLUSTERS:
        text = (ROOT / f"infra/profiles/{name}.yaml").read_text()
        assert text.count("#") >= 10
        shapes.append(YAML(typ="safe").load(text)["profile"])
    here, there = shapes
    assert here["train_jobs"]["scheduling"]["kind"] != there["train_jobs"]["scheduling"]["kind"]
    assert bool(here["storage"].get("claim")) != bool(there["storage"].get("claim"))
    assert set(here["pools"]).isdisjoint(there["pools"])
