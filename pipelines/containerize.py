"""What an image needs besides the packages: ``kfp_config.ini``, which tells KFP where steps are.

A Containerized Python Component starts ``python3 -m kfp.dsl.executor_main`` in the image's working
directory; the file there maps the name of each step function to the file it stands in.
"""

from __future__ import annotations

import inspect
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CONFIG = "kfp_config.ini"


def kfp_config() -> str:
    """Return the text of ``kfp_config.ini``, made from the table of step functions."""
    from manyeyes.kubeflow.pipelines.training import COMPONENTS

    lines = [
        f"{name} = {Path(inspect.getfile(function)).resolve().relative_to(ROOT).as_posix()}"
        for name, function in sorted(COMPONENTS.items())
    ]
    return "\n".join(["[Components]", *lines, ""])


if __name__ == "__main__":
    (Path.cwd() / CONFIG).write_text(kfp_config(), encoding="utf-8")
