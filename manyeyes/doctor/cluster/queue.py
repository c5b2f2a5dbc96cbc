"""Gang scheduling: the Kueue queue of the profile and its quota, or the scheduler it names."""

from __future__ import annotations

from decimal import Decimal
from urllib.parse import quote

from pydantic import Field

from manyeyes.config.profile import TrainJobSettings
from manyeyes.doctor.cluster.api import Cluster, explained
from manyeyes.doctor.cluster.demand import Demand, demands, quantity, write
from manyeyes.doctor.findings import Finding, listing, ok, problem, warning
from manyeyes.runtime.kubernetes import Condition, Metadata, Named, View

KUEUE = "kueue.x-k8s.io"
VOLCANO = "scheduling.volcano.sh"
COSCHEDULING = "scheduling.x-k8s.io"


class _Conditions(View):
    conditions: tuple[Condition, ...] = ()


class _LocalQueueSpec(View):
    cluster_queue: str = Field(default="", alias="clusterQueue")


class _LocalQueue(View):
    spec: _LocalQueueSpec = _LocalQueueSpec()
    status: _Conditions = _Conditions()


class _Share(View):
    name: str
    nominal: str | int = Field(default="0", alias="nominalQuota")
    borrowing: str | int | None = Field(default=None, alias="borrowingLimit")


class _Flavor(View):
    name: str = ""
    resources: tuple[_Share, ...] = ()


class _ResourceGroup(View):
    covered: tuple[str, ...] = Field(default=(), alias="coveredResources")
    flavors: tuple[_Flavor, ...] = ()


class _ClusterQueueSpec(View):
    groups: tuple[_ResourceGroup, ...] = Field(default=(), alias="resourceGroups")
    cohort: str = ""
    cohort_name: str = Field(default="", alias="cohortName")
    stop: str = Field(default="None", alias="stopPolicy")


class ClusterQueue(View):
    """What we read of a ClusterQueue."""

    metadata: Metadata = Metadata()
    spec: _ClusterQueueSpec = _ClusterQueueSpec()
    status: _Conditions = _Conditions()


@explained
def scheduling(cluster: Cluster) -> list[Finding]:
    """Can training jobs be admitted, or placed together?"""
    jobs = cluster.profile.train_jobs
    if jobs is None:
        return [ok("The profile has no training jobs to schedule.")]
    match jobs.scheduling.kind:
        case "none":
            return [_no_gang(jobs)]
        case "kueue":
            return _kueue(cluster, jobs.scheduling.queue)
        case "volcano":
            return [_volcano(cluster, jobs.scheduling.queue)]
        case "coscheduling":
            return [_coscheduling(cluster)]


def _no_gang(jobs: TrainJobSettings) -> Finding:
    several = [stage for stage, shape in jobs.stages.items() if shape.nodes > 1]
    if not several:
        return ok("Every training job is one pod; nothing has to be scheduled together.")
    return warning(
        f"Pods of {listing(several)} are placed one by one.",
        "Two jobs that each get half of their nodes wait for each other until they time out.",
        "Set train_jobs.scheduling of the profile to kueue, volcano or coscheduling",
    )


def _kueue(cluster: Cluster, name: str) -> list[Finding]:
    version = cluster.version_of(KUEUE)
    apply = f"kubectl apply -k infra/kubernetes/overlays/{cluster.profile.name}"
    if version is None:
        what = "The API server does not know Kueue's kinds."
        return [problem(what, f"Jobs are to wait in its queue {name}.", "See the check 'versions'")]
    path = cluster.in_namespace(f"apis/{KUEUE}/{version}", "localqueues", name)
    local = cluster.get(path, _LocalQueue, f"get localqueue.{KUEUE}/{name}")
    if local is None:
        what = f"There is no LocalQueue {name} in the namespace {cluster.namespace}."
        return [problem(what, "Jobs that name it are never admitted.", apply)]
    queue_name = local.spec.cluster_queue
    path = f"/apis/{KUEUE}/{version}/clusterqueues/{quote(queue_name)}"
    queue = cluster.get(path, ClusterQueue, f"get clusterqueue.{KUEUE}/{queue_name}")
    if queue is None:
        what = (
            f"The LocalQueue {name} leads to the ClusterQueue {queue_name}, which does not exist."
        )
        return [problem(what, "Jobs in it are never admitted.", apply)]
    stopped = _stopped(queue_name, queue)
    if stopped:
        return [stopped]
    wanted = [demand for demand in demands(cluster) if demand.is_job]
    faults = [fault for demand in wanted for fault in _room(queue_name, queue, demand)]
    shown = listing([demand.name for demand in wanted])
    return faults or [ok(f"Queue {name} ({queue_name}) has quota for {shown}.")]


def _stopped(name: str, queue: ClusterQueue) -> Finding | None:
    look = f"kubectl describe clusterqueue {name}"
    if queue.spec.stop != "None":
        what = f"The ClusterQueue {name} is stopped (stopPolicy {queue.spec.stop})."
        patch = f"kubectl patch clusterqueue {name} --type merge "
        return problem(what, "It admits no jobs.", patch + '-p \'{"spec":{"stopPolicy":"None"}}\'')
    for condition in queue.status.conditions:
        if condition.type == "Active" and condition.status == "False":
            said = condition.message.strip().rstrip(".")
            return problem(
                f"The ClusterQueue {name} is not active: {said}.", "It admits no jobs.", look
            )
    return None


def _room(name: str, queue: ClusterQueue, demand: Demand) -> list[Finding]:
    """Compare a job with the quota of each resource's best flavor."""
    findings = []
    edit = f"kubectl edit clusterqueue {name}"
    for resource, need in demand.total.items():
        shares = [
            share
            for group in queue.spec.groups
            for flavor in group.flavors
            for share in flavor.resources
            if share.name == resource
        ]
        if not shares:
            what = (
                f"The ClusterQueue {name} has no quota for {resource}; {demand.name} asks for it."
            )
            findings.append(problem(what, "Such a job is never admitted.", edit))
            continue
        nominal = max(quantity(str(share.nominal)) for share in shares)
        if need > nominal:
            findings.append(_over(name, queue, demand, resource, need, nominal, shares))
    return findings


def _over(
    name: str,
    queue: ClusterQueue,
    demand: Demand,
    resource: str,
    need: Decimal,
    nominal: Decimal,
    shares: list[_Share],
) -> Finding:
    what = (
        f"The ClusterQueue {name} has {write(resource, nominal)}, and {demand.name} asks for "
        f"{write(resource, need)}."
    )
    edit = f"kubectl edit clusterqueue {name}"
    if (queue.spec.cohort or queue.spec.cohort_name) and any(
        share.borrowing is None
        or quantity(str(share.nominal)) + quantity(str(share.borrowing)) >= need
        for share in shares
    ):
        return warning(what, "It starts only when other queues of the cohort lend the rest.", edit)
    return problem(what, "Such a job is never admitted.", edit)


def _volcano(cluster: Cluster, name: str) -> Finding:
    version = cluster.version_of(VOLCANO)
    if version is None:
        return problem(
            "Volcano is not installed.",
            "The profile lets it place the pods of a job together.",
            "helm install volcano volcano-sh/volcano -n volcano-system --create-namespace",
        )
    path = f"/apis/{VOLCANO}/{version}/queues/{quote(name)}"
    if cluster.get(path, Named, f"get queue.{VOLCANO}/{name}") is None:
        what = f"Volcano has no queue {name}."
        return problem(what, "Jobs that name it wait for ever.", "kubectl get queues." + VOLCANO)
    return ok(f"Volcano queue {name}.")


def _coscheduling(cluster: Cluster) -> Finding:
    if cluster.version_of(COSCHEDULING) is None:
        return problem(
            "The coscheduling plugin is not installed.",
            "The profile lets it place the pods of a job together.",
            "helm install scheduler-plugins scheduler-plugins/scheduler-plugins",
        )
    return ok("The coscheduling plugin is installed.")
