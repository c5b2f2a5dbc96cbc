"""Puts this folder on the import path, so that tests of any kind can share a kit from it."""

import os

import pytest

from manyeyes.runtime.instruction_set import limit_alike

# Two test processes with OpenMP threads on all cores wait for each other ten times longer than
# they compute. Set before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
limit_alike()


@pytest.fixture(autouse=True)
def environment_as_it_was():
    """A stage's process sets names for its children; the next test must not inherit them."""
    before = dict(os.environ)
    yield
    for name in os.environ.keys() - before.keys():
        del os.environ[name]
    os.environ.update(before)
