"""May the submitter and the launcher do what they must? Asked of the API server by access reviews.

About ourselves we ask with a SelfSubjectAccessReview, which everybody may. About the steps' service
account we ask with a LocalSubjectAccessReview, which a namespace's administrator may; inside a pod
that has this account we are it.
"""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import Field

from manyeyes.doctor.cluster.api import Cluster, NoAnswerError, NotAllowedError, explained
from manyeyes.doctor.findings import Finding, listing, ok, problem, unchecked
from manyeyes.runtime.kubernetes import View

TRAINER = "trainer.kubeflow.org"
KUEUE = "kueue.x-k8s.io"
REVIEWS = "authorization.k8s.io/v1"


@dataclass(frozen=True)
class Permission:
    """One thing somebody must be allowed to do in the profile's namespace."""

    verb: str
    group: str
    resource: str
    """With a subresource as ``pods/log``."""
    why: str
    name: str = ""
    """When only one object of that name is needed."""

    @property
    def shown(self) -> str:
        """In kubectl's words."""
        name, _, part = self.resource.partition("/")
        full = f"{name}.{self.group}" if self.group else name
        rest = "/".join(filter(None, [part, self.name]))
        return f"{self.verb} {full}" + (f"/{rest}" if rest else "")


def _each(verbs: str, group: str, resource: str, why: str) -> list[Permission]:
    return [Permission(verb, group, resource, why) for verb in verbs.split()]


SUBMITTER: tuple[Permission, ...] = (
    *_each("list", "", "pods", "status shows where the steps are"),
    *_each("get", "", "pods/log", "logs shows what they print"),
    *_each("list", "", "events", "status says why a pod does not start"),
)
SUBMITTER_OF_JOBS: tuple[Permission, ...] = (
    *_each("get list", TRAINER, "trainjobs", "status shows the training jobs"),
)
STEPS: tuple[Permission, ...] = (
    *_each("create patch", "argoproj.io", "workflowtaskresults", "every step hands in its result"),
    *_each("get list", "", "pods", "KFP's launcher looks its own pod up"),
    Permission(
        "get", "", "configmaps", "KFP's launcher reads where artifacts go", name="kfp-launcher"
    ),
)
LAUNCHER: tuple[Permission, ...] = (
    *_each(
        "create get list watch patch delete",
        TRAINER,
        "trainjobs",
        "the launcher starts, follows and ends training jobs",
    ),
    *_each("get", TRAINER, "trainingruntimes", "the launcher checks its runtime"),
    *_each("get", "", "pods/log", "the launcher shows rank 0's log"),
    *_each("list", "", "events", "the launcher says why a pod does not start"),
)
LAUNCHER_OF_KUEUE: tuple[Permission, ...] = (
    *_each("list", KUEUE, "workloads", "the launcher says what a job waits for"),
    *_each("patch", KUEUE, "workloads", "the launcher gives quota back when it suspends a job"),
)


class _Status(View):
    allowed: bool = False


class _Review(View):
    status: _Status = _Status()


class _User(View):
    username: str = ""


class _UserInfo(View):
    user: _User = Field(default=_User(), alias="userInfo")


class _WhoAmI(View):
    status: _UserInfo = _UserInfo()


@explained
def submitter(cluster: Cluster) -> list[Finding]:
    """May we submit, follow and look into a run?"""
    needed = list(SUBMITTER)
    if cluster.profile.train_jobs is not None:
        needed += SUBMITTER_OF_JOBS
    missing = [permission for permission in needed if not _may(cluster, permission, None)]
    if not missing:
        return [ok(f"You may do all {len(needed)} things that following a run needs.")]
    return [_missing("You", missing, _grant(cluster, missing))]


@explained
def launcher(cluster: Cluster) -> list[Finding]:
    """May the steps' service account do what KFP and the launcher of training jobs need?"""
    account = cluster.profile.kubeflow.service_account
    user = f"system:serviceaccount:{cluster.namespace}:{account}"
    needed = list(STEPS)
    jobs = cluster.profile.train_jobs
    if jobs is not None:
        needed += LAUNCHER
    if jobs is not None and jobs.scheduling.kind == "kueue":
        needed += LAUNCHER_OF_KUEUE
    asked = None if _who_am_i(cluster) == user else user
    try:
        missing = [permission for permission in needed if not _may(cluster, permission, asked)]
    except NotAllowedError as error:
        if error.status != 403 or asked is None:
            raise
        return [
            unchecked(
                f"What the service account {account} may do was not checked.",
                "To ask on behalf of another account takes the right to create "
                "localsubjectaccessreviews, which a namespace's administrators have.",
                f"kubectl -n {cluster.namespace} auth can-i --list --as {user}",
            )
        ]
    if not missing:
        return [ok(f"The service account {account} may do all {len(needed)} things it must.")]
    mend = f"kubectl apply -k infra/kubernetes/overlays/{cluster.profile.name}"
    return [_missing(f"The service account {account}", missing, mend)]


def _missing(who: str, missing: list[Permission], mend: str) -> Finding:
    reasons = list(dict.fromkeys(permission.why for permission in missing))
    return problem(
        f"{who} may not {listing([permission.shown for permission in missing], 20)}.",
        f"Needed because {'; '.join(reasons)}.",
        mend,
    )


def _grant(cluster: Cluster, missing: list[Permission]) -> str:
    """Return what an administrator types to give us what is missing."""
    verbs = ",".join(dict.fromkeys(permission.verb for permission in missing))
    names = ",".join(dict.fromkeys(permission.shown.partition(" ")[2] for permission in missing))
    create = f"kubectl -n {cluster.namespace} create"
    return (
        f"{create} role manyeyes-submitter --verb={verbs} --resource={names} && "
        f"{create} rolebinding manyeyes-submitter --role=manyeyes-submitter "
        f"--user={_who_am_i(cluster) or 'YOU'}"
    )


def _may(cluster: Cluster, permission: Permission, user: str | None) -> bool:
    """Ask the API server whether ``user``, or we, may do one thing."""
    resource, _, part = permission.resource.partition("/")
    attributes = {
        "namespace": cluster.namespace,
        "verb": permission.verb,
        "group": permission.group,
        "resource": resource,
        "subresource": part,
        "name": permission.name,
    }
    if user is None:
        path = f"/apis/{REVIEWS}/selfsubjectaccessreviews"
        body = _body("SelfSubjectAccessReview", {"resourceAttributes": attributes})
        right = "create selfsubjectaccessreviews.authorization.k8s.io"
    else:
        plural = "localsubjectaccessreviews"
        path = cluster.in_namespace(f"apis/{REVIEWS}", plural)
        groups = [
            "system:authenticated",
            "system:serviceaccounts",
            f"system:serviceaccounts:{cluster.namespace}",
        ]
        spec: dict[str, object] = {"resourceAttributes": attributes, "user": user}
        spec["groups"] = groups
        body = _body("LocalSubjectAccessReview", spec)
        body["metadata"] = {"namespace": cluster.namespace}
        right = f"create {plural}.authorization.k8s.io"
    return cluster.post(path, body, _Review, right).status.allowed


def _body(kind: str, spec: dict[str, object]) -> dict[str, object]:
    return {"apiVersion": REVIEWS, "kind": kind, "spec": spec}


def _who_am_i(cluster: Cluster) -> str:
    """Return our user name, empty where the API server does not tell (before Kubernetes 1.28)."""
    body: dict[str, object] = {
        "apiVersion": "authentication.k8s.io/v1",
        "kind": "SelfSubjectReview",
    }
    path = "/apis/authentication.k8s.io/v1/selfsubjectreviews"
    right = "create selfsubjectreviews.authentication.k8s.io"
    try:
        answer = cluster.post(path, body, _WhoAmI, right)
    except (NoAnswerError, NotAllowedError):
        return ""
    return answer.status.user.username
