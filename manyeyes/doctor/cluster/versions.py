"""The versions of what runs the pipeline: KFP, Trainer, JobSet, Kueue, and which of them agree.

A version is read off the tag of the controller's image, else off its ``app.kubernetes.io/version``
label. The rules come from the projects' own threads:

- Trainer 2.2 replaced ``podTemplateOverrides`` with ``runtimePatches``; we write the latter.
- Kueue 0.17 and newer speak to Trainer 2.2 and newer only (kubernetes-sigs/kueue 11931, 14722);
  older ones still write the field that Trainer 2.2 removed.
- Trainer 2.3 is built against JobSet 0.12.
- KFP 2.17 mended holes that matter when several teams share a cluster (kubeflow/pipelines 12928,
  13126, 13127, 13433).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from manyeyes.doctor.cluster.api import Cluster, NotAllowedError, explained, refused
from manyeyes.doctor.findings import Finding, ok, problem, unchecked, warning
from manyeyes.runtime.kubernetes import Metadata, View

Version = tuple[int, int, int]
VERSION = re.compile(r"^v?(\d+)\.(\d+)(?:\.(\d+))?")
LABEL = "app.kubernetes.io/version"

OLDEST_KFP: Version = (2, 17, 0)
OLDEST_TRAINER: Version = (2, 2, 0)
NEWEST_TRAINER: Version = (2, 3, 999)
"""Trainer changes its API with every minor version; newer ones are untried."""
TRAINER_OF_JOBSET: Version = (2, 3, 0)
JOBSET_OF_TRAINER: Version = (0, 12, 0)
KUEUE_OF_RUNTIME_PATCHES: Version = (0, 17, 0)

INSTALL = {
    "Trainer": "kubectl apply --server-side -k "
    "'https://github.com/kubeflow/trainer.git/manifests/overlays/manager?ref=v2.3.0'",
    "JobSet": "kubectl apply --server-side -f "
    "https://github.com/kubernetes-sigs/jobset/releases/download/v0.12.0/manifests.yaml",
    "Kueue": "kubectl apply --server-side -f "
    "https://github.com/kubernetes-sigs/kueue/releases/latest/download/manifests.yaml",
    "KFP": "kubectl apply -k 'https://github.com/kubeflow/pipelines.git"
    "/manifests/kustomize/env/platform-agnostic?ref=2.17.0'",
}
CONTROLLERS = {
    "KFP": ("kfp-api-server", "api-server", "ds-pipelines-api-server"),
    "Trainer": ("trainer-controller-manager",),
    "JobSet": ("jobset",),
    "Kueue": ("kueue",),
}
"""Component to the names its controller's image can have."""
USUAL_NAMESPACES = ("kubeflow", "kubeflow-system", "jobset-system", "kueue-system")
"""Where to look when we may not look everywhere."""


class _Container(View):
    image: str


class _PodSpec(View):
    containers: tuple[_Container, ...] = ()


class _Template(View):
    spec: _PodSpec = _PodSpec()


class _DeploymentSpec(View):
    template: _Template = _Template()


class Deployment(View):
    """A controller's deployment."""

    metadata: Metadata = Metadata()
    spec: _DeploymentSpec = _DeploymentSpec()


class _Deployments(View):
    items: tuple[Deployment, ...] = ()


@dataclass(frozen=True)
class Component:
    """One installed component."""

    name: str
    version: Version | None
    """None when neither tag nor label tells."""
    place: str
    """``NAMESPACE/DEPLOYMENT``."""

    @property
    def shown(self) -> str:
        """Name and version."""
        return f"{self.name} {write(self.version)}" if self.version else self.name


@explained
def versions(cluster: Cluster) -> list[Finding]:
    """Are the components there, new enough, and do they agree?"""
    deployments, refusal = _deployments(cluster)
    found = _components(deployments)
    findings = [
        _judge(name, found.get(name), partial=refusal is not None) for name in _needed(cluster)
    ]
    if refusal and any(name not in found for name in _needed(cluster)):
        findings.append(refused(cluster, refusal))
    return [*findings, *_pairs(found, cluster)]


def _needed(cluster: Cluster) -> list[str]:
    jobs = cluster.profile.train_jobs
    if jobs is None:
        return ["KFP"]
    return ["KFP", "Trainer", "JobSet", *(["Kueue"] if jobs.scheduling.kind == "kueue" else [])]


def _deployments(cluster: Cluster) -> tuple[Sequence[Deployment], NotAllowedError | None]:
    """Return all deployments we may see, and what kept us from seeing all."""
    right = "list deployments.apps --all-namespaces"
    try:
        found = cluster.get("/apis/apps/v1/deployments", _Deployments, right)
        return (found.items if found else ()), None
    except NotAllowedError as error:
        refusal = error
    seen: list[Deployment] = []
    for namespace in dict.fromkeys([*USUAL_NAMESPACES, cluster.namespace]):
        try:
            path = f"/apis/apps/v1/namespaces/{namespace}/deployments"
            listed = cluster.get(path, _Deployments, right)
        except NotAllowedError:
            continue
        seen += listed.items if listed else ()
    return seen, refusal


def _components(deployments: Sequence[Deployment]) -> dict[str, Component]:
    """Recognise the components by their images."""
    found: dict[str, Component] = {}
    for deployment in deployments:
        for container in deployment.spec.template.spec.containers:
            image, _, _ = container.image.partition("@")
            base, _, tag = image.rpartition("/")[2].partition(":")
            for name, images in CONTROLLERS.items():
                if base in images and name not in found:
                    version = read(tag) or read(deployment.metadata.labels.get(LABEL, ""))
                    place = f"{deployment.metadata.namespace}/{deployment.metadata.name}"
                    found[name] = Component(name, version, place)
    return found


def _judge(name: str, component: Component | None, *, partial: bool) -> Finding:
    """Judge one component by itself."""
    needed = {
        "KFP": "It runs the pipeline.",
        "Trainer": "It runs the training jobs of the profile's train_jobs.",
        "JobSet": "Trainer starts the pods of a training job through it.",
        "Kueue": "The profile's training jobs wait for its admission, without it for ever.",
    }[name]
    if component is None:
        if partial or name == "KFP":
            # KFP may run in another cluster than the one it was installed for by hand.
            why = "There is no such deployment where we may look. " + needed
            return unchecked(f"{name} was not found.", why, INSTALL[name])
        return problem(f"{name} is not installed.", needed, INSTALL[name])
    if component.version is None:
        namespace, _, deployment = component.place.partition("/")
        return unchecked(
            f"The version of {name} is not known.",
            f"Neither the image's tag nor the label {LABEL} of {component.place} tells it.",
            f"kubectl -n {namespace} describe deployment {deployment}",
        )
    return _judge_version(component, component.version)


def _judge_version(component: Component, version: Version) -> Finding:
    match component.name:
        case "KFP" if version < OLDEST_KFP:
            return warning(
                f"{component.shown} is older than 2.17.",
                "It lets users read each other's artifacts (kubeflow/pipelines 13433, 13126, "
                "12928), and a step that fails to upload is not tried again.",
                INSTALL["KFP"],
            )
        case "Trainer" if version < OLDEST_TRAINER:
            return problem(
                f"{component.shown} is too old.",
                "Jobs are described with runtimePatches, which came with Trainer 2.2; an older "
                "one refuses them.",
                INSTALL["Trainer"],
            )
        case "Trainer" if version > NEWEST_TRAINER:
            return warning(
                f"{component.shown} is newer than any that was tried (2.3).",
                "Trainer has changed its API with each minor version.",
                "Read https://github.com/kubeflow/trainer/releases for breaking changes",
            )
        case _:
            return ok(f"{component.shown} ({component.place}).")


def _pairs(found: dict[str, Component], cluster: Cluster) -> list[Finding]:
    """Judge the components against each other."""
    trainer, jobset, kueue = (_version(found, name) for name in ("Trainer", "JobSet", "Kueue"))
    needed = _needed(cluster)
    findings = []
    if trainer and jobset and trainer >= TRAINER_OF_JOBSET and jobset < JOBSET_OF_TRAINER:
        findings.append(
            warning(
                f"Trainer {write(trainer)} with JobSet {write(jobset)} is untried.",
                "Trainer 2.3 is built against JobSet 0.12.",
                INSTALL["JobSet"],
            )
        )
    if trainer and kueue and "Kueue" in needed:
        pair = f"Kueue {write(kueue)} with Trainer {write(trainer)}"
        if kueue >= KUEUE_OF_RUNTIME_PATCHES and trainer < OLDEST_TRAINER:
            findings.append(
                problem(
                    f"{pair} leaves admitted jobs suspended for ever.",
                    "Kueue 0.17 and newer write runtimePatches, which Trainer before 2.2 does not "
                    "know (kubernetes-sigs/kueue 11931, 14722).",
                    INSTALL["Trainer"],
                )
            )
        if kueue < KUEUE_OF_RUNTIME_PATCHES and trainer >= OLDEST_TRAINER:
            findings.append(
                problem(
                    f"{pair} cannot start admitted jobs.",
                    "Kueue before 0.17 writes podTemplateOverrides, which Trainer 2.2 removed "
                    "(kubernetes-sigs/kueue 14722).",
                    INSTALL["Kueue"],
                )
            )
    return findings


def _version(found: dict[str, Component], name: str) -> Version | None:
    return found[name].version if name in found else None


def read(text: str) -> Version | None:
    """Read ``v2.3.0`` or ``2.3``; None for anything else."""
    match = VERSION.match(text)
    return (int(match[1]), int(match[2]), int(match[3] or 0)) if match else None


def write(version: Version) -> str:
    """Write a version as people do."""
    return ".".join(str(part) for part in version)
