"""The guide says what the manifests hold, and the manifests fit the profiles of their names."""

import re
from collections.abc import Iterator

import pytest
from image_kit import ROOT
from manifest_kit import OVERLAYS, Json, named, objects, of_kind, pod_templates

from manyeyes.config.profile import ClusterProfile, load_profile
from manyeyes.config.profile.load import PROFILES

GUIDE = (ROOT / "docs" / "cluster.md").read_text(encoding="utf-8")
PROFILED = [overlay for overlay in OVERLAYS if (PROFILES / f"{overlay}.yaml").exists()]


def table(first_column: str) -> list[list[str]]:
    """Return the rows of the guide's table that begins with a column."""
    _, _, rest = GUIDE.partition(f"\n| {first_column} |")
    rows = rest.split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in row.strip("| ").split(" | ")] for row in rows]


def rules(overlay: str) -> Iterator[tuple[str, str, str]]:
    """Yield role, resources and verbs as the guide writes them."""
    for role in of_kind(overlay, "Role"):
        for rule in role["rules"]:
            names = f" ({', '.join(rule['resourceNames'])})" if "resourceNames" in rule else ""
            resources = ", ".join(rule["resources"]) + names
            yield role["metadata"]["name"], resources, ", ".join(rule["verbs"])


def secrets(value: object) -> Iterator[str]:
    """Yield the names of the secrets that an object refers to."""
    if isinstance(value, dict):
        for key in ("secretRef", "secretKeyRef"):
            if key in value:
                yield value[key]["name"]
        yield from (pull["name"] for pull in value.get("imagePullSecrets", []))
        for inner in value.values():
            yield from secrets(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from secrets(inner)


def test_the_table_of_permissions_is_what_the_roles_say() -> None:
    written = {(role, resources, verbs) for role, resources, verbs, _why in table("role")}
    assert written == {rule for overlay in OVERLAYS for rule in rules(overlay)}


def test_the_table_of_accounts_is_what_the_bindings_say() -> None:
    written = {
        account: set(roles.split(", ")) - {"none"}
        for accounts, roles, _token in table("account")
        for account in accounts.split(", ")
    }
    bound: dict[str, set[str]] = {
        account["metadata"]["name"]: set()
        for overlay in OVERLAYS
        for account in of_kind(overlay, "ServiceAccount")
    }
    for overlay in OVERLAYS:
        for binding in of_kind(overlay, "RoleBinding"):
            for subject in binding["subjects"]:
                if subject["kind"] == "ServiceAccount":
                    bound[subject["name"]].add(binding["roleRef"]["name"])
    assert written == bound


def test_the_guide_creates_every_secret_that_a_manifest_names() -> None:
    created = set(re.findall(r"create secret (?:generic|docker-registry) ([a-z0-9-]+)", GUIDE))
    used = {name for overlay in OVERLAYS for item in objects(overlay) for name in secrets(item)}
    assert used <= created


def test_the_threat_table_answers_the_four_questions() -> None:
    attackers = " ".join(row[0] for row in table("attacker has"))
    for word in (
        "bad dataset",
        "bad checkpoint",
        "stolen notebook token",
        "compromised training pod",
    ):
        assert word in attackers
    assert all(len(row) == 4 and all(row) for row in table("attacker has"))


def test_the_commands_that_make_images_are_targets_of_the_makefile() -> None:
    makefile = (ROOT / "infra" / "docker" / "Makefile").read_text(encoding="utf-8")
    targets = {"digests", "locks", "push", "sbom", "control", "trainer", "tracking"}
    named_here = {
        word
        for line in re.findall(r"make -C infra/docker ([a-z ]+)", GUIDE)
        for word in line.split()
    }
    assert named_here <= targets
    assert all(target in makefile for target in targets)


def profile_of(overlay: str) -> ClusterProfile:
    profile = load_profile(overlay)
    assert isinstance(profile, ClusterProfile)
    return profile


def image(overlay: str, name: str) -> str:
    """Return the image of the pods that one object starts."""
    (template,) = [pod for owner, pod in pod_templates(overlay) if owner.endswith(f"/{name}")]
    return str(template["spec"]["containers"][0]["image"])


@pytest.mark.parametrize("overlay", PROFILED)
def test_an_overlay_and_its_profile_name_the_same_things(overlay: str) -> None:
    profile = profile_of(overlay)
    namespace = {item["metadata"].get("namespace") for item in objects(overlay)} - {None}
    assert namespace == {profile.kubeflow.namespace}
    account = "manyeyes-launcher" if profile.train_jobs else "manyeyes-steps"
    assert profile.kubeflow.service_account == account
    assert profile.images.trainer == image(overlay, "manyeyes-torch")
    assert profile.images.control == image(overlay, "mlflow-backup")
    if profile.storage.claim:
        named(overlay, "PersistentVolumeClaim", profile.storage.claim)
    for name in profile.images.pull_secrets:
        assert {"name": name} in named(overlay, "ServiceAccount", account)["imagePullSecrets"]
    if profile.train_jobs:
        named(overlay, "TrainingRuntime", profile.train_jobs.runtime)
        match profile.train_jobs.scheduling.kind:
            case "kueue":
                named(overlay, "LocalQueue", profile.train_jobs.scheduling.queue)
            case "volcano":
                named(overlay, "Queue", profile.train_jobs.scheduling.queue)


@pytest.mark.parametrize("overlay", PROFILED)
def test_the_tracking_server_answers_to_the_name_in_the_profile(overlay: str) -> None:
    (settings,) = [
        item
        for item in of_kind(overlay, "ConfigMap")
        if item["metadata"]["name"].startswith("mlflow-settings")
    ]
    hosts = settings["data"]["MLFLOW_SERVER_ALLOWED_HOSTS"].split(",")
    assert re.sub(r"^https?://", "", profile_of(overlay).tracking.uri).rstrip("/") in hosts


@pytest.mark.parametrize("overlay", PROFILED)
def test_the_quota_holds_the_gpus_of_every_stage(overlay: str) -> None:
    profile = profile_of(overlay)
    quota: Json = named(overlay, "ResourceQuota", "manyeyes")["spec"]["hard"]
    jobs = profile.train_jobs.stages.values() if profile.train_jobs else ()
    stages = [*(step.gpus for step in profile.steps.values())]
    stages += [job.nodes * job.gpus_per_node for job in jobs]
    assert max(stages) <= int(quota["requests.nvidia.com/gpu"])
