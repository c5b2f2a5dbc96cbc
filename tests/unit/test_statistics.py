"""Intervals, pairs and sizes against values known from elsewhere."""

import math

import numpy as np
import pytest

from manyeyes.evaluation import statistics
from manyeyes.evaluation.statistics import Estimate, Outcomes


def outcomes(scores, aggregate="mean", positive=None, parts=None):
    count = len(scores)
    return Outcomes(
        aggregate,
        tuple(float(score) for score in scores),
        tuple(positive) if positive is not None else (True,) * count,
        tuple(parts) if parts is not None else ("",) * count,
    )


@pytest.mark.parametrize(
    ("hits", "count", "low", "high"),
    [
        # Clopper and Pearson's own table, to its digits, and the rule of three.
        (1, 1, 2.5, 100.0),
        (0, 1, 0.0, 97.5),
        (2, 2, 15.8114, 100.0),
        (0, 10, 0.0, 30.8497),
        (5, 10, 18.7086, 81.2914),
        (10, 10, 69.1503, 100.0),
        (0, 300, 0.0, 1.2221),
        (300, 400, 70.4558, 79.1698),
    ],
)
def test_a_proportion_has_the_exact_interval(hits, count, low, high):
    found = statistics.proportion(hits, count)
    assert found.value == pytest.approx(100.0 * hits / count, abs=1e-4)
    assert (found.low, found.high) == pytest.approx((low, high), abs=2e-4)


@pytest.mark.parametrize(("hits", "count"), [(0, 0), (2, 1), (-1, 3)])
def test_a_proportion_of_nothing_is_refused(hits, count):
    with pytest.raises(ValueError, match="questions"):
        statistics.proportion(hits, count)


@pytest.mark.parametrize("scores", [[1.0], [0.0], [0.1, 0.1], [0.5] * 20, [1.0] * 5, [0.3, 0.9]])
def test_no_interval_is_a_point_and_each_holds_its_value(scores):
    found = statistics.mean(scores)
    assert found.low < found.high
    assert found.low <= found.value <= found.high
    assert found.low >= 0.0
    assert found.high <= 100.0


@pytest.mark.parametrize("scores", [[], [1.5], [-0.1], [math.nan]])
def test_scores_outside_their_range_have_no_mean(scores):
    with pytest.raises(ValueError, match="between 0 and 1"):
        statistics.mean(scores)


def test_drawn_intervals_agree_with_exact_ones():
    hits = [1.0] * 30 + [0.0] * 10
    drawn = statistics.draw(outcomes(hits), [1]).estimate()
    exact = statistics.proportion(30, 40)
    assert (drawn.value, drawn.low, drawn.high) == pytest.approx(
        (exact.value, exact.low, exact.high), abs=1.0
    )


def test_intervals_cover_the_truth_as_often_as_they_say():
    generator = np.random.default_rng(5)
    # Fractional scores of a skewed kind, few questions: the case a percentile bootstrap misses.
    truth, covered, rounds = 0.75, 0, 200
    for number in range(rounds):
        scores = 1.0 - generator.exponential(0.25, 12).clip(0.0, 1.0)
        found = statistics.draw(outcomes(scores), [number]).estimate()
        covered += found.low <= 100.0 * truth <= found.high
    assert covered >= 0.93 * rounds


def test_a_seed_gives_the_same_interval():
    scores = [0.2, 0.9, 0.4]
    assert statistics.mean(scores, [3]) == statistics.mean(scores, [3])
    assert statistics.mean(scores, [3]) != statistics.mean(scores, [4])


def test_pairs_are_compared_question_by_question():
    generator = np.random.default_rng(0)
    first = generator.random(400) < 0.6
    second = first ^ (generator.random(400) < 0.05)
    paired = statistics.compare({"t": outcomes(first)}, {"t": outcomes(second)}).average
    alone = statistics.proportion(int(first.sum()), 400)
    assert paired.value == pytest.approx(100.0 * (first.mean() - second.mean()), abs=1e-4)
    assert paired.high - paired.low < 0.7 * (alone.high - alone.low)


def test_equal_answers_to_few_questions_prove_little():
    few = statistics.compare({"t": outcomes([1, 0])}, {"t": outcomes([1, 0])}).average
    assert few.value == 0.0
    assert few.low < -60.0
    many = outcomes([1, 0] * 500)
    assert statistics.compare({"t": many}, {"t": many}).average.low > -0.5


def test_f1_is_the_mean_over_the_parts():
    # One part: TP 1, FP 2, FN 0, F1 1/2; the other is answered rightly.
    one = outcomes(
        [1, 1, 0, 0, 1, 1], "f1", [True, False, False, False, True, False], [*"aaaa", *"bb"]
    )
    assert statistics.score(one) == pytest.approx(75.0)
    assert statistics.draw(one, [0]).value == pytest.approx(75.0)
    found = statistics.draw(one, [0]).estimate()
    assert found.low < 75.0 < found.high


def test_the_average_is_over_tasks_and_narrower_than_one_task():
    generator = np.random.default_rng(1)
    tasks = {name: outcomes(generator.random(100) < 0.5) for name in "abcd"}
    draws = [statistics.draw(task, [number]) for number, task in enumerate(tasks.values())]
    whole = statistics.average(draws).estimate()
    assert whole.value == pytest.approx(np.mean([draw.value for draw in draws]), abs=1e-3)
    one = draws[0].estimate()
    assert whole.high - whole.low < 0.6 * (one.high - one.low)


@pytest.mark.parametrize(
    ("first", "second"),
    [({"a": [1]}, {"b": [1]}), ({"a": [1]}, {"a": [1, 0]})],
    ids=["another task", "another number"],
)
def test_what_is_no_pair_is_refused(first, second):
    with pytest.raises(ValueError, match="questions of"):
        statistics.compare(
            {name: outcomes(scores) for name, scores in first.items()},
            {name: outcomes(scores) for name, scores in second.items()},
        )


def test_the_number_of_questions_that_would_decide_decides():
    generator = np.random.default_rng(2)

    def asked(count):
        first = generator.random(count) < 0.6
        flipped = generator.random(count) < 0.1
        return statistics.compare({"t": outcomes(first)}, {"t": outcomes(first ^ flipped)})

    few = asked(60)
    needed = few.questions_to_decide(1.0)
    assert few.average.low < -1.0 < few.average.high
    assert needed > 60
    # With equal answers alone it is what the rule of three says: 369 points over 1 point.
    same = statistics.compare({"t": outcomes([1, 0])}, {"t": outcomes([1, 0])})
    assert same.questions_to_decide(1.0) == 369
    assert statistics.compare(
        {"t": outcomes([1, 0] * 185)}, {"t": outcomes([1, 0] * 185)}
    ).average.low == pytest.approx(-1.0, abs=0.1)


def test_a_lead_of_exactly_the_margin_is_decided_by_no_number():
    first = outcomes([0.0] + [1.0] * 99)
    second = outcomes([1.0] * 100)
    found = statistics.compare({"t": first}, {"t": second})
    assert found.average.value == -1.0
    assert found.questions_to_decide(1.0) is None


def test_estimates_are_in_points():
    assert statistics.mean([1.0, 0.0]).value == 50.0
    assert isinstance(statistics.mean([1.0]), Estimate)
