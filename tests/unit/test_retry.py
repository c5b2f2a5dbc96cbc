"""Waits double up to a limit, a server's wish goes before, and there is an end to all of it."""

import pytest
from simulated_clock import SimulatedClock

from manyeyes.runtime.retry import Retries, RetryPolicy

CASES = {
    "doubling up to the longest": (RetryPolicy(attempts=6, longest=5.0), (), [1.0, 2.0, 4.0, 5.0, 5.0]),
    "no wait beyond the time there is": (RetryPolicy(seconds=10.0, first=3.0), (), [3.0, 6.0]),
    "one attempt": (RetryPolicy(attempts=1), (), []),
    "no time": (RetryPolicy(seconds=0.0), (), []),
    "what the server asks for": (RetryPolicy(attempts=4, longest=20.0), (17.0, None, 99.0), [17.0, 2.0, 20.0]),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_a_policy_decides_how_long_and_how_often(case):
    policy, asked, expected = CASES[case]
    clock, wishes = SimulatedClock(), iter(asked)
    retries = Retries(policy, clock)
    while retries.wait(next(wishes, None)):
        pass
    assert clock.slept == expected
    assert retries.failures == len(expected) + 1


def test_spread_waits_are_shorter_by_half_at_most():
    policy = RetryPolicy(attempts=50, first=4.0, longest=4.0, spread=True)
    clock = SimulatedClock()
    retries = Retries(policy, clock)
    while retries.wait():
        pass
    assert all(2.0 <= wait <= 4.0 for wait in clock.slept)
    assert len(set(clock.slept)) > 1
