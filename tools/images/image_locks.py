"""What an image installs: part of ``requirements.lock``, found from what an image must import.

One lock file describes a development environment, of which an image needs a part: the control
image no torch, and neither image DVC's own program, tests or tools. The part is the closure of the
project's dependencies over the installed packages' own words, so nobody keeps a second list by
hand. A line of an image's lock is always a line of ``requirements.lock``, and the digest of the
file that the image installs.

``python -m tools.images.image_locks`` writes ``infra/docker/*.lock``; a test holds them current.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.errors import UserError

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "infra" / "docker"
HASHES = FOLDER / "hashes.lock"
"""A line a package: ``name==version sha256:...``."""

NOT_IN_IMAGES = ("dvc", "dvc-s3")
"""People pull with DVC's program; a step reads and writes its layout without it."""
NOT_IN_CONTROL = (
    "deepspeed", "peft", "safetensors", "simplejpeg", "tokenizers", "torch", "transformers",
)  # fmt: skip
"""What only training and evaluation import."""
COMPILED = ("deepspeed", "flash-attn")
"""Compiled against CUDA in the trainer's build, and listed in ``compiled.lock``."""
SOURCE_ONLY = ("kfp-server-api",)
"""Python alone, but published without a wheel: ``source.lock``."""
BY_HAND = ("gpu", "build", "compiled", "tracking")
"""Locks whose packages are not the project's; only their digests are derived."""

LEFT_OUT = {
    "control": (*NOT_IN_IMAGES, *NOT_IN_CONTROL),
    "trainer": (*NOT_IN_IMAGES,),
}
"""Image to the dependencies of the project that are not roots of its lock."""

IMAGE = {
    "implementation_name": "cpython",
    "os_name": "posix",
    "platform_machine": "x86_64",
    "platform_python_implementation": "CPython",
    "platform_system": "Linux",
    "python_full_version": "3.11.14",
    "python_version": "3.11",
    "sys_platform": "linux",
}
"""What the images run on, in the words of dependency markers; not what this process runs on."""


def image_lock(image: str) -> str:
    """Return the lock of an image.

    Args:
        image: ``control`` or ``trainer``.

    Raises:
        UserError: a package has no digest yet.
    """
    return _with_hashes(image_lines(image))


def image_lines(image: str) -> list[str]:
    """Return ``name==version`` of all that an image installs of the project's lock."""
    names = _closure(_roots(LEFT_OUT[image])) - {*COMPILED, *SOURCE_ONLY}
    return [line for name, line in sorted(_locked().items()) if name in names]


def source_lines() -> list[str]:
    """Return ``name==version`` of what both images make a wheel of themselves."""
    return [line for name, line in sorted(_locked().items()) if name in SOURCE_ONLY]


def lock_by_hand(name: str) -> str:
    """Return one of ``BY_HAND`` with its digests."""
    return _with_hashes((FOLDER / f"{name}.lock").read_text(encoding="utf-8").splitlines())


def write_locks() -> None:
    """Write the locks of all images.

    Raises:
        UserError: a package has no digest yet.
    """
    locks = {name: lock_by_hand(name) for name in BY_HAND}
    locks |= {image: image_lock(image) for image in LEFT_OUT}
    locks["source"] = _with_hashes(source_lines())
    for name, text in locks.items():
        atomic_write_text(FOLDER / f"{name}.lock", text)


def read_hashes() -> dict[str, str]:
    """Return ``name==version`` to ``sha256:...``, as ``tools.images.package_hashes`` found them."""
    lines = HASHES.read_text(encoding="utf-8").splitlines() if HASHES.is_file() else []
    return {line: digest for line, _, digest in (line.partition(" ") for line in lines)}


def main() -> int:
    """Write the locks of all images."""
    try:
        write_locks()
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_code
    return 0


def _with_hashes(lines: Iterable[str]) -> str:
    known = read_hashes()
    written = []
    for line in lines:
        package = line.partition(" ")[0]
        if line.startswith("#"):
            written.append(line)
        elif package in known:
            written.append(f"{package} --hash={known[package]}")
        else:
            raise UserError(
                f"infra/docker/hashes.lock has no digest of {package}; run: make -C infra/docker "
                "hashes (it asks the package index)."
            )
    return "\n".join([*written, ""])


def _locked() -> dict[str, str]:
    """Return each package of ``requirements.lock`` with its line."""
    lines = (ROOT / "requirements.lock").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line.partition("==")[0]): line for line in lines}


def _roots(left_out: Iterable[str]) -> Iterator[Requirement]:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    for line in tomllib.loads(text)["project"]["dependencies"]:
        requirement = Requirement(line)
        if requirement.name not in left_out:
            yield requirement


def _closure(roots: Iterable[Requirement]) -> set[str]:
    """Return the names of the roots and of everything that they need here."""
    waiting, seen, names = list(roots), set[tuple[str, frozenset[str]]](), set[str]()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in seen:
            continue
        seen.add(key)
        names.add(name)
        for line in metadata.requires(name) or []:
            needed = Requirement(line)
            marker, extras = needed.marker, requirement.extras or {""}
            if marker is None or any(marker.evaluate({**IMAGE, "extra": e}) for e in extras):
                waiting.append(needed)
    return names


if __name__ == "__main__":
    sys.exit(main())
