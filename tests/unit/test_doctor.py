"""doctor as a whole: the runner, the verb, its output and its exit codes."""

import json
import subprocess
import sys
import threading

import doctor_kit as kit
import pytest
from kubernetes_server import KubernetesServer

from manyeyes.cli import doctor as verb
from manyeyes.cli import main
from manyeyes.doctor import Answer, Check, Finding, run_checks
from manyeyes.doctor.cluster import CLUSTER_CHECKS, check_cluster

NAMES = ", ".join(check.name for check in CLUSTER_CHECKS)
SKIPPED = Answer(
    "the rest", [Finding("unchecked", f"Not looked at: {NAMES}.", "See the API server above.")]
)


def test_a_check_that_breaks_or_hangs_does_not_stop_the_rest():
    never = threading.Event()

    def breaks(_):
        raise ValueError("password=hidden")

    def hangs(_):
        never.wait(600)
        return []

    checks = (
        Check("hangs", hangs, seconds=0.2),
        Check("breaks", breaks),
        Check("fine", lambda context: [Finding("ok", context)]),
    )
    late, broken, fine = run_checks(checks, "text")
    never.set()
    assert late == Answer(
        "hangs",
        [
            Finding(
                "unchecked",
                "No answer within 0.2 s.",
                "Something on the way swallows connections, or this machine is very busy.",
                "Run the same command again; if it stays, look for a firewall or a proxy on the "
                "way.",
            )
        ],
    )
    (finding,) = broken.findings
    assert finding.what.startswith("The check itself failed with ValueError at test_doctor.py:")
    assert "hidden" not in str(broken)
    assert (finding.state, finding.why, finding.mend) == (
        "unchecked",
        "This is a fault of manyeyes; the other checks are not affected.",
        "Report it with this line and the output of: manyeyes --version",
    )
    assert fine == Answer("fine", [Finding("ok", "text")])


PLACES = {
    "this machine": [
        Answer("python", [Finding("ok", "Python 3.11.7.")]),
        Answer("git", [Finding("warning", "git is not installed.", "Because.", "apt-get x")]),
    ],
    "cluster (lab)": [
        Answer("pools", [Finding("problem", "Too small. " * 12, "It waits.", "kubectl y")]),
        Answer("nodes", [Finding("unchecked", "Not seen.", "We may not.")]),
    ],
}
TEXT = """\
This machine
  ok python  Python 3.11.7.
   ! git     git is not installed.
             Because.
             mend: apt-get x

Cluster (lab)
   X pools   Too small. Too small. Too small. Too small. Too small. Too small. Too small. Too small. Too
             small. Too small. Too small. Too small.
             It waits.
             mend: kubectl y
   ? nodes   Not seen.
             We may not.

1 problem, 1 warning, 1 not checked, 1 ok."""


def test_what_people_read():
    assert verb.as_text(PLACES) == TEXT


def test_what_programs_read():
    report = verb.findings_json(PLACES)
    assert report["ok"] is False
    assert report["findings"][1] == {
        "where": "this machine",
        "check": "git",
        "state": "warning",
        "what": "git is not installed.",
        "why": "Because.",
        "mend": "apt-get x",
    }


@pytest.mark.parametrize(
    ("state", "code"), [("ok", 0), ("warning", 0), ("unchecked", 0), ("problem", 1)]
)
def test_only_a_problem_makes_the_command_fail(monkeypatch, capsys, state, code):
    monkeypatch.setattr(
        "manyeyes.doctor.LOCAL_CHECKS", (Check("x", lambda _: [Finding(state, "it")]),)
    )
    assert main(["doctor", "--json"]) == code
    assert json.loads(capsys.readouterr().out)["ok"] is (code == 0)


def test_this_machine_is_looked_at_without_heavy_imports():
    script = (
        "import sys\n"
        "from manyeyes.doctor import LOCAL_CHECKS, run_checks, this_machine\n"
        "run_checks(LOCAL_CHECKS, this_machine(None))\n"
        "heavy = {'torch', 'transformers', 'mlflow', 'kfp', 'kubernetes', 'pandas', 'dvc'}\n"
        "print(sorted(heavy & set(sys.modules)))\n"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert found.stdout == "[]\n", found.stderr


def test_a_cluster_out_of_reach_is_one_problem(tmp_path, monkeypatch):
    with KubernetesServer() as server:
        monkeypatch.setenv("KUBECONFIG", str(server.write_kubeconfig(tmp_path / "config")))
        url = server.url
    assert check_cluster(kit.parse(kit.profile_content()), None) == [
        Answer(
            "API server",
            [
                Finding(
                    "problem",
                    f"The API server {url} cannot be reached (NewConnectionError).",
                    "Nothing of the cluster can be checked, and nothing can be submitted.",
                    "kubectl cluster-info, and check the address, VPN and proxy",
                )
            ],
        ),
        SKIPPED,
    ]


@pytest.mark.parametrize(
    ("text", "reason"),
    [(None, "ConfigException"), ("clusters: {", "ParserError")],
    ids=["missing", "broken"],
)
def test_a_kubeconfig_that_cannot_be_used(tmp_path, monkeypatch, text, reason):
    path = tmp_path / "config"
    if text is not None:
        path.write_text(text)
    monkeypatch.setenv("KUBECONFIG", str(path))
    assert check_cluster(kit.parse(kit.profile_content()), None) == [
        Answer(
            "API server",
            [
                Finding(
                    "problem",
                    f"There is no usable kubeconfig ({reason}).",
                    "It says where the cluster is and who you are.",
                    "export KUBECONFIG=FILE, then: kubectl cluster-info",
                )
            ],
        ),
        SKIPPED,
    ]


def test_the_verb_looks_into_a_cluster_and_shows_no_secret(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("manyeyes.doctor.LOCAL_CHECKS", ())
    path = tmp_path / "lab.yaml"
    path.write_text(json.dumps({"profile": kit.profile_content()}))
    with KubernetesServer() as server:
        kit.furnish(server)
        monkeypatch.setenv("KUBECONFIG", str(server.write_kubeconfig(tmp_path / "config")))
        assert main(["doctor", "--profile", str(path)]) == 1
        changes = {request[0] for request in server.requests} - {"get", "list"}
    shown = capsys.readouterr().out
    assert "ok secrets" in shown
    assert "hidden" not in shown
    assert changes == set()


def test_a_pod_that_runs_doctor_inside_is_valid_and_restricted(tmp_path, capsys):
    import kubernetes_validate

    path = tmp_path / "lab.yaml"
    path.write_text(json.dumps({"profile": kit.profile_content()}))
    assert main(["doctor", "--profile", str(path), "--pod"]) == 0
    config, pod = json.loads(capsys.readouterr().out)["items"]
    for item in (config, pod):
        kubernetes_validate.validate(item, "1.34", strict=True)
    given = kit.parse(json.loads(config["data"]["profile.yaml"])["profile"])
    assert given == kit.parse(kit.profile_content())
    spec, container = pod["spec"], pod["spec"]["containers"][0]
    assert spec["securityContext"]["runAsNonRoot"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
    assert container["command"][-1] == "/profile/profile.yaml"


def test_a_pod_needs_the_profile_of_a_cluster(capsys):
    assert main(["doctor", "--profile", "laptop", "--pod"]) == 2
    assert capsys.readouterr().err == "--pod needs the profile of a cluster: give --profile NAME.\n"
