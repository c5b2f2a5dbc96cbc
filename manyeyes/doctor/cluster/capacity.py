"""Is there room? The nodes of the profile's pools, and the quotas of the namespace."""

from __future__ import annotations

from decimal import Decimal
from urllib.parse import quote

from pydantic import Field

from manyeyes.config.profile import Pool, Toleration
from manyeyes.doctor.cluster.api import Cluster, explained
from manyeyes.doctor.cluster.demand import Amounts, Demand, demands, quantity, write
from manyeyes.doctor.findings import Finding, listing, ok, problem, warning
from manyeyes.runtime.kubernetes import Metadata, View

HARD_TAINTS = ("NoSchedule", "NoExecute")
AUTOSCALER = "With an autoscaler the pool grows when pods wait; without one they wait for ever."


class Taint(View):
    """What keeps pods off a node."""

    key: str
    value: str = ""
    effect: str = ""


class _NodeSpec(View):
    taints: tuple[Taint, ...] = ()
    cordoned: bool = Field(default=False, alias="unschedulable")


class _NodeStatus(View):
    allocatable: dict[str, str] = Field(default_factory=dict)


class Node(View):
    """What we read of a node."""

    metadata: Metadata = Metadata()
    spec: _NodeSpec = _NodeSpec()
    status: _NodeStatus = _NodeStatus()

    def pods_of(self, pod: Amounts) -> int:
        """Return how many such pods fit onto the empty node."""
        have = {name: quantity(text) for name, text in self.status.allocatable.items()}
        return min(
            (int(have.get(name, Decimal(0)) // need) for name, need in pod.items() if need),
            default=1,
        )


class _Nodes(View):
    items: tuple[Node, ...] = ()


class _QuotaSpec(View):
    scopes: tuple[str, ...] = ()
    selector: dict[str, object] | None = Field(default=None, alias="scopeSelector")


class _QuotaStatus(View):
    hard: dict[str, str] = Field(default_factory=dict)
    used: dict[str, str] = Field(default_factory=dict)


class Quota(View):
    """What we read of a ResourceQuota."""

    metadata: Metadata = Metadata()
    spec: _QuotaSpec = _QuotaSpec()
    status: _QuotaStatus = _QuotaStatus()


class _Quotas(View):
    items: tuple[Quota, ...] = ()


@explained
def pools(cluster: Cluster) -> list[Finding]:
    """Do the pods fit onto nodes of their pools?"""
    found: list[Finding] = []
    for name, pool in cluster.profile.pools.items():
        wanted = [demand for demand in demands(cluster) if demand.pool == name]
        if wanted:
            found += _pool(name, pool, wanted, _nodes(cluster, pool))
    return found


def _nodes(cluster: Cluster, pool: Pool) -> list[Node]:
    selector = ",".join(f"{key}={value}" for key, value in pool.node_selector.items())
    listed = cluster.get(f"/api/v1/nodes?labelSelector={quote(selector)}", _Nodes, "list nodes")
    return list(listed.items) if listed else []


def _pool(name: str, pool: Pool, wanted: list[Demand], nodes: list[Node]) -> list[Finding]:
    selector = ",".join(f"{key}={value}" for key, value in pool.node_selector.items())
    look = f"kubectl get nodes -l '{selector}'"
    if not nodes:
        what = f"No node has the labels of the pool {name} ({selector})."
        return [warning(what, AUTOSCALER, f"{look} --show-labels")]
    open_nodes = [node for node in nodes if not node.spec.cordoned]
    usable = [node for node in open_nodes if not _in_the_way(node, pool)]
    if not usable:
        taints = {
            f"{taint.key}:{taint.effect}" for node in nodes for taint in _in_the_way(node, pool)
        }
        if not taints:
            what = f"Every node of the pool {name} is cordoned ({len(nodes)})."
            return [warning(what, AUTOSCALER, f"kubectl uncordon -l '{selector}'")]
        return [
            problem(
                f"The pool {name} does not tolerate {listing(sorted(taints))}.",
                f"Each of its {len(open_nodes)} open nodes has such a taint, so no pod is placed.",
                f"Add the toleration to pools.{name}.tolerations of the profile",
            )
        ]
    faults = [fault for demand in wanted if (fault := _fits(name, demand, usable, look))]
    shown = f"Pool {name}: {len(usable)} node{'s' if len(usable) > 1 else ''} with room for "
    return faults or [ok(f"{shown}{listing([demand.name for demand in wanted], 20)}.")]


def _fits(pool: str, demand: Demand, nodes: list[Node], look: str) -> Finding | None:
    room = [node.pods_of(demand.pod) for node in nodes]
    asked = ", ".join(write(name, amount) for name, amount in demand.pod.items())
    if not any(room):
        short = [name for name in demand.pod if not any(_has(node, name, demand) for node in nodes)]
        lacking = listing(short) if short else "all of it together"
        return problem(
            f"No node of the pool {pool} is large enough for {demand.name}, a pod of which asks "
            f"for {asked}; lacking: {lacking}.",
            "It waits for ever; an autoscaler adds nodes of the same size.",
            f"Ask for less in the profile, or use larger nodes: {look} -o yaml",
        )
    if demand.is_job and sum(room) < demand.pods:
        return warning(
            f"{demand.name[:1].upper()}{demand.name[1:]} needs {demand.pods} pods at once, but the "
            f"pool {pool} has room for {sum(room)} now.",
            AUTOSCALER,
            look,
        )
    return None


def _has(node: Node, resource: str, demand: Demand) -> bool:
    return quantity(node.status.allocatable.get(resource, "0")) >= demand.pod[resource]


def _in_the_way(node: Node, pool: Pool) -> list[Taint]:
    """Return the taints that the pool's tolerations do not cover."""
    return [
        taint
        for taint in node.spec.taints
        if taint.effect in HARD_TAINTS
        and not any(_tolerates(toleration, taint) for toleration in pool.tolerations)
    ]


def _tolerates(toleration: Toleration, taint: Taint) -> bool:
    if (toleration.key, toleration.effect) != (taint.key, taint.effect):
        return False
    return toleration.operator == "Exists" or (toleration.value or "") == taint.value


@explained
def quotas(cluster: Cluster) -> list[Finding]:
    """Do the ResourceQuotas of the namespace leave room?"""
    path = cluster.in_namespace("api/v1", "resourcequotas")
    listed = cluster.get(path, _Quotas, "list resourcequotas")
    # A quota with a scope counts some pods only, and we do not know whether ours are among them.
    found = [
        quota
        for quota in (listed.items if listed else ())
        if not quota.spec.scopes and not quota.spec.selector
    ]
    if not found:
        return [ok("No ResourceQuota limits the namespace.")]
    wanted = demands(cluster)
    return [finding for quota in found for finding in _quota(cluster, quota, wanted)]


def _quota(cluster: Cluster, quota: Quota, wanted: list[Demand]) -> list[Finding]:
    findings = []
    name = quota.metadata.name
    for key, text in quota.status.hard.items():
        resource = key.removeprefix("requests.")
        hard = quantity(text)
        free = hard - quantity(quota.status.used.get(key, "0"))
        largest = max(wanted, key=lambda demand: _need(demand, resource))
        busiest = max(wanted, key=lambda demand: _need(demand, resource) * demand.at_once)
        if _need(largest, resource) > hard:
            findings.append(_too_small(cluster, name, key, hard, largest))
        elif _need(busiest, resource) * busiest.at_once > free:
            times = f"{busiest.at_once} times " if busiest.at_once > 1 else ""
            findings.append(
                warning(
                    f"The quota {name} has {write(resource, free)} left, and {busiest.name} asks "
                    f"for {times}{write(resource, _need(busiest, resource))}.",
                    "Pods beyond the quota are refused until others have ended.",
                    f"kubectl -n {cluster.namespace} describe resourcequota {name}",
                )
            )
    return findings or [ok(f"Quota {name} has room for every stage.")]


def _too_small(cluster: Cluster, name: str, key: str, hard: Decimal, demand: Demand) -> Finding:
    resource = key.removeprefix("requests.")
    need = _need(demand, resource)
    patch = f'{{"spec":{{"hard":{{"{key}":"{need.normalize():f}"}}}}}}'
    return problem(
        f"The quota {name} allows {write(resource, hard)}, but {demand.name} asks for "
        f"{write(resource, need)}.",
        "Its pods are refused, and it never starts.",
        f"kubectl -n {cluster.namespace} patch resourcequota {name} --type merge -p '{patch}'",
    )


def _need(demand: Demand, resource: str) -> Decimal:
    if resource == "pods":
        return Decimal(demand.pods)
    return demand.total.get(resource, Decimal(0))
