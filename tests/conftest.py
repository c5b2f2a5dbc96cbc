"""Puts this folder on the import path, so that tests of any kind can share a kit from it."""

import os

# Two test processes with OpenMP threads on all cores wait for each other ten times longer than
# they compute. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
