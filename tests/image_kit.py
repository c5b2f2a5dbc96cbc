"""Reads the images' Dockerfiles, and lays a folder out as an image would be, without docker."""

from __future__ import annotations

import fnmatch
import os
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "infra" / "docker"
IMAGES = {
    "control": ("Dockerfile.control", "control"),
    "tracking": ("Dockerfile.control", "tracking"),
    "trainer": ("Dockerfile.trainer", "trainer"),
}
"""Image to its file and its target."""


@dataclass
class Stage:
    """One ``FROM`` and what follows it."""

    name: str
    base: str
    instructions: list[tuple[str, str]] = field(default_factory=list)

    def all(self, keyword: str) -> list[str]:
        """Return the arguments of every instruction of a kind."""
        return [arguments for name, arguments in self.instructions if name == keyword]


@dataclass
class Dockerfile:
    """A whole file: its arguments before the first stage, and its stages by name."""

    arguments: dict[str, str | None]
    stages: dict[str, Stage]

    @staticmethod
    def read(name: str) -> Dockerfile:
        """Parse one of the project's Dockerfiles."""
        text = (DOCKER / name).read_text(encoding="utf-8")
        lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
        joined = re.sub(r"\\\n\s*", " ", "\n".join(lines))
        found = Dockerfile({}, {})
        stage = None
        for line in filter(None, map(str.strip, joined.splitlines())):
            keyword, _, rest = line.partition(" ")
            if keyword == "FROM":
                base, _, alias = rest.partition(" AS ")
                stage = found.stages.setdefault(alias, Stage(alias, base))
            elif stage is None:
                assert keyword == "ARG", line
                argument, equals, default = rest.partition("=")
                found.arguments[argument] = default if equals else None
            else:
                stage.instructions.append((keyword, rest.strip()))
        return found

    def lineage(self, target: str) -> list[Stage]:
        """Return the stages whose layers make up a target, the base first."""
        stage = self.stages[target]
        return [*(self.lineage(stage.base) if stage.base in self.stages else []), stage]

    def environment(self, target: str) -> dict[str, str]:
        """Return the environment variables of a target."""
        pairs = [
            word.split("=", 1)
            for stage in self.lineage(target)
            for line in stage.all("ENV")
            for word in shlex.split(line)
        ]
        return dict(pairs)


def ignored(path: str) -> bool:
    """Say whether ``.dockerignore`` keeps a path out of the build: the last rule that fits wins."""
    verdict = False
    for line in (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines():
        rule = line.strip()
        if not rule or rule.startswith("#"):
            continue
        pattern = rule.removeprefix("!")
        parts = Path(path).parts
        heads = ["/".join(parts[: count + 1]) for count in range(len(parts))]
        anywhere = pattern.removeprefix("**/")
        if any(fnmatch.fnmatch(head, pattern) for head in heads) or (
            anywhere != pattern and any(fnmatch.fnmatch(part, anywhere) for part in parts)
        ):
            verdict = not rule.startswith("!")
    return verdict


def lay_out(image: str, root: Path) -> dict[str, str]:
    """Put into ``root`` what the build of an image copies from the repository.

    Packages (``/opt/venv``) are those of this Python; commands that need docker's base are not run.

    Returns:
        The environment of the image, with its paths below ``root``.
    """
    name, target = IMAGES[image]
    dockerfile = Dockerfile.read(name)
    application = dockerfile.stages["application"]
    (folder,) = application.all("WORKDIR")
    place = root / folder.lstrip("/")
    for line in application.all("COPY"):
        source, destination = line.split()
        shutil.copytree(
            ROOT / source,
            place / destination,
            symlinks=True,
            ignore=lambda at, names: [
                name for name in names if ignored(str((Path(at) / name).relative_to(ROOT)))
            ],
        )
    for line in application.all("RUN"):
        command = line.replace("/opt/venv/bin/python", sys.executable).replace("/app", str(place))
        subprocess.run(["bash", "-euc", command], cwd=place, check=True)
    assert f"--from=application {folder} {folder}" in dockerfile.stages[target].all("COPY")
    for stage in dockerfile.lineage(target):
        for volume in stage.all("VOLUME"):
            (root / volume.lstrip("/")).mkdir()
    found = dockerfile.environment(target)
    return {
        key: str(root) + value if value.startswith("/") else value
        for key, value in found.items()
        if key != "PATH" and "${" not in value
    } | {"PATH": os.environ["PATH"]}
