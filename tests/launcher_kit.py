"""A played cluster for the launcher: what controllers, kubelets and people do, as data.

A script is a list of actions, each with the seconds after the TrainJob's creation at which it
happens; the n-th script belongs to the n-th TrainJob that is created.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from kubernetes_server import ApiError, KubernetesServer

from manyeyes.config.profile.sections import (
    CoschedulingScheduling,
    KueueScheduling,
    NoScheduling,
    VolcanoScheduling,
)
from manyeyes.errors import Interrupted
from manyeyes.pipeline.launch.api import Api
from manyeyes.pipeline.launch.objects import INDEX_LABEL
from manyeyes.pipeline.launch.redact import Redactor, Voice
from manyeyes.pipeline.launch.reference import StageReference
from manyeyes.pipeline.launch.settings import Mount, SecretReference, TrainJob
from manyeyes.pipeline.launch.trainjob import TrainJobLauncher

Object = dict[str, Any]
Action = tuple[Any, ...]
"""Seconds, name of a method of ``World``, its arguments."""

NAME = "tiny-sft-0123abcd"
TITLE = f"TrainJob research/{NAME}"
WORKLOAD = "trainjob-tiny"
SECRET = "s3cr3t-of-the-store"
SCHEDULING = {
    "none": NoScheduling(kind="none"),
    "kueue": KueueScheduling(kind="kueue", queue="gpu"),
    "volcano": VolcanoScheduling(kind="volcano", queue="gpu"),
    "coscheduling": CoschedulingScheduling(kind="coscheduling", timeout_seconds=120),
}


class KilledError(BaseException):
    """The launcher's process is gone from one moment to the next."""


def reference() -> StageReference:
    return StageReference(
        run="tiny",
        stage="sft",
        expert=None,
        recipe_slice='{"seed":0}',
        inputs={"dataset": ("d1",), "validation": ("v1",), "checkpoint": ("c1",)},
        fingerprint="code.slice.parents",
        key="0123abcd" * 8,
    )


def settings(scheduling: str = "none", **changes: object) -> TrainJob:
    given: dict[str, Any] = {
        "kind": "trainjob",
        "namespace": "research",
        "runtime": "manyeyes-torch",
        "image": "registry.example.org/trainer@sha256:" + "a" * 64,
        "nodes": 2,
        "processes_per_node": 8,
        "gpu": "nvidia.com/gpu",
        "cpu": "32",
        "memory": "400Gi",
        "node_selector": {"pool": "a100"},
        "tolerations": (),
        "mounts": (
            Mount(name="shm", path="/dev/shm", memory=True, size="64Gi"),
            Mount(name="cache", path="/cache", claim="cache"),
            Mount(name="scratch", path="/scratch"),
        ),
        "environment": {"MANYEYES_RUN": "tiny", "AWS_REGION": "eu-west-1"},
        "secrets": (SecretReference(variable="AWS_SECRET_ACCESS_KEY", secret="store", key="key"),),
        "scheduling": SCHEDULING[scheduling],
        "queue_minutes": 60,
        "start_minutes": 15,
        "stall_minutes": 10,
        "restarts": 2,
        "on_terminate": "delete",
        **changes,
    }
    return TrainJob(**given)


class World:
    """The cluster around the launcher, and everything that happens in it."""

    def __init__(self, server: KubernetesServer, scripts: tuple[tuple[Action, ...], ...]) -> None:
        self.server = server
        self.scripts = list(scripts)
        self.created = 0
        self.round = 0
        self.away = 0.0
        self.written: list[str] = []
        policy = {"volcano": {}, "coscheduling": {"scheduleTimeoutSeconds": 120}}
        server.create("namespaces", {"metadata": {"name": "research"}})
        server.create(
            "trainingruntimes",
            {"metadata": {"name": "manyeyes-torch"}, "spec": {"podGroupPolicy": policy}},
        )
        owner = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Workflow", "name": "w", "uid": "1"}
        pod = {"metadata": {"name": "step", "ownerReferences": [owner]}}
        server.create("pods", pod)
        server.short_watches = True
        server.on_create["trainjobs"] = self._created
        server.on_change["workloads"] = self._workload_changed
        server.on_change["trainjobs"] = self._job_changed

    def _created(self, job: Object) -> None:
        if not self.server.all("trainingruntimes"):
            raise ApiError(422, "Invalid", "spec.runtimeRef: not found")
        self.created += 1
        if "kueue.x-k8s.io/queue-name" in job["metadata"]["labels"]:
            self._queue(job)
        script = self.scripts.pop(0) if self.scripts else ()
        for seconds, name, *arguments in script:
            self.server.clock.at(seconds, lambda n=name, a=arguments: getattr(self, n)(*a))

    def _queue(self, job: Object) -> None:
        uid = job["metadata"]["uid"]
        labels = {"kueue.x-k8s.io/job-uid": uid}
        waits = {
            "type": "QuotaReserved",
            "status": "False",
            "reason": "Pending",
            "message": "insufficient quota for nvidia.com/gpu in flavor a100, 8 more needed",
        }
        owner = {"apiVersion": job["apiVersion"], "kind": "TrainJob", "name": NAME, "uid": uid}
        self.server.create(
            "workloads",
            {
                "metadata": {"name": WORKLOAD, "labels": labels, "ownerReferences": [owner]},
                "spec": {"active": True},
                "status": {"conditions": [waits]},
            },
        )

    def _workload_changed(self, workload: Object) -> None:
        if workload["spec"]["active"]:
            self.admitted()
            self.goes_on()
        else:
            self.suspended()

    def _job_changed(self, job: Object) -> None:
        """Stop the pods of a job that the launcher suspended; start them when it resumes it."""
        if job["spec"].get("suspend"):
            self.suspended()
        elif not self._pods() and "manyeyes/suspended" not in job["metadata"]["annotations"]:
            self.goes_on()

    def goes_on(self) -> None:
        self.round += 1
        self.server.clock.at(5, self.pods)
        self.server.clock.at(10, self.running)
        self.server.clock.at(60, self.complete)

    # what controllers do

    def admitted(self) -> None:
        patch = {"manager": "kueue.x-k8s.io/manager", "trainingRuntimeSpec": {}}

        def edit(job: Object) -> None:
            job["spec"]["suspend"] = False
            kept = [one for one in job["spec"]["runtimePatches"] if one != patch]
            job["spec"]["runtimePatches"] = [*kept, patch]

        self._edit_job(edit)
        self._condition("Suspended", "False", "Resumed")

    def suspended(self, preempted: str = "") -> None:
        self._edit_job(lambda job: job["spec"].update(suspend=True))
        self._condition("Suspended", "True", "Suspended")
        for pod in self._pods():
            self.server.delete("pods", pod["metadata"]["name"])
        if preempted:
            evicted = {"type": "Evicted", "status": "True", "reason": "Preempted"}
            evicted["message"] = preempted
            edit = lambda kept: kept["status"]["conditions"].append(evicted)  # noqa: E731
            self.server.change("workloads", WORKLOAD, edit)

    def pods(self) -> None:
        job = self.server.get("trainjobs", NAME)
        owner = {key: job["metadata"][key] for key in ("name", "uid")}
        owner |= {"apiVersion": job["apiVersion"], "kind": "TrainJob"}
        for index in range(2):
            labels = {"jobset.sigs.k8s.io/jobset-name": NAME, INDEX_LABEL: str(index)}
            name = self._pod_name(index)
            meta = {"name": name, "labels": labels, "ownerReferences": [owner]}
            status = {"phase": "Pending", "conditions": [], "containerStatuses": []}
            spec = {"nodeName": f"gpu-{index}"}
            self.server.create("pods", {"metadata": meta, "spec": spec, "status": status})

    def waiting(self, index: int, reason: str, message: str) -> None:
        state = {"name": "node", "state": {"waiting": {"reason": reason, "message": message}}}
        self._edit_pod(index, lambda pod: pod["status"].update(containerStatuses=[state]))

    def unschedulable(self, message: str) -> None:
        condition = {"type": "PodScheduled", "status": "False", "reason": "Unschedulable"}
        condition["message"] = message
        for index in range(2):
            self._edit_pod(index, lambda pod: pod["status"].update(conditions=[condition]))

    def event(self, name: str, kind: str, reason: str, message: str) -> None:
        given = {"type": kind, "reason": reason, "message": message}
        given |= {"involvedObject": {"name": name}, "metadata": {"generateName": "event-"}}
        self.server.create("events", given)

    def running(self) -> None:
        calm = {"phase": "Running", "conditions": [], "containerStatuses": []}
        for index in range(2):
            self._edit_pod(index, lambda pod: pod["status"].update(calm))

    def log(self, *lines: str) -> None:
        self.server.log(self._pod_name(0), *lines)

    def complete(self) -> None:
        for index in range(2):
            self._edit_pod(index, lambda pod: pod["status"].update(phase="Succeeded"))
        self._condition("Complete", "True", "JobsCompleted")

    def failed(
        self, index: int, code: int, *lines: str, reason: str = "Error", message: str = ""
    ) -> None:
        end = {"exitCode": code, "reason": reason, "message": message}
        end["finishedAt"] = self.server.clock.date().strftime("%Y-%m-%dT%H:%M:%SZ")
        state = {"name": "node", "state": {"terminated": end}}
        over = {"phase": "Failed", "containerStatuses": [state]}
        self.server.log(self._pod_name(index), *lines)
        self._edit_pod(index, lambda pod: pod["status"].update(over))
        self._condition("Failed", "True", "JobsFailed", "jobset failed due to one or more jobs")

    def killed_for_memory(self) -> None:
        self.failed(1, 137, reason="OOMKilled")

    def refused(self, message: str) -> None:
        self._condition("Failed", "True", "TrainingRuntimeNotSupported", message)

    def disrupted(self, reason: str, message: str) -> None:
        condition = {"type": "DisruptionTarget", "status": "True", "reason": reason}
        condition["message"] = message
        over = {"phase": "Failed", "conditions": [condition]}
        self._edit_pod(1, lambda pod: pod["status"].update(over))
        self.failed(0, 1, "RuntimeError: NCCL error: remote process exited")

    def pods_gone(self) -> None:
        for pod in self._pods():
            self.server.delete("pods", pod["metadata"]["name"])
        self._condition("Failed", "True", "JobsFailed", "jobset failed due to one or more jobs")

    def pods_again(self) -> None:
        """The same job's pods anew, under other names."""
        self.round += 1
        self.pods()

    # what people and networks do

    def foreign_job(self) -> None:
        self.server.create("trainjobs", {"metadata": {"name": NAME, "labels": {}}, "spec": {}})

    def dying_job(self) -> None:
        self.foreign_job()
        self.server.deletion_seconds = 90
        self.server.delete("trainjobs", NAME)
        self.server.deletion_seconds = 0

    def slow_deletion(self) -> None:
        self.server.deletion_seconds = 90

    def no_runtime(self) -> None:
        self.server.delete("trainingruntimes", "manyeyes-torch")

    def plain_runtime(self) -> None:
        self.server.change("trainingruntimes", "manyeyes-torch", lambda kept: kept["spec"].clear())

    def refusing_webhook(self) -> None:
        def refuse(_: Object) -> None:
            raise ApiError(422, "Invalid", "spec.trainer: too many GPUs")

        self.server.on_create["trainjobs"] = refuse

    def deny(self, verb: str, group: str, plural: str) -> None:
        self.server.denied.add((verb, group, plural))

    def expire_for_good(self) -> None:
        self.expire(renewed=False)

    def somebody_deletes(self) -> None:
        self.server.delete("trainjobs", NAME)

    def fault(self, verb: str, plural: str, what: int | str, times: int = 1) -> None:
        self.server.fail(verb, plural, what, times)

    def busy(self, verb: str, plural: str, seconds: int) -> None:
        self.server.fail(verb, plural, 429, retry_after=seconds)

    def expire(self, *, renewed: bool = True) -> None:
        self.server.expire_token(renewed=renewed)

    def forget_history(self) -> None:
        self.server.compact()

    def sigterm(self) -> None:
        self.server.break_streams = True
        os.kill(os.getpid(), signal.SIGTERM)

    def kill(self) -> None:
        self.server.break_streams = True
        os.kill(os.getpid(), signal.SIGUSR1)

    def kill_for_good(self) -> None:
        """Two minutes pass until KFP starts the launcher anew."""
        self.away = 120.0
        self.kill()

    # the launcher

    def launcher(self, given: TrainJob) -> TrainJobLauncher:
        voice = Voice(self.written.append, Redactor({"AWS_SECRET_ACCESS_KEY": SECRET}))
        api = Api("research", self.server.clock)
        return TrainJobLauncher(given, reference(), api, voice, "step")

    def launch(self, given: TrainJob) -> None:
        """Run the launcher; one that was killed is started again, as KFP's retry does."""
        while True:
            try:
                self.launcher(given).run()
            except KilledError:
                self.server.clock.sleep(self.away)
                self.away = 0.0
                continue
            return

    def _pod_name(self, index: int) -> str:
        return f"{NAME}-node-0-{index}-{self.created + self.round}"

    def _pods(self) -> list[Object]:
        label = "jobset.sigs.k8s.io/jobset-name"
        return [
            pod for pod in self.server.all("pods") if label in pod["metadata"].get("labels", {})
        ]

    def _edit_pod(self, index: int, edit: Callable[[Object], None]) -> None:
        self.server.change("pods", self._pod_name(index), edit)

    def _edit_job(self, edit: Callable[[Object], None]) -> None:
        self.server.change("trainjobs", NAME, edit)

    def _condition(self, kind: str, status: str, reason: str, message: str = "") -> None:
        condition = {"type": kind, "status": status, "reason": reason, "message": message}

        def edit(job: Object) -> None:
            before = job.get("status", {}).get("conditions", [])
            kept = [one for one in before if one["type"] != kind]
            job["status"] = {"conditions": [*kept, condition]}

        self._edit_job(edit)


@contextmanager
def signals() -> Iterator[None]:
    """Let SIGTERM interrupt the launcher as a step's process does, and SIGUSR1 kill it."""

    def stop(number: int, _: FrameType | None) -> None:
        if number == signal.SIGTERM:
            raise Interrupted("Stopped; run the same command again to continue.")
        raise KilledError

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGUSR1)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def played_cluster(folder: Path, scripts: tuple[tuple[Action, ...], ...]) -> Iterator[World]:
    """Start the server, let the client find it, and prepare the scripts."""
    with KubernetesServer() as server:
        os.environ["KUBECONFIG"] = str(server.write_kubeconfig(folder / "config"))
        try:
            with signals():
                yield World(server, scripts)
        finally:
            del os.environ["KUBECONFIG"]
