"""What a process that uses manyeyes sets in its environment, where nobody set it before.

Nothing reports home, nothing is unpickled, and oneDNN is limited to the instructions torch is
limited to. The libraries read it when they are imported, so it has to be set before.
"""

from __future__ import annotations

import os

from manyeyes.runtime.instruction_set import limit_alike

QUIET = {
    "GX_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "TOKENIZERS_PARALLELISM": "false",
}


def set_defaults() -> None:
    """Set what is not set."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    limit_alike()
