"""The wheel: one package, all of it, that works from any folder."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
LINKED = {
    "pipelines/": "manyeyes/kubeflow/pipelines/",
    "components/": "manyeyes/kubeflow/components/",
}
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


def tracked():
    """Return the files of the repository as it is: what git has, and what it would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    return [name for name in listed.splitlines() if os.path.lexists(ROOT / name)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """A wheel, built from a copy: the build leaves files in its source."""
    place = tmp_path_factory.mktemp("wheel")
    for name in tracked():
        (place / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(ROOT / name, place / "source" / name, follow_symlinks=False)
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "--no-index",
         "--quiet", "--disable-pip-version-check", "-w", place],
        cwd=place / "source", check=True,
    )  # fmt: skip
    (found,) = place.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel):
    """The wheel's files in a folder, as pip would put them into ``site-packages``."""
    folder = wheel.parent / "installed"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder


@pytest.fixture
def elsewhere(tmp_path):
    """A folder that has a recipe and knows nothing of the repository."""
    shutil.copy(ROOT / "recipes/tiny/eagle-x5.yaml", tmp_path / "recipe.yaml")
    return tmp_path


def python(installed, folder, *arguments):
    answer = subprocess.run(
        [sys.executable, *arguments],
        cwd=folder, capture_output=True, text=True, check=False,
        env={**os.environ, "PYTHONPATH": str(installed), "MANYEYES_HOME": str(folder / "home")},
    )  # fmt: skip
    assert answer.returncode == 0, answer.stdout + answer.stderr
    return answer.stdout


def test_the_wheel_has_the_package_and_nothing_else(wheel, installed):
    (info,) = installed.glob("*.dist-info")
    assert sorted(path.name for path in installed.iterdir()) == ["manyeyes", info.name]
    assert (info / "top_level.txt").read_text() == "manyeyes\n"
    assert "manyeyes = manyeyes.cli:main" in (info / "entry_points.txt").read_text()


def test_the_wheel_has_every_file_of_the_package(installed):
    """Code, links followed; weights, templates and the lock; and no file that git does not have."""
    expected = set()
    for name in tracked():
        folder = f"{name.split('/')[0]}/"
        if name.startswith("manyeyes/") and not (ROOT / name).is_symlink():
            expected.add(name)
        elif folder in LINKED:
            expected.add(LINKED[folder] + name.removeprefix(folder))
    files = (path for path in (installed / "manyeyes").rglob("*") if path.is_file())
    assert {str(path.relative_to(installed)) for path in files} == expected


def test_what_is_installed_works_from_another_folder(installed, elsewhere):
    where = python(installed, elsewhere, "-c", "import manyeyes; print(manyeyes.__file__)")
    assert where.strip() == str(installed / "manyeyes/__init__.py")
    command = ("-m", "manyeyes")
    assert "usage: manyeyes" in python(installed, elsewhere, *command, "--help").replace(
        "Usage", "usage"
    )
    checked = python(installed, elsewhere, *command, "check", "recipe.yaml")
    assert checked.startswith("recipe.yaml: ok\n")
    python(installed, elsewhere, *command, "compile", "recipe.yaml", "-o", "pipeline.yaml")
    assert "pipelineInfo:" in (elsewhere / "pipeline.yaml").read_text()


def test_the_installed_code_is_that_of_the_lock(installed, elsewhere):
    told = python(installed, elsewhere, "-m", "manyeyes", "explain", "recipe.yaml")
    assert "prepare" in told
    assert "differs from the lock" not in told
