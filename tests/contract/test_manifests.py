"""What an overlay renders is valid, restricted, and lets pods reach what they need and no more."""

from collections.abc import Iterator
from pathlib import Path

import jsonschema
import pytest
from manifest_kit import (
    GOLDEN,
    KUBERNETES,
    OVERLAYS,
    Json,
    Peer,
    golden_text,
    header,
    kustomize,
    may_connect,
    named,
    objects,
    of_kind,
    parse,
    pod_templates,
    render,
)
from ruamel.yaml import YAML

SCHEMAS = YAML(typ="safe", pure=True).load(Path(__file__).parents[1] / "schemas" / "queues.yaml")
CUSTOM_GROUPS = ("kueue.x-k8s.io", "scheduling.volcano.sh", "trainer.kubeflow.org")
OBJECTS = [
    pytest.param(item, id=f"{overlay}:{item['kind']}:{item['metadata']['name']}")
    for overlay in OVERLAYS
    for item in objects(overlay)
]
PODS = [
    pytest.param(template, id=f"{overlay}:{name}")
    for overlay in OVERLAYS
    for name, template in pod_templates(overlay)
]


def core(item: Json) -> bool:
    return not item["apiVersion"].startswith(CUSTOM_GROUPS)


def containers(template: Json) -> list[Json]:
    return [*template["spec"].get("initContainers", []), *template["spec"]["containers"]]


def lost(given: object, kept: object, where: str = "") -> Iterator[str]:
    """Yield what a model dropped, because it does not know the field."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key in kept:
                yield from lost(value, kept[key], f"{where}.{key}")
            else:
                yield f"{where}.{key}"
    elif isinstance(given, list) and isinstance(kept, list):
        for at, (one, other) in enumerate(zip(given, kept, strict=True)):
            yield from lost(one, other, f"{where}[{at}]")


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_golden_copy_is_made_from_the_present_files(overlay: str) -> None:
    first = golden_text(overlay).splitlines(keepends=True)[0]
    assert first == header(), "run: python tests/manifest_kit.py"


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.skipif(kustomize() is None, reason="neither kubectl nor kustomize is installed here")
def test_kustomize_renders_the_golden_copy(overlay: str) -> None:
    assert parse(render(overlay)) == list(objects(overlay))


def test_every_overlay_has_a_golden_copy() -> None:
    folders = {path.name for path in (KUBERNETES / "overlays").iterdir()}
    assert folders == set(OVERLAYS) == {path.stem for path in GOLDEN.glob("*.yaml")}


@pytest.mark.parametrize("item", [item for item in OBJECTS if core(item.values[0])])
def test_an_object_of_kubernetes_is_valid_strictly(item: Json) -> None:
    validator = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate (108 MB) is not installed"
    )
    validator.validate(item, "1.32", strict=True)


@pytest.mark.parametrize("template", PODS)
def test_a_pod_inside_another_kind_is_valid_strictly(template: Json) -> None:
    validator = pytest.importorskip(
        "kubernetes_validate", reason="kubernetes-validate (108 MB) is not installed"
    )
    pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": template["spec"]}
    validator.validate(pod, "1.32", strict=True)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_the_training_runtime_is_valid_by_the_published_model(overlay: str) -> None:
    models = pytest.importorskip("kubeflow_trainer_api.models")
    runtime = named(overlay, "TrainingRuntime", "manyeyes-torch")
    known = models.TrainerV1alpha1TrainingRuntime.from_dict(runtime)
    assert list(lost(runtime, known.to_dict())) == []


@pytest.mark.parametrize(
    "item",
    [
        item
        for item in OBJECTS
        if not core(item.values[0]) and item.values[0]["kind"] != "TrainingRuntime"
    ],
)
def test_a_queue_is_valid_by_its_published_schema(item: Json) -> None:
    assert set(item) == {"apiVersion", "kind", "metadata", "spec"}
    jsonschema.validate(item["spec"], SCHEMAS[f"{item['apiVersion']}/{item['kind']}"])
    if item["kind"] != "LocalQueue":  # of the cluster
        assert "namespace" not in item["metadata"]


@pytest.mark.parametrize("template", PODS)
def test_a_pod_meets_the_restricted_standard_and_has_no_token(template: Json) -> None:
    spec = template["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert not {"hostNetwork", "hostPID", "hostIPC"} & set(spec)
    for container in containers(template):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }
    kinds = {key for volume in spec.get("volumes", []) for key in volume if key != "name"}
    assert kinds <= {"configMap", "emptyDir", "persistentVolumeClaim", "secret"}


@pytest.mark.parametrize("template", PODS)
def test_a_pod_runs_images_pinned_by_digest(template: Json) -> None:
    from manyeyes.config.profile.words import check_image

    for container in containers(template):
        check_image(container["image"])


@pytest.mark.parametrize("template", PODS)
def test_no_secret_stands_in_a_manifest(template: Json) -> None:
    for container in containers(template):
        for variable in container.get("env", []):
            if any(word in variable["name"] for word in ("PASSWORD", "SECRET", "TOKEN", "KEY")):
                assert "value" not in variable, variable["name"]
        assert "://" not in "".join(container.get("command", [])).replace(
            "postgresql+psycopg2:///", ""
        )


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_referred_to_and_never_shipped(overlay: str) -> None:
    assert of_kind(overlay, "Secret") == []


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_no_permission_is_wide(overlay: str) -> None:
    assert of_kind(overlay, "ClusterRole") == []
    assert of_kind(overlay, "ClusterRoleBinding") == []
    for role in of_kind(overlay, "Role"):
        for rule in role["rules"]:
            assert "*" not in [*rule["apiGroups"], *rule["resources"], *rule["verbs"]]
            if "secrets" in rule["resources"]:
                assert rule["verbs"] == ["get"]
                assert rule["resourceNames"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_binding_names_a_role_and_accounts_that_exist(overlay: str) -> None:
    namespace = of_kind(overlay, "RoleBinding")[0]["metadata"]["namespace"]
    roles = {role["metadata"]["name"] for role in of_kind(overlay, "Role")}
    accounts = {account["metadata"]["name"] for account in of_kind(overlay, "ServiceAccount")}
    for binding in of_kind(overlay, "RoleBinding"):
        assert binding["roleRef"]["name"] in roles
        for subject in binding["subjects"]:
            if subject["kind"] == "ServiceAccount":
                assert subject["name"] in accounts
                assert subject["namespace"] == namespace


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_training_pods_have_no_permission(overlay: str) -> None:
    bound = {
        subject["name"]
        for binding in of_kind(overlay, "RoleBinding")
        for subject in binding["subjects"]
    }
    assert "manyeyes-training" not in bound
    account = named(overlay, "ServiceAccount", "manyeyes-training")
    assert account["automountServiceAccountToken"] is False


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_failed_training_job_is_not_made_anew(overlay: str) -> None:
    job_set = named(overlay, "TrainingRuntime", "manyeyes-torch")["spec"]["template"]["spec"]
    assert "ttlSecondsAfterFinished" not in job_set
    assert job_set["failurePolicy"] == {"maxRestarts": 0}
    (job,) = job_set["replicatedJobs"]
    assert job["template"]["spec"]["backoffLimit"] == 0
    assert job["template"]["spec"]["template"]["spec"]["restartPolicy"] == "Never"


PART = {"app.kubernetes.io/part-of": "manyeyes"}
STEP = Peer(
    {**PART, "workflows.argoproj.io/workflow": "run-1", "app.kubernetes.io/component": "sft"}
)
TRAINING = Peer({**PART, "app.kubernetes.io/component": "training"})
MLFLOW = Peer({**PART, "app.kubernetes.io/name": "mlflow"})
BACKUP = Peer({**PART, "app.kubernetes.io/name": "mlflow-backup"})
DATABASE = Peer({**PART, "app.kubernetes.io/name": "mlflow-database"})
NOTEBOOK = Peer({"notebook-name": "of-somebody"})
DNS = Peer({"k8s-app": "kube-dns"}, "kube-system")
PIPELINES = Peer({"app": "ml-pipeline"}, "kubeflow")
INTERNET = Peer(address="203.0.113.7")
METADATA = Peer(address="169.254.169.254")
NEIGHBOUR = Peer(address="10.0.0.7")
API = Peer(address="192.0.2.1")
STORE = {
    "gke-like": (Peer(address="199.36.153.9"), 443),
    "on-prem": (Peer(address="192.0.2.10"), 8333),
}
API_PORT = {"gke-like": 443, "on-prem": 6443}

BOTH = [
    (STEP, "kubernetes", True),
    (STEP, "store", True),
    (STEP, (MLFLOW, 5000), True),
    (STEP, (DNS, 53), True),
    (STEP, (TRAINING, 29500), False),
    (STEP, (DATABASE, 5432), False),
    (STEP, (METADATA, 80), False),
    (STEP, (NEIGHBOUR, 443), False),
    (TRAINING, (TRAINING, 29500), True),
    (TRAINING, (TRAINING, 51423), True),
    (TRAINING, "store", True),
    (TRAINING, (MLFLOW, 5000), True),
    (TRAINING, (DNS, 53), True),
    (TRAINING, "kubernetes", False),
    (TRAINING, (DATABASE, 5432), False),
    (TRAINING, (PIPELINES, 8888), False),
    (TRAINING, (METADATA, 80), False),
    (TRAINING, (NEIGHBOUR, 22), False),
    (TRAINING, (INTERNET, 80), False),
    (MLFLOW, "store", True),
    (MLFLOW, "kubernetes", False),
    (MLFLOW, (INTERNET, 443), False),
    (MLFLOW, (TRAINING, 29500), False),
    (BACKUP, "store", True),
    (BACKUP, (MLFLOW, 5000), False),
    (NOTEBOOK, (MLFLOW, 5000), False),
    (NOTEBOOK, (TRAINING, 29500), False),
]
ONE = [
    ("gke-like", STEP, (PIPELINES, 8887), True),
    ("gke-like", STEP, (INTERNET, 443), True),
    ("gke-like", TRAINING, (INTERNET, 443), True),
    ("gke-like", MLFLOW, (Peer(address="192.0.2.20"), 5432), True),
    ("gke-like", TRAINING, (Peer(address="192.0.2.20"), 5432), False),
    ("gke-like", NOTEBOOK, (INTERNET, 443), False),
    ("on-prem", STEP, (INTERNET, 443), False),
    ("on-prem", TRAINING, (INTERNET, 443), False),
    ("on-prem", MLFLOW, (DATABASE, 5432), True),
    ("on-prem", BACKUP, (DATABASE, 5432), True),
    ("on-prem", NOTEBOOK, (DATABASE, 5432), False),
    ("on-prem", DATABASE, "store", False),
    ("on-prem", DATABASE, (INTERNET, 443), False),
    ("on-prem", Peer({"app": "ml-pipeline"}), (INTERNET, 443), True),  # not ours
]
CONNECTIONS = [(overlay, *case) for overlay in OVERLAYS for case in BOTH] + ONE


@pytest.mark.parametrize(
    ("overlay", "source", "target", "expected"),
    CONNECTIONS,
    ids=[f"{case[0]}-{number}" for number, case in enumerate(CONNECTIONS)],
)
def test_a_pod_reaches_what_it_needs_and_no_more(
    overlay: str, source: Peer, target: tuple[Peer, int] | str, expected: bool
) -> None:
    if target == "kubernetes":
        target = (API, API_PORT[overlay])
    if target == "store":
        target = STORE[overlay]
    peer, port = target
    protocol = "UDP" if port == 53 else "TCP"
    assert may_connect(overlay, source, peer, port, protocol) is expected, (source, target)
