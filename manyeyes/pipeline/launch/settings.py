"""How a stage is started, in the one environment variable ``MANYEYES_LAUNCH``.

The variable holds the JSON of one section. Without it a stage trains in its own process, as on a
laptop. ``compile`` puts it on the steps of a cluster; ``launch_settings`` makes it from a profile.
Everything is resolved there (image, pool, volumes, environment), so that the launching pod needs no
profile and reads nothing else. It names secrets and never holds one.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from manyeyes.config.profile import ClusterProfile, Toleration
from manyeyes.config.profile.sections import (
    CoschedulingScheduling,
    KueueScheduling,
    Minutes,
    NoScheduling,
    VolcanoScheduling,
)
from manyeyes.config.recipe.base import Name, Positive, Section
from manyeyes.errors import UserError

LAUNCH = "MANYEYES_LAUNCH"
"""Names how the stage of this step is started; JSON of one of the sections below."""


class SecretReference(Section):
    """An environment variable whose value stands in a Kubernetes secret."""

    variable: str
    secret: str
    key: str


class Mount(Section):
    """A folder of the pods: a claim, memory, or the node's own disk."""

    name: Name
    path: str
    claim: str | None = None
    memory: bool = False
    size: str | None = None


class InProcess(Section):
    """The stage trains in the process that asks for it."""

    kind: Literal["process"] = "process"


class Torchrun(Section):
    """The stage trains in several processes of this pod, one for each of its GPUs."""

    kind: Literal["torchrun"]
    processes: Positive


class TrainJob(Section):
    """The stage trains on several nodes, as a TrainJob of Kubeflow Trainer v2."""

    kind: Literal["trainjob"]
    namespace: Name
    runtime: Name
    """TrainingRuntime of the namespace, with a container ``node`` in a replicated job ``node``."""
    image: str
    pull_secrets: tuple[str, ...] = ()
    nodes: Positive
    processes_per_node: Positive
    """One for each GPU of a node."""
    gpu: str
    """Resource name of the GPUs, such as nvidia.com/gpu."""
    cpu: str
    memory: str
    node_selector: dict[str, str]
    tolerations: tuple[Toleration, ...]
    mounts: tuple[Mount, ...]
    environment: dict[str, str]
    secrets: tuple[SecretReference, ...]
    scheduling: NoScheduling | KueueScheduling | VolcanoScheduling | CoschedulingScheduling = Field(
        discriminator="kind"
    )
    queue_minutes: Minutes | None
    start_minutes: Minutes
    stall_minutes: Minutes
    restarts: Annotated[int, Field(ge=0, le=100)]
    on_terminate: Literal["suspend", "delete"]


Launch = InProcess | Torchrun | TrainJob


class _Variable(BaseModel):
    """What the variable holds; pydantic needs a model around a union."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    launch: Launch = Field(discriminator="kind")


def launch_settings(
    profile: ClusterProfile,
    stage: str,
    *,
    environment: Mapping[str, str],
    secrets: Sequence[SecretReference],
    mounts: Sequence[Mount],
) -> Launch:
    """Say how a profile starts a stage.

    Args:
        profile: the cluster.
        stage: a stage that trains.
        environment: plain variables of the training pods: store, cache, tracker, run.
        secrets: their variables with secrets, by reference.
        mounts: their folders, without /dev/shm, whose size the profile states.
    """
    jobs, placement = profile.train_jobs, profile.steps[stage]
    listed = jobs.stages.items() if jobs else ()
    training = next((given for name, given in listed if name == stage), None)
    if jobs is None or training is None:
        if placement.gpus > 1:
            return Torchrun(kind="torchrun", processes=placement.gpus)
        return InProcess()
    pool = profile.pools[training.pool]
    assert pool.gpu is not None  # the profile was checked
    shared = Mount(name="shm", path="/dev/shm", memory=True, size=training.shared_memory)  # noqa: S108 - the device of that name
    return TrainJob(
        kind="trainjob",
        namespace=profile.kubeflow.namespace,
        runtime=jobs.runtime,
        image=profile.images.trainer,
        pull_secrets=profile.images.pull_secrets,
        nodes=training.nodes,
        processes_per_node=training.gpus_per_node,
        gpu=pool.gpu,
        cpu=training.cpu,
        memory=training.memory,
        node_selector=pool.node_selector,
        tolerations=pool.tolerations,
        mounts=(shared, *mounts),
        environment={name: value for name, value in environment.items() if name != LAUNCH},
        secrets=tuple(secrets),
        scheduling=jobs.scheduling,
        queue_minutes=jobs.queue_minutes,
        start_minutes=jobs.start_minutes,
        stall_minutes=jobs.stall_minutes,
        restarts=jobs.restarts,
        on_terminate=jobs.on_terminate,
    )


def read_launch(environment: Mapping[str, str] = os.environ) -> Launch:
    """Return how the stage of this process is to be started.

    Raises:
        UserError: the variable does not hold one of the sections.
    """
    text = environment.get(LAUNCH)
    if not text:
        return InProcess()
    try:
        return _Variable.model_validate_json(f'{{"launch": {text}}}').launch
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"][1:]) or "the whole"
        raise UserError(
            f"{LAUNCH} cannot be read ({where}: {first['msg']}); compile the pipeline anew with "
            "the version of manyeyes that is in the image."
        ) from None
