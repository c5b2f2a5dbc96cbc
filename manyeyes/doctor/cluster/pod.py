"""A pod that runs doctor inside the cluster, where the names of its services exist.

It is what a step is: the control image, the steps' service account, the secrets as environment, and
no more rights than the ``restricted`` pod security standard leaves.
"""

from __future__ import annotations

from pydantic import JsonValue

from manyeyes.config.profile import ClusterProfile

NAME = "manyeyes-doctor"
FOLDER = "/profile"
FILE = "profile.yaml"
LABELS: dict[str, JsonValue] = {"workflows.argoproj.io/workflow": NAME}
"""Network policies let out to the services what carries the label of a run's pods."""


def doctor_pod(profile: ClusterProfile) -> JsonValue:
    """Return a list of a ConfigMap with the profile and the pod, for ``kubectl create``."""
    metadata: dict[str, JsonValue] = {"name": NAME, "namespace": profile.kubeflow.namespace}
    config: JsonValue = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": metadata,
        # JSON is YAML too.
        "data": {FILE: '{"profile": ' + profile.model_dump_json(by_alias=True) + "}"},
    }
    pod: JsonValue = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata,
        "spec": _spec(profile),
    }
    return {"apiVersion": "v1", "kind": "List", "items": [config, pod]}


def _spec(profile: ClusterProfile) -> JsonValue:
    placement = profile.steps["finalize"]
    pool = profile.pools[placement.pool]
    return {
        "serviceAccountName": profile.kubeflow.service_account,
        "restartPolicy": "Never",
        "nodeSelector": dict(pool.node_selector),
        "tolerations": [
            toleration.model_dump(mode="json", exclude_none=True) for toleration in pool.tolerations
        ],
        "imagePullSecrets": [{"name": name} for name in profile.images.pull_secrets],
        "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
        "volumes": [
            {"name": "profile", "configMap": {"name": NAME}},
            {"name": "scratch", "emptyDir": {"sizeLimit": "64Mi"}},
        ],
        "containers": [_container(profile)],
    }


def _container(profile: ClusterProfile) -> JsonValue:
    placement = profile.steps["finalize"]
    secrets = [name for name in (profile.storage.secret, profile.tracking.secret) if name]
    return {
        "name": "doctor",
        "image": profile.images.control,
        "command": ["python", "-m", "manyeyes", "doctor", "--profile", f"{FOLDER}/{FILE}"],
        "workingDir": "/scratch",
        "env": [{"name": "HOME", "value": "/scratch"}],
        "envFrom": [{"secretRef": {"name": name, "optional": True}} for name in secrets],
        "resources": {"requests": {"cpu": "100m", "memory": placement.memory}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": "profile", "mountPath": FOLDER, "readOnly": True},
            {"name": "scratch", "mountPath": "/scratch"},
        ],
    }
