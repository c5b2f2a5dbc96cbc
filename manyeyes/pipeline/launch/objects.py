"""What the launcher reads of Kubernetes objects: a few fields, typed; the rest is ignored."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field, JsonValue

from manyeyes.runtime.kubernetes import Condition, Metadata, View

INDEX_LABEL = "batch.kubernetes.io/job-completion-index"
RANK_ZERO = "0"


class TrainJobSpec(View):
    """What is asked of a TrainJob."""

    suspend: bool = False


class TrainerStatus(View):
    """What the trainer reported; alpha, and absent on most clusters."""

    last_updated_time: datetime | None = None


class TrainJobStatus(View):
    """What became of a TrainJob."""

    conditions: tuple[Condition, ...] = ()
    trainer_status: TrainerStatus | None = None


class TrainJobView(View):
    """A TrainJob."""

    metadata: Metadata
    spec: TrainJobSpec = TrainJobSpec()
    status: TrainJobStatus = TrainJobStatus()

    def condition(self, kind: str) -> Condition | None:
        """Return a condition that holds."""
        for condition in self.status.conditions:
            if condition.type == kind and condition.status == "True":
                return condition
        return None


class Waiting(View):
    """Why a container does not run yet."""

    reason: str = ""
    message: str = ""


class Terminated(View):
    """How a container ended."""

    exit_code: int = 0
    reason: str = ""
    message: str = ""
    finished_at: datetime | None = None


class ContainerState(View):
    """One of three is set."""

    waiting: Waiting | None = None
    terminated: Terminated | None = None


class ContainerStatus(View):
    """What became of a pod's container."""

    name: str = ""
    state: ContainerState = ContainerState()


class PodSpec(View):
    """Where a pod runs."""

    node_name: str = ""


class PodStatus(View):
    """What became of a pod."""

    phase: str = "Pending"
    reason: str = ""
    message: str = ""
    conditions: tuple[Condition, ...] = ()
    container_statuses: tuple[ContainerStatus, ...] = ()
    init_container_statuses: tuple[ContainerStatus, ...] = ()


class PodView(View):
    """A pod."""

    metadata: Metadata
    spec: PodSpec = PodSpec()
    status: PodStatus = PodStatus()

    @property
    def is_rank_zero(self) -> bool:
        """Whether the first process of the job runs in it."""
        return self.metadata.labels.get(INDEX_LABEL) == RANK_ZERO

    @property
    def terminated(self) -> Terminated | None:
        """How its container ended, if it did."""
        ended = [status.state.terminated for status in self.status.container_statuses]
        return next((one for one in ended if one is not None), None)

    @property
    def waiting(self) -> Waiting | None:
        """Why one of its containers does not run yet, init containers first."""
        statuses = (*self.status.init_container_statuses, *self.status.container_statuses)
        return next((one.state.waiting for one in statuses if one.state.waiting), None)

    def condition(self, kind: str, status: str = "True") -> Condition | None:
        """Return a condition that stands at ``status``."""
        for condition in self.status.conditions:
            if condition.type == kind and condition.status == status:
                return condition
        return None


class Involved(View):
    """The object of an event."""

    kind: str = ""
    name: str = ""


class EventView(View):
    """An event."""

    type: str = ""
    reason: str = ""
    message: str = ""
    involved_object: Involved = Involved()


class WorkloadStatus(View):
    """What Kueue says of a workload."""

    conditions: tuple[Condition, ...] = ()


class WorkloadView(View):
    """A Kueue workload: the place of a job in the queue."""

    metadata: Metadata
    status: WorkloadStatus = WorkloadStatus()


class RuntimeSpec(View):
    """What a TrainingRuntime says of its pods."""

    pod_group_policy: dict[str, JsonValue] = Field(default_factory=dict)


class RuntimeView(View):
    """A TrainingRuntime."""

    metadata: Metadata
    spec: RuntimeSpec = RuntimeSpec()
