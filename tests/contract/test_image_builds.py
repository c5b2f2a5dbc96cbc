"""The images can be trusted before anybody builds them: pinned, unprivileged, nothing installed."""

import re
import subprocess
from pathlib import Path

import pytest
from image_kit import DOCKER, IMAGES, ROOT, Dockerfile, ignored

from tools.images.image_locks import BY_HAND, LEFT_OUT, NOT_IN_CONTROL, image_lock, lock_by_hand

TARGETS = [(*IMAGES[image], image) for image in IMAGES]
FILES = sorted({file for file, _ in IMAGES.values()})
CACHES = ("HOME", "HF_HOME", "MANYEYES_HOME", "MPLCONFIGDIR", "TRITON_CACHE_DIR", "XDG_CACHE_HOME")
RUNS_INSTALLERS = re.compile(r"\bpip\b(?!\*)|\bcurl\b|\bwget\b|\bgit\b|\buv\b|\bconda\b")


def locked(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    lines = [line.partition(";")[0] for line in text.splitlines() if not line.startswith("#")]
    packages = [line.partition(" --hash=")[0] for line in lines]
    assert all(re.fullmatch(r"[a-z0-9.-]+==[^\s=]+", package) for package in packages), name
    return dict(package.split("==") for package in packages)


REQUIREMENTS = locked("requirements.lock")


@pytest.mark.parametrize("file", FILES)
def test_every_base_is_given_by_digest_and_has_no_default(file: str) -> None:
    dockerfile = Dockerfile.read(file)
    assert dockerfile.arguments == {
        "PYTHON_REPOSITORY": "docker.io/library/python",
        "PYTHON_DIGEST": None,
    }
    earlier: set[str] = set()
    for stage in dockerfile.stages.values():
        pinned = stage.base == "${PYTHON_REPOSITORY}@${PYTHON_DIGEST}"
        assert pinned or stage.base in earlier, stage.name
        earlier.add(stage.name)


@pytest.mark.parametrize("file", FILES)
def test_no_dockerfile_names_a_moving_tag_or_makes_up_a_digest(file: str) -> None:
    text = (DOCKER / file).read_text(encoding="utf-8")
    assert "latest" not in text
    assert not re.search(r"sha256:[0-9a-f]{8}", text)
    assert not re.search(r"^#\s*syntax=", text, re.MULTILINE)  # a frontend behind a tag


@pytest.mark.parametrize(("file", "target", "_image"), TARGETS)
def test_a_target_runs_as_a_numeric_user(file: str, target: str, _image: str) -> None:
    users = [user for stage in Dockerfile.read(file).lineage(target) for user in stage.all("USER")]
    assert users[-1] == "1000:1000"


@pytest.mark.parametrize(("file", "target", "_image"), TARGETS)
def test_a_target_installs_no_python_package(file: str, target: str, _image: str) -> None:
    for stage in Dockerfile.read(file).lineage(target):
        for command in stage.all("RUN"):
            assert not RUNS_INSTALLERS.search(command), command
        assert stage.all("ADD") == []
    removed = " ".join(
        command for stage in Dockerfile.read(file).lineage(target) for command in stage.all("RUN")
    )
    assert "/usr/local/bin/pip*" in removed
    assert "/usr/local/lib/python3.11/site-packages/*" in removed


@pytest.mark.parametrize("file", FILES)
def test_packages_are_installed_from_locks_alone(file: str) -> None:
    for stage in Dockerfile.read(file).stages.values():
        for command in stage.all("RUN"):
            for part in command.split("&&"):
                if " install " in part and "-m pip" in part:
                    assert "--no-deps" in part
                    assert re.search(
                        r"(-r /build/[a-z]+\.lock|--no-index /(wheels|compiled))", part
                    ), part


@pytest.mark.parametrize("file", FILES)
def test_every_copied_source_is_in_the_repository_and_in_the_build_context(file: str) -> None:
    stages = Dockerfile.read(file).stages
    for stage in stages.values():
        for line in stage.all("COPY"):
            *sources, _destination = line.split()
            if sources[0].startswith("--from="):
                assert sources[0].removeprefix("--from=") in stages, line
                continue
            for source in sources:
                assert (ROOT / source).exists(), source
                assert not ignored(source), source


@pytest.mark.parametrize("path", [".git/config", ".env", "runs/a", "tests/conftest.py", "data/x"])
def test_the_build_context_leaves_out_what_no_image_needs(path: str) -> None:
    assert ignored(path)


@pytest.mark.parametrize(("file", "target", "_image"), TARGETS)
def test_everything_that_is_written_lies_in_the_volume(file: str, target: str, _image: str) -> None:
    dockerfile = Dockerfile.read(file)
    volumes = [line for stage in dockerfile.lineage(target) for line in stage.all("VOLUME")]
    assert volumes == ["/cache"]
    environment = dockerfile.environment(target)
    for name in CACHES:
        assert Path(environment[name]).is_relative_to("/cache"), name
    written = [
        key for key in environment if key.endswith(("_CACHE_DIR", "_HOME", "_EXTENSIONS_DIR"))
    ]
    assert all(environment[key].startswith("/cache") for key in written)
    assert environment["LOGNAME"]  # user 1000 has no line in /etc/passwd for getpass to read


@pytest.mark.parametrize(("file", "target", "_image"), TARGETS)
def test_nothing_in_an_image_reports_home(file: str, target: str, _image: str) -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    quiet = dict(re.findall(r"^export (\w+) = (\w+)$", makefile, re.MULTILINE))
    assert quiet.items() <= Dockerfile.read(file).environment(target).items()


@pytest.mark.parametrize("image", LEFT_OUT)
def test_the_lock_of_an_image_is_current(image: str) -> None:
    present = (DOCKER / f"{image}.lock").read_text(encoding="utf-8")
    assert present == image_lock(image), "run: make -C infra/docker locks"


@pytest.mark.parametrize("name", BY_HAND)
def test_the_digests_of_a_lock_by_hand_are_current(name: str) -> None:
    present = (DOCKER / f"{name}.lock").read_text(encoding="utf-8")
    assert present == lock_by_hand(name), "run: make -C infra/docker locks"


@pytest.mark.parametrize("name", [*BY_HAND, *LEFT_OUT, "source"])
def test_every_package_of_an_image_is_named_with_its_digest(name: str) -> None:
    lines = (DOCKER / f"{name}.lock").read_text(encoding="utf-8").splitlines()
    packages = [line for line in lines if not line.startswith("#")]
    assert packages
    assert [line for line in packages if not re.search(r" --hash=sha256:[0-9a-f]{64}$", line)] == []


@pytest.mark.parametrize("file", FILES)
def test_whatever_is_fetched_for_an_image_has_a_digest(file: str) -> None:
    dockerfile = Dockerfile.read(file)
    runs = [run for stage in dockerfile.stages.values() for run in stage.all("RUN")]
    installs = [
        part for run in runs for part in run.split("&&") if "pip" in part and " -r " in part
    ]
    assert installs
    assert [part for part in installs if "--require-hashes" not in part] == []


@pytest.mark.parametrize("image", LEFT_OUT)
def test_the_lock_of_an_image_is_part_of_the_projects(image: str) -> None:
    assert locked(f"infra/docker/{image}.lock").items() <= REQUIREMENTS.items()


def test_the_control_image_has_no_torch_and_nothing_that_needs_it() -> None:
    names = set(locked("infra/docker/control.lock"))
    assert names.isdisjoint(NOT_IN_CONTROL)
    assert names.isdisjoint({"triton", "accelerate", "gradio", "pytest", "dvc", "pip"})


@pytest.mark.parametrize("name", ["gpu", "build", "compiled", "tracking"])
def test_a_lock_beyond_the_projects_agrees_with_it(name: str) -> None:
    both = locked(f"infra/docker/{name}.lock").keys() & REQUIREMENTS.keys()
    beyond = locked(f"infra/docker/{name}.lock")
    assert {key: beyond[key] for key in both} == {key: REQUIREMENTS[key] for key in both}


def test_the_trainers_locks_do_not_overlap() -> None:
    locks = [
        locked(f"infra/docker/{name}.lock")
        for name in ("trainer", "gpu", "build", "compiled", "source")
    ]
    names = [name for lock in locks for name in lock]
    assert len(names) == len(set(names))


def test_all_build_arguments_are_used_by_the_makefile() -> None:
    makefile = (DOCKER / "Makefile").read_text(encoding="utf-8")
    assert set(re.findall(r"--build-arg (\w+)=", makefile)) == {
        "PYTHON_REPOSITORY",
        "PYTHON_DIGEST",
        "REVISION",
    }


@pytest.mark.parametrize(
    ("arguments", "answer"),
    [
        ([], "Say where the images go: REGISTRY=registry.example.com/manyeyes\n"),
        (
            ["REGISTRY=registry.example.com/manyeyes"],
            "Pin the base image: PYTHON_DIGEST=sha256:..., which 'make digests' prints\n",
        ),
        (
            ["REGISTRY=registry.example.com/manyeyes", "PYTHON_DIGEST=3.11-slim"],
            "Pin the base image: PYTHON_DIGEST=sha256:..., which 'make digests' prints\n",
        ),
    ],
    ids=["nothing", "no-digest", "a-tag"],
)
def test_the_build_refuses_to_start_without_a_pinned_base(
    arguments: list[str], answer: str
) -> None:
    done = subprocess.run(
        ["make", "--silent", "-C", str(DOCKER), "control", *arguments],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert done.stdout == answer
