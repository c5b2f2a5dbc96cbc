"""What ``manyeyes run`` tells and places is its own: not another run's, not another registry's.

The test makes the stages in the place of kfp.local: what they hold does not matter here.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from pipeline_kit import small_recipe

import manyeyes
from manyeyes import steps
from manyeyes.artifact.manifest import Header, read_manifest, write_manifest
from manyeyes.artifact.marker import mark
from manyeyes.cli import main
from manyeyes.config.recipe import load_recipe
from manyeyes.errors import GateRefused, ManyeyesError
from manyeyes.evaluation import score
from manyeyes.kubeflow.pipelines import local
from manyeyes.pipeline.explain import explain
from manyeyes.pipeline.fingerprint import run_key
from manyeyes.pipeline.stages.register import why_again
from manyeyes.registry import registry
from manyeyes.runtime.home import home as home_folder
from manyeyes.runtime.locks import held
from manyeyes.store import open_store
from manyeyes.tracking.records import Process, read_record
from manyeyes.tracking.store import locate


class NoScores:
    """Stands for the scores of an evaluation, which are not looked at here."""

    def flat(self):
        return {"average": 0.0}


class World:
    """The registries there are, and how often the pipeline ran."""

    def __init__(self, folder):
        self.folder = folder
        self.registries = {}
        self.runs = 0

    def has(self, *version):
        return version in self.registries.get(locate().uri, [])

    def run_local(self, recipe, *, run, progress, recorded, variants=()):
        """Make what is missing; register always looks at the registry in use."""
        self.runs += 1
        with recorded():
            while missing := [answer for answer in explain(recipe) if not answer.cached]:
                self.make(recipe, missing[0])
            last = explain(recipe)[-1]
            if why_again(open_store().lookup(last.fingerprint).details):
                self.make(recipe, last)

    def make(self, recipe, answer):
        folder = self.folder / "made" / f"{len(list(self.folder.glob('made/*')))}"
        folder.mkdir(parents=True)
        details = self.register(recipe) if answer.task.stage == "register" else {}
        (folder / "content.json").write_text(json.dumps([answer.fingerprint, details]))
        header = Header(
            kind=steps.step(answer.task.stage).writes, stage=answer.task.stage,
            name=answer.task.expert or answer.task.stage, recipe_slice="", fingerprint=answer.fingerprint,
            parents={}, code="", revision="", libraries={}, seed=0, details=details,
        )  # fmt: skip
        manifest = write_manifest(folder, header)
        store = open_store()
        store.remember(answer.fingerprint, store.put(folder, manifest), manifest.digest)

    def register(self, recipe):
        known = self.registries.setdefault(locate().uri, [])
        digest = run_key(recipe)
        versions = [version for version in known if version[2] == digest]
        if not versions:
            versions = [(recipe.registration.model_name, len(known) + 1, digest)]
            known += versions
        name, version, _ = versions[0]
        return {
            "name": name, "version": version, "digest": digest, "aliases": ["candidate"],
            "passed": True, "reasons": [], "tracking_store": locate().key,
        }  # fmt: skip


@pytest.fixture
def world(home, tmp_path, monkeypatch):
    """A folder with a recipe, in which a run makes its stages at once."""
    found = World(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(score, "read_scores", lambda _: NoScores())
    monkeypatch.setattr(local, "run_local", found.run_local)
    monkeypatch.setattr(registry, "is_registered", found.has)
    small_recipe(tmp_path)
    return found


@pytest.fixture
def run(world, capsys):
    """Run a recipe; return what it printed."""

    def call(recipe="recipe.yaml", *arguments):
        capsys.readouterr()
        assert main(["run", recipe, "--json", *arguments]) == 0
        return json.loads(capsys.readouterr().out)

    return call


def placed(out):
    """Return what lies where a person looks for the registration."""
    return read_manifest(out / "register").details


def test_another_registry_gets_the_model_once_and_the_folder_tells_of_it(
    world, run, tmp_path, monkeypatch
):
    first = run()
    assert (first["nothing_to_do"], world.runs) == (False, 1)
    assert (run()["nothing_to_do"], world.runs) == (True, 1)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/other.db")
    world.registries[locate().uri] = [("someone", 1, "x"), ("else", 2, "x")]
    second = run()
    assert (second["nothing_to_do"], world.runs) == (False, 2)
    assert second["registered"]["version"] == 3
    again = run()
    assert (again["nothing_to_do"], world.runs) == (True, 2)
    assert again["registered"]["version"] == placed(tmp_path / first["out"])["version"] == 3


def test_explain_tells_of_a_registry_that_lacks_the_model(world, run, tmp_path, monkeypatch):
    run()
    recipe = load_recipe(world.folder / "recipe.yaml")
    name = recipe.registration.model_name

    def told():
        return {(answer.cached, answer.reason) for answer in explain(recipe) if not answer.cached}

    assert told() == set()
    known = world.registries.pop(locate().uri)
    assert told() == {
        (False, f"will run: MLflow at {locate().shown} no longer has version 1 of {name}")
    }
    world.registries[locate().uri] = known
    assert told() == set()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://someone:secret@127.0.0.1:9")
    assert told() == {
        (False, "will run: it was registered in another MLflow than http://127.0.0.1:9")
    }


def test_explain_tells_that_the_champion_changed(world, monkeypatch):
    champion = ["one"]
    register = world.register
    monkeypatch.setattr(registry, "standing", lambda _: champion[0])
    monkeypatch.setattr(
        world, "register", lambda recipe: {**register(recipe), "passed": False, "standing": "one"}
    )
    assert main(["run", "recipe.yaml", "--json"]) == 3
    recipe = load_recipe(world.folder / "recipe.yaml")
    assert explain(recipe)[-1].cached
    champion[0] = "two"
    assert explain(recipe)[-1].reason == (
        f"will run: the champion of {recipe.registration.model_name} is another one, or was "
        "measured again"
    )


def test_explain_answers_where_the_registry_does_not(world, run, monkeypatch):
    def away(*_):
        raise ManyeyesError("MLflow at http://127.0.0.1:9 did not answer.")

    run()
    monkeypatch.setattr(registry, "is_registered", away)
    answer = explain(load_recipe(world.folder / "recipe.yaml"))[-1]
    assert (answer.cached, answer.reason) == (
        False,
        "will run: whether its result holds is not known: MLflow at http://127.0.0.1:9 did not "
        "answer",
    )


def test_the_report_of_a_refused_validation_lies_where_the_results_would(
    world, monkeypatch, capsys
):
    def refuse(recipe, *, run, **_):
        place = home_folder() / "runs" / run / "validate.refused"
        place.mkdir(parents=True)
        (place / "report.html").write_text(f"attempt {world.runs}")
        mark(place)
        world.runs += 1
        raise GateRefused(f"validate: Too bad. The full report is {place / 'report.html'}.")

    monkeypatch.setattr(local, "run_local", refuse)
    for attempt in range(2):
        assert main(["run", "recipe.yaml", "--json", "--out", "mine"]) == 3
        assert capsys.readouterr().err.endswith(
            "validate: Too bad. The full report is mine/validate.refused/report.html.\n"
        )
        report = world.folder / "mine/validate.refused/report.html"
        assert report.read_text() == f"attempt {attempt}"


def test_a_moved_project_has_nothing_to_do(world, run, tmp_path, monkeypatch):
    run("recipe.yaml")
    known = world.registries[locate().uri]
    (tmp_path / "home").rename(tmp_path / "moved")
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "moved"))
    world.registries[locate().uri] = known
    assert (run("recipe.yaml")["nothing_to_do"], world.runs) == (True, 1)


def test_two_variants_with_one_name_and_folder_tell_their_own_version(world, run, tmp_path):
    text = (tmp_path / "recipe.yaml").read_text()
    (tmp_path / "variant.yaml").write_text(text.replace("limit: 6", "limit: 5"))
    versions = [run(name)["registered"]["version"] for name in ("recipe.yaml", "variant.yaml")]
    assert versions == [1, 2]
    assert run("recipe.yaml")["registered"]["version"] == 1
    assert placed(tmp_path / run("variant.yaml")["out"])["version"] == 2


def test_a_result_that_was_changed_in_place_is_put_back(run, tmp_path):
    out = tmp_path / run()["out"]
    path = out / "sft/content.json"
    whole = path.read_text()
    path.chmod(0o644)
    path.write_text(whole.replace("[", "{"))
    assert run()["nothing_to_do"] is True
    assert path.read_text() == whole


def everything(home):
    return {
        path.relative_to(home): path.read_bytes()
        for path in home.rglob("*")
        if path.is_file() and path.suffix != ".lock"
    }


def test_a_second_run_that_is_refused_changes_nothing(world, run, home, monkeypatch, capsys):
    """The record of the run that goes on stays as it is, and so does every other file."""
    run()
    recipe = load_recipe(world.folder / "recipe.yaml")
    name = run_key(recipe)
    monkeypatch.undo()
    monkeypatch.setenv("MANYEYES_HOME", str(home))
    monkeypatch.chdir(world.folder)
    store = open_store()
    store.backend.write(f"index/{explain(recipe)[-1].fingerprint}.json", b"gone")
    before = everything(home)
    with held(home / "locks" / f"run-{name}.lock"):
        assert main(["run", "recipe.yaml"]) == 2
    assert capsys.readouterr().err.endswith(
        f"Run {name} is going on in another process; wait for it or stop it.\n"
    )
    assert everything(home) == before


def test_a_run_with_nothing_to_do_ends_the_record_of_a_killed_one(world, run, home):
    run()
    name = run_key(load_recipe(world.folder / "recipe.yaml"))
    path = home / f"runs/{name}/track/pipeline.json"
    gone = Process(pid=2**22 + 1, created=1.0)
    killed = read_record(path).model_copy(update={"status": "RUNNING", "process": gone})
    path.write_text(killed.model_dump_json())
    run()
    assert read_record(path).status == "FINISHED"


def test_what_was_set_is_recorded_with_the_run_and_makes_another_one(world, run, home):
    plain = run()
    words = ["--set", "sft.steps=3", "--set", "seed=5"]
    other = run("recipe.yaml", *words)
    assert (other["nothing_to_do"], other["run"] == plain["run"]) == (False, False)
    told = read_record(home / f"runs/{other['run']}/track/pipeline.json").tags
    assert told["overrides"] == "sft.steps=3\nseed=5"
    assert "overrides" not in read_record(home / f"runs/{plain['run']}/track/pipeline.json").tags
    assert run("recipe.yaml", *words)["nothing_to_do"] is True


def test_a_run_from_python_is_the_same_run(world, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    first = manyeyes.train("recipe.yaml", quiet=True)
    assert (first.nothing_to_do, world.runs) == (False, 1)
    assert run()["nothing_to_do"] is True
    again = manyeyes.train(load_recipe(tmp_path / "recipe.yaml"), quiet=True)
    assert (again.nothing_to_do, world.runs) == (True, 1)
    assert again.registered == first.registered == placed(again.out)
    assert again.checkpoint == Path("runs/eagle-x5-tiny/sft")
    assert read_manifest(again.checkpoint).kind == "checkpoint"
    assert again.report == Path("runs/eagle-x5-tiny/eval/report.html")
    other = manyeyes.train("recipe.yaml", out="mine", quiet=True)
    assert (other.nothing_to_do, other.out) == (True, Path("mine"))
