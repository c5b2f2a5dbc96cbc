"""The checks of this machine: Python, packages, disk, memory, processor, tools.

The amounts are measured: the demo (``manyeyes run recipes/tiny/eagle-x5.yaml``) leaves 101 MiB in
``.manyeyes`` and 60 MiB in ``runs`` (``du -sm``), and its largest process held 2,021 MiB
(``system/process_memory_megabytes`` of its tracking records); two experts are trained at a time.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from importlib import metadata
from pathlib import Path

from manyeyes.artifact.provenance import REVISION
from manyeyes.doctor.checking import Check
from manyeyes.doctor.findings import Finding, listing, ok, problem, unchecked, warning
from manyeyes.doctor.machine import Machine
from manyeyes.doctor.stores import content_store, dvc_repository, tracking_store

OLDEST_PYTHON = (3, 11)
MEBIBYTE = 2**20
DEMO_DISK = 295 * MEBIBYTE
"""What the demo leaves, 251 MiB of it features of frozen encoders; while it runs, unfinished stages
and KFP's copies come on top."""
COMFORTABLE_DISK = 1024 * MEBIBYTE
DEMO_MEMORY = 2 * 2021 * MEBIBYTE
COMPILERS = ("g++", "c++", "clang++")
PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;#]+)")


def python_version(machine: Machine) -> list[Finding]:
    """Is the interpreter new enough?"""
    have = ".".join(str(part) for part in machine.python)
    if machine.python[:2] >= OLDEST_PYTHON:
        return [ok(f"Python {have}.")]
    return [
        problem(
            f"Python {have} is too old.",
            "manyeyes needs Python 3.11 or newer.",
            "make setup PYTHON=python3.11",
        )
    ]


def packages(machine: Machine) -> list[Finding]:
    """Are the packages those of the lock file?"""
    try:
        lines = machine.lock.read_text(encoding="utf-8").splitlines()
    except OSError:
        return [
            unchecked(
                "The versions of the packages were not compared.",
                f"There is no {machine.lock.name} beside the package: it was installed without its "
                "repository.",
                "Compare with the requirements.lock of the release: pip check",
            )
        ]
    wanted = {match[1]: match[2] for line in lines if (match := PINNED.match(line))}
    installed = _installed()
    missing = [name for name in wanted if _normal(name) not in installed]
    differing = [
        f"{name} {installed[_normal(name)]} instead of {version}"
        for name, version in wanted.items()
        if name not in missing and installed[_normal(name)].split("+")[0] != version
    ]
    mend = f"python -m pip install -r {machine.lock}"
    findings = []
    if missing:
        findings.append(
            problem(
                f"{_count(missing, 'locked package')} not installed: {listing(missing)}.",
                "A stage that imports them fails.",
                mend,
            )
        )
    if differing:
        findings.append(
            warning(
                f"{_count(differing, 'package')} not as locked: {listing(differing)}.",
                "Only the locked versions are tested together; results may differ.",
                mend,
            )
        )
    return findings or [ok(f"All {len(wanted)} locked packages are installed.")]


def disk_space(machine: Machine) -> list[Finding]:
    """Is there room where state and results lie?"""
    findings: list[Finding] = []
    devices: set[int] = set()
    for place in (machine.home, machine.folder / "runs"):
        folder = nearest_folder(place)
        device = folder.stat().st_dev
        if device not in devices:
            findings.append(_room(place, shutil.disk_usage(folder).free))
        devices.add(device)
    return findings


def _room(place: Path, free: int) -> Finding:
    if free >= COMFORTABLE_DISK:
        return ok(f"{_gibibytes(free)} free for {place}.")
    why = (
        f"The demo alone leaves {DEMO_DISK // MEBIBYTE} MiB, and about twice that lies there "
        "while it runs."
    )
    mend = f"export MANYEYES_HOME=/a/larger/disk, or make room: du -xsh {nearest_folder(place)}/*"
    what = f"Only {free // MEBIBYTE} MiB free for {place}."
    return (warning if free >= 2 * DEMO_DISK else problem)(what, why, mend)


def memory(machine: Machine) -> list[Finding]:
    """Is there enough memory for two experts at a time?"""
    if machine.memory >= DEMO_MEMORY:
        return [ok(f"{_gibibytes(machine.memory)} of memory free.")]
    return [
        warning(
            f"Only {_gibibytes(machine.memory)} of memory free.",
            "The demo's largest process holds 2.0 GiB, and two experts are trained at a time; "
            "a process that gets no memory is killed without a word.",
            "Close other programs, or train on a larger machine.",
        )
    ]


def processor(machine: Machine) -> list[Finding]:
    """Do the steps get cores, and no more threads than there are?"""
    given = machine.environment.get("OMP_NUM_THREADS", "")
    cores = f"{machine.cores} core" + ("" if machine.cores == 1 else "s")
    if not given:
        return [ok(f"{cores}; OMP_NUM_THREADS is not set, so each step gets its share of them.")]
    mend = "unset OMP_NUM_THREADS"
    if not given.isdigit() or int(given) < 1:
        return [
            warning(
                f"OMP_NUM_THREADS is {given!r}, which is no number of threads.",
                "OpenMP then takes every core for every process, and processes that run side by "
                "side wait for each other: ten times slower was measured.",
                mend,
            )
        ]
    if int(given) > machine.cores:
        return [
            warning(
                f"OMP_NUM_THREADS is {given}, but this process may use {cores}.",
                "Threads without a core of their own wait for each other: ten times slower was "
                "measured.",
                mend,
            )
        ]
    return [ok(f"{cores}; OMP_NUM_THREADS limits a run to {given}.")]


def precision(machine: Machine) -> list[Finding]:
    """Does the processor compute in the precision the recipe asks for?"""
    if machine.cpu_flags is None:
        return [
            unchecked(
                "Whether this processor computes in bfloat16 is not known.",
                "The system does not list the processor's features in /proc/cpuinfo.",
            )
        ]
    if has_bfloat16(machine.cpu_flags):
        return [ok("This processor computes in bfloat16.")]
    emulated = [name for name, part in machine.stages().items() if part.precision == "bfloat16"]
    if emulated and not _has_gpu():
        return [
            warning(
                f"The recipe trains in bfloat16, which this processor only emulates: "
                f"{listing(emulated)}.",
                "A step takes about ten times as long (measured: 0.9 instead of 81 GFLOP/s).",
                "Write precision: float32 in these sections of the recipe.",
            )
        ]
    return [ok("This processor only emulates bfloat16; recipes for it say precision: float32.")]


def has_bfloat16(flags: frozenset[str]) -> bool:
    """Tell it from a processor's features, by the rule of torch's CPU kernels."""
    return flags >= {"avx512bw", "avx512vl", "avx512dq"} or "bf16" in flags


def home_writable(machine: Machine) -> list[Finding]:
    """Can state be written? Tried with a nameless file, which leaves nothing behind."""
    folder = nearest_folder(machine.home)
    try:
        if folder != machine.home and machine.home.exists():
            raise NotADirectoryError(20, "Not a directory")
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"x")
    except OSError as error:
        return [
            problem(
                f"{machine.home} cannot be written ({error.strerror}).",
                "Every stage keeps its state, its results and its tracking records there.",
                "export MANYEYES_HOME=/a/folder/of/yours",
            )
        ]
    state = "is writable" if folder == machine.home else "can be made"
    return [ok(f"{machine.home} {state}.")]


def compiler(machine: Machine) -> list[Finding]:
    """Is there a C++ compiler for DeepSpeed?"""
    named = machine.environment.get("CXX", "")
    names = (named, *COMPILERS) if named else COMPILERS
    path = machine.environment.get("PATH", "")
    found = next((place for name in names if (place := shutil.which(name, path=path))), None)
    if found:
        return [ok(f"C++ compiler {found}.")]
    kinds: set[str] = {section.engine.kind for section in machine.stages().values()}
    what = "There is no C++ compiler."
    mend = "apt-get install g++"
    if "deepspeed" in kinds:
        why = "The recipe trains with DeepSpeed, which compiles an operation at its first use."
        return [problem(what, why, mend)]
    why = "Only DeepSpeed needs it: it compiles an operation at its first use."
    return [warning(what, why, mend)]


def git(machine: Machine) -> list[Finding]:
    """Can results say which code made them?"""
    if machine.environment.get(REVISION):
        return [ok(f"{REVISION} names the code's revision.")]
    found = shutil.which("git", path=machine.environment.get("PATH", ""))
    if found:
        return [ok(f"git {found}.")]
    return [
        warning(
            "git is not installed.",
            "Results then say 'unknown' where the revision of the code belongs.",
            "apt-get install git",
        )
    ]


LOCAL_CHECKS: tuple[Check[Machine], ...] = (
    Check("python", python_version),
    Check("packages", packages),
    Check("disk", disk_space),
    Check("memory", memory),
    Check("processor", processor),
    Check("bfloat16", precision),
    Check("state folder", home_writable),
    Check("content store", content_store),
    Check("DVC", dvc_repository),
    Check("MLflow", tracking_store),
    Check("C++ compiler", compiler),
    Check("git", git),
)
"""What is looked at on this machine, in the order of the output."""


def nearest_folder(path: Path) -> Path:
    """Return the folder itself, or the nearest one above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _installed() -> dict[str, str]:
    return {
        _normal(distribution.name): distribution.version
        for distribution in metadata.distributions()
        if distribution.name
    }


def _normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def _count(items: list[str], noun: str) -> str:
    return f"{len(items)} {noun} is" if len(items) == 1 else f"{len(items)} {noun}s are"


def _has_gpu() -> bool:
    return Path("/dev/nvidia0").exists() or Path("/dev/kfd").exists()


def _gibibytes(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"
