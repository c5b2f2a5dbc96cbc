"""The checks of a cluster, against what the profile says of it."""

from __future__ import annotations

from manyeyes.config.profile import ClusterProfile
from manyeyes.config.recipe import Recipe
from manyeyes.doctor.checking import SECONDS, Answer, Check, run_checks
from manyeyes.doctor.cluster.api import Cluster
from manyeyes.doctor.cluster.capacity import pools, quotas
from manyeyes.doctor.cluster.images import images
from manyeyes.doctor.cluster.objects import cache_claim, service_account, training_runtime
from manyeyes.doctor.cluster.permissions import launcher, submitter
from manyeyes.doctor.cluster.queue import scheduling
from manyeyes.doctor.cluster.secrets import secrets
from manyeyes.doctor.cluster.server import namespace, reach
from manyeyes.doctor.cluster.services import kubeflow, mlflow, storage
from manyeyes.doctor.cluster.versions import versions
from manyeyes.doctor.findings import problem, unchecked
from manyeyes.runtime.kubernetes import NoKubernetesError, connect

FIRST_CHECK: Check[Cluster] = Check("API server", reach)
"""Without it nothing else can be looked at."""

CLUSTER_CHECKS: tuple[Check[Cluster], ...] = (
    Check("namespace", namespace),
    Check("versions", versions),
    Check("submitter", submitter, 40.0),
    Check("launcher", launcher, 40.0),
    Check("accounts", service_account),
    Check("secrets", secrets),
    Check("pools", pools),
    Check("quotas", quotas),
    Check("scheduling", scheduling),
    Check("runtime", training_runtime),
    Check("cache claim", cache_claim),
    Check("KFP API", kubeflow),
    Check("storage", storage, 45.0),
    Check("MLflow", mlflow),
    Check("images", images, 45.0),
)
"""What is looked at in a cluster, in the order of the output."""


def check_cluster(profile: ClusterProfile, recipe: Recipe | None) -> list[Answer]:
    """Run all checks of a cluster; when its API server is out of reach, only say so."""
    try:
        client = connect(profile.kubeflow.context)
    except NoKubernetesError as error:
        return [
            Answer(
                FIRST_CHECK.name,
                [
                    problem(
                        f"There is no usable kubeconfig ({error.kind}).",
                        "It says where the cluster is and who you are.",
                        "export KUBECONFIG=FILE, then: kubectl cluster-info",
                    )
                ],
            ),
            _skipped(),
        ]
    cluster = Cluster(profile, recipe, client)
    first = run_checks([FIRST_CHECK], cluster)
    if first[0].findings[0].state != "ok":
        return [*first, _skipped()]
    return [*first, *run_checks(CLUSTER_CHECKS, cluster)]


def _skipped() -> Answer:
    names = ", ".join(check.name for check in CLUSTER_CHECKS)
    return Answer("the rest", [unchecked(f"Not looked at: {names}.", "See the API server above.")])


__all__ = ["CLUSTER_CHECKS", "FIRST_CHECK", "SECONDS", "Cluster", "check_cluster"]
