"""``submit``, ``status``, ``logs``, ``cancel`` and ``resume`` against a KFP server that behaves.

The command line, the real ``kfp.Client`` and the real Kubernetes client run in this process; only
the waiting is cut short.
"""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from kfp_server import Fault, KfpServer

from manyeyes.cli import main, remote
from manyeyes.config.recipe import load_recipe, with_overrides
from manyeyes.kubeflow.pipelines import kubeflow, submissions, submit
from manyeyes.kubeflow.pipelines.compile import Compiled, compile_for

ROOT = Path(__file__).parents[2]
RECIPE = str(ROOT / "recipes/tiny/eagle-x5.yaml")
TOKEN = "a-token-of-some-length"
RUNS = "/apis/v2beta1/runs"
UPLOAD = "/apis/v2beta1/pipelines/upload_version"


@pytest.fixture
def server() -> Iterator[KfpServer]:
    with KfpServer(token=TOKEN) as running:
        yield running


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture(scope="module")
def compiled() -> Compiled:
    """Return what is submitted where its content does not matter; compiling takes seconds here."""
    found = compile_for(load_recipe(Path(RECIPE)), submit.cluster_profile("gke-like"))
    assert found.pipeline == "eagle-x5-tiny"
    return found


@pytest.fixture(autouse=True)
def compile_once(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, compiled: Compiled
) -> None:
    if request.function is not test_a_recipe_is_uploaded_run_waited_for_and_its_logs_are_read:
        monkeypatch.setattr(submit, "compile_for", lambda _recipe, _profile: compiled)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch, waits: list[float], tmp_path: Path) -> None:
    """Wait for nothing, in a folder of its own, with a token."""
    monkeypatch.setattr(time, "sleep", waits.append)
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KFP_TOKEN", TOKEN)
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "kubeconfig"))
    monkeypatch.chdir(tmp_path)


def write_profile(folder: Path, url: str, **changes: tuple[str, str]) -> str:
    """Write the profile of a managed cluster with another address; return its path."""
    text = (ROOT / "infra/profiles/gke-like.yaml").read_text()
    text = text.replace("https://kubeflow.example.org/pipeline", url)
    text = text.replace("context: gke_example-project_europe-west4_training", "context: fake")
    for old, new in changes.values():
        assert old in text
        text = text.replace(old, new)
    path = folder / "cluster.yaml"
    path.write_text(text)
    kubeconfig = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "fake", "cluster": {"server": url}}],
        "users": [{"name": "fake", "user": {"token": "kubernetes"}}],
        "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
    }
    (folder / "kubeconfig").write_text(json.dumps(kubeconfig))
    return str(path)


@pytest.fixture
def profile(server: KfpServer, tmp_path: Path) -> str:
    return write_profile(tmp_path, server.url)


def succeed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = main([*arguments])
    said = capsys.readouterr()
    assert code == 0, said.err
    return said.out


def succeed_json(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    return json.loads(succeed(capsys, *arguments, "--json"))


def fail(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str]:
    code = main([*arguments])
    return code, capsys.readouterr().err.rstrip("\n")


# ---- the whole way -------------------------------------------------------------------------------


def test_a_value_of_the_recipe_and_a_pipeline_input_are_set_by_the_same_option(
    server: KfpServer,
    profile: str,
    compiled: Compiled,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    sent = []
    monkeypatch.setattr(
        submit, "compile_for", lambda recipe, _profile: sent.append(recipe) or compiled
    )
    words = ["--set", "sft.steps=3", "--set", "eval_gpus=2", "--set", "seed=5"]
    succeed(capsys, "submit", RECIPE, "--profile", profile, *words)
    assert sent == [with_overrides(Path(RECIPE), ["sft.steps=3", "seed=5"])]
    (run,) = server.runs.values()
    assert run.body["runtime_config"] == {"parameters": {"eval_gpus": "2"}}


def test_a_recipe_is_uploaded_run_waited_for_and_its_logs_are_read(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    inputs = ["--set", 'a100_nodes={"pool": "b"}', "--set", "eval_gpus=2"]
    answer = succeed_json(capsys, "submit", RECIPE, "--profile", profile, "--wait", *inputs)
    succeed(capsys, "compile", RECIPE, "--profile", profile, "-o", "pipeline.yaml")
    assert server.uploads == {answer["version"]: (tmp_path / "pipeline.yaml").read_bytes()}
    (version,) = server.versions.values()
    assert set(version["tags"]) == {"recipe", "run", "revision", "profile"}
    assert version["tags"]["recipe"] == "eagle-x5-tiny"
    (run,) = server.runs.values()
    assert answer["run"] == run.body["run_id"]
    assert answer["state"] == run.state == "SUCCEEDED"
    assert answer["link"] == f"{server.url}/#/runs/details/{answer['run']}"
    assert run.body["display_name"] == answer["name"]
    assert run.body["service_account"] == "manyeyes-launcher"
    assert run.body["runtime_config"] == {
        "parameters": {"a100_nodes": {"pool": "b"}, "eval_gpus": "2"}
    }
    assert {one["namespace"] for one in server.experiments.values()} == {"team-vision"}
    status = succeed_json(capsys, "status")
    assert status["state"] == "SUCCEEDED"
    assert [task["name"] for task in status["tasks"]] == [
        "prepare", "validate", "experts", "prealign 1", "prealign 2", "pretrain", "sft", "eval",
        "register", "finalize",
    ]  # fmt: skip
    assert {task["state"] for task in status["tasks"]} == {"SUCCEEDED"}
    lines = [json.loads(line) for line in succeed(capsys, "logs", "--json").splitlines()]
    assert [line["step"] for line in lines].count("prealign") == 2
    assert {line["text"] for line in lines} == {"line 1"}
    only = succeed(capsys, "logs", RECIPE, "--step", "sft")
    assert only == "sft 000006  line 1\nsft 000006  line 2\n"


def test_the_same_version_is_uploaded_once(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    names = {succeed_json(capsys, "submit", RECIPE, "--profile", profile)["name"] for _ in "12"}
    assert len(names) == len(server.runs) == 2
    assert server.count(f"POST {UPLOAD}") == 1
    assert len(server.experiments) == len(server.pipelines) == len(server.versions) == 1


def test_a_single_user_server_is_sent_no_namespace(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    with KfpServer(multi_user=False) as server:
        profile = write_profile(tmp_path, server.url)
        succeed(capsys, "submit", RECIPE, "--profile", profile)
        assert len(server.runs) == 1


def test_status_tells_where_a_run_is(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    succeed(capsys, "submit", RECIPE, "--profile", profile)
    for _ in range(2):
        succeed(capsys, "status")
    told = succeed_json(capsys, "status", "eagle-x5-tiny")
    assert [(task["name"], task["state"]) for task in told["tasks"]] == [
        ("prepare", "SUCCEEDED"), ("validate", "SUCCEEDED"), ("experts", "RUNNING"),
    ]  # fmt: skip
    assert told["tasks"][1]["started"] == "2026-11-21T08:01:00+00:00"
    assert told["tasks"][1]["ended"] == "2026-11-21T08:01:50+00:00"
    assert told["tasks"][2]["ended"] is None
    assert told["ended"] is None
    shown = succeed(capsys, "status")
    assert "validate" in shown
    assert "0:00:50" in shown


def test_logs_are_followed_until_the_run_ends_and_no_line_comes_twice(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    succeed(capsys, "submit", RECIPE, "--profile", profile)
    server.faults.append(Fault("GET", "/api/v1/.*/log", "drop before", times=2))
    server.faults.append(Fault("GET", "/api/v1/.*/pods", 500))
    followed = succeed(capsys, "logs", "-f").splitlines()
    assert len(followed) == len(set(followed))
    seen = {(line.split()[0], line.split()[1]) for line in followed}
    assert len(seen) == 10
    for pod, lines in server.logs.items():
        shown = [line for line in followed if line.split()[1] == pod[-6:]]
        assert len(shown) == len(lines)


def test_a_cancelled_run_is_resumed_as_the_same_version_with_its_inputs(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    first = succeed_json(capsys, "submit", RECIPE, "--profile", profile, "--set", "eval_gpus=4")
    assert fail(capsys, "resume") == (
        2,
        f"Run {first['run']} still goes on (running): follow it with manyeyes status, or stop it "
        "with manyeyes cancel.",
    )
    assert succeed_json(capsys, "cancel")["run"] == first["run"]
    assert succeed_json(capsys, "status")["state"] == "CANCELED"
    assert fail(capsys, "cancel") == (2, f"Run {first['run']} has ended already (canceled).")
    second = succeed_json(capsys, "resume", "--wait")
    assert second["run"] != first["run"]
    assert second["version"] == first["version"]
    before, after = (server.runs[one["run"]].body for one in (first, second))
    assert after["pipeline_version_reference"] == before["pipeline_version_reference"]
    assert after["runtime_config"] == {"parameters": {"eval_gpus": "4"}}
    assert server.count(f"POST {UPLOAD}") == 1
    assert [one.run for one in submissions.submissions()] == [first["run"], second["run"]]


def test_a_run_started_elsewhere_is_found_by_its_id(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run = succeed_json(capsys, "submit", RECIPE, "--profile", profile)["run"]
    (tmp_path / "home/submissions.jsonl").unlink()
    assert succeed_json(capsys, "status", run, "--profile", profile)["run"] == run


def test_a_failed_run_ends_the_wait_with_the_failed_step(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    server.fail_at = 6
    code, said = fail(capsys, "submit", RECIPE, "--profile", profile, "--wait")
    (run,) = server.runs
    assert code == 1
    assert said.splitlines()[-1] == (
        f"Run {run} failed: sft (exit code 1); manyeyes logs shows what it said, "
        "manyeyes resume continues."
    )


def test_a_run_cancelled_by_another_ends_the_wait(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    def stop(_seconds: float) -> None:
        for run in server.runs.values():
            run.state = "CANCELING"

    monkeypatch.setattr(time, "sleep", stop)
    code, said = fail(capsys, "submit", RECIPE, "--profile", profile, "--wait")
    (run,) = server.runs
    assert code == 75
    assert said.splitlines()[-1] == f"Run {run} was cancelled; manyeyes resume continues it."


# ---- faults that pass ----------------------------------------------------------------------------

PASSING = {
    "run-lost-answer": Fault("POST", RUNS, "drop after"),
    "run-lost-request": Fault("POST", RUNS, "drop before"),
    "run-500": Fault("POST", RUNS, 500, times=3),
    "upload-lost-answer": Fault("POST", UPLOAD, "drop after"),
    "upload-503": Fault("POST", UPLOAD, 503, times=2),
    "upload-made-by-another": Fault("GET", ".*/versions", "drop before", times=1),
    "experiment-lost-answer": Fault("POST", "/apis/v2beta1/experiments", "drop after"),
    "pipeline-502": Fault("POST", "/apis/v2beta1/pipelines", 502),
    "healthz-504": Fault("GET", ".*/healthz", 504, times=4),
}


@pytest.mark.parametrize("name", PASSING)
def test_a_fault_that_passes_starts_exactly_one_run(
    name: str, server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    planned = PASSING[name]
    server.faults.append(Fault(planned.method, planned.path, planned.what, planned.times))
    answer = succeed_json(capsys, "submit", RECIPE, "--profile", profile)
    assert list(server.runs) == [answer["run"]]
    assert len(server.experiments) == len(server.pipelines) == len(server.versions) == 1
    assert server.faults[0].times == 0


def test_a_busy_server_is_asked_again_when_it_says(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str], waits: list[float]
) -> None:
    server.faults.append(Fault("POST", RUNS, 429, times=2, headers={"Retry-After": "17"}))
    succeed(capsys, "submit", RECIPE, "--profile", profile)
    assert waits == [17.0, 17.0]
    assert len(server.runs) == 1


def test_a_version_uploaded_by_another_at_the_same_moment_is_adopted(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    first = succeed_json(capsys, "submit", RECIPE, "--profile", profile)
    looks: list[str] = []
    honest = server.list_versions

    def blind_once(pipeline: str, **given: Any) -> Any:
        looks.append(pipeline)
        return (200, {}) if len(looks) == 1 else honest(pipeline, **given)

    monkeypatch.setattr(server, "list_versions", blind_once)
    second = succeed_json(capsys, "submit", RECIPE, "--profile", profile)
    assert len(looks) == 2
    assert second["version"] == first["version"]
    assert len(server.versions) == 1


# ---- faults that stay ----------------------------------------------------------------------------

AT = "The KFP API at {url}"
STAYING = {
    "500": (
        Fault("POST", RUNS, 500, times=99), 1,
        AT + " answered 500 (planned), 5 times in a row; if the address is right, try again later.",
    ),
    "dropped": (
        Fault("GET", ".*", "drop before", times=999), 1,
        AT + " does not answer (the connection was dropped), 5 times in a row; "
        "if the address is right, try again later.",
    ),
    "401": (
        Fault("GET", ".*/experiments", 401), 2,
        AT + " refused the token in $KFP_TOKEN: it is wrong or has expired; "
        "put a fresh one there and run the command again.",
    ),
    "403": (
        Fault("POST", RUNS, 403), 2,
        AT + " does not allow it: planned; ask for the role, or use another account.",
    ),
    "404": (
        Fault("POST", RUNS, 404), 1, AT + " refused the run {name}: 404 planned.",
    ),
    "409": (
        Fault("POST", UPLOAD, 409), 1, AT + " refused the pipeline version {version}: 409 planned.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", STAYING)
def test_a_fault_that_stays_is_one_sentence(
    name: str, server: KfpServer, profile: str, compiled: Compiled,
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(submit, "unique_name", lambda version: f"{version} now")
    planned, code, text = STAYING[name]
    server.faults.append(Fault(planned.method, planned.path, planned.what, planned.times))
    found = fail(capsys, "submit", RECIPE, "--profile", profile)
    version = compiled.version
    assert found == (code, text.format(url=server.url, name=f"{version} now", version=version))
    assert server.runs == {}
    assert submissions.submissions() == []


def test_a_server_that_is_away(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with KfpServer() as gone:
        profile = write_profile(tmp_path, gone.url)
    assert fail(capsys, "submit", RECIPE, "--profile", profile) == (
        1,
        f"The KFP API at {gone.url} does not answer (connection refused), 5 times in a row; "
        "if the address is right, try again later.",
    )


def test_a_token_that_expires_while_waiting(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(time, "sleep", lambda _seconds: setattr(server, "token", "new"))
    code, said = fail(capsys, "submit", RECIPE, "--profile", profile, "--wait")
    assert code == 2
    assert said.splitlines()[-1] == (
        f"The KFP API at {server.url} refused the token in $KFP_TOKEN: it is wrong or has expired; "
        "put a fresh one there and run the command again."
    )
    monkeypatch.setenv("KFP_TOKEN", "new")
    assert succeed_json(capsys, "status")["run"] in server.runs


def test_an_unknown_run(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for verb in ("status", "logs", "cancel", "resume"):
        expected = (
            f"The KFP API at {server.url} knows no run lost: it was deleted, or it belongs to "
            "another cluster; name its profile with --profile."
        )
        follow = ["-f"] if verb == "logs" else []
        assert fail(capsys, verb, "lost", "--profile", profile, *follow) == (2, expected)


def test_a_run_without_pods(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    run = succeed_json(capsys, "submit", RECIPE, "--profile", profile)["run"]
    assert fail(capsys, "logs") == (
        1,
        f"Run {run} has no pods in team-vision: none has begun, all came from a cache, or "
        "Kubernetes has removed them; manyeyes status tells which.",
    )


def test_kubernetes_that_wants_another_account(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    succeed(capsys, "submit", RECIPE, "--profile", profile)
    server.faults.append(Fault("GET", "/api/v1/.*", 403))
    assert fail(capsys, "logs") == (
        2,
        f"The Kubernetes API at {server.url} does not allow it: planned; "
        "ask for the role, or use another account.",
    )


def test_no_kubeconfig(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    succeed(capsys, "submit", RECIPE, "--profile", profile)
    (tmp_path / "kubeconfig").unlink()
    code, said = fail(capsys, "logs")
    assert code == 2
    assert said.startswith("Logs come from Kubernetes, and there is no way to it: ")
    assert said.endswith("; set KUBECONFIG, or kubeflow.context in the profile.")


# ---- what the user must change -------------------------------------------------------------------

WRONG = {
    "unknown": (
        "sft_gpu=4", "Unknown pipeline input 'sft_gpu': known are a100_nodes, a100_tolerations, "
        "cpu_nodes, cpu_tolerations, eval_gpus, prealign_gpus; did you mean 'eval_gpus'?",
    ),
    "no-number": (
        "eval_gpus=many", "Pipeline input eval_gpus is a number of GPUs, such as 4; got 'many'.",
    ),
    "no-json": (
        "cpu_nodes=pool", "Pipeline input cpu_nodes is JSON such as "
        '{"pool": "a100"}; got \'pool\'.',
    ),
    "numbers-inside": (
        'cpu_tolerations=[{"key": 3}]', "Pipeline input cpu_tolerations is JSON such as "
        '[{"key": "gpu", "operator": "Exists"}]; got \'[{"key": 3}]\'.',
    ),
    "no-value": ("eval_gpus", "--set wants KEY=VALUE, got 'eval_gpus'."),
    "secret-of-mine": (
        f'cpu_nodes={{"a": "{TOKEN}"}}', "There is the value of $KFP_TOKEN in the pipeline input "
        "cpu_nodes, and KFP shows it to everyone who can see a run; put it into a Kubernetes "
        "secret and name that under secrets in the profile.",
    ),
    "secret-by-shape": (
        'cpu_nodes={"a": "AKIAIOSFODNN7EXAMPLE"}', "There is an AWS access key in the pipeline "
        "input cpu_nodes, and KFP shows it to everyone who can see a run; put it into a Kubernetes "
        "secret and name that under secrets in the profile.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_input_is_refused_before_anything_is_sent(
    name: str, server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    word, text = WRONG[name]
    assert fail(capsys, "submit", RECIPE, "--profile", profile, "--set", word) == (2, text)
    assert server.requests == []


def test_a_missing_token_is_named(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.delenv("KFP_TOKEN")
    assert fail(capsys, "submit", RECIPE, "--profile", profile) == (
        2, "Profile gke-like takes the token for KFP from $KFP_TOKEN, which is not set.",
    )  # fmt: skip
    assert server.requests == []


def test_a_server_that_wants_a_token_nobody_named(
    server: KfpServer, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    profile = write_profile(tmp_path, server.url, token=("    token_variable: KFP_TOKEN", "   #"))
    assert fail(capsys, "submit", RECIPE, "--profile", profile) == (
        2,
        f"The KFP API at {server.url} wants to know who asks: log in again, or name the "
        "environment variable with a token as kubeflow.token_variable in the profile.",
    )


def test_the_token_is_written_nowhere(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    said = succeed(capsys, "submit", RECIPE, "--profile", profile, "--json")
    kept = [path.read_bytes() for path in (tmp_path / "home").rglob("*") if path.is_file()]
    kept += [said.encode(), *server.uploads.values()]
    kept += [json.dumps(run.body).encode() for run in server.runs.values()]
    assert len(kept) >= 4
    assert not any(TOKEN.encode() in data for data in kept)


def test_this_machine_is_no_cluster(capsys: pytest.CaptureFixture[str]) -> None:
    assert fail(capsys, "submit", RECIPE, "--profile", "laptop") == (
        2,
        "Profile laptop is this machine: use manyeyes run, or name a cluster's profile with "
        "--profile.",
    )


def test_nothing_submitted_and_an_unknown_word(
    server: KfpServer, profile: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, said = fail(capsys, "status")
    assert code == 2
    assert said == (
        f"Nothing was submitted from here ({tmp_path}/home/submissions.jsonl is empty): "
        "use manyeyes submit RECIPE --profile PROFILE, or name a run and --profile."
    )
    run = succeed_json(capsys, "submit", RECIPE, "--profile", profile)["run"]
    assert fail(capsys, "status", "eagle-x5") == (
        2,
        f"Unknown run 'eagle-x5': known are {', '.join(sorted([run, 'eagle-x5-tiny']))}; "
        "did you mean 'eagle-x5-tiny'?",
    )


def test_the_poll_intervals_are_seconds() -> None:
    assert (submit.POLL_SECONDS, remote.LOG_SECONDS, kubeflow.TIMEOUT) == (5.0, 2.0, 60)
