"""The TrainJob of a stage. The one place that knows the shape of Kubeflow Trainer's API.

The API changes with each minor version; this module writes ``v1alpha1`` of 2.3 and checks what it
wrote with the published models. What a pod must be (security context, service account, that nothing
restarts it) stands in the namespace's TrainingRuntime, what a stage needs in a runtime patch of our
own manager, beside which Kueue keeps its own. There is never a ``ttlSecondsAfterFinished``: with a
TTL the job set of a failed job is made anew and trains again (trainer #3737).
"""

from __future__ import annotations

import os
import re

from pydantic import JsonValue

from manyeyes.config.profile.sections import KueueScheduling, VolcanoScheduling
from manyeyes.errors import ManyeyesError
from manyeyes.pipeline.launch.cluster import CONTAINER, TRAINER_GROUP, TRAINER_VERSION, Json
from manyeyes.pipeline.launch.reference import STAGE_CALL, StageReference
from manyeyes.pipeline.launch.settings import Mount, TrainJob
from manyeyes.runtime.home import WHOLE_RECIPE
from manyeyes.runtime.kubernetes import Owner

MAX_NAME = 40
"""Job sets append to it, and pods' names end at 63."""
DIGEST_LENGTH = 8
FINGERPRINT_LABEL = "manyeyes/fingerprint"
ATTEMPT = "manyeyes/attempt"
SUSPENDED = "manyeyes/suspended"
"""Annotation of a job that a stopped launcher suspended, and the next one may resume."""
STAGE_LABEL = "app.kubernetes.io/component"
PROJECT_LABEL = "app.kubernetes.io/part-of"
PROJECT = "manyeyes"
KUEUE_QUEUE = "kueue.x-k8s.io/queue-name"
VOLCANO_QUEUE = "scheduling.volcano.sh/queue-name"
MANAGER = "manyeyes/launcher"
"""Key of our runtime patch."""
GRACE_SECONDS = 300
"""For a stopped training to save its state."""
POD_COMMAND = ("python", "-m", "manyeyes.pipeline.launch.torchrun")


def job_name(run: str, stage: str, key: str) -> str:
    """Return ``<run>-<stage>-<digest8>`` as RFC 1035 wants it, in at most 40 characters.

    >>> job_name("Eagle_X5.tiny", "sft", "9f86d081884c7d65")
    'eagle-x5-tiny-sft-9f86d081'
    """
    ending = f"-{stage}-{key[:DIGEST_LENGTH]}"
    words = re.sub(r"[^a-z0-9]+", "-", run.lower()).strip("-")
    if not words[:1].isalpha():
        words = f"run-{words}".rstrip("-")
    return words[: MAX_NAME - len(ending)].rstrip("-") + ending


def label_of(key: str) -> str:
    """Return the part of a fingerprint that fits into a label."""
    return key[:40]


def train_job(
    settings: TrainJob, call: StageReference, *, attempt: int, owner: Owner | None
) -> Json:
    """Return the TrainJob of one stage.

    Args:
        settings: what the profile says.
        call: what shall be trained.
        attempt: 1 for the first.
        owner: what takes the job along when it is deleted.

    Raises:
        ManyeyesError: it is not valid by the published models.
    """
    labels = {
        PROJECT_LABEL: PROJECT,
        STAGE_LABEL: call.stage,
        FINGERPRINT_LABEL: label_of(call.key),
    }
    annotations = {ATTEMPT: str(attempt)}
    if isinstance(settings.scheduling, KueueScheduling):
        labels[KUEUE_QUEUE] = settings.scheduling.queue
    if isinstance(settings.scheduling, VolcanoScheduling):
        annotations[VOLCANO_QUEUE] = settings.scheduling.queue
    name = job_name(call.run, call.stage, call.key)
    metadata: Json = {
        "name": name,
        "namespace": settings.namespace,
        "labels": labels,
        "annotations": annotations,
    }
    if owner is not None:
        metadata["ownerReferences"] = [owner.model_dump(by_alias=True)]
    spec: Json = {
        "runtimeRef": {
            "apiGroup": TRAINER_GROUP,
            "kind": "TrainingRuntime",
            "name": settings.runtime,
        },
        "trainer": _trainer(settings, call, attempt),
        "runtimePatches": [{"manager": MANAGER, "trainingRuntimeSpec": _patch(settings)}],
    }
    if isinstance(settings.scheduling, KueueScheduling):
        spec["suspend"] = True  # Kueue admits it
    job = {
        "apiVersion": f"{TRAINER_GROUP}/{TRAINER_VERSION}",
        "kind": "TrainJob",
        "metadata": metadata,
        "spec": spec,
    }
    check(job)
    return job


def check(job: Json) -> None:
    """Compare a TrainJob with the published models.

    Raises:
        ManyeyesError: it breaks them, or has a field that they do not know.
    """
    from kubeflow_trainer_api.models import TrainerV1alpha1TrainJob
    from pydantic import ValidationError

    try:
        known = TrainerV1alpha1TrainJob.from_dict(job)
    except ValidationError as error:
        first = error.errors()[0]
        raise ManyeyesError(
            f"The TrainJob is not valid for Kubeflow Trainer {TRAINER_VERSION}: {first['loc']}: "
            f"{first['msg']}."
        ) from None
    lost = _lost(job, known.to_dict() if known else {}, "")
    if lost:
        raise ManyeyesError(
            f"The TrainJob has fields that Kubeflow Trainer {TRAINER_VERSION} does not know: "
            f"{', '.join(lost)}."
        )


def _trainer(settings: TrainJob, call: StageReference, attempt: int) -> Json:
    resources = {
        "cpu": settings.cpu,
        "memory": settings.memory,
        settings.gpu: str(settings.processes_per_node),
    }
    plain = {
        **settings.environment,
        **{name: os.environ[name] for name in (WHOLE_RECIPE,) if name in os.environ},
        STAGE_CALL: call.text(),
        "MANYEYES_ATTEMPT": str(attempt),
        # The nodes of a pool may come up one after another.
        "PET_RDZV_CONF": f"timeout={settings.start_minutes * 60}",
    }
    secrets: list[Json] = [
        {
            "name": given.variable,
            "valueFrom": {"secretKeyRef": {"name": given.secret, "key": given.key}},
        }
        for given in settings.secrets
    ]
    return {
        "image": settings.image,
        "command": list(POD_COMMAND),
        "numNodes": settings.nodes,
        "numProcPerNode": settings.processes_per_node,
        "resourcesPerNode": {"requests": resources, "limits": resources},
        "env": [*({"name": name, "value": value} for name, value in plain.items()), *secrets],
    }


def _patch(settings: TrainJob) -> Json:
    pod: Json = {
        "nodeSelector": settings.node_selector,
        "terminationGracePeriodSeconds": GRACE_SECONDS,
        "volumes": [_volume(mount) for mount in settings.mounts],
        "containers": [
            {
                "name": CONTAINER,
                "volumeMounts": [
                    {"name": mount.name, "mountPath": mount.path} for mount in settings.mounts
                ],
            }
        ],
    }
    if settings.tolerations:
        pod["tolerations"] = [one.model_dump(exclude_none=True) for one in settings.tolerations]
    if settings.pull_secrets:
        pod["imagePullSecrets"] = [{"name": name} for name in settings.pull_secrets]
    job_set: Json = {
        "spec": {
            "replicatedJobs": [
                {"name": CONTAINER, "template": {"spec": {"template": {"spec": pod}}}}
            ]
        }
    }
    if isinstance(settings.scheduling, VolcanoScheduling):
        job_set["metadata"] = {"annotations": {VOLCANO_QUEUE: settings.scheduling.queue}}
    return {"template": job_set}


def _volume(mount: Mount) -> Json:
    if mount.claim:
        return {"name": mount.name, "persistentVolumeClaim": {"claimName": mount.claim}}
    disk: Json = {"medium": "Memory"} if mount.memory else {}
    if mount.size:
        disk["sizeLimit"] = mount.size
    return {"name": mount.name, "emptyDir": disk}


def _lost(given: JsonValue, kept: JsonValue, where: str) -> list[str]:
    """List the paths of ``given`` that are not in ``kept``."""
    if isinstance(given, dict) and isinstance(kept, dict):
        return [
            path
            for key, value in given.items()
            for path in (
                _lost(value, kept[key], f"{where}.{key}") if key in kept else [f"{where}.{key}"]
            )
        ]
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        pairs = enumerate(zip(given, kept, strict=True))
        return [path for at, (a, b) in pairs for path in _lost(a, b, f"{where}[{at}]")]
    return []
