"""Tracking: what was run, on what, with which result.

Reading order: ``store`` (where records go), ``records`` and ``spool`` (every stage writes to disk
first), ``pipeline`` (the record above them), ``stage`` (what the runner calls), ``owed``, ``sent``
and ``sync`` (the spool is sent to MLflow, now or later).
MLflow is imported inside functions only, because it costs seconds.
"""

from manyeyes.tracking.stage import StageRecord

__all__ = ["StageRecord"]
