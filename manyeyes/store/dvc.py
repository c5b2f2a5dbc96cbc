"""What DVC keeps here: its cache, which our store is or is linked into, and its remotes.

In this repository ``.dvc/config`` names ``.manyeyes/store`` as DVC's cache: both are one folder. In
any other DVC repository, or with another ``MANYEYES_HOME``, results are linked into the cache that
its configuration names. So ``dvc status`` knows what a run made, and ``dvc push`` sends it.

DVC itself is not imported: that takes half a second, and reading where its cache lies takes none.
"""

from __future__ import annotations

import os
import textwrap
from configparser import Error as ConfigParserError
from configparser import RawConfigParser
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from manyeyes.runtime.plain_files import read_plain_text

if TYPE_CHECKING:
    from collections.abc import Iterator

FOLDER = ".dvc"


def repository_of(path: Path) -> Path | None:
    """Return the DVC repository that holds a path; None if there is none."""
    for folder in path.absolute().parents:
        if (folder / FOLDER).is_dir():
            return folder
    return None


def cache_of(path: Path) -> Path | None:
    """Return the cache of the DVC repository that holds a path; None if there is none.

    The last of these that says ``cache.dir`` counts, as in DVC: the machine's configuration, the
    user's, the repository's, ``config.local``.
    """
    repository = repository_of(path)
    if repository is None:
        return None
    cache = repository / FOLDER / "cache"
    for file, settings in _configurations(repository):
        given = settings.get("cache", "dir", fallback="").strip("\"' ")
        if given:
            cache = Path(os.path.normpath(file.parent / Path(given).expanduser()))
    return cache


def remotes_at(path: Path) -> Iterator[str]:
    """Yield the addresses of the remotes that DVC knows at a path."""
    for _, settings in _configurations(repository_of(path)):
        for section in settings.sections():
            if "remote" in section:
                yield settings.get(section, "url", fallback="")


def _configurations(repository: Path | None) -> Iterator[tuple[Path, RawConfigParser]]:
    """Yield DVC's configuration files, the most general first, with what they say."""
    for file in _files(repository):
        parser = RawConfigParser(strict=False)
        with suppress(OSError, ValueError, ConfigParserError):  # what DVC too cannot read
            parser.read_string(textwrap.dedent(read_plain_text(file)))
        yield file, parser


def _files(repository: Path | None) -> Iterator[Path]:
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    yield Path(os.environ.get("DVC_SYSTEM_CONFIG_DIR") or "/etc/xdg/dvc") / "config"
    yield Path(os.environ.get("DVC_GLOBAL_CONFIG_DIR") or f"{home}/dvc") / "config"
    if repository is not None:
        yield repository / FOLDER / "config"
        yield repository / FOLDER / "config.local"
