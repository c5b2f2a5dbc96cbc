"""How a stage is started: settings, names, manifests, references, redaction, exit codes."""

import json
import os
import sys
from pathlib import Path

import pytest
from launcher_kit import SCHEDULING, reference, settings

from manyeyes.artifact.manifest import Header, read_manifest, write_manifest
from manyeyes.config.profile import parse_profile
from manyeyes.errors import GateRefused, Interrupted, ManyeyesError, UserError
from manyeyes.pipeline import launch
from manyeyes.pipeline.launch.data import fetch_input, fingerprints_of, has_result
from manyeyes.pipeline.launch.manifest import check, job_name, train_job
from manyeyes.pipeline.launch.redact import Redactor
from manyeyes.pipeline.launch.reference import STAGE_CALL, read_stage_reference
from manyeyes.pipeline.launch.settings import (
    LAUNCH,
    InProcess,
    Mount,
    SecretReference,
    Torchrun,
    TrainJob,
    launch_settings,
    read_launch,
)
from manyeyes.pipeline.launch.torchrun import _error, train_under_torchrun
from manyeyes.runtime.journal import Event, write_event
from manyeyes.runtime.kubernetes import Owner
from manyeyes.store import Store

PROFILE = """
profile:
  kind: cluster
  name: here
  kubeflow: {endpoint: "https://kfp.example.org", namespace: research, experiment: e,
    service_account: steps}
  images: {control: "c@sha256:DIGEST", trainer: "t@sha256:DIGEST", pull_policy: IfNotPresent}
  storage: {bucket: b, prefix: p, region: r, secret: store, cache_path: /cache, cache_limit: 200Gi}
  tracking: {uri: "https://mlflow.example.org", secret: null}
  pools:
    cpu: {node_selector: {pool: cpu}}
    gpu: {node_selector: {pool: gpu}, gpu: nvidia.com/gpu}
  steps:
STEPS
  train_jobs:
    runtime: manyeyes-torch
    stages:
      sft: {pool: gpu, nodes: 4, gpus_per_node: 8, cpu: "64", memory: 800Gi, shared_memory: 64Gi}
    scheduling: {kind: kueue, queue: gpu}
    queue_minutes: null
    start_minutes: 30
    stall_minutes: 20
    restarts: 3
    on_terminate: suspend
"""


def profile():
    from manyeyes.config.profile.sections import STEP_NAMES

    gpus = {"prealign": 1, "pretrain": 8}
    lines = [
        f'    {name}: {{pool: {"gpu" if gpus.get(name) else "cpu"}, cpu: "4", memory: 8Gi, '
        f"gpus: {gpus.get(name, 0)}, timeout_minutes: 60, retries: 1}}"
        for name in STEP_NAMES
    ]
    text = PROFILE.replace("DIGEST", "a" * 64).replace("STEPS", "\n".join(lines))
    return parse_profile(text.strip(), "profile.yaml")


def of_profile(stage: str):
    return launch_settings(
        profile(),
        stage,
        environment={"MANYEYES_RUN": "r", LAUNCH: "never handed on"},
        secrets=[SecretReference(variable="A", secret="store", key="a")],
        mounts=[Mount(name="cache", path="/cache", claim="cache")],
    )


def test_a_profile_says_how_each_stage_is_started():
    assert of_profile("prealign") == InProcess()
    assert of_profile("pretrain") == Torchrun(kind="torchrun", processes=8)
    job = of_profile("sft")
    assert isinstance(job, TrainJob)
    assert (job.nodes, job.processes_per_node, job.gpu) == (4, 8, "nvidia.com/gpu")
    assert [mount.path for mount in job.mounts] == ["/dev/shm", "/cache"]
    assert job.environment == {"MANYEYES_RUN": "r"}


@pytest.mark.parametrize("stage", ["prealign", "pretrain", "sft"])
def test_settings_come_through_the_environment_unchanged(stage):
    made = of_profile(stage)
    assert read_launch({LAUNCH: made.model_dump_json()}) == made


def test_without_the_variable_a_stage_trains_in_its_own_process():
    assert read_launch({}) == InProcess()


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("{", "the whole: Invalid JSON: EOF while parsing an object at line 1 column 13"),
        (
            '{"kind": "torchrun"}',
            "torchrun.processes: Field required",
        ),
        (
            '{"kind": "torchrun", "processes": 2, "gpus": 1}',
            "torchrun.gpus: Extra inputs are not permitted",
        ),
    ],
)
def test_settings_that_cannot_be_read_are_refused(text, why):
    with pytest.raises(UserError) as refused:
        read_launch({LAUNCH: text})
    assert str(refused.value) == (
        f"{LAUNCH} cannot be read ({why}); compile the pipeline anew with the version of manyeyes "
        "that is in the image."
    )


@pytest.mark.parametrize(
    ("run", "stage", "name"),
    [
        ("tiny-0a1b2c3d", "sft", "tiny-0a1b2c3d-sft-9f86d081"),
        ("Eagle_X5.tiny", "pretrain", "eagle-x5-tiny-pretrain-9f86d081"),
        ("7b", "sft", "run-7b-sft-9f86d081"),
        ("_", "sft", "run-sft-9f86d081"),
        (
            "eagle-x5-vicuna-7b-1.8m-0a1b2c3d",
            "prealign",
            "eagle-x5-vicuna-7b-1-8-prealign-9f86d081",
        ),
        ("a" * 21 + "-" + "b" * 30, "prealign", "a" * 21 + "-prealign-9f86d081"),
    ],
)
def test_a_jobs_name_is_a_short_dns_label(run, stage, name):
    assert job_name(run, stage, "9f86d081884c7d65") == name
    assert len(name) <= 40


@pytest.mark.parametrize("scheduling", list(SCHEDULING))
def test_a_train_job_is_valid_and_says_all_a_stage_needs(scheduling):
    owner = Owner(api_version="argoproj.io/v1alpha1", kind="Workflow", name="w", uid="1")
    job = train_job(settings(scheduling), reference(), attempt=2, owner=owner)
    check(job)
    spec, trainer = job["spec"], job["spec"]["trainer"]
    assert spec["runtimeRef"] == {
        "apiGroup": "trainer.kubeflow.org",
        "kind": "TrainingRuntime",
        "name": "manyeyes-torch",
    }
    assert trainer["command"] == ["python", "-m", "manyeyes.pipeline.launch.torchrun"]
    assert (trainer["numNodes"], trainer["numProcPerNode"]) == (2, 8)
    assert trainer["resourcesPerNode"]["limits"] == {
        "cpu": "32",
        "memory": "400Gi",
        "nvidia.com/gpu": "8",
    }
    plain = {entry["name"]: entry.get("value") for entry in trainer["env"]}
    assert plain["AWS_SECRET_ACCESS_KEY"] is None
    assert read_stage_reference({STAGE_CALL: plain[STAGE_CALL]}) == reference()
    (patch,) = spec["runtimePatches"]
    assert patch["manager"] == "manyeyes/launcher"
    assert spec.get("suspend", False) == (scheduling == "kueue")
    assert ("kueue.x-k8s.io/queue-name" in job["metadata"]["labels"]) == (scheduling == "kueue")
    queue = job["metadata"]["annotations"].get("scheduling.volcano.sh/queue-name")
    assert queue == ("gpu" if scheduling == "volcano" else None)
    assert "ttlSecondsAfterFinished" not in json.dumps(job)
    assert job["metadata"]["ownerReferences"] == [owner.model_dump(by_alias=True)]


def test_a_field_that_the_trainer_does_not_know_is_refused():
    job = train_job(settings(), reference(), attempt=1, owner=None)
    job["spec"]["podTemplateOverrides"] = []
    with pytest.raises(ManyeyesError) as refused:
        check(job)
    assert str(refused.value) == (
        "The TrainJob has fields that Kubeflow Trainer v1alpha1 does not know: "
        ".spec.podTemplateOverrides."
    )


def test_a_reference_survives_the_expansion_of_variables_by_kubernetes():
    call = reference().model_copy(update={"recipe_slice": '{"prompt":"costs $(HOME) or $$5"}'})
    text = call.text()
    assert "$" not in text
    assert read_stage_reference({STAGE_CALL: text}) == call


def test_a_reference_that_no_variable_can_hold_is_refused():
    call = reference().model_copy(update={"recipe_slice": "x" * 100_000})
    with pytest.raises(UserError) as refused:
        call.text()
    size = len(json.dumps(call.model_dump(mode="json")))
    assert str(refused.value) == (
        f"The recipe's part for stage sft is {size} bytes of JSON, but a job can be handed 100000; "
        "shorten the recipe."
    )


@pytest.mark.parametrize(
    ("line", "shown"),
    [
        ("step 12/450 loss 1.24 tokens/s 5310", "step 12/450 loss 1.24 tokens/s 5310"),
        ("pad_token: <unk>, secrets of the sea", "pad_token: <unk>, secrets of the sea"),
        ("key is topsecretvalue!", "key is [hidden]!"),
        ("s3://AKIAABCDEFGHIJKLMNOP/x", "s3://[hidden]/x"),
        ("Authorization: Bearer abcdef0123456789", "Authorization: Bearer [hidden]"),
        ("HF_TOKEN hf_abcdefghijklmnopqrst", "HF_TOKEN [hidden]"),
        ("postgresql://me:pw@db:5432/mlflow", "postgresql://[hidden]@db:5432/mlflow"),
        ("connect password=hunter2;port=1", "connect password=[hidden];port=1"),
    ],
)
def test_secrets_are_taken_out_of_lines(line, shown):
    assert Redactor({"STORE_SECRET": "topsecretvalue", "TOKEN": "1"})(line) == shown


@pytest.mark.parametrize(
    ("code", "kind"),
    [(75, Interrupted), (2, UserError), (3, GateRefused), (1, ManyeyesError)],
)
def test_torchruns_end_means_what_its_first_failed_process_meant(tmp_path, code, kind):
    journal = tmp_path / "journal.jsonl"
    write_event(journal, Event("sft", "started"))
    write_event(journal, Event("sft", "failed", message="What happened.", exit_code=code))
    write_event(journal, Event("sft", "failed", message="Killed by torchrun.", exit_code=1))
    error = _error(journal, 1)
    assert (type(error), str(error)) == (kind, "What happened.")


def test_processes_that_say_nothing_are_reported_by_torchruns_code(tmp_path):
    assert str(_error(tmp_path / "none", 1)) == (
        "The training processes ended without saying why (torchrun's exit code is 1); one may have "
        "been killed, for instance for its memory: see the lines above."
    )


def test_two_processes_are_started_and_their_end_is_told(tmp_path, monkeypatch):
    program = tmp_path / "fake_process.py"
    program.write_text(
        "import os, sys, time\n"
        "from manyeyes.runtime.journal import JOURNAL, Event, write_event\n"
        "from pathlib import Path\n"
        "rank = os.environ['RANK']\n"
        f"Path({str(tmp_path)!r}, 'rank-' + rank).write_text(os.environ.get('{LAUNCH}', 'none'))\n"
        "failed = Event('sft', 'failed', message='Saved at step 7.', exit_code=75)\n"
        "write_event(Path(os.environ[JOURNAL]), failed)\n"
        # The first process to end ends the others, so both wait until both have told.
        f"while len(list(Path({str(tmp_path)!r}).glob('rank-*'))) < 2:\n"
        "    time.sleep(0.05)\n"
        "sys.exit(75)\n"
    )
    monkeypatch.setenv("PYTHONPATH", f"{tmp_path}{os.pathsep}{os.pathsep.join(sys.path)}")
    monkeypatch.setenv(LAUNCH, '{"kind": "torchrun", "processes": 2}')
    with pytest.raises(Interrupted, match=r"^Saved at step 7\.$"):
        train_under_torchrun(reference(), 2, "fake_process")
    told = {path.name: path.read_text() for path in tmp_path.glob("rank-*")}
    assert told == {"rank-0": "none", "rank-1": "none"}


def artifact(folder: Path, fingerprint: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "data.txt").write_text("data")
    header = Header(
        kind="dataset",
        stage="prepare",
        name="prepare",
        recipe_slice="s",
        fingerprint=fingerprint,
        parents={},
        code="c",
        revision="r",
        libraries={},
        seed=0,
    )
    write_manifest(folder, header)
    return folder


def test_inputs_are_named_by_fingerprint_and_fetched_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "home"))
    path = artifact(tmp_path / "dataset", "f" * 64)
    assert fingerprints_of({"dataset": path, "experts": [path]}) == {
        "dataset": ("f" * 64,),
        "experts": ("f" * 64,),
    }
    store, manifest = Store(tmp_path / "home" / "store"), read_manifest(path)
    with pytest.raises(ManyeyesError) as missing:
        fetch_input("f" * 64)
    assert str(missing.value) == (
        "The store has no whole artifact under the fingerprint ffffffffffff, which this stage "
        "reads; check that this pod and the launching step use the same store."
    )
    store.remember("f" * 64, store.put(path, manifest), manifest.digest)
    assert has_result("f" * 64)
    fetched = fetch_input("f" * 64)
    assert (fetched / "data.txt").read_text() == "data"
    assert fetch_input("f" * 64) == fetched


def have(tmp_path: Path) -> None:
    launch.have_made("sft", "{}", inputs={}, out=str(tmp_path / "out"), fingerprint="a.b.c")


def test_a_result_that_exists_is_not_made_again_and_one_that_is_missing_is_an_error(
    tmp_path, monkeypatch
):
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "home"))
    monkeypatch.setenv(LAUNCH, '{"kind": "torchrun", "processes": 2}')
    started = []
    monkeypatch.setattr(
        "manyeyes.pipeline.launch.torchrun.train_under_torchrun",
        lambda *given: started.append(given),
    )
    with pytest.raises(ManyeyesError) as missing:
        have(tmp_path)
    (call, processes) = started.pop()
    assert processes == 2
    assert str(missing.value) == (
        f"Stage sft was trained, but the store has no result under {call.key[:12]}: the training "
        "processes and this step must use the same store."
    )
    path = artifact(tmp_path / "made", call.key)
    store, manifest = Store(tmp_path / "home" / "store"), read_manifest(path)
    store.remember(call.key, store.put(path, manifest), manifest.digest)
    have(tmp_path)
    monkeypatch.delenv(LAUNCH)
    have(tmp_path)
    assert started == []
