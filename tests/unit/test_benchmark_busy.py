"""What is made of the steps that a training did beside other programs; and how shares are counted."""

import time

from benchmarks import busy
from benchmarks.busy import Result, missed, table

QUIET = Result(0, 1.0, {"before": [2.0, 2.4, 2.2], "now": [2.2, 2.2, 2.1]})
TWO = Result(2, 0.5, {"before": [0.2, 0.1, 0.3], "now": [1.1, 0.9, 0.88]})
SIX = Result(6, 0.25, {"before": [0.01, 0.01, 0.02], "now": [0.3, 0.2, 0.1]})


def test_steps_are_held_against_what_is_fair_of_the_quiet_ones():
    assert table([QUIET, TWO, SIX], 40.0).splitlines() == [
        "| beside | fair share | steps before | steps now | before | now | target |",
        "| --- | --- | --- | --- | --- | --- | --- |",
        "| nothing | 88 | 88.0 | 88.0 | 100% | 100% | 95% |",
        "| 2 | 44 | 8.0 | 36.0 | 18% | 82% | 75% |",
        "| 6 | 22 | 0.4 | 8.0 | 2% | 36% | 60% |",
    ]


def test_what_misses_its_target_is_named():
    assert missed([QUIET, TWO], 0) == []
    assert missed([QUIET, TWO, SIX], 1) == [
        "beside 6: 36% of the fair share",
        "1 pairs with different weights",
    ]


def test_a_loss_on_a_quiet_machine_is_named():
    slower = Result(0, 1.0, {"before": [2.0], "now": [1.8]})
    assert missed([slower], 0) == ["beside nothing: 90% of the fair share"]


def test_a_share_is_what_processes_get_that_never_wait():
    share = busy.fair_share(busy=2, seconds=0.5)
    assert 0.0 <= share <= 1.05


def test_neighbours_are_gone_afterwards():
    with busy.beside(2) as processes:
        assert all(process.is_running() for process in processes)
    assert not any(process.is_running() for process in processes)


def test_turns_of_the_contenders_alternate(monkeypatch):
    monkeypatch.setattr(time, "sleep", lambda _: None)
    order = []

    class Turns:
        def __init__(self, name):
            self.name = name

        def turn(self, seconds):
            order.append(self.name)
            return seconds

    found = busy.compare({"before": Turns("b"), "now": Turns("n")}, 0, 2.0, 3)
    assert "".join(order) == "bnnbbn"
    assert found == Result(0, 1.0, {"before": [2.0] * 3, "now": [2.0] * 3})
