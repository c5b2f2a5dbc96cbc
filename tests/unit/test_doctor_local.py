"""What doctor says of this machine: every check with a machine that is fine and one that is not."""

import sqlite3
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from manyeyes.config.recipe import parse_recipe
from manyeyes.doctor import local, machine, stores, tracking
from manyeyes.doctor.findings import Finding
from manyeyes.doctor.machine import Machine

ROOT = Path(__file__).parents[2]
GIB = 2**30
EMULATES = frozenset({"avx2", "fma"})
COMPUTES = frozenset({"avx2", "avx512bw", "avx512vl", "avx512dq"})
HALF_DISK = "The demo alone leaves 295 MiB, and about twice that lies there while it runs."
TRACKED = "Every stage records its run there, and models are registered there."


@pytest.fixture
def fine(tmp_path, monkeypatch):
    """A machine on which nothing is missing."""
    (tmp_path / ".dvc").mkdir()
    (tmp_path / ".dvc" / "config").write_text(
        "[core]\n    remote = local\n['remote \"local\"']\n    url = ../.manyeyes/store\n"
    )
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("git", "g++"):
        (tools / name).write_text("#!/bin/sh\n")
        (tools / name).chmod(0o755)
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / ".manyeyes"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return Machine(
        python=(3, 11, 7),
        lock=ROOT / "requirements.lock",
        cores=2,
        memory=8 * GIB,
        cpu_flags=COMPUTES,
        environment={"PATH": str(tools)},
        folder=tmp_path,
        home=tmp_path / ".manyeyes",
        recipe=None,
    )


def recipe(**changes):
    """The tiny recipe, with its text changed."""
    path = ROOT / "recipes" / "tiny" / "eagle-x5.yaml"
    text = path.read_text(encoding="utf-8")
    for old, new in changes.items():
        text = text.replace(old, new)
    return parse_recipe(text, str(path))


@pytest.mark.parametrize(
    ("check", "text"),
    [
        (local.python_version, "Python 3.11.7."),
        (local.memory, "8.0 GiB of memory free."),
        (
            local.processor,
            "2 cores; OMP_NUM_THREADS is not set, so each step gets its share of them.",
        ),
        (local.precision, "This processor computes in bfloat16."),
        (local.home_writable, "{folder}/.manyeyes can be made."),
        (stores.content_store, "0 results in {folder}/.manyeyes/store."),
        (stores.dvc_repository, "DVC's remote local is the content store."),
        (stores.tracking_store, "{folder}/.manyeyes/mlflow.db is made at the first use."),
        (local.compiler, "C++ compiler {folder}/tools/g++."),
        (local.git, "git {folder}/tools/git."),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_machine_that_is_fine(fine, check, text):
    assert check(fine) == [Finding("ok", text.format(folder=fine.folder))]


@pytest.mark.parametrize(
    ("check", "changes", "finding"),
    [
        (
            local.python_version,
            {"python": (3, 10, 14)},
            Finding(
                "problem",
                "Python 3.10.14 is too old.",
                "manyeyes needs Python 3.11 or newer.",
                "make setup PYTHON=python3.11",
            ),
        ),
        (
            local.memory,
            {"memory": 3 * GIB},
            Finding(
                "warning",
                "Only 3.0 GiB of memory free.",
                "The demo's largest process holds 2.0 GiB, and two experts are trained at a time; "
                "a process that gets no memory is killed without a word.",
                "Close other programs, or train on a larger machine.",
            ),
        ),
        (
            local.processor,
            {"environment": {"OMP_NUM_THREADS": "8"}},
            Finding(
                "warning",
                "OMP_NUM_THREADS is 8, but this process may use 2 cores.",
                "Threads without a core of their own wait for each other: ten times slower was "
                "measured.",
                "unset OMP_NUM_THREADS",
            ),
        ),
        (
            local.processor,
            {"environment": {"OMP_NUM_THREADS": "all"}},
            Finding(
                "warning",
                "OMP_NUM_THREADS is 'all', which is no number of threads.",
                "OpenMP then takes every core for every process, and processes that run side by "
                "side wait for each other: ten times slower was measured.",
                "unset OMP_NUM_THREADS",
            ),
        ),
        (
            local.processor,
            {"environment": {"OMP_NUM_THREADS": "1"}},
            Finding("ok", "2 cores; OMP_NUM_THREADS limits a run to 1."),
        ),
        (
            local.precision,
            {"cpu_flags": None},
            Finding(
                "unchecked",
                "Whether this processor computes in bfloat16 is not known.",
                "The system does not list the processor's features in /proc/cpuinfo.",
            ),
        ),
        (
            local.precision,
            {"cpu_flags": EMULATES},
            Finding(
                "ok",
                "This processor only emulates bfloat16; recipes for it say precision: float32.",
            ),
        ),
        (
            local.compiler,
            {"environment": {"PATH": "/nowhere"}},
            Finding(
                "warning",
                "There is no C++ compiler.",
                "Only DeepSpeed needs it: it compiles an operation at its first use.",
                "apt-get install g++",
            ),
        ),
        (
            local.git,
            {"environment": {"PATH": "/nowhere"}},
            Finding(
                "warning",
                "git is not installed.",
                "Results then say 'unknown' where the revision of the code belongs.",
                "apt-get install git",
            ),
        ),
        (
            local.git,
            {"environment": {"PATH": "/nowhere", "MANYEYES_REVISION": "abc"}},
            Finding("ok", "MANYEYES_REVISION names the code's revision."),
        ),
    ],
    ids=[
        "old-python", "little-memory", "too-many-threads", "threads-no-number", "threads-limited",
        "flags-unknown", "emulated", "no-compiler", "no-git", "revision-given",
    ],
)  # fmt: skip
def test_a_machine_that_lacks_something(fine, check, changes, finding):
    assert check(replace(fine, **changes)) == [finding]


def test_a_recipe_in_bfloat16_on_a_processor_that_emulates_it(fine, monkeypatch):
    monkeypatch.setattr(local, "_has_gpu", lambda: False)
    slow = recipe(**{"precision: float32": "precision: bfloat16"})
    assert local.precision(replace(fine, cpu_flags=EMULATES, recipe=slow)) == [
        Finding(
            "warning",
            "The recipe trains in bfloat16, which this processor only emulates: "
            "prealign.experts.clip, prealign.experts.convnext, prealign.experts.sam, "
            "prealign.experts.eva02, prealign.experts.pix2struct and 2 more.",
            "A step takes about ten times as long (measured: 0.9 instead of 81 GFLOP/s).",
            "Write precision: float32 in these sections of the recipe.",
        )
    ]


def test_packages_as_locked(fine, tmp_path):
    lock = tmp_path / "requirements.lock"
    lock.write_text("# by hand\npydantic==0.1\nno-such-thing==1.0\n")
    pydantic = local._installed()["pydantic"]
    findings = local.packages(replace(fine, lock=lock))
    mend = f"python -m pip install -r {lock}"
    assert findings == [
        Finding(
            "problem",
            "1 locked package is not installed: no-such-thing.",
            "A stage that imports them fails.",
            mend,
        ),
        Finding(
            "warning",
            f"1 package is not as locked: pydantic {pydantic} instead of 0.1.",
            "Only the locked versions are tested together; results may differ.",
            mend,
        ),
    ]
    lock.write_text(f"Pydantic=={pydantic} ; python_version > '3'\n")
    assert local.packages(replace(fine, lock=lock)) == [
        Finding("ok", "All 1 locked packages are installed.")
    ]


def test_packages_without_a_lock_file(fine, tmp_path):
    assert local.packages(replace(fine, lock=tmp_path / "requirements.lock")) == [
        Finding(
            "unchecked",
            "The versions of the packages were not compared.",
            "There is no requirements.lock beside the package: it was installed without its "
            "repository.",
            "Compare with the requirements.lock of the release: pip check",
        )
    ]


@pytest.mark.parametrize(
    ("free", "state", "text", "why"),
    [
        (50 * GIB, "ok", "50.0 GiB free for {home}.", ""),
        (3 * GIB // 4, "warning", "Only 768 MiB free for {home}.", HALF_DISK),
        (GIB // 8, "problem", "Only 128 MiB free for {home}.", HALF_DISK),
    ],
    ids=["much", "some", "little"],
)
def test_disk_space(fine, monkeypatch, free, state, text, why):
    usage = SimpleNamespace(free=free)
    monkeypatch.setattr(local.shutil, "disk_usage", lambda _: usage)
    mend = f"export MANYEYES_HOME=/a/larger/disk, or make room: du -xsh {fine.folder}/*"
    expected = Finding(state, text.format(home=fine.home), why, mend if why else "")
    # State and results lie on one disk here, which is looked at once.
    assert local.disk_space(fine) == [expected]


def test_a_state_folder_that_is_a_file(fine):
    fine.home.write_text("")
    assert local.home_writable(fine) == [
        Finding(
            "problem",
            f"{fine.home} cannot be written (Not a directory).",
            "Every stage keeps its state, its results and its tracking records there.",
            "export MANYEYES_HOME=/a/folder/of/yours",
        )
    ]


def test_a_state_folder_is_looked_at_without_a_trace(fine):
    fine.home.mkdir()
    assert local.home_writable(fine) == [Finding("ok", f"{fine.home} is writable.")]
    assert list(fine.home.iterdir()) == []


def test_damaged_objects(fine):
    damaged = fine.home / "store" / "damaged"
    damaged.mkdir(parents=True)
    (damaged / "abc.1").write_text("x")
    assert stores.content_store(fine) == [
        Finding(
            "warning",
            f"1 damaged object was set aside in {damaged}.",
            "Bytes changed on this disk; the stages that made them run again by themselves.",
            f"Check the disk, then: rm -r {damaged}",
        )
    ]


@pytest.mark.parametrize(
    ("config", "finding"),
    [
        (
            None,
            Finding(
                "warning",
                "{folder} is in no DVC repository.",
                "dvc pull, dvc push and dvc repro need one; manyeyes run does not.",
                "cd to the repository, or: dvc init --no-scm",
            ),
        ),
        (
            "[core]\n    analytics = false\n",
            Finding(
                "warning",
                "DVC has no default remote.",
                "dvc push and dvc pull do not know where results are.",
                "dvc remote add --default local {folder}/.manyeyes/store",
            ),
        ),
        (
            "[core]\n    remote = lab\n",
            Finding(
                "problem",
                "DVC's default remote lab is not described in {folder}/.dvc/config.",
                "dvc push and dvc pull fail.",
                "dvc remote add lab URL",
            ),
        ),
        (
            "[core]\n    remote = lab\n['remote \"lab\"']\n    url = /elsewhere\n",
            Finding(
                "warning",
                "DVC's remote lab is /elsewhere, but results are stored in "
                "{folder}/.manyeyes/store.",
                "dvc pull finds only what dvc push has brought there.",
                "dvc remote modify --local lab url {folder}/.manyeyes/store",
            ),
        ),
        (
            "[core]\n    remote = lab\n['remote \"lab\"']\n    url = gs://x/y\n",
            Finding(
                "unchecked",
                "DVC's remote lab (gs) was not tried.",
                "doctor tries folders and S3 only.",
                "dvc status --cloud --remote lab",
            ),
        ),
        (
            "remote = lab\n",
            Finding(
                "problem",
                "{folder}/.dvc/config cannot be read (MissingSectionHeaderError).",
                "DVC fails with every command.",
                "git -C {folder} checkout .dvc/config",
            ),
        ),
    ],
    ids=["no-repository", "no-remote", "unknown-remote", "elsewhere", "other-kind", "broken"],
)
def test_dvc(fine, config, finding):
    file = fine.folder / ".dvc" / "config"
    file.unlink()
    if config is None:
        file.parent.rmdir()
    else:
        file.write_text(config)
    texts = [text.format(folder=fine.folder) for text in (finding.what, finding.why, finding.mend)]
    assert stores.dvc_repository(fine) == [Finding(finding.state, *texts)]


def write_database(path, revision):
    path.parent.mkdir(exist_ok=True)
    with sqlite3.connect(path) as database:
        database.execute("CREATE TABLE alembic_version (version_num TEXT)")
        database.execute("INSERT INTO alembic_version VALUES (?)", (revision,))
    database.close()


@pytest.mark.parametrize("case", ["newest", "older", "unknown", "broken"])
def test_the_schema_of_the_tracking_database(fine, case):
    newest, older = tracking._revisions()
    path = fine.home / "mlflow.db"
    revisions = {"newest": newest, "older": min(older), "unknown": "0123456789ab"}
    if case == "broken":
        path.parent.mkdir()
        path.write_text("no database at all, but long enough to look at" * 40)
    else:
        write_database(path, revisions[case])
    before = path.read_bytes()
    expected = {
        "newest": Finding("ok", f"{path} has the schema of the installed MLflow."),
        "older": Finding(
            "problem",
            f"{path} has the schema of an older MLflow.",
            "MLflow refuses to open it, so runs are only spooled and models cannot be registered.",
            f"mlflow db upgrade sqlite:///{path}",
        ),
        "unknown": Finding(
            "problem",
            f"{path} has a schema that the installed MLflow does not know.",
            "A newer MLflow wrote it; this one refuses to open it.",
            "python -m pip install -r requirements.lock, or use the MLflow that wrote it",
        ),
        "broken": Finding(
            "problem",
            f"{path} cannot be read as an MLflow database (file is not a database).",
            TRACKED,
            f"mv {path} {path}.broken",
        ),
    }
    assert stores.tracking_store(fine) == [expected[case]]
    assert path.read_bytes() == before


def test_a_tracking_folder(fine, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "file:///tmp/mlruns")
    assert stores.tracking_store(fine) == [
        Finding(
            "problem",
            "MLFLOW_TRACKING_URI is 'file:///tmp/mlruns', but MLflow no longer tracks in plain "
            f"folders: give an http(s):// server or sqlite:///FILE, or unset it to use "
            f"{fine.home}/mlflow.db.",
            "Nothing can be tracked or registered.",
            "unset MLFLOW_TRACKING_URI",
        )
    ]


def test_a_database_server_that_is_not_there_keeps_its_password(fine, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "nosuchdb://user:hidden@db:1/mlflow")
    (finding,) = stores.tracking_store(fine)
    assert finding == Finding(
        "problem",
        "The database driver for nosuchdb://db:1 is missing (Can't load plugin: "
        "sqlalchemy.dialects:nosuchdb).",
        TRACKED,
        "Give MLFLOW_TRACKING_URI a driver that is installed, such as postgresql+psycopg2://",
    )


def test_facts_about_the_processor(tmp_path):
    info = tmp_path / "cpuinfo"
    assert machine.read_cpu_flags(info) is None
    info.write_text("processor\t: 0\nflags\t\t: avx2 fma\n")
    assert machine.read_cpu_flags(info) == EMULATES
    info.write_text("processor\t: 0\nFeatures\t: fp bf16\n")
    assert local.has_bfloat16(machine.read_cpu_flags(info))


def test_a_container_limits_the_memory(tmp_path):
    limit = tmp_path / "memory.max"
    limit.write_text("1048576\n")
    assert machine.free_memory((tmp_path / "none", limit)) == 1048576
    limit.write_text("max\n")
    assert machine.free_memory((limit,)) > 1048576
