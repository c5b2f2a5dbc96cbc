"""In which state a TrainJob is, and why it is not further.

The state is read from the job's conditions and its pods at every look, never from a status that
somebody derived: clients that do so report a job that Kueue resumed as new for ever.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from manyeyes.pipeline.launch.cluster import CONTAINER, Cluster
from manyeyes.pipeline.launch.objects import PodView, TrainJobView

State = Literal["queued", "starting", "running", "done", "failed"]

_PULL_TROUBLE = ("ErrImagePull", "ImagePullBackOff", "ErrImageNeverPull", "RegistryUnavailable")
HOPELESS = ("InvalidImageName", "ErrImageNeverPull")
"""Reasons that no wait mends."""
_MAX_PODS = 3
"""Of so many pods the reasons are looked for; the others wait for the same."""
_LONGEST = 300


def state_of(job: TrainJobView, pods: Sequence[PodView], num_nodes: int) -> State:
    """Return the state of a job that exists."""
    if job.condition("Complete"):
        return "done"
    if job.condition("Failed"):
        return "failed"
    if job.spec.suspend:
        return "queued"
    running = sum(pod.status.phase in ("Running", "Succeeded") for pod in pods)
    return "running" if running >= num_nodes else "starting"


def why_queued(cluster: Cluster, job: TrainJobView, *, kueue: bool) -> str:
    """Say what a suspended job waits for."""
    workload = cluster.workload(job) if kueue else None
    if workload is None:
        return "it waits in Kueue's queue" if kueue else "it is suspended"
    conditions = {condition.type: condition for condition in workload.status.conditions}
    evicted, quota = conditions.get("Evicted"), conditions.get("QuotaReserved")
    parts = []
    if evicted is not None and evicted.status == "True":
        parts.append(f"it was {evicted.reason.lower() or 'evicted'}: {evicted.message}")
    if quota is not None and quota.status != "True" and quota.message:
        parts.append(quota.message)
    return _short("; ".join(parts)) or "it waits in Kueue's queue"


def why_starting(cluster: Cluster, job: TrainJobView, pods: Sequence[PodView]) -> str:
    """Say what keeps pods from running: scheduling, images, configuration, quota."""
    late = [pod for pod in pods if pod.status.phase not in ("Running", "Succeeded")]
    reasons = [reason for pod in late[:_MAX_PODS] if (reason := _why_late(cluster, pod))]
    if not pods:
        reasons = _warnings(cluster, f"{job.metadata.name}-{CONTAINER}-0")
        reasons = reasons or _warnings(cluster, job.metadata.name)
        return _short(reasons[-1]) if reasons else "no pod exists yet"
    return _short("; ".join(dict.fromkeys(reasons))) or "its pods are on their way"


def is_hopeless(pods: Sequence[PodView]) -> bool:
    """Say whether a pod waits for something that cannot come."""
    return any(pod.waiting is not None and pod.waiting.reason in HOPELESS for pod in pods)


def _why_late(cluster: Cluster, pod: PodView) -> str:
    name = pod.metadata.name
    unplaced = pod.condition("PodScheduled", "False")
    if unplaced is not None:
        return f"no node fits {name}: {unplaced.message}"
    waiting = pod.waiting
    if waiting is not None and waiting.reason in _PULL_TROUBLE:
        return f"the image of {name} cannot be pulled ({waiting.reason}): {waiting.message}"
    if waiting is not None and waiting.reason not in ("", "ContainerCreating", "PodInitializing"):
        return f"{name} cannot start ({waiting.reason}): {waiting.message}"
    warnings = _warnings(cluster, name)
    if warnings:
        return f"{name}: {warnings[-1]}"
    events = [event.reason for event in cluster.events(name)]
    return f"{name} pulls its image" if events and events[-1] == "Pulling" else ""


def _warnings(cluster: Cluster, name: str) -> list[str]:
    return [
        f"{event.reason}: {event.message}"
        for event in cluster.events(name)
        if event.type == "Warning"
    ]


def _short(text: str) -> str:
    text = " ".join(text.split()).rstrip(".")
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
