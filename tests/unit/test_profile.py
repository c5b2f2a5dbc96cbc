"""Profiles are read strictly, and what is wrong with one is said in sentences."""

from pathlib import Path

import pytest

from manyeyes.config.profile import ClusterProfile, LaptopProfile, load_profile, parse_profile
from manyeyes.config.profile.words import cores
from manyeyes.errors import UserError

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "infra/profiles/gke-like.yaml").read_text()
PINNED = "europe-docker.pkg.dev/example-project/manyeyes/trainer@sha256:" + "0" * 63 + "2"


def test_the_shipped_profiles_are_read_by_name_and_by_path() -> None:
    assert isinstance(load_profile("laptop"), LaptopProfile)
    for name in ("gke-like", "on-prem"):
        found = load_profile(name)
        assert isinstance(found, ClusterProfile)
        assert found.name == name
        assert load_profile(str(ROOT / f"infra/profiles/{name}.yaml")) == found
        assert ClusterProfile.model_validate_json(found.model_dump_json()) == found


def test_an_unknown_profile_is_named() -> None:
    with pytest.raises(UserError) as error:
        load_profile("gke")
    assert str(error.value) == (
        "Unknown profile 'gke': known are gke-like, laptop, on-prem; did you mean 'gke-like'?"
    )


NOT_PINNED = (
    "image {0!r} is not pinned: a tag can move, and KFP's cache cannot notice it; "
    "give NAME@sha256:DIGEST with 64 hexadecimal digits"
)
MUTABLE = (
    "registry.example/manyeyes",
    "registry.example/manyeyes:latest",
    "registry.example/manyeyes@sha256:123",
    "registry.example/manyeyes@sha256:" + "G" * 64,
)


@pytest.mark.parametrize("image", MUTABLE)
def test_an_image_that_can_change_is_refused(image: str) -> None:
    assert problem(PINNED, image) == f"profile.images.trainer: {NOT_PINNED.format(image)}"


WRONG = {
    "cpu": (
        "cpu: 500m", "cpu: half",
        "profile.steps.experts.cpu: 'half' is no number of cores; "
        "write for instance 16, 0.5 or 500m",
    ),
    "no-cpu": (
        "cpu: 500m", 'cpu: "0"',
        "profile.steps.experts.cpu: '0' is no number of cores; write for instance 16, 0.5 or 500m",
    ),
    "memory": (
        "memory: 1Gi", "memory: 1.5Gi",
        "profile.steps.experts.memory: '1.5Gi' is no size; "
        "write a whole number with Mi, Gi or Ti, for instance 200Gi",
    ),
    "address": (
        "http://mlflow.team-vision.svc.cluster.local:5000", "mlflow.example.org",
        "profile.tracking.uri: 'mlflow.example.org' is no address; "
        "write for instance https://kfp.example.org",
    ),
    "password": (
        "http://mlflow.team-vision.svc.cluster.local:5000", "https://me:hunter2@mlflow.example.org",
        "profile.tracking.uri: the address of mlflow.example.org holds a user or a password, and "
        "profiles are read by many; keep them in a secret and name the secret",
    ),
    "pool": (
        "pool: a100\n      gpus: 8", "pool: a200\n      gpus: 8",
        "profile: steps.prealign names the pool 'a200', but pools are cpu, a100, h100",
    ),
    "launcher-with-gpus": (
        "pretrain:                               # only", "pretrain:\n      gpus: 1 # only",
        "profile: steps.pretrain asks for GPUs, but the pool cpu has none",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_a_sentence(name: str) -> None:
    old, new, text = WRONG[name]
    assert problem(old, new) == text


def problem(old: str, new: str) -> str:
    """Change the profile in one place; return the error without file and line."""
    assert old in TEXT
    with pytest.raises(UserError) as error:
        parse_profile(TEXT.replace(old, new, 1), "p.yaml")
    where, _, text = str(error.value).partition(": ")
    assert where.startswith("p.yaml:")
    return text


def test_cores_are_numbers() -> None:
    assert (cores("500m"), cores("0.5"), cores("16")) == (0.5, 0.5, 16.0)
