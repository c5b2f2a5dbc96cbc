"""Which objects a git project refers to: in its files as they are, and in every ref's history.

The pointers of DVC are ``*.dvc`` and ``dvc.lock``. All commits that a branch, a tag, a remote
branch, a stash, or the HEAD of a worktree leads to are read: whoever goes back to one of them wants
``dvc checkout`` to work.
"""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import dataclass
from pathlib import Path

from manyeyes.errors import ManyeyesError

POINTERS = ("*.dvc", "dvc.lock", "**/dvc.lock")
_GIT_VARIABLES = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_PREFIX")
_HASH = re.compile(rb"\bmd5:\s*['\"]?([0-9a-f]{32}(?:\.dir)?)\b")


@dataclass(frozen=True)
class Ref:
    """One place of a project that names objects."""

    name: str
    """``main``, ``tag v1``, ``stash@{0}``, ``files``."""
    names: frozenset[str]
    """md5s and ``<md5>.dir``s."""
    is_files: bool = False
    """Not a commit, but what lies in a worktree."""


def references(project: Path) -> list[Ref]:
    """Return what a project's files and its refs refer to.

    Raises:
        ManyeyesError: git does not answer.
    """
    heads = _heads(project)
    blobs = {name: _blobs(project, commit) for name, commit in heads.items()}
    texts = _contents(project, sorted(set().union(*blobs.values())))
    found = [
        Ref(name, frozenset().union(*(texts[blob] for blob in wanted)))
        for name, wanted in blobs.items()
    ]
    found += [
        Ref(f"files of {place}", _in_files(place), is_files=True) for place in _worktrees(project)
    ]
    return found


def hashes_in(data: bytes) -> frozenset[str]:
    """Return the hashes that a ``.dvc`` file or a ``dvc.lock`` names."""
    return frozenset(match.decode() for match in _HASH.findall(data))


def _heads(project: Path) -> dict[str, str]:
    """Return name to commit of everything that keeps commits alive, but for the reflog."""
    heads = {}
    listed = _git(project, "for-each-ref", "--format=%(refname)%00%(objectname)")
    for line in listed.decode(errors="replace").splitlines():
        name, commit = line.split("\0")
        heads[name.removeprefix("refs/heads/")] = commit
    if "refs/stash" in heads:
        del heads["refs/stash"]
        for line in _git(project, "stash", "list", "--format=%gd %H").decode().splitlines():
            name, commit = line.rsplit(" ", 1)
            heads[name] = commit
    for place, commit in _worktree_heads(project).items():
        if commit not in heads.values():
            heads[f"HEAD of {place}"] = commit
    return heads


def _worktree_heads(project: Path) -> dict[str, str]:
    heads, place = {}, ""
    for line in _git(project, "worktree", "list", "--porcelain").decode().splitlines():
        word, _, rest = line.partition(" ")
        if word == "worktree":
            place = rest
        elif word == "HEAD" and set(rest) != {"0"}:
            heads[place] = rest
    return heads


def _worktrees(project: Path) -> list[Path]:
    listed = _git(project, "worktree", "list", "--porcelain").decode().splitlines()
    places = [Path(line.removeprefix("worktree ")) for line in listed if line[:9] == "worktree "]
    return [place for place in places if place.is_dir()]


def _blobs(project: Path, commit: str) -> frozenset[str]:
    """Return the pointers' blobs in all commits that lead to this one."""
    kind = _git(project, "cat-file", "-t", f"{commit}^{{}}").strip()
    if kind != b"commit":
        return frozenset()
    commits = _git(project, "rev-list", "--full-history", commit, "--", *POINTERS)
    words = (
        "diff-tree",
        "--stdin",
        "-r",
        "-m",
        "--root",
        "--no-commit-id",
        "--no-renames",
        "--raw",
    )
    found = set()
    for line in _git(project, *words, "--", *POINTERS, given=commits).splitlines():
        mode, identity = line.split()[1], line.split()[3].decode()  # what the commit made of a file
        if mode.startswith(b"100"):
            found.add(identity)
    return frozenset(found)


def _contents(project: Path, blobs: list[str]) -> dict[str, frozenset[str]]:
    """Return blob to the hashes in it, all from one process."""
    if not blobs:
        return {}
    given = "".join(f"{blob}\n" for blob in blobs).encode()
    data = _git(project, "cat-file", "--batch", given=given)
    found, start = {}, 0
    for blob in blobs:
        end = data.index(b"\n", start)
        words = data[start:end].split()
        if len(words) != 3:
            raise _silent(project, f"it has no object {blob}")
        size = int(words[2])
        found[blob] = hashes_in(data[end + 1 : end + 1 + size])
        start = end + 1 + size + 1
    return found


def _in_files(place: Path) -> frozenset[str]:
    """Return what pointers in the files refer to, committed or not, ignored or not."""
    listed = _git(place, "ls-files", "-z", "--cached", "--others", "--", *POINTERS).split(b"\0")
    found: set[str] = set()
    for name in filter(None, listed):
        path = place / name.decode(errors="surrogateescape")
        if path.is_file():
            found |= hashes_in(path.read_bytes())
    return frozenset(found)


def _git(project: Path, *words: str, given: bytes = b"") -> bytes:
    # Inside a hook they would mean another project.
    inherited = {name: text for name, text in os.environ.items() if name not in _GIT_VARIABLES}
    command = ["git", "-C", str(project), *words]
    try:
        done = subprocess.run(command, input=given, capture_output=True, check=False, env=inherited)
    except OSError as error:
        raise _silent(project, f"git: {error.strerror}") from None
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"]
        raise _silent(project, lines[0])
    return done.stdout


def _silent(project: Path, why: str) -> ManyeyesError:
    return ManyeyesError(f"the git project {project} does not answer ({why})")
