"""What an image installs: part of ``requirements.lock``, found from what an image must import.

One lock file describes a development environment, of which an image needs a part: the control
image no torch, and neither image DVC's own program, tests or tools. The part is the closure of the
project's dependencies over the installed packages' own words, so nobody keeps a second list by
hand. A line of an image's lock is always a line of ``requirements.lock``.

``python -m pipelines.image_locks`` writes ``infra/docker/*.lock``; a test holds them current.
"""

from __future__ import annotations

import sys
import tomllib
from collections.abc import Iterable, Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from manyeyes.artifact import atomic_write_text

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "infra" / "docker"

NOT_IN_IMAGES = ("dvc", "dvc-s3")
"""People pull with DVC's program; a step reads and writes its layout without it."""
NOT_IN_CONTROL = ("deepspeed", "peft", "safetensors", "tokenizers", "torch", "transformers")
"""What only training and evaluation import."""
BUILT_FROM_SOURCE = ("deepspeed",)
"""Compiled against CUDA in the trainer's build, and listed in ``compiled.lock``."""

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
    """
    names = _closure(_roots(LEFT_OUT[image])) - set(BUILT_FROM_SOURCE)
    lines = [line for name, line in sorted(_locked().items()) if name in names]
    return "\n".join([*lines, ""])


def main() -> int:
    """Write the locks of all images."""
    for image in LEFT_OUT:
        atomic_write_text(FOLDER / f"{image}.lock", image_lock(image))
    return 0


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
