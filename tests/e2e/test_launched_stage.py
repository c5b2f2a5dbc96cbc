"""A stage as a TrainJob, from the step to its result: only the cluster is played."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from kubernetes_server import KubernetesServer
from launcher_kit import settings
from pipeline_kit import environment, small_recipe

from manyeyes.config.recipe import load_recipe
from manyeyes.config.recipe.slices import slice_json
from manyeyes.pipeline.fingerprint import fingerprint_text
from manyeyes.pipeline.launch.manifest import job_name
from manyeyes.pipeline.launch.objects import INDEX_LABEL
from manyeyes.pipeline.launch.settings import LAUNCH
from manyeyes.pipeline.worker import protect, run_step
from manyeyes.store import open_store
from manyeyes.store.pointer import read_input

pytestmark = pytest.mark.e2e


class Kubelet:
    """Runs the one pod of a TrainJob as a process of this machine."""

    def __init__(self, server: KubernetesServer, folder: Path) -> None:
        self.server = server
        self.folder = folder
        server.on_create["trainjobs"] = lambda job: server.clock.at(5, lambda: self.run(job))

    def run(self, job: dict[str, Any]) -> None:
        trainer = job["spec"]["trainer"]
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = str(listener.getsockname()[1])
        rendezvous = {
            "PET_NNODES": str(trainer["numNodes"]),
            "PET_NPROC_PER_NODE": str(trainer["numProcPerNode"]),
            "PET_NODE_RANK": "0",
            "PET_MASTER_ADDR": "127.0.0.1",
            "PET_MASTER_PORT": port,
        }
        given = {entry["name"]: entry["value"] for entry in trainer["env"] if "value" in entry}
        base = {key: value for key, value in environment(self.folder).items() if key != LAUNCH}
        ended = subprocess.run(
            [sys.executable, *trainer["command"][1:]],
            env=base | rendezvous | given,
            capture_output=True,
            text=True,
            check=False,
        )
        self.tell(job["metadata"]["name"], ended)

    def tell(self, name: str, ended: subprocess.CompletedProcess[str]) -> None:
        labels = {"jobset.sigs.k8s.io/jobset-name": name, INDEX_LABEL: "0"}
        terminated = {"exitCode": ended.returncode, "reason": "Error"}
        status = {
            "phase": "Failed" if ended.returncode else "Succeeded",
            "containerStatuses": [{"name": "node", "state": {"terminated": terminated}}],
        }
        self.server.create("pods", {"metadata": {"name": "p", "labels": labels}, "status": status})
        self.server.log("p", *(ended.stdout + ended.stderr).splitlines())
        kind = "Failed" if ended.returncode else "Complete"
        condition = {"type": kind, "status": "True", "reason": "Jobs", "message": ""}
        over = {"status": {"conditions": [condition]}}
        self.server.change("trainjobs", name, lambda job: job.update(over))


def test_a_step_takes_from_the_store_what_a_train_job_made(tmp_path, monkeypatch, capsys):
    text = slice_json(load_recipe(small_recipe(tmp_path)), "prepare", None)
    fingerprint = fingerprint_text("prepare", text, {})
    home = str(tmp_path / "home")
    job = settings(nodes=1, processes_per_node=1, environment={"MANYEYES_HOME": home})
    with KubernetesServer() as server:
        server.create("trainingruntimes", {"metadata": {"name": "manyeyes-torch"}, "spec": {}})
        Kubelet(server, tmp_path)
        monkeypatch.setattr("manyeyes.runtime.clock.SystemClock", lambda: server.clock)
        monkeypatch.setenv("KUBECONFIG", str(server.write_kubeconfig(tmp_path / "kubeconfig")))
        monkeypatch.setenv("MANYEYES_HOME", home)
        monkeypatch.setenv("MANYEYES_RUN", "tiny")
        monkeypatch.setenv(LAUNCH, job.model_dump_json())
        out = tmp_path / "dataset"
        digest = run_step(
            "prepare", protect(text), inputs={}, out=str(out), fingerprint=fingerprint
        )
        left = server.all("trainjobs")
        manifest = read_input(open_store(), out)
    record = json.loads((Path(home) / "runs/tiny/stages/prepare.json").read_text())
    name = job_name("tiny", "prepare", manifest.fingerprint)
    assert (manifest.digest, record["state"], left) == (digest, "cached", [])
    assert f"[launch] TrainJob research/{name} deleted" in capsys.readouterr().out
    assert os.environ["MANYEYES_RUN"] == "tiny"
