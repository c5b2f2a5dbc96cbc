"""What doctor says of a cluster: every check against an API server with and without the fault."""

from __future__ import annotations

import json
from pathlib import Path

import doctor_kit as kit
import pytest
from kubernetes_server import RESOURCES, KubernetesServer

from manyeyes.config.recipe import load_recipe
from manyeyes.doctor.findings import Finding

ROOT = Path(__file__).parents[2]
PENDING = "Pods beyond the quota are refused until others have ended."
TRAINER = "trainer.kubeflow.org"
FINDINGS = json.loads((Path(__file__).parent / "doctor_cluster.json").read_text(encoding="utf-8"))
"""Case to the findings it must give, whole."""


@pytest.fixture
def server(tmp_path, monkeypatch):
    """A cluster with all that the profile of the kit needs; the kubeconfig names it."""
    with KubernetesServer(resources=(*RESOURCES, kit.QUEUES, kit.PODGROUPS)) as server:
        kit.furnish(server)
        monkeypatch.setenv("KUBECONFIG", str(server.write_kubeconfig(tmp_path / "config")))
        yield server


def image(server, name, reference, namespace):
    def edit(kept):
        kept["spec"]["template"]["spec"]["containers"][0]["image"] = reference

    server.change("deployments", name, edit, namespace)


def trainer(server, tag):
    image(
        server,
        "kubeflow-trainer-controller-manager",
        f"ghcr.io/kubeflow/trainer/trainer-controller-manager{tag}",
        "kubeflow-system",
    )


def kueue(server, tag):
    reference = f"registry.k8s.io/kueue/kueue{tag}"
    image(server, "kueue-controller-manager", reference, "kueue-system")


def put(plural, name, path, value, namespace="research"):
    """Return a change of one value of one object."""

    def change(server):
        server.change(plural, name, lambda kept: set_deep(kept, path, value), namespace)

    return change


def set_deep(kept, path, value):
    *parents, last = path
    for part in parents:
        kept = kept[part]
    if value is None:
        kept.pop(last)
    else:
        kept[last] = value


def remove(plural, name, namespace="research"):
    return lambda server: server.delete(plural, name, namespace)


def deny(*rights):
    return lambda server: server.denied.update(rights)


def deny_others(*rights):
    return lambda server: server.denied_others.update(rights)


def both(*changes):
    return lambda server: [change(server) for change in changes]


def large_nodes(path, value):
    return both(*(put("nodes", f"large-{number}", path, value) for number in (1, 2)))


def share(index, key, value):
    flavor = ("spec", "resourceGroups", 0, "flavors", 0, "resources", index)
    return put("clusterqueues", "gpu", (*flavor, key), value)


SCHEDULING = "train_jobs.scheduling"
VOLCANO = {SCHEDULING: {"kind": "volcano", "queue": "team"}}
COSCHEDULING = {SCHEDULING: {"kind": "coscheduling", "timeout_seconds": 60}}
TOO_LARGE = {"steps.eval.memory": "2000Gi"}

CASES = {
    # case: (check, change of the cluster, change of the profile)
    "api-fine": ("API server", None, {}),
    "api-token": ("API server", lambda server: server.expire_token(renewed=False), {}),
    "clock-slow": ("API server", lambda server: setattr(server, "skew_seconds", 90.0), {}),
    "clock-wrong": ("API server", lambda server: setattr(server, "skew_seconds", -3600.0), {}),
    "namespace-fine": ("namespace", None, {}),
    "namespace-missing": ("namespace", remove("namespaces", "research"), {}),
    "namespace-forbidden": ("namespace", deny(("get", "", "namespaces")), {}),
    "versions-fine": ("versions", None, {}),
    "versions-no-jobs": ("versions", remove("deployments", "jobset-controller-manager", "jobset-system"), {"train_jobs": None}),
    "trainer-2.1": ("versions", lambda server: trainer(server, ":v2.1.0"), {}),
    "trainer-2.1-no-kueue": ("versions", lambda server: trainer(server, ":v2.1.0"), {SCHEDULING: {"kind": "none"}}),
    "trainer-untried": ("versions", lambda server: trainer(server, ":v2.4.1"), {}),
    "trainer-by-digest": ("versions", lambda server: trainer(server, "@" + kit.DIGEST), {}),
    "kueue-old": ("versions", lambda server: kueue(server, ":v0.16.2"), {}),
    "kueue-missing": ("versions", remove("deployments", "kueue-controller-manager", "kueue-system"), {}),
    "jobset-old": ("versions", lambda server: image(server, "jobset-controller-manager", "registry.k8s.io/jobset/jobset:v0.10.1", "jobset-system"), {}),
    "kfp-old": ("versions", lambda server: image(server, "ml-pipeline", "ghcr.io/kubeflow/kfp-api-server:2.15.0", "kubeflow"), {}),
    "kfp-elsewhere": ("versions", remove("deployments", "ml-pipeline", "kubeflow"), {}),
    "versions-forbidden": ("versions", deny(("list", "apps", "deployments")), {"train_jobs": None}),
    "submitter-fine": ("submitter", None, {}),
    "submitter-refused": ("submitter", deny(("get", "", "pods/log"), ("list", TRAINER, "trainjobs")), {}),
    "launcher-fine": ("launcher", None, {}),
    "launcher-refused": ("launcher", deny_others(("patch", TRAINER, "trainjobs"), ("delete", TRAINER, "trainjobs"), ("create", "argoproj.io", "workflowtaskresults")), {}),
    "launcher-not-asked": ("launcher", deny(("create", "authorization.k8s.io", "localsubjectaccessreviews")), {}),
    "launcher-is-us": ("launcher", both(lambda server: setattr(server, "user", "system:serviceaccount:research:manyeyes-launcher"), deny(("list", "", "events"))), {"train_jobs": kit.profile_content()["train_jobs"]}),
    "account-fine": ("accounts", None, {}),
    "account-missing": ("accounts", remove("serviceaccounts", "manyeyes-launcher"), {}),
    "secrets-fine": ("secrets", None, {}),
    "secrets-none": ("secrets", None, {"storage.secret": None, "tracking.secret": None, "images.pull_secrets": []}),
    "secret-missing": ("secrets", both(remove("secrets", "storage-keys"), remove("secrets", "registry-login")), {}),
    "secret-key-missing": ("secrets", put("secrets", "mlflow-login", ("data", "MLFLOW_TRACKING_PASSWORD"), None), {}),
    "secret-line-break": ("secrets", put("secrets", "storage-keys", ("data",), kit.secret(AWS_ACCESS_KEY_ID="key", AWS_SECRET_ACCESS_KEY="hidden\n")), {}),
    "secrets-forbidden": ("secrets", deny(("get", "", "secrets")), {"tracking.secret": None, "images.pull_secrets": []}),
    "pools-fine": ("pools", None, {}),
    "pool-empty": ("pools", both(remove("nodes", "large-1"), remove("nodes", "large-2")), {}),
    "pool-tainted": ("pools", large_nodes(("spec", "taints"), [{"key": "reserved", "effect": "NoExecute"}]), {}),
    "pool-cordoned": ("pools", large_nodes(("spec", "unschedulable"), True), {}),
    "pool-too-small": ("pools", None, TOO_LARGE),
    "pool-few-gpus": ("pools", large_nodes(("status", "allocatable", kit.GPU), "4"), {}),
    "pool-one-node": ("pools", remove("nodes", "large-2"), {}),
    "nodes-forbidden": ("pools", deny(("list", "", "nodes")), {}),
    "quota-fine": ("quotas", None, {}),
    "quota-none": ("quotas", remove("resourcequotas", "team"), {}),
    "quota-small": ("quotas", put("resourcequotas", "team", ("status", "hard", f"requests.{kit.GPU}"), "8"), {}),
    "quota-used": ("quotas", put("resourcequotas", "team", ("status", "used", f"requests.{kit.GPU}"), "4"), {}),
    "quota-scoped": ("quotas", put("resourcequotas", "team", ("spec", "scopes"), ["BestEffort"]), {}),
    "kueue-fine": ("scheduling", None, {}),
    "kueue-no-queue": ("scheduling", remove("localqueues", "training"), {}),
    "kueue-no-cluster-queue": ("scheduling", remove("clusterqueues", "gpu"), {}),
    "kueue-stopped": ("scheduling", put("clusterqueues", "gpu", ("spec", "stopPolicy"), "Hold"), {}),
    "kueue-inactive": ("scheduling", put("clusterqueues", "gpu", ("status", "conditions"), [{"type": "Active", "status": "False", "message": "references missing ResourceFlavor(s): a100."}]), {}),
    "kueue-small": ("scheduling", share(2, "nominalQuota", 8), {}),
    "kueue-borrows": ("scheduling", both(share(2, "nominalQuota", 8), put("clusterqueues", "gpu", ("spec", "cohort"), "lab")), {}),
    "kueue-not-covered": ("scheduling", share(2, "name", "amd.com/gpu"), {}),
    "none-several-nodes": ("scheduling", None, {SCHEDULING: {"kind": "none"}}),
    "none-one-node": ("scheduling", None, {SCHEDULING: {"kind": "none"}, "train_jobs.stages.sft.nodes": 1}),
    "volcano-no-queue": ("scheduling", None, VOLCANO),
    "volcano-fine": ("scheduling", lambda server: server.create("queues", {"metadata": {"name": "team"}}), VOLCANO),
    "coscheduling-fine": ("scheduling", None, COSCHEDULING),
    "coscheduling-missing": ("scheduling", lambda server: setattr(server, "resources", RESOURCES), COSCHEDULING),
    "volcano-missing": ("scheduling", lambda server: setattr(server, "resources", RESOURCES), VOLCANO),
    "runtime-fine": ("runtime", None, {}),
    "runtime-not-needed": ("runtime", None, {"train_jobs": None}),
    "runtime-missing": ("runtime", remove("trainingruntimes", "manyeyes-torch"), {}),
    "runtime-not-torch": ("runtime", put("trainingruntimes", "manyeyes-torch", ("spec", "mlPolicy"), {"mpi": {}}), {}),
    "runtime-time-to-live": ("runtime", put("trainingruntimes", "manyeyes-torch", ("spec", "template", "spec", "ttlSecondsAfterFinished"), 60), {}),
    "runtime-no-gang": ("runtime", None, VOLCANO),
    "runtime-account": ("runtime", remove("serviceaccounts", "manyeyes-training"), {}),
    "claim-fine": ("cache claim", None, {}),
    "claim-not-needed": ("cache claim", None, {"storage.claim": None}),
    "claim-missing": ("cache claim", remove("persistentvolumeclaims", "cache"), {}),
    "claim-pending": ("cache claim", put("persistentvolumeclaims", "cache", ("status", "phase"), "Pending"), {}),
    "server-error": ("runtime", lambda server: server.fail("get", "trainingruntimes", 500), {}),
    "connection-lost": ("runtime", lambda server: server.fail("get", "trainingruntimes", "drop"), {}),
}  # fmt: skip


def profile_with(changes):
    content = kit.profile_content()
    for path, value in changes.items():
        content = kit.deep(content, path, value)
    return kit.parse(content)


@pytest.mark.parametrize("case", CASES)
def test_what_a_check_finds(server, case):
    check, change, profile = CASES[case]
    if change is not None:
        change(server)
    findings = kit.look(check, profile_with(profile))
    given = [[f.state, f.what, f.why, f.mend] for f in findings]
    assert json.loads(json.dumps(given).replace(server.url, "http://SERVER")) == FINDINGS[case]


def test_every_check_has_a_case_that_is_fine_and_one_that_is_not():
    from manyeyes.doctor.cluster import CLUSTER_CHECKS, FIRST_CHECK

    services = {"KFP API", "storage", "MLflow", "images"}  # test_doctor_services.py
    for check in (FIRST_CHECK, *CLUSTER_CHECKS):
        if check.name not in services:
            states = [
                {line[0] for line in FINDINGS[case]}
                for case, (name, _, _) in CASES.items()
                if name == check.name
            ]
            assert {"ok"} in states, check.name
            assert any(found - {"ok"} for found in states), check.name


def test_experts_of_a_recipe_count_side_by_side(server):
    recipe = load_recipe(ROOT / "recipes" / "tiny" / "eagle-x5.yaml")
    put("resourcequotas", "team", ("status", "used", f"requests.{kit.GPU}"), "0")(server)
    put("resourcequotas", "team", ("status", "hard", f"requests.{kit.GPU}"), "4")(server)
    findings = kit.look("quotas", profile_with({"train_jobs": None}), recipe)
    assert findings == [
        Finding(
            "warning",
            "The quota team has 4 nvidia.com/gpu left, and prealign asks for 5 times "
            "1 nvidia.com/gpu.",
            PENDING,
            "kubectl -n research describe resourcequota team",
        )
    ]
