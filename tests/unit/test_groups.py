"""Tests that share something dear to make are run by one worker."""

import os

import pytest


@pytest.mark.xdist_group("groups")
@pytest.mark.skipif("PYTEST_XDIST_WORKER" not in os.environ, reason="one process runs everything")
def test_a_group_of_tests_stays_with_its_worker(request):
    # What the scheduler goes by. pytest 9.2 gives pytest-xdist 3.8 no way to write it, and every
    # worker makes the dear thing again.
    assert request.node.nodeid.endswith("@groups")
