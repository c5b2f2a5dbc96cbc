"""Where the models-from-code file lies, without running it: running it announces a model."""

from __future__ import annotations

from pathlib import Path

MODEL_CODE = Path(__file__).with_name("pyfunc_model.py")
"""What MLflow copies into a registered version and executes to load it."""
