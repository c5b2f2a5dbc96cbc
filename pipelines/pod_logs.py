"""What the tasks of a run print, read from their pods.

KFP's v2beta1 API as its SDK wraps it has no call for logs. Its server has a route beside that API
(``/apis/v1alpha1/runs/RUN/nodes/POD/log``), but the path has moved between versions, ``follow`` had
no effect on it before 2.17, and it only passes on what Kubernetes says about one pod. So we ask
Kubernetes: KFP labels every pod of a run with the run's id, and ours carry the step's name too.

Following is asking again for what is newer. That needs no stream to be kept open for days, so a
dropped connection, a server's time limit and a laptop that slept all look alike.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from manyeyes.config.profile import ClusterProfile
from manyeyes.errors import ManyeyesError, UserError
from manyeyes.kubeflow.pipelines.calls import TIMEOUT, Refused, Server, unexpected
from manyeyes.kubeflow.pipelines.cluster import LABEL_PROJECT, LABEL_STEP, PROJECT
from manyeyes.runtime.kubernetes import NoKubernetesError, connect

RUN_LABEL = "pipeline/runid"
"""What KFP labels the pods of a run with."""
CONTAINER = "main"
"""The container of a pod that runs the step; Argo's helpers are beside it."""
_SILENT = ("Pending", "Unknown")
_OVERLAP = 30
"""Seconds asked for again: clocks differ, and lines of one moment may come in two answers."""


@dataclass(frozen=True)
class Line:
    """One line that a pod printed."""

    step: str
    pod: str
    time: str
    """As Kubernetes writes it: nanoseconds, UTC."""
    text: str


@dataclass
class _Read:
    """How far a pod's log was read."""

    latest: str = ""
    at_latest: list[str] = field(default_factory=list)
    """The lines of that moment: there may be several."""
    ended: bool = False


class PodLogs:
    """The logs of one run's pods."""

    def __init__(self, profile: ClusterProfile, run: str, step: str | None = None) -> None:
        self._namespace = profile.kubeflow.namespace
        self._run = run
        self._selector = f"{RUN_LABEL}={run},{LABEL_PROJECT}={PROJECT}"
        if step is not None:
            self._selector += f",{LABEL_STEP}={step}"
        self._core, address = _connect(profile.kubeflow.context)
        self._server = Server("The Kubernetes API", address)
        self._reads: dict[str, _Read] = {}

    @property
    def num_pods(self) -> int:
        """How many pods were seen."""
        return len(self._reads)

    def new_lines(self) -> Iterator[Line]:
        """Yield what the pods printed since the last call, pod by pod.

        Raises:
            ManyeyesError: Kubernetes does not answer, or refuses.
        """
        for pod in sorted(self._pods(), key=lambda one: str(one.metadata.creation_timestamp)):
            read = self._reads.setdefault(pod.metadata.name, _Read())
            if read.ended or pod.status.phase in _SILENT:
                continue
            step = pod.metadata.labels[LABEL_STEP]
            for time, text in _new(self._text(pod.metadata.name, read), read):
                yield Line(step, pod.metadata.name, time, text)
            read.ended = pod.status.phase in ("Succeeded", "Failed")

    def _pods(self) -> list[Any]:
        try:
            answer = self._server.ask(
                lambda: self._core.list_namespaced_pod(
                    self._namespace, label_selector=self._selector, _request_timeout=TIMEOUT
                )
            )
        except Refused as error:
            raise unexpected(self._server, f"to list pods in {self._namespace}", error) from None
        return list(answer.items)

    def _text(self, pod: str, read: _Read) -> str:
        """Return the rest of a pod's log; nothing if the pod is gone or has not begun."""
        newer = {"since_seconds": _age(read.latest) + _OVERLAP} if read.latest else {}
        try:
            answer = self._server.ask(
                lambda: self._core.read_namespaced_pod_log(
                    pod,
                    self._namespace,
                    container=CONTAINER,
                    timestamps=True,
                    _request_timeout=TIMEOUT,
                    **newer,
                )
            )
        except Refused as error:
            if error.status in (400, 404):  # the container is still to start, or the pod is gone
                return ""
            raise unexpected(self._server, f"to show the log of {pod}", error) from None
        return str(answer or "")


def no_pods(profile: ClusterProfile, run: str) -> ManyeyesError:
    """Say that there is nothing left to read."""
    return ManyeyesError(
        f"Run {run} has no pods in {profile.kubeflow.namespace}: none has begun, all came from a "
        "cache, or Kubernetes has removed them; manyeyes status tells which."
    )


def _new(text: str, read: _Read) -> Iterator[tuple[str, str]]:
    """Yield the lines that were not read before, each with its time."""
    known = list(read.at_latest)
    before = read.latest
    for line in text.splitlines():
        time, _, words = line.partition(" ")
        if time < before:
            continue
        if time == before and words in known:
            known.remove(words)
            continue
        if time != read.latest:
            read.latest, read.at_latest = time, []
        read.at_latest.append(words)
        yield time, words


def _age(time: str) -> int:
    """Return how many seconds ago a moment was that Kubernetes wrote."""
    moment = datetime.datetime.fromisoformat(time[:19] + "+00:00")
    return max(0, int((datetime.datetime.now(datetime.UTC) - moment).total_seconds()))


def _connect(context: str | None) -> tuple[Any, str]:
    """Return the client of the pods and their logs, and the address of its server."""
    from kubernetes import client

    try:
        api = connect(context)
    except NoKubernetesError as error:
        raise UserError(
            f"Logs come from Kubernetes, and there is no way to it: {error}; "
            "set KUBECONFIG, or kubeflow.context in the profile."
        ) from None
    return client.CoreV1Api(api), str(api.configuration.host)
