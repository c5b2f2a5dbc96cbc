"""The KFP pipeline: one graph for laptop and cluster, true to the step table, and run for real.

The runs go through kfp.local with every process a user's run has; only the bodies of the stages are
the cheap ones of ``toy/sitecustomize.py``.
"""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from pause_kit import until

from manyeyes import steps
from manyeyes.artifact.manifest import read_manifest
from manyeyes.config.profile import ClusterProfile, load_profile
from manyeyes.config.recipe import PrealignSection, Recipe, load_recipe
from manyeyes.config.recipe.slices import slice_json
from manyeyes.errors import GateRefused, ManyeyesError, UserError
from manyeyes.kubeflow.pipelines import local
from manyeyes.kubeflow.pipelines.compile import compile_pipeline, pipeline_yaml, read_documents
from manyeyes.kubeflow.pipelines.training import Threads, build
from manyeyes.pipeline.worker import protect, reveal
from manyeyes.runtime.home import WHOLE_RECIPE
from manyeyes.store.exchange import pull

ROOT = Path(__file__).parents[2]
TOY = Path(__file__).parent / "toy"
RECIPE = ROOT / "recipes/tiny/eagle-x5.yaml"
CONTROL = {"experts", "finalize"}


def smaller(recipe: Recipe, *names: str) -> Recipe:
    """Return the recipe with fewer experts: each is a process."""
    data = recipe.model_dump(mode="json", by_alias=True)
    data["model"]["encoders"] = [one for one in data["model"]["encoders"] if one["name"] in names]
    experts = data["prealign"]["experts"]
    data["prealign"]["experts"] = {name: experts[name] for name in names}
    return Recipe.model_validate_json(json.dumps(data))


def changed(recipe: Recipe, *path: str, value: object) -> Recipe:
    """Return the recipe with one value changed."""
    data = recipe.model_dump(mode="json", by_alias=True)
    node = data
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return Recipe.model_validate_json(json.dumps(data))


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return load_recipe(RECIPE)


@pytest.fixture(scope="module", params=["laptop", "gke-like", "on-prem"])
def spec(request: pytest.FixtureRequest, recipe: Recipe) -> dict[str, Any]:
    profile = load_profile(request.param)
    cluster = profile if isinstance(profile, ClusterProfile) else None
    return read_documents(pipeline_yaml(recipe, cluster))[0]


def tasks(spec: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Return every task of the graph that runs a component, by name."""
    dags = [spec["root"], *(part for part in spec["components"].values() if "dag" in part)]
    return {
        name: task
        for part in dags
        for name, task in part["dag"]["tasks"].items()
        if "executorLabel" in spec["components"][task["componentRef"]["name"]]
    }


def test_the_pipeline_has_the_stages_of_the_step_table(spec: dict[str, Any]) -> None:
    assert set(tasks(spec)) - CONTROL == {step.name for step in steps.STEPS}


def test_every_stage_reads_the_artifacts_its_sources_write(spec: dict[str, Any]) -> None:
    found = tasks(spec)
    for step in steps.STEPS:
        artifacts = found[step.name].get("inputs", {}).get("artifacts", {})
        assert set(artifacts) == {needed.role for needed in step.inputs}
        for needed in step.inputs:
            source = artifacts[needed.role]
            if step.per_expert:  # handed into the loop under the producer's name
                assert source["componentInputArtifact"].startswith(
                    f"pipelinechannel--{needed.source}-"
                )
            else:
                producer = source["taskOutputArtifact"]["producerTask"]
                assert producer == ("for-loop-2" if needed.many else needed.source)


def test_every_stage_gets_its_slice_of_the_recipe(spec: dict[str, Any], recipe: Recipe) -> None:
    found = tasks(spec)
    for step in steps.STEPS:
        if step.per_expert:
            continue
        given = found[step.name]["inputs"]["parameters"]["recipe_slice"]["runtimeValue"]["constant"]
        assert reveal(given) == slice_json(recipe, step.name)
    plan = found["experts"]["inputs"]["parameters"]["plan"]["runtimeValue"]["constant"]
    assert {item["expert"]: reveal(item["recipe_slice"]) for item in plan} == {
        name: slice_json(recipe, "prealign", name) for name in recipe.prealign.experts
    }


def test_only_what_must_run_each_time_is_not_cached(spec: dict[str, Any]) -> None:
    cached = {
        name for name, task in tasks(spec).items() if task["cachingOptions"].get("enableCache")
    }
    assert set(tasks(spec)) - cached == {"register", "finalize"}


def test_the_exit_handler_holds_the_whole_pipeline(spec: dict[str, Any]) -> None:
    assert set(spec["root"]["dag"]["tasks"]) == {"exit-handler-1", "finalize"}
    end = spec["root"]["dag"]["tasks"]["finalize"]
    assert end["triggerPolicy"] == {"strategy": "ALL_UPSTREAM_TASKS_COMPLETED"}
    assert end["dependentTasks"] == ["exit-handler-1"]


def test_nothing_is_installed_when_a_step_starts(spec: dict[str, Any]) -> None:
    assert "pip install" not in json.dumps(spec["deploymentSpec"])


def test_only_trainings_are_told_the_whole_recipe_and_not_as_an_input(
    spec: dict[str, Any], recipe: Recipe
) -> None:
    told = {}
    for name, executor in spec["deploymentSpec"]["executors"].items():
        for one in executor["container"].get("env", []):
            if one["name"] == WHOLE_RECIPE:
                told[name.removeprefix("exec-")] = Recipe.model_validate_json(one["value"])
    assert told == dict.fromkeys(("prealign", "pretrain", "sft"), recipe)
    assert WHOLE_RECIPE not in json.dumps(spec["components"])


CHANGES = [
    (("eval", "batch_size"), 7, {"eval"}),
    (("register", "model_name"), "other", {"register"}),
    (("sft", "steps"), 7, {"sft"}),
    (("validate", "min_samples"), 7, {"validate"}),
    (("prealign", "experts", "clip", "steps"), 7, {"experts"}),
    (("data", "scale"), 2.5, {"prepare"}),
    (("seed",), 8, {"prepare", "validate", "experts", "pretrain", "sft", "eval"}),
]


@pytest.mark.parametrize(
    ("path", "value", "expected"), CHANGES, ids=[".".join(path) for path, _, _ in CHANGES]
)
def test_a_change_of_the_recipe_changes_the_inputs_of_the_stages_that_see_it(
    recipe: Recipe, path: tuple[str, ...], value: object, expected: set[str]
) -> None:
    before, after = (
        tasks(read_documents(pipeline_yaml(one, None))[0])
        for one in (recipe, changed(recipe, *path, value=value))
    )
    assert {name for name in before if before[name] != after[name]} == expected


def test_a_target_that_is_no_yaml_file_is_refused(recipe: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        compile_pipeline(recipe, None, tmp_path)
    assert (
        str(error.value) == f"Cannot compile to {tmp_path}: give the path of a .yaml file with -o."
    )


def test_a_recipe_too_long_for_a_command_line_is_refused(recipe: Recipe) -> None:
    long = changed(recipe, "sft", "train", value=["encoders.clip.*"] * 8000)
    with pytest.raises(
        UserError, match=r"^Recipe eagle-x5-tiny is too long for KFP: a step's part"
    ):
        build(long)


def test_threads_are_shared_between_concurrent_steps() -> None:
    assert Threads.share(8, 5) == Threads(serial=8, parallel=4)
    assert Threads.share(8, 1) == Threads(serial=8, parallel=8)
    assert Threads.share(1, 5) == Threads(serial=1, parallel=1)


# ---- real runs -----------------------------------------------------------------------------------


@dataclass
class Runner:
    """Runs pipelines with toy stages in a home of their own."""

    home: Path
    recipe: Recipe
    monkeypatch: pytest.MonkeyPatch

    @property
    def place(self) -> local.LocalRun:
        return local.LocalRun(self.home, "toy")

    @property
    def progress(self) -> Path:
        return self.place.directory / "progress.jsonl"

    def run(self, recipe: Recipe | None = None, **actions: str) -> dict[str, str]:
        given = {name.replace("_", ":"): action for name, action in actions.items()}
        self.monkeypatch.setenv("TOY_ACTIONS", json.dumps(given))
        return local.run_local(recipe or self.recipe, run="toy", progress=self.progress)

    def states(self) -> dict[str, str]:
        """Return how each stage of the last run ended, from its progress lines."""
        lines = [json.loads(line) for line in self.progress.read_text().splitlines()]
        return {line["stage"]: line["state"] for line in lines if line["event"] == "end"}

    def final(self) -> str:
        return (self.place.directory / "final.txt").read_text()


@pytest.fixture
def runner(tmp_path: Path, recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> Runner:
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", str(TOY))
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    return Runner(tmp_path, smaller(recipe, "clip", "convnext", "sam"), monkeypatch)


ALL = {
    "prepare", "validate", "prealign:clip", "prealign:convnext", "prealign:sam",
    "pretrain", "sft", "eval", "register",
}  # fmt: skip


def test_a_run_makes_every_stage_and_a_rerun_only_what_changed(runner: Runner) -> None:
    digests = runner.run()
    assert set(digests) == {*ALL, "finalize"}
    assert runner.states() == dict.fromkeys(ALL, "done")
    assert runner.final() == "SUCCEEDED"
    places = {label: pull(digests[label], runner.home / "pulled" / label) for label in ALL}
    joined = read_manifest(places["pretrain"])
    assert {role for role in joined.parents if role.startswith("expert.")} == {
        "expert.clip", "expert.convnext", "expert.sam",
    }  # fmt: skip
    for label in ALL:
        threads = (places[label] / "measurements/threads.txt").read_text()
        assert threads == ("2" if label.startswith("prealign") else "4"), label
        assert (runner.place.logs / f"{label.replace(':', '-')}.log").is_file()
    again = runner.run()
    assert runner.states() == dict.fromkeys(ALL, "cached")
    assert again == digests
    assert not runner.place.artifacts.exists()
    runner.run(changed(runner.recipe, "prealign", "experts", "sam", "steps", value=7))
    made = {"prealign:sam", "pretrain", "sft", "eval", "register"}
    expected = {label: "done" if label in made else "cached" for label in ALL}
    assert runner.states() == expected


FAILURES = [
    (
        {"prealign_clip": "fail:UserError"},
        UserError,
        "prealign:clip: The toy was told to fail in prealign:clip.",
    ),
    (
        {"validate": "fail:GateRefused"},
        GateRefused,
        "validate: The toy was told to fail in validate. The full report is ",
    ),
    (
        {"sft": "crash"},
        ManyeyesError,
        "sft was killed from outside or crashed (out of memory?); "
        "run the same command again to continue. Its log: ",
    ),
]


@pytest.mark.parametrize(("actions", "kind", "text"), FAILURES, ids=["expert", "gate", "crash"])
def test_a_failed_step_ends_the_run_with_its_own_error(
    runner: Runner, actions: dict[str, str], kind: type[ManyeyesError], text: str
) -> None:
    with pytest.raises(kind) as error:
        runner.run(**actions)
    assert type(error.value) is kind
    assert str(error.value).startswith(text)
    assert runner.final() == "FAILED"
    assert "eval" not in runner.states()


CALL = """
import sys
from pathlib import Path
from manyeyes.errors import ManyeyesError
from manyeyes.config.recipe import Recipe
from manyeyes.kubeflow.pipelines.local import run_local
try:
    run_local(Recipe.model_validate_json(sys.argv[1]), run="toy", progress=Path(sys.argv[2]))
except ManyeyesError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.fixture
def waiting(runner: Runner) -> Iterator[subprocess.Popen[str]]:
    """A run in a process of its own whose second expert waits for a signal."""
    actions = json.dumps({"prealign:convnext": "wait"})
    process = subprocess.Popen(
        [sys.executable, "-c", CALL, runner.recipe.model_dump_json(by_alias=True),
         str(runner.progress)],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "TOY_ACTIONS": actions,
             "PYTHONPATH": os.pathsep.join([str(TOY), str(ROOT)])},
    )  # fmt: skip
    until(lambda: list(runner.home.glob("work/*/begun")))
    yield process
    process.kill()
    process.wait()
    process.stdout.close()


def processes_of(home: Path) -> list[int]:
    """Return the processes that belong to a home, by their environment."""
    needle = f"MANYEYES_HOME={home}\0".encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if needle in path.read_bytes() and int(path.parent.name) != os.getpid():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_stopped_run_finalises_and_leaves_no_process(
    runner: Runner, waiting: subprocess.Popen[str], number: signal.Signals
) -> None:
    waiting.send_signal(number)
    said, _ = waiting.communicate()
    assert waiting.returncode == 75
    assert said == "Stopped; run the same command again to continue.\n"
    assert runner.final() == "FAILED"
    assert runner.states()["prealign:convnext"] == "stopped"
    until(lambda: not processes_of(runner.home))


def test_a_run_is_not_started_twice_and_leaves_no_process_when_killed(
    runner: Runner, waiting: subprocess.Popen[str]
) -> None:
    with pytest.raises(UserError) as error:
        runner.run()
    assert str(error.value) == "Run toy is going on in another process; wait for it or stop it."
    waiting.kill()
    waiting.wait()
    until(lambda: not processes_of(runner.home))
    runner.run()
    assert runner.states()["register"] == "done"


def test_text_that_kfp_would_rewrite_reaches_the_stage_unchanged(runner: Runner) -> None:
    weights = f"{runner.home}/python3/{{{{$.inputs}}}}/kfp-workspace/{{{{channel:x}}}}"
    Path(weights).mkdir(parents=True)
    odd = changed(runner.recipe, "model", "llm", "weights", value=weights)
    runner.run(odd)
    record = json.loads((runner.place.directory / "stages/sft.json").read_text())
    assert record["slice"] == slice_json(odd, "sft")
    assert protect(slice_json(odd, "sft")) != slice_json(odd, "sft")


def test_a_home_that_kfp_would_rewrite_is_refused(
    runner: Runner, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = runner.home / "python3"
    monkeypatch.setenv("MANYEYES_HOME", str(home))
    with pytest.raises(UserError) as error:
        runner.run()
    assert str(error.value) == (
        f"kfp.local cannot work in {home}: it rewrites 'python3' and '{{{{' in paths; "
        "set MANYEYES_HOME to another folder."
    )


def test_without_pre_aligned_experts_there_is_no_loop(tmp_path: Path) -> None:
    recipe = load_recipe(RECIPE)
    skipped = recipe.model_copy(update={"prealign": PrealignSection(experts={})})
    tasks = read_documents(pipeline_yaml(skipped, None))[0]["components"]
    inside = next(part["dag"]["tasks"] for part in tasks.values() if "dag" in part)
    assert set(inside) == {"prepare", "validate", "pretrain", "sft", "eval", "register"}
    assert "experts" not in inside["pretrain"]["inputs"].get("artifacts", {})
