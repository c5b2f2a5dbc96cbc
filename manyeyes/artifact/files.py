"""Names of the files within artifacts, each once: who writes a file and who reads it agree here.

What makes a folder an artifact (``manifest.json``, ``pointer.json``) is named in ``manifest``. What
lies below ``measurements/`` and the report tell how a run went; they are no part of the content.
"""

from __future__ import annotations

# Every artifact.
MEASUREMENTS = "measurements"
"""Folder of what tells how a run went."""
REPORT_FILE = "report.html"
"""What ``validate`` and ``eval`` write for people, also where a gate refuses."""
METRICS_FILE = "metrics.json"
"""What ``validate`` and ``eval`` write for programs."""
HISTORY = f"{MEASUREMENTS}/history"
"""Folder with the lineage records, curves and times of the stages above."""

# A dataset, and what the data contract says of it.
SAMPLES_FILE = "samples.parquet"
ANNOTATIONS_FILE = "annotations.parquet"
SOURCES_FILE = "sources.json"
QUARANTINE_FILE = "quarantine.parquet"
EXPECTATIONS_FILE = "expectations.json"

# A checkpoint.
RECIPE_FILE = "recipe.json"
"""The part of the recipe that made it."""
PROCESSOR_FILE = "processor.json"
WEIGHTS_FILE = "model.safetensors"
WEIGHTS_INDEX_FILE = "model.safetensors.index.json"
CURVES_FILE = f"{MEASUREMENTS}/metrics.jsonl"
"""One row a step: loss, rates, times."""
FEATURES_FILE = f"{MEASUREMENTS}/features.json"
"""Whether features of frozen encoders were kept, and why."""
UNUSABLE_FILE = f"{MEASUREMENTS}/quarantine.json"
"""Samples whose pictures could not be read while training."""
FAILURE_FILE = f"{MEASUREMENTS}/failed-step.json"
FAILURE_FOLDER = f"{MEASUREMENTS}/failed-step"
IMPORT_FILE = "import.json"
"""What an import of foreign weights found and left out."""

# What eval and register write.
PREDICTIONS_FILE = "predictions.parquet"
REGISTRATION_FILE = "registration.json"
