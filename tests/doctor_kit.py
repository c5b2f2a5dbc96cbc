"""A profile of a cluster, and a cluster in which nothing is missing for it."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

from kubernetes_server import KubernetesServer, Resource

from manyeyes.config.profile import ClusterProfile, parse_profile
from manyeyes.config.profile.sections import STEP_NAMES
from manyeyes.doctor.cluster import CLUSTER_CHECKS, FIRST_CHECK, Cluster
from manyeyes.doctor.findings import Finding
from manyeyes.runtime.kubernetes import connect

Object = dict[str, Any]
DIGEST = "sha256:" + "ab" * 32
GPU = "nvidia.com/gpu"
QUEUES = Resource("scheduling.volcano.sh", "v1beta1", "queues", "Queue", namespaced=False)
PODGROUPS = Resource("scheduling.x-k8s.io", "v1alpha1", "podgroups", "PodGroup")


def profile_content() -> Object:
    """Return a profile: control steps on one pool, SFT as a job of two nodes with eight GPUs."""
    small = {
        "pool": "cpu", "cpu": "1", "memory": "2Gi", "timeout_minutes": 60, "retries": 2,
    }  # fmt: skip
    training = {"gpus": 1, "pool": "gpu", "cpu": "8", "memory": "64Gi", "shared_memory": "8Gi"}
    steps = {name: dict(small) for name in STEP_NAMES}
    for name in ("prealign", "pretrain", "eval"):
        steps[name] |= training
    return {
        "kind": "cluster",
        "name": "lab",
        "kubeflow": {
            "endpoint": "http://127.0.0.1:1", "namespace": "research", "experiment": "manyeyes",
            "service_account": "manyeyes-launcher",
        },
        "images": {
            "control": f"registry.example.com/manyeyes/control@{DIGEST}",
            "trainer": f"registry.example.com/manyeyes/trainer@{DIGEST}",
            "pull_policy": "IfNotPresent",
            "pull_secrets": ["registry-login"],
        },
        "storage": {
            "bucket": "results", "prefix": "manyeyes", "endpoint": "http://127.0.0.1:1",
            "region": "eu-central-1", "secret": "storage-keys", "cache_path": "/cache",
            "cache_limit": "200Gi", "claim": "cache",
        },
        "tracking": {"uri": "http://127.0.0.1:1", "secret": "mlflow-login"},
        "pools": {
            "cpu": {"node_selector": {"pool": "general"}},
            "gpu": {
                "node_selector": {"pool": "a100"}, "gpu": GPU,
                "tolerations": [
                    {"key": "dedicated", "operator": "Equal", "value": "gpu"}, {"key": GPU},
                ],
            },
        },
        "steps": steps,
        "train_jobs": {
            "runtime": "manyeyes-torch",
            "stages": {
                "sft": {
                    "pool": "gpu", "nodes": 2, "gpus_per_node": 8, "cpu": "32", "memory": "400Gi",
                    "shared_memory": "64Gi",
                }
            },
            "scheduling": {"kind": "kueue", "queue": "training"},
            "queue_minutes": None, "start_minutes": 30, "stall_minutes": 20, "restarts": 3,
            "on_terminate": "suspend",
        },
    }  # fmt: skip


def parse(content: Object) -> ClusterProfile:
    profile = parse_profile(json.dumps({"profile": content}), "test")
    assert isinstance(profile, ClusterProfile)
    return profile


def secret(**values: str) -> Object:
    return {key: base64.b64encode(value.encode()).decode() for key, value in values.items()}


def controller(name: str, image: str) -> Object:
    return {
        "metadata": {"name": name},
        "spec": {"template": {"spec": {"containers": [{"name": "manager", "image": image}]}}},
    }


def node(name: str, pool: str, taints: list[Object] | None = None, **allocatable: str) -> Object:
    return {
        "metadata": {"name": name, "labels": {"pool": pool}},
        "spec": {"taints": taints or []},
        "status": {"allocatable": allocatable},
    }


GPU_TAINTS = [
    {"key": "dedicated", "value": "gpu", "effect": "NoSchedule"},
    {"key": GPU, "value": "present", "effect": "NoSchedule"},
]


def furnish(server: KubernetesServer) -> None:
    """Create all that the profile needs."""
    server.create("namespaces", {"metadata": {"name": "research"}})
    for name, image, space in (
        ("ml-pipeline", "ghcr.io/kubeflow/kfp-api-server:2.17.0", "kubeflow"),
        (
            "kubeflow-trainer-controller-manager",
            "ghcr.io/kubeflow/trainer/trainer-controller-manager:v2.3.0",
            "kubeflow-system",
        ),
        ("jobset-controller-manager", "registry.k8s.io/jobset/jobset:v0.12.0", "jobset-system"),
        ("kueue-controller-manager", "registry.k8s.io/kueue/kueue:v0.18.1", "kueue-system"),
    ):
        server.create("deployments", controller(name, image), space)
    for name in ("manyeyes-launcher", "manyeyes-training"):
        server.create("serviceaccounts", {"metadata": {"name": name}})
    for name, data in (
        ("storage-keys", secret(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="hidden-1")),
        (
            "mlflow-login",
            secret(MLFLOW_TRACKING_USERNAME="kfp", MLFLOW_TRACKING_PASSWORD="hidden-2"),
        ),
        (
            "registry-login",
            secret(**{
                ".dockerconfigjson": json.dumps(
                    {"auths": {"https://registry.example.com": {"username": "u", "password": "p"}}}
                )
            }),
        ),
    ):  # fmt: skip
        server.create("secrets", {"metadata": {"name": name}, "data": data})
    server.create(
        "persistentvolumeclaims", {"metadata": {"name": "cache"}, "status": {"phase": "Bound"}}
    )
    server.create("nodes", node("small-1", "general", cpu="4", memory="16Gi"))
    for number in (1, 2):
        large = node(f"large-{number}", "a100", GPU_TAINTS, cpu="96", memory="1000Gi", **{GPU: "8"})
        server.create("nodes", large)
    server.create("trainingruntimes", runtime())
    _create_queues(server)
    hard = {"requests.cpu": "200", "requests.memory": "2000Gi", f"requests.{GPU}": "16"}
    server.create(
        "resourcequotas",
        {
            "metadata": {"name": "team"},
            "spec": {"hard": hard},
            "status": {"hard": hard, "used": dict.fromkeys(hard, "0")},
        },
    )


def runtime() -> Object:
    pod = {"spec": {"serviceAccountName": "manyeyes-training"}}
    jobs = [{"name": "node", "template": {"spec": {"template": pod}}}]
    return {
        "metadata": {"name": "manyeyes-torch"},
        "spec": {
            "mlPolicy": {"numNodes": 1, "torch": {}},
            "template": {"spec": {"replicatedJobs": jobs}},
        },
    }


def _create_queues(server: KubernetesServer) -> None:
    quota = {"cpu": "128", "memory": "1600Gi", GPU: 16}
    shares = [{"name": name, "nominalQuota": amount} for name, amount in quota.items()]
    groups = [{"coveredResources": list(quota), "flavors": [{"name": "a100", "resources": shares}]}]
    active = {"conditions": [{"type": "Active", "status": "True"}]}
    server.create(
        "clusterqueues",
        {"metadata": {"name": "gpu"}, "spec": {"resourceGroups": groups}, "status": active},
    )
    server.create(
        "localqueues",
        {"metadata": {"name": "training"}, "spec": {"clusterQueue": "gpu"}, "status": active},
    )


def look(name: str, profile: ClusterProfile, recipe: Any = None) -> list[Finding]:
    """Run one check of the table with a client that the environment's kubeconfig names."""
    check = next(row for row in (FIRST_CHECK, *CLUSTER_CHECKS) if row.name == name)
    return check.look(Cluster(profile, recipe, connect()))


def deep(content: Object, path: str, value: object) -> Object:
    """Return a copy with one value replaced; ``None`` as the last part removes it."""
    changed = copy.deepcopy(content)
    *parents, last = path.split(".")
    target = changed
    for part in parents:
        target = target[part]
    target[last] = value
    return changed
