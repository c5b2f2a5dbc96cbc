"""Which file of each locked package an image installs, by its digest.

A version names many files, and an index may change what stands behind a name. So each line of the
images' locks carries the sha256 of the one file that fits the images' platform, and pip installs
nothing else. ``infra/docker/hashes.lock`` keeps the digests, so that the locks can be derived
again without a network.

``python -m tools.images.package_hashes`` asks an index (PEP 503) for packages that are new in a
lock, then writes the locks; ``--index`` names a mirror.
"""

from __future__ import annotations

import argparse
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from html.parser import HTMLParser
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import requests
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.utils import (
    InvalidSdistFilename,
    InvalidWheelFilename,
    canonicalize_name,
    parse_sdist_filename,
    parse_wheel_filename,
)
from packaging.version import Version

from manyeyes.artifact.manifest import atomic_write_text
from manyeyes.errors import UserError
from tools.images.image_locks import (
    BY_HAND,
    COMPILED,
    FOLDER,
    HASHES,
    LEFT_OUT,
    SOURCE_ONLY,
    image_lines,
    read_hashes,
    source_lines,
    write_locks,
)

if TYPE_CHECKING:
    from collections.abc import Iterable

INDEX = "https://pypi.org/simple"
GLIBC_MINOR = 36
"""Of the base image (Debian 12)."""


class _Links(HTMLParser):
    """The files of an index page: name to sha256."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note one link."""
        link = urlsplit(dict(attrs).get("href") or "")
        if tag == "a" and link.fragment.startswith("sha256="):
            self.files[unquote(Path(link.path).name)] = link.fragment.removeprefix("sha256=")


def main(argv: list[str] | None = None) -> int:
    """Bring ``hashes.lock`` and the locks of all images up to date."""
    parser = argparse.ArgumentParser(prog="python -m tools.images.package_hashes")
    parser.add_argument("--index", default=INDEX, help=f"a package index (default {INDEX})")
    index: str = parser.parse_args(argv).index
    try:
        known = read_hashes()
        wanted = sorted(set(_all_lines()))
        with ThreadPoolExecutor(8) as pool:
            found = pool.map(lambda line: known.get(line) or _ask(line, index), wanted)
            digests = dict(zip(wanted, found, strict=True))
    except (UserError, requests.RequestException) as error:
        print(error, file=sys.stderr)
        return 2
    atomic_write_text(HASHES, "".join(f"{line} {digest}\n" for line, digest in digests.items()))
    write_locks()
    return 0


def _all_lines() -> Iterable[str]:
    yield from source_lines()
    for image in LEFT_OUT:
        yield from image_lines(image)
    for name in BY_HAND:
        for line in (FOLDER / f"{name}.lock").read_text(encoding="utf-8").splitlines():
            if line and not line.startswith("#"):
                yield line.partition(" ")[0]


def _ask(line: str, index: str) -> str:
    """Return the digest of the file that an image installs."""
    name, _, version = line.partition("==")
    page = _Links()
    answer = requests.get(f"{index}/{canonicalize_name(name)}/", timeout=60)
    answer.raise_for_status()
    page.feed(answer.text)
    source = canonicalize_name(name) in {*COMPILED, *SOURCE_ONLY}
    rank = _rank_source if source else _rank_wheel
    ranked = [(rank(file, Version(version)), file) for file in page.files]
    fitting = [(place, file) for place, file in ranked if place is not None]
    if not fitting:
        kind = "source archive" if source else "wheel for the images' platform"
        raise UserError(f"{index} has no {kind} of {line}; choose another version.")
    return f"sha256:{page.files[min(fitting)[1]]}"


def _rank_source(file: str, version: Version) -> int | None:
    try:
        return 0 if parse_sdist_filename(file)[1] == version else None
    except InvalidSdistFilename:  # a wheel, or the archive of an old release
        return None


def _rank_wheel(file: str, version: Version) -> int | None:
    """Return how early pip would take a wheel; None if it is another version or does not fit."""
    if not file.endswith(".whl"):
        return None
    try:
        _, found, _, tags = parse_wheel_filename(file)
    except InvalidWheelFilename:  # of an old release; pip passes over it, too
        return None
    places = [_supported()[tag] for tag in tags if tag in _supported()]
    return min(places) if places and found == version else None


@cache
def _supported() -> dict[Tag, int]:
    """Return the images' tags, the best first, as pip orders them."""
    legacy = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
    platforms = []
    for minor in range(GLIBC_MINOR, 4, -1):
        platforms += [f"manylinux_2_{minor}_x86_64"]
        platforms += [f"{legacy[minor]}_x86_64"] if minor in legacy else []
    platforms.append("linux_x86_64")
    tags = [*cpython_tags((3, 11), platforms=platforms)]
    tags += compatible_tags((3, 11), "cp311", platforms)
    return {tag: place for place, tag in reversed(list(enumerate(tags)))}


if __name__ == "__main__":
    sys.exit(main())
