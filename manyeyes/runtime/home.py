"""Where a user's state lives: ``.manyeyes`` in the working directory, or ``MANYEYES_HOME``.

``store/`` holds every artifact by content, ``index/`` maps fingerprints to content, ``work/`` holds
unfinished stages, ``runs/`` what was said and measured, ``mlflow.db`` the tracking database.
``owed/`` names the runs of which MLflow has not been told all, ``models/`` holds what was brought
back to be served, ``tokens/`` and ``features/`` hold what can be made again.
"""

from __future__ import annotations

import os
from pathlib import Path

HOME = "MANYEYES_HOME"
RUN = "MANYEYES_RUN"
INPUTS = "inputs"
"""Folder with what running steps read, fetched by pointer; gone when they end."""
STAGE_RECORDS = "stages"
"""Folder of a run with one record for each stage."""
OWED = "owed"
"""Folder of what MLflow has not been told yet."""
WHOLE_RECIPE = "MANYEYES_RECIPE"
"""Holds the JSON of the recipe to which a training stage belongs (``stages.ahead``)."""
STORE = "MANYEYES_STORE"
"""The content store, ``store/`` in the state directory without it."""
CACHE = "MANYEYES_CACHE"
"""A node's cache of a store that is a bucket; ``cache/`` in the state directory without it."""
DATA = "MANYEYES_DATA"
"""Names the folder with imported datasets; ``data`` in the working directory without it."""


def home() -> Path:
    """Return the state directory; it may not exist yet."""
    return Path(os.environ.get(HOME, ".manyeyes")).absolute()


def run_name() -> str:
    """Name of the pipeline run this process belongs to."""
    return os.environ.get(RUN, "unnamed")


def run_directory(name: str | None = None) -> Path:
    """Return the directory with the records of one pipeline run."""
    return home() / "runs" / (name or run_name())


def stage_record(run: Path, slug: str) -> Path:
    """Return where a run's record of one stage lies.

    Args:
        run: the run's directory.
        slug: the task's name as a part of file names (``steps.Task.slug``).
    """
    return run / STAGE_RECORDS / f"{slug}.json"


def dataset_folder(name: str) -> Path:
    """Return where an imported dataset of this name lies."""
    return Path(os.environ.get(DATA, "data")) / name
