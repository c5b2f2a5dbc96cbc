"""What is missing here or on the cluster, and how to mend it.

Design decisions:

- A check is a small function from facts to findings, one row of a visible table (``LOCAL_CHECKS``,
  ``CLUSTER_CHECKS``). It reads and changes nothing, except for one small object that it puts into
  a bucket and takes out again.
- Looking must be cheap: no torch, no mlflow, no kfp. Checks run side by side.
- What could not be checked is said, never taken for good.
- Secrets: names and keys are shown, values never.
"""

from __future__ import annotations

from manyeyes.doctor.checking import Answer, Check, run_checks
from manyeyes.doctor.findings import Finding, State
from manyeyes.doctor.local import LOCAL_CHECKS
from manyeyes.doctor.machine import Machine, this_machine

__all__ = [
    "LOCAL_CHECKS",
    "Answer",
    "Check",
    "Finding",
    "Machine",
    "State",
    "run_checks",
    "this_machine",
]
