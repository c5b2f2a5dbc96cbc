"""What must stand ready in the namespace: service account, cache claim, training runtime."""

from __future__ import annotations

from pydantic import Field

from manyeyes.doctor.cluster.api import Cluster, explained
from manyeyes.doctor.findings import Finding, ok, problem, warning
from manyeyes.runtime.kubernetes import Condition, Metadata, Named, View

TRAINER_API = "apis/trainer.kubeflow.org/v1alpha1"


class _Phase(View):
    phase: str = ""
    conditions: tuple[Condition, ...] = ()


class _Claim(View):
    metadata: Metadata = Metadata()
    status: _Phase = _Phase()


class _PodSpec(View):
    service_account: str = Field(default="", alias="serviceAccountName")


class _PodTemplate(View):
    spec: _PodSpec = _PodSpec()


class _JobSpec(View):
    template: _PodTemplate = _PodTemplate()


class _JobTemplate(View):
    spec: _JobSpec = _JobSpec()


class _ReplicatedJob(View):
    name: str = ""
    template: _JobTemplate = _JobTemplate()


class _JobSetSpec(View):
    time_to_live: int | None = Field(default=None, alias="ttlSecondsAfterFinished")
    jobs: tuple[_ReplicatedJob, ...] = Field(default=(), alias="replicatedJobs")


class _JobSetTemplate(View):
    spec: _JobSetSpec = _JobSetSpec()


class _Policies(View):
    torch: dict[str, object] | None = None
    volcano: dict[str, object] | None = None
    coscheduling: dict[str, object] | None = None


class _RuntimeSpec(View):
    machine_learning: _Policies = Field(default=_Policies(), alias="mlPolicy")
    pod_group: _Policies = Field(default=_Policies(), alias="podGroupPolicy")
    template: _JobSetTemplate = _JobSetTemplate()


class Runtime(View):
    """What we read of a TrainingRuntime."""

    spec: _RuntimeSpec = _RuntimeSpec()


@explained
def service_account(cluster: Cluster) -> list[Finding]:
    """Is there the service account of the steps?"""
    name = cluster.profile.kubeflow.service_account
    if _account(cluster, name):
        return [ok(f"Service account {name}.")]
    return [
        problem(
            f"There is no service account {name} in the namespace {cluster.namespace}.",
            "Pods of the steps are refused without it.",
            _apply(cluster),
        )
    ]


@explained
def cache_claim(cluster: Cluster) -> list[Finding]:
    """Is there the claim for the cache, if the profile wants one?"""
    name = cluster.profile.storage.claim
    if name is None:
        return [ok("The cache lies on each node's own disk; no claim is needed.")]
    path = cluster.in_namespace("api/v1", "persistentvolumeclaims", name)
    claim = cluster.get(path, _Claim, f"get persistentvolumeclaim/{name}")
    if claim is None:
        return [
            problem(
                f"There is no PersistentVolumeClaim {name}.",
                "Pods that mount the cache wait for ever.",
                _apply(cluster),
            )
        ]
    if claim.status.phase != "Bound":
        return [
            warning(
                f"The PersistentVolumeClaim {name} is {claim.status.phase or 'not bound'}.",
                "A claim that waits for its first pod is bound then; else no volume fits it and "
                "pods wait for ever.",
                f"kubectl -n {cluster.namespace} describe pvc {name}",
            )
        ]
    return [ok(f"PersistentVolumeClaim {name} is bound.")]


@explained
def training_runtime(cluster: Cluster) -> list[Finding]:
    """Is there the TrainingRuntime of the profile, and is it one that we can use?"""
    jobs = cluster.profile.train_jobs
    if jobs is None:
        return [ok("The profile trains inside the steps; no TrainingRuntime is needed.")]
    name = jobs.runtime
    path = cluster.in_namespace(TRAINER_API, "trainingruntimes", name)
    right = f"get trainingruntime.trainer.kubeflow.org/{name}"
    runtime = cluster.get(path, Runtime, right)
    if runtime is None:
        return [
            problem(
                f"There is no TrainingRuntime {name} in the namespace {cluster.namespace}.",
                "Training jobs are made from it; Trainer refuses jobs that name an unknown one.",
                _apply(cluster),
            )
        ]
    faults = _faults(cluster, name, runtime, jobs.scheduling.kind)
    return faults or [ok(f"TrainingRuntime {name}.")]


def _faults(cluster: Cluster, name: str, runtime: Runtime, scheduling: str) -> list[Finding]:
    """Return what is wrong with a runtime."""
    mend = _apply(cluster)
    spec, found = runtime.spec, []
    if spec.machine_learning.torch is None:
        what = f"The TrainingRuntime {name} has no mlPolicy.torch."
        why = "Only with it Trainer tells the pods their ranks (PET_*), which torchrun reads."
        found.append(problem(what, why, mend))
    if spec.template.spec.time_to_live is not None:
        what = f"The TrainingRuntime {name} sets ttlSecondsAfterFinished."
        why = (
            "Trainer makes a JobSet that was cleared away again, and a failed job starts anew "
            "(kubeflow/trainer 3737)."
        )
        found.append(problem(what, why, mend))
    policy = {"volcano": spec.pod_group.volcano, "coscheduling": spec.pod_group.coscheduling}
    if scheduling in policy and policy[scheduling] is None:
        what = f"The TrainingRuntime {name} has no podGroupPolicy.{scheduling}."
        why = "Without it pods start one by one, and half a job waits for the other half."
        found.append(problem(what, why, mend))
    for account in _accounts(runtime):
        if not _account(cluster, account):
            what = f"The TrainingRuntime {name} names the service account {account}, unknown here."
            found.append(problem(what, "Pods of the training jobs are refused without it.", mend))
    return found


def _accounts(runtime: Runtime) -> list[str]:
    names = [
        job.template.spec.template.spec.service_account for job in runtime.spec.template.spec.jobs
    ]
    return sorted({name for name in names if name})


def _account(cluster: Cluster, name: str) -> bool:
    path = cluster.in_namespace("api/v1", "serviceaccounts", name)
    return cluster.get(path, Named, f"get serviceaccount/{name}") is not None


def _apply(cluster: Cluster) -> str:
    return f"kubectl apply -k infra/kubernetes/overlays/{cluster.profile.name}"
