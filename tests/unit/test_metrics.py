"""The metrics against executed reference implementations, and the accidents that are kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from manyeyes.errors import UserError
from manyeyes.evaluation import metrics, vqa_text

GROUPS = json.loads((Path(__file__).parent / "vectors" / "metrics.json").read_text())["metrics"]
TOLERANCE = 1e-6


def vectors(group: str) -> list[Any]:
    return [pytest.param(vector, id=vector["id"]) for vector in GROUPS[group]["vectors"]]


@pytest.mark.parametrize("vector", vectors("vqa_accuracy"))
def test_vqa_accuracy_equals_the_official_script(vector):
    score = metrics.vqa_accuracy(vector["pred"], vector["answers"])
    assert score == pytest.approx(vector["expected"], abs=TOLERANCE)


@pytest.mark.parametrize("vector", vectors("textvqa"))
def test_textvqa_equals_the_evalai_scorer(vector):
    score = metrics.textvqa(vector["pred"], vector["answers"])
    assert score == pytest.approx(vector["expected"], abs=TOLERANCE)


@pytest.mark.parametrize("vector", vectors("text_normalisation"))
def test_normalised_texts_equal_the_official_ones(vector):
    assert vqa_text.normalise_evalai(vector["text"]) == vector["evalai_processor"]
    assert vqa_text.normalise_vqa(vector["text"]) == vector["official_vqa_pipeline"]


@pytest.mark.parametrize("vector", vectors("anls"))
def test_anls_equals_the_reference(vector):
    score = metrics.anls(vector["pred"], vector["answers"])
    assert score == pytest.approx(vector["expected"], abs=TOLERANCE)


@pytest.mark.parametrize("vector", vectors("relaxed_accuracy"))
def test_relaxed_accuracy_equals_the_reference(vector):
    score = metrics.relaxed_accuracy(vector["pred"], [vector["answer"]])
    assert score == pytest.approx(vector["expected"], abs=TOLERANCE)


@pytest.mark.parametrize("vector", vectors("pope"))
def test_pope_equals_the_official_script(vector):
    result, expected = metrics.pope(vector["preds"], vector["labels"]), vector["expected"]
    counted = {
        "TP": result.true_positives, "FP": result.false_positives,
        "TN": result.true_negatives, "FN": result.false_negatives,
        "accuracy": result.accuracy, "precision": result.precision, "recall": result.recall,
        "f1": result.f1, "yes_ratio": result.yes_ratio,
    }  # fmt: skip
    assert counted == pytest.approx(expected, abs=TOLERANCE)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("9-5", "9 5", id="a mark away from spaces becomes a space"),
        pytest.param("9 -5", "9 5", id="a mark next to a space is deleted"),
        pytest.param("a-b -c", "ab c", id="and then everywhere"),
        pytest.param("1,000/day", "1000day", id="a comma between digits deletes every mark"),
        pytest.param("5.", "5", id="the look-behind that is none"),
        pytest.param("3.5", "3.5", id="a period before a digit stays"),
        pytest.param("x." * 33, "x" * 33 + ".", id="only the first 32 periods go"),
        pytest.param("The Ten a An dogs", "10 dogs", id="articles and number words"),
        pytest.param("none", "0", id="none is a number"),
        pytest.param("dont im somebody'd", "don't im somebodyd", id="contractions, odd rows kept"),
        pytest.param("couldntve couldnt've", "couldntve couldn't've", id="one apostrophe missing"),
        pytest.param("50% #1 a:b", "50% #1 a:b", id="what is no punctuation"),
        pytest.param("\tx\ny ", "x y", id="white space"),
    ],
)
def test_vqa_normalisation_keeps_the_scripts_accidents(text, expected):
    assert vqa_text.normalise_vqa(text) == expected


def test_the_contraction_table_has_the_official_rows():
    # 120 rows of the scorer, less four with capitals and two that change nothing.
    assert vqa_text.CONTRACTIONS["ow's'at"] == "'ow's'at"
    assert vqa_text.CONTRACTIONS["y'allll"] == "y'all'll"
    assert "im" not in vqa_text.CONTRACTIONS
    assert "lets" not in vqa_text.CONTRACTIONS
    assert len(vqa_text.CONTRACTIONS) == 114


@pytest.mark.parametrize(
    ("matches", "expected"), [(0, 0.0), (1, 0.3), (2, 0.6), (3, 0.9), (4, 1.0), (9, 1.0)]
)
def test_ten_references_give_the_known_steps(matches, expected):
    answers = ["red"] * matches + [f"other {number}" for number in range(10 - matches)]
    assert metrics.vqa_accuracy("red", answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        pytest.param("Yes", ["yes"] * 10, 0.0, id="unanimous references: nothing is normalised"),
        pytest.param(" yes\n", ["yes"] * 10, 1.0, id="but white space is"),
        pytest.param("Yes", ["yes"] * 9 + ["no"], 1.0, id="one dissent: all is normalised"),
        pytest.param("", ["yes"] * 10, 0.0, id="an empty answer"),
        pytest.param("yes", [], 0.0, id="no reference"),
    ],
)
def test_vqa_accuracy_at_the_edges(prediction, answers, expected):
    assert metrics.vqa_accuracy(prediction, answers) == expected


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [
        pytest.param("ab", ["a"], 0.5, id="exactly one half is kept"),
        pytest.param("abc", ["a"], 0.0, id="below is nothing"),
        pytest.param("", [""], 1.0, id="both empty"),
        pytest.param("", ["a"], 0.0, id="empty answer"),
        pytest.param("x", [], 0.0, id="no reference"),
        pytest.param("strase", ["straße"], 1 - 1 / 7, id="the length is of the upper-cased text"),
        pytest.param("anna", ["paul", "Anna"], 1.0, id="the best reference counts"),
    ],
)
def test_anls_at_the_edges(prediction, answers, expected):
    assert metrics.anls(prediction, answers) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("left", "right", "distance"), [("", "abc", 3), ("kitten", "sitting", 3), ("same", "same", 0)]
)
def test_levenshtein(left, right, distance):
    assert metrics.levenshtein(left, right) == metrics.levenshtein(right, left) == distance


@pytest.mark.parametrize(
    ("prediction", "answer", "expected"),
    [
        ("105", "100", 1.0),
        ("105.1", "100", 0.0),
        ("-95", "-100", 1.0),
        ("5%", "5", 0.0),
        ("50", "50%", 0.0),
        ("0.0", "0", 0.0),
        ("1,000", "1000", 0.0),
        ("1e2", "100", 1.0),
        ("nan", "nan", 0.0),
        ("inf", "inf", 0.0),
        (" Blue ", "blue", 1.0),
        ("", "5", 0.0),
        ("%", "5", 0.0),
    ],
)
def test_relaxed_accuracy_at_the_edges(prediction, answer, expected):
    assert metrics.relaxed_accuracy(prediction, [answer]) == expected


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("", "yes"), ("NO", "yes"), ("no!", "yes"), ("maybe", "yes"), ("Yes. No.", "yes"),
        ("No, it is not", "no"), ("It is not.", "no"), ("no", "no"),
    ],
)  # fmt: skip
def test_pope_reads_answers_as_the_official_script(text, answer):
    assert metrics.pope_answer(text) == answer


def test_pope_guards_every_division():
    never_yes = metrics.pope(["no", "no"], ["yes", "yes"])
    assert (never_yes.precision, never_yes.recall, never_yes.f1) == (0.0, 0.0, 0.0)
    nothing = metrics.pope([], [])
    assert (nothing.accuracy, nothing.yes_ratio, nothing.f1) == (0.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("prediction", "answers", "expected"),
    [(" Four\n", ["four"], 1.0), ("4.", ["4"], 0.0), ("4 2", ["42"], 0.0), ("b", ["a", "B"], 1.0)],
)
def test_exact_match_forgives_case_and_outer_space_only(prediction, answers, expected):
    assert metrics.exact_match(prediction, answers) == expected


@pytest.mark.parametrize("name", sorted(metrics.METRICS))
def test_metrics_leave_their_arguments_alone_and_stay_within_bounds(name):
    answers = ["No", "no", "Yes, it's 5%", "5"]
    before = list(answers)
    for prediction in ("", "no", "5%", "1,000.", "yes it's 5"):
        assert 0.0 <= metrics.METRICS[name].per_answer(prediction, answers) <= 1.0
    assert answers == before


def test_an_unknown_metric_names_the_known_ones():
    with pytest.raises(UserError) as refusal:
        metrics.metric_named("anlz")
    assert str(refusal.value) == (
        "Unknown metric 'anlz': known are anls, exact_match, pope_f1, relaxed_accuracy, textvqa, "
        "vqa_accuracy; did you mean 'anls'?"
    )
