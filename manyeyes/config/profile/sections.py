"""A profile's sections: what a platform engineer knows and a recipe must not.

A profile names secrets, it never holds one: the values stand in Kubernetes secrets, or in the
environment of whoever submits. Pools are named once and steps refer to them, so that moving a stage
to other GPUs is one word. Everything is frozen, strict and closed, like a recipe.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import AfterValidator, Field, model_validator

from manyeyes.config.profile.words import check_address, check_bytes, check_cpu, check_image
from manyeyes.config.recipe.base import Name, Positive, Section
from manyeyes.steps import STEPS

Image = Annotated[str, AfterValidator(check_image)]
"""An image that cannot change under its name."""
Cpu = Annotated[str, AfterValidator(check_cpu)]
"""Cores: 16, 0.5 or 500m."""
Bytes = Annotated[str, AfterValidator(check_bytes)]
"""A size as Kubernetes and KFP both read it, such as 512Mi or 200Gi."""
Address = Annotated[str, AfterValidator(check_address)]
"""URL of a server, without user and password."""
SecretName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$", max_length=253)]
PoolName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9-]*$", max_length=40)]
"""Also, with underscores, the beginning of the names of pipeline inputs."""
Variable = Annotated[str, Field(pattern=r"^[A-Z_][A-Z0-9_]*$")]
Folder = Annotated[str, Field(pattern=r"^(/[A-Za-z0-9._-]+)+$")]
"""Absolute path in a pod."""
Minutes = Annotated[int, Field(ge=1)]

CONTROL_STEPS = ("experts", "finalize")
"""Tasks of the pipeline that are no stages."""
STEP_NAMES = (*(step.name for step in STEPS), *CONTROL_STEPS)
TRAINING_STEPS = ("prealign", "pretrain", "sft")


class KubeflowSection(Section):
    """The KFP API."""

    endpoint: Address
    namespace: Name
    experiment: str
    token_variable: Variable | None = None
    """Environment variable of whoever submits that holds the bearer token."""
    service_account: str
    """Of the steps' pods."""
    context: str | None = None
    """Context of the kubeconfig, for the pods' logs; None for the current one."""


class Images(Section):
    """What the pods run."""

    control: Image
    """Small, without torch: prepares, validates, launches, registers."""
    trainer: Image
    pull_policy: Literal["IfNotPresent", "Always", "Never"]
    pull_secrets: tuple[SecretName, ...] = ()
    run_as_user: Positive = 1000
    run_as_group: Positive = 1000


class Storage(Section):
    """The S3 bucket with the DVC store, and the cache of each node."""

    bucket: str
    prefix: str
    endpoint: Address | None = None
    """None for AWS itself."""
    region: str
    secret: SecretName | None
    """With AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY; None where pods have an identity."""
    cache_path: Folder
    """What steps may share: fetched artifacts and base models."""
    cache_limit: Bytes
    claim: SecretName | None = None
    """A PersistentVolumeClaim for the cache; None for the node's own disk."""
    shards: Literal["local", "remote"] = "local"
    """Of a dataset: ``remote`` lets training and evaluation read them in the bucket."""
    scratch_path: Folder = "/scratch"
    """What one pod has alone: home, unfinished work, temporary files; on the node's own disk."""
    scratch_size: Bytes | None = None
    """None for no limit of its own."""


class Tracking(Section):
    """The MLflow server."""

    uri: Address
    secret: SecretName | None
    """With MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD; None for an open server."""


class SecretVariable(Section):
    """One more environment variable of the stages, by reference to a secret."""

    variable: Variable
    """Such as HF_TOKEN, for gated base models."""
    secret: SecretName
    key: str


class Toleration(Section):
    """What lets a pod onto tainted nodes."""

    key: str
    operator: Literal["Exists", "Equal"] = "Exists"
    value: str | None = None
    effect: Literal["NoSchedule", "PreferNoSchedule", "NoExecute"] = "NoSchedule"


class Pool(Section):
    """Nodes of one kind."""

    node_selector: dict[str, str]
    tolerations: tuple[Toleration, ...] = ()
    gpu: str | None = None
    """Resource name of its GPUs, such as nvidia.com/gpu; None for a pool without."""


class StepPlacement(Section):
    """Where one task of the pipeline runs, and how patiently."""

    pool: str
    cpu: Cpu
    memory: Bytes
    gpus: Annotated[int, Field(ge=0)] = 0
    shared_memory: Bytes | None = None
    """Size of a memory-backed /dev/shm."""
    timeout_minutes: Minutes
    retries: Annotated[int, Field(ge=0, le=10)]
    caching: bool = True


class NoScheduling(Section):
    """Pods are placed one by one."""

    kind: Literal["none"]


class KueueScheduling(Section):
    """Kueue admits all pods of a job together."""

    kind: Literal["kueue"]
    queue: Name
    """LocalQueue of the namespace; for TrainJobs only, never for the launching pod."""


class VolcanoScheduling(Section):
    """Volcano places all pods of a job together."""

    kind: Literal["volcano"]
    queue: Name


class CoschedulingScheduling(Section):
    """The scheduler plugin waits until all pods of a job fit."""

    kind: Literal["coscheduling"]
    timeout_seconds: Positive


class GpuTraining(Section):
    """The shape of one distributed stage."""

    pool: str
    nodes: Positive
    gpus_per_node: Positive
    cpu: Cpu
    memory: Bytes
    shared_memory: Bytes


class TrainJobSettings(Section):
    """How stages on several nodes are launched and watched (Kubeflow Trainer v2)."""

    runtime: Name
    """TrainingRuntime of the namespace."""
    stages: dict[Literal["prealign", "pretrain", "sft"], GpuTraining]
    """A stage that is not listed trains inside its step, with torchrun over its own GPUs."""
    scheduling: NoScheduling | KueueScheduling | VolcanoScheduling | CoschedulingScheduling = Field(
        discriminator="kind"
    )
    queue_minutes: Minutes | None
    """Longest wait for quota; None waits for ever."""
    start_minutes: Minutes
    """From admission until all pods run: node scale-up and image pull."""
    stall_minutes: Minutes
    """Without a sign of life from rank 0."""
    restarts: Annotated[int, Field(ge=0, le=100)]
    """After failures of the infrastructure; errors of the user are never retried."""
    on_terminate: Literal["suspend", "delete"]


class LaptopProfile(Section):
    """Everything on this machine."""

    kind: Literal["laptop"]
    name: Name


class ClusterProfile(Section):
    """A Kubernetes cluster with Kubeflow Pipelines."""

    kind: Literal["cluster"]
    name: Name
    kubeflow: KubeflowSection
    images: Images
    storage: Storage
    tracking: Tracking
    secrets: tuple[SecretVariable, ...] = ()
    pools: dict[PoolName, Pool]
    steps: dict[str, StepPlacement]
    train_jobs: TrainJobSettings | None

    @model_validator(mode="after")
    def _everything_is_placed(self) -> ClusterProfile:
        missing = [name for name in STEP_NAMES if name not in self.steps]
        strange = [name for name in self.steps if name not in STEP_NAMES]
        if missing or strange:
            raise ValueError(
                f"steps must place exactly {', '.join(STEP_NAMES)}; "
                f"missing: {', '.join(missing) or 'none'}; unknown: {', '.join(strange) or 'none'}"
            )
        for name, step in self.steps.items():
            self._check_pool(f"steps.{name}", step.pool, step.gpus)
        if self.train_jobs is not None:
            for stage, training in self.train_jobs.stages.items():
                where = f"train_jobs.stages.{stage}"
                self._check_pool(where, training.pool, training.gpus_per_node)
                if self.steps[stage].gpus:
                    raise ValueError(
                        f"steps.{stage} asks for GPUs, but a TrainJob trains it; the step only "
                        "launches and must not hold GPUs while its job waits for them"
                    )
        return self

    def _check_pool(self, where: str, name: str, gpus: int) -> None:
        if name not in self.pools:
            raise ValueError(
                f"{where} names the pool {name!r}, but pools are {', '.join(self.pools)}"
            )
        if gpus and self.pools[name].gpu is None:
            raise ValueError(f"{where} asks for GPUs, but the pool {name} has none")


Profile = LaptopProfile | ClusterProfile
