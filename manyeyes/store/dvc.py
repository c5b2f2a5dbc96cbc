"""What DVC keeps here: its cache, which our store is or is linked into.

In this repository ``.dvc/config`` names ``.manyeyes/store`` as DVC's cache: both are one folder. In
any other DVC repository, or with another ``MANYEYES_HOME``, results are linked into the cache that
its configuration names. So ``dvc status`` knows what a run made, and ``dvc push`` sends it.

DVC itself is not imported: that takes half a second, and reading where its cache lies takes none.
"""

from __future__ import annotations

import configparser
import os
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

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
    for file in _configurations(repository):
        given = _cache_dir(file)
        if given:
            cache = Path(os.path.normpath(file.parent / Path(given).expanduser()))
    return cache


def _configurations(repository: Path) -> Iterator[Path]:
    home = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    yield Path(os.environ.get("DVC_SYSTEM_CONFIG_DIR") or "/etc/xdg/dvc") / "config"
    yield Path(os.environ.get("DVC_GLOBAL_CONFIG_DIR") or f"{home}/dvc") / "config"
    yield repository / FOLDER / "config"
    yield repository / FOLDER / "config.local"


def _cache_dir(file: Path) -> str:
    """Read ``cache.dir`` of a configuration; what DVC itself could not read says nothing."""
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    with suppress(OSError, configparser.Error, UnicodeDecodeError):
        parser.read_string(file.read_text(encoding="utf-8"))
    return parser.get("cache", "dir", fallback="").strip("\"' ")
