"""What the profile's steps and training jobs ask of the cluster, stage by stage."""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal

from manyeyes.doctor.cluster.api import Cluster

Amounts = dict[str, Decimal]
"""Kubernetes resource name to amount: cores, bytes, GPUs."""


@dataclass(frozen=True)
class Demand:
    """Pods of one shape that run at the same time."""

    name: str
    """``sft`` for a step, ``the job of sft`` for its TrainJob."""
    pool: str
    pod: Amounts
    """Of one pod."""
    pods: int
    at_once: int = 1
    """How many of these run side by side: one per expert."""
    is_job: bool = False

    @property
    def total(self) -> Amounts:
        """Of all pods of one step or job."""
        return {name: amount * self.pods for name, amount in self.pod.items()}


def demands(cluster: Cluster) -> list[Demand]:
    """Return every step and every training job; without a recipe, experts count as one."""
    profile = cluster.profile
    num_experts = len(cluster.recipe.prealign.experts) if cluster.recipe else 1
    found = []
    for name, step in profile.steps.items():
        pod = _amounts(step.cpu, step.memory, profile.pools[step.pool].gpu, step.gpus)
        at_once = num_experts if name == "prealign" else 1
        found.append(Demand(name, step.pool, pod, 1, at_once))
    if profile.train_jobs is not None:
        for stage, job in profile.train_jobs.stages.items():
            pod = _amounts(job.cpu, job.memory, profile.pools[job.pool].gpu, job.gpus_per_node)
            at_once = num_experts if stage == "prealign" else 1
            found.append(Demand(f"the job of {stage}", job.pool, pod, job.nodes, at_once, True))
    return found


def _amounts(cpu: str, memory: str, gpu: str | None, num_gpus: int) -> Amounts:
    amounts = {"cpu": quantity(cpu), "memory": quantity(memory)}
    if gpu and num_gpus:
        amounts[gpu] = Decimal(num_gpus)
    return amounts


def quantity(text: str) -> Decimal:
    """Read a Kubernetes quantity; what cannot be read counts as nothing."""
    from kubernetes.utils.quantity import parse_quantity

    try:
        return Decimal(parse_quantity(text))
    except ValueError:
        return Decimal(0)


def write(resource: str, amount: Decimal) -> str:
    """Write an amount as people read it: memory in GiB."""
    if resource == "memory":
        return f"{amount / 2**30:.4g} GiB of memory"
    number = f"{amount.normalize():f}"
    return f"{number} {'cores' if resource == 'cpu' else resource}"
