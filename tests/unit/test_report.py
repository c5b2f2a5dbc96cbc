"""The page: complete, self-contained, escaped, and silent about what it does not know."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest
from PIL import Image

from manyeyes.artifact.lineage import Ancestor
from manyeyes.errors import UserError
from manyeyes.evaluation import charts, report, score_table
from manyeyes.evaluation.examples import Example, as_picture, choose, in_one_line, make_examples
from manyeyes.evaluation.predictions import Prediction
from manyeyes.evaluation.score import Conditions, read_scores, score_predictions, write_scores

ATTACK = '"><script>alert(1)</script><img src=http://evil.example/x onerror=alert(2)>'
TASKS = {"charts": "relaxed_accuracy", "pope": "pope_f1"}


def row(task, subset, number, said, label, blind="yes") -> Prediction:
    return Prediction(
        id=f"{task}-{subset}-{number}", task=task, subset=subset, question=f"Question {number}?",
        answers=(label,), prediction=said, blind_prediction=blind, score=float(said == label),
        blind_score=None if blind is None else float(blind == label),
    )  # fmt: skip


def make_scores(blind: str | None = "yes"):
    rows = [row("charts", "", n, "5" if n else "6", "5", blind) for n in range(8)]
    for subset in ("random", "popular", "adversarial"):
        for n, label in enumerate(("yes", "no") * 4):
            rows.append(row("pope", subset, n, label, label, blind))
    return score_predictions(rows, TASKS, Conditions("test"), seed=0)


def example(**changes) -> Example:
    values = Example(
        task="charts", subset="", question="How high is the red bar?", earlier_turns=0,
        reference="5", prediction="6", blind_prediction="7", verdict="wrong", score=0.0,
        pictures=(as_picture(Image.new("RGB", (16, 16), "red")),),
    )  # fmt: skip
    return replace(values, **changes)


def curve(stage, name) -> report.Curve:
    steps = tuple(float(step) for step in range(1, 41))
    return report.Curve(
        stage, name, steps, tuple(2 / step for step in steps), (0.001,) * 40, (5000.0,) * 40
    )


def ancestor(**changes) -> Ancestor:
    facts = {
        "stage": "sft", "name": "sft", "digest": "ab" * 32, "fingerprint": "", "recipe_slice": "cd" * 32,
        "parents": {}, "revision": "r", "libraries": {}, "seconds": 1.0, "details": {}, **changes,
    }  # fmt: skip
    return Ancestor(**facts)


def full_inputs(**changes) -> report.ReportInputs:
    experts = ("clip", "sam")
    stages = [
        report.StageTime("prepare", "", 9.4, "cached"),
        *(report.StageTime("prealign", name, 38.0, "ran") for name in experts),
        report.StageTime("sft", "", 141.7, "ran"),
        report.StageTime("eval", "", 12.0, "running"),
        report.StageTime("register", "", None, "next"),
    ]
    inputs = report.ReportInputs(
        title="eagle-x2-tiny",
        scores=make_scores(),
        subtitle="CLIP and SAM",
        created="14 March",
        examples=(example(), example(prediction="5", verdict="right", score=1.0)),
        curves=(*(curve("prealign", name) for name in experts), curve("sft", "sft")),
        stages=tuple(stages),
        notes=(report.Note("sft", "continues from step 20 of 380"),),
        revision="r" * 40,
        lineage=(ancestor(),),
        libraries={"torch": "2.13.0"},
        sources=(report.SourceCard("digits", "CC-BY-4.0", "UCI, http://archive.example", 5, 4),),
    )
    return replace(inputs, **changes)


class Elements(HTMLParser):
    """Collects the elements of a page and checks that they are closed in order."""

    VOID = ("meta", "img", "br", "rect", "line", "path")

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.headings: list[str] = []
        self.feed(page)
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if self.open and self.open[-1] == "h2":
            self.headings.append(data)

    def named(self, tag):
        return [attributes for name, attributes in self.found if name == tag]


def test_a_full_report_has_every_part():
    page = Elements(report.render(full_inputs()))
    assert page.headings == [
        "Scores", "Parts of the tasks", "Examples", "Pipeline", "Notes", "Training", "Lineage", "Data",
    ]  # fmt: skip
    # A bar for two tasks, the average and three parts; two stages of three curves; the pipeline.
    assert len(page.named("svg")) == 6 + 6 + 1


def test_parts_without_data_are_left_out():
    bare = report.ReportInputs(title="bare", scores=make_scores())
    page = Elements(report.render(bare))
    assert page.headings == ["Scores", "Parts of the tasks"]
    blind_less = report.render(replace(bare, scores=make_scores(blind=None)))
    assert "blank picture" not in blind_less
    assert "Gain" not in blind_less


def test_nothing_is_loaded_from_anywhere():
    text = report.render(full_inputs())
    page = Elements(text)
    for _, attributes in page.found:
        for name in ("src", "href", "srcset", "data", "action", "poster", "xlink:href"):
            assert (attributes.get(name) or "data:").startswith("data:")
    assert page.named("script") == page.named("link") == page.named("iframe") == []
    assert "url(" not in text
    assert "@import" not in text
    policy = page.named("meta")[2]
    assert policy["content"] == "default-src 'none'; img-src data:; style-src 'unsafe-inline'"


@pytest.mark.parametrize(
    "inputs",
    [
        pytest.param(full_inputs(title=ATTACK), id="title"),
        pytest.param(full_inputs(subtitle=ATTACK, created=ATTACK), id="subtitle and date"),
        pytest.param(
            full_inputs(
                examples=(
                    example(
                        task=ATTACK, subset=ATTACK, question=ATTACK, reference=ATTACK,
                        prediction=ATTACK, blind_prediction=ATTACK,
                    ),
                )
            ),
            id="example",
        ),
        pytest.param(full_inputs(curves=(curve(ATTACK, ATTACK),)), id="curve"),
        pytest.param(
            full_inputs(stages=(report.StageTime("prealign", ATTACK, 1.0, "ran"),)), id="stage"
        ),
        pytest.param(
            full_inputs(notes=(report.Note(ATTACK, ATTACK),)), id="notes"
        ),
        pytest.param(
            full_inputs(
                revision=ATTACK,
                lineage=(ancestor(digest=ATTACK, recipe_slice=ATTACK),),
                libraries={ATTACK: ATTACK},
            ),
            id="lineage",
        ),
        pytest.param(
            full_inputs(sources=(report.SourceCard(ATTACK, ATTACK, ATTACK, 1, 1),)), id="source"
        ),
        pytest.param(
            full_inputs(
                scores=score_predictions(
                    [row(ATTACK, part, n, "5", "5") for part in ("", ATTACK) for n in range(2)],
                    {ATTACK: "anls"}, Conditions(ATTACK), seed=0,
                )
            ),
            id="task and subset",
        ),
    ],
)  # fmt: skip
def test_what_others_wrote_is_only_text(inputs):
    text = report.render(inputs)
    page = Elements(text)
    assert page.named("script") == []
    assert all("onerror" not in attributes for _, attributes in page.found)
    assert all((img["src"] or "").startswith("data:image/png;base64,") for img in page.named("img"))
    assert "<script" not in text


def test_every_picture_and_drawing_has_words_and_every_table_header_a_scope():
    page = Elements(report.render(full_inputs()))
    assert all(img["alt"] for img in page.named("img"))
    assert all(svg["role"] == "img" and svg["aria-label"] for svg in page.named("svg"))
    assert all(header.get("scope") in ("row", "col") for header in page.named("th"))
    assert page.named("html") == [{"lang": "en"}]
    labels = [svg["aria-label"] for svg in page.named("svg")]
    assert re.sub(r"interval \S+ to", "interval 81.2 to", labels[0]) == (
        "pope: 100.0 (95 % interval 81.2 to 100.0), blank picture 66.7, floor 66.7"
    )
    assert "The pipeline: prepare 9.4 s · cached; clip 38 s · ran; sam 38 s · ran; " in labels[6]


def test_ids_are_unique_and_labels_point_at_them():
    page = Elements(report.render(full_inputs()))
    ids = [attributes["id"] for _, attributes in page.found if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {section["aria-labelledby"] for section in page.named("section")} <= set(ids)


def test_the_page_is_a_function_of_its_inputs(tmp_path):
    path = report.write_report(full_inputs(), tmp_path)
    assert path == tmp_path / "report.html"
    assert path.read_text(encoding="utf-8") == report.render(full_inputs())


def test_scores_read_back_from_disk_give_the_same_page(tmp_path):
    write_scores(make_scores(), tmp_path)
    again = full_inputs(scores=read_scores(tmp_path))
    assert report.render(again) == report.render(full_inputs())


@pytest.mark.parametrize(
    ("blind", "text"),
    [
        (
            "yes",
            "Average 93.8 of 100 over 2 tasks (95 % interval 81.2 to 100.0), 60.4 points more than "
            "the same model scores on a blank picture. Looking helps in every task, least in pope "
            "(+33.3).",
        ),
        (None, "Average 93.8 of 100 over 2 tasks (95 % interval 81.2 to 100.0)."),
        (
            "5",
            "Average 93.8 of 100 over 2 tasks (95 % interval 81.2 to 100.0), 43.8 points more than "
            "the same model scores on a blank picture. Looking does not certainly help in charts.",
        ),
    ],
)
def test_the_verdict_says_what_the_scores_mean(blind, text):
    said = report.verdict(make_scores(blind))
    assert re.sub(r"interval \S+ to [\d.]+", "interval 81.2 to 100.0", said) == text


def test_floors_headroom_and_what_was_said_stand_in_the_table():
    scores = make_scores()
    cells = [(row.floor.value, row.floor.what, row.floor.share, row.answered)
             for row in score_table.score_rows(scores)]  # fmt: skip
    assert cells == [
        (66.6667, "always “yes”", "100 %", "0 empty, 12 equal"),
        (100.0, "always “5”", "none", "0 empty, 7 equal"),
        (83.3333, "mean of floors", "62 %", ""),
    ]
    page = Elements(report.render(full_inputs(scores=scores)))
    assert len([one for one in page.named("line") if one.get("class") == "floor"]) == 3
    text = report.render(full_inputs(scores=scores))
    assert "always “yes”" in text
    assert "0 empty, 12 equal" in text
    assert "66.7–100.0" in text


def test_tasks_stand_by_score_and_the_average_last():
    rows = score_table.score_rows(make_scores())
    assert [(line.name, line.note) for line in rows] == [
        ("pope", "F1, mean of subsets · official_pope"),
        ("charts", "relaxed accuracy · lmms_eval_0.7.3"),
        ("average", "mean over tasks"),
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (9.96, "10 s"), (59.6, "1 min 00 s"), (185, "3 min 05 s"),
     (7800, "2 h 10 min")],
)  # fmt: skip
def test_durations_read_well(seconds, text):
    assert report.duration(seconds) == text


# Examples


def test_examples_are_half_right_and_half_not_where_there_are_both():
    rows = [row("charts", "", n, "5", "5" if n < 12 else "6") for n in range(20)]
    chosen = choose(rows, 4)
    assert sorted(item.score for item in chosen) == [0.0, 0.0, 1.0, 1.0]
    assert chosen == choose(list(reversed(rows)), 4)
    assert len({item.id for item in chosen}) == 4


@pytest.mark.parametrize(("num_right", "total", "expected"), [(20, 20, 4), (0, 20, 0), (1, 3, 1)])
def test_examples_are_filled_up_with_what_there_is(num_right, total, expected):
    rows = [row("charts", "", n, "5", "5" if n < num_right else "6") for n in range(total)]
    chosen = choose(rows, 4)
    assert len(chosen) == min(4, total)
    assert sum(item.score for item in chosen) == expected


@pytest.mark.parametrize(
    ("answers", "text"),
    [
        (("5",), "5"),
        (("red",) * 10, "red"),
        (("red",) * 8 + ("pink",) * 2, "red (8 of 10), pink (2 of 10)"),
        (("a", "b", "c", "d", "e"), "a, b, c, 2 more"),
    ],
)
def test_accepted_answers_in_one_line(answers, text):
    assert in_one_line(answers) == text


def test_large_pictures_are_shown_smaller():
    picture = as_picture(Image.new("RGB", (1000, 500)))
    assert (picture.width, picture.height) == (448, 224)
    assert picture.uri.startswith("data:image/png;base64,iVBOR")


def test_no_examples_are_made_when_none_are_asked_for():
    rows = [row("charts", "", n, "5", "5") for n in range(3)]
    assert make_examples(rows, {}, None, 0) == ()


# Curves, drawings and files


def test_a_curve_of_any_length_becomes_few_points_with_the_same_mean():
    xs, ys = charts.thin([(float(step), float(step % 2)) for step in range(1, 100_001)])
    assert len(xs) <= charts.MAX_POINTS
    assert xs[-1] == 100_000
    assert sum(ys) / len(ys) == pytest.approx(0.5, abs=0.01)


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [
        (0, 4, [0, 1, 2, 3, 4]),
        (0, 3.4, [0, 1, 2, 3, 4]),
        (0, 0.001, [0, 0.00025, 0.0005, 0.00075, 0.001]),
        (-1, 1, [-1, -0.5, 0, 0.5, 1]),
        (0, 0, [0, 0.25]),
        (0, 5432, [0, 2000, 4000, 6000]),
    ],
)
def test_ticks_are_round_and_enclose_the_values(low, high, ticks):
    assert charts.nice_ticks(low, high) == pytest.approx(ticks)


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0"), (2.5, "2.5"), (0.00025, "2.5e-4"), (0.001, "1e-3"), (8000, "8000"),
     (12_000, "12k"), (3_400_000, "3.4M"), (-0.5, "-0.5")],
)  # fmt: skip
def test_numbers_on_axes_are_short(value, text):
    assert charts.compact(value) == text


def test_smoothing_starts_at_the_first_value_and_keeps_a_constant():
    assert charts.smooth([3.0] * 5) == pytest.approx([3.0] * 5)
    assert charts.smooth([4.0, 0.0])[0] == pytest.approx(4.0)


@pytest.mark.parametrize(
    "series",
    [
        pytest.param([], id="nothing"),
        pytest.param([("a", [1.0], [2.0])], id="one point"),
        pytest.param([("a", [1.0, 2.0], [float("nan"), 1.0])], id="no two finite points"),
    ],
)
def test_what_cannot_be_drawn_is_no_chart(series):
    assert charts.line_chart("loss", series, noisy=True) is None


def test_experts_share_a_column_and_depend_on_the_column_before():
    graph = report.pipeline_graph(full_inputs().stages)
    assert [heading.text for heading in graph.headings] == ["prealign"]
    assert [box.name for box in graph.boxes] == [
        "prepare", "clip", "sam", "sft", "eval", "register",
    ]  # fmt: skip
    clip, sam = graph.boxes[1:3]
    assert clip.x == sam.x
    assert len(graph.edges) == 2 + 2 + 1 + 1
    assert charts.shorten("a-very-long-expert-name") == "a-very-long-exp…"


def test_curves_come_from_the_stage_s_lines(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [
        {"step": n, "loss": 1 / n, "learning_rate": 0.1, "tokens_per_second": 9.0, "mfu": None}
        for n in (1, 2)
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert report.read_curve(path, "sft", "sft") == report.Curve(
        "sft", "sft", (1.0, 2.0), (1.0, 0.5), (0.1, 0.1), (9.0, 9.0)
    )


@pytest.mark.parametrize("content", ["{", '{"step": 1}', "[]", None])
def test_damaged_curves_and_sources_are_refused(content, tmp_path):
    path = tmp_path / "file"
    if content is not None:
        path.write_text(content)
    with pytest.raises(UserError) as curves:
        report.read_curve(path, "sft", "sft")
    assert str(curves.value) == f"{path} does not hold a training's curves; train again."
    if content is None:
        assert report.read_sources(path) == ()
        return
    with pytest.raises(UserError) as sources:
        report.read_sources(path)
    assert str(sources.value) == (
        f"{path} does not describe a dataset's sources; make the dataset again."
    )


def test_sources_come_largest_first(tmp_path):
    path = tmp_path / "sources.json"
    entry = {"licence": "CC0", "provenance": "drawn", "images": 1}
    path.write_text(json.dumps({"a": {**entry, "samples": 1}, "b": {**entry, "samples": 2}}))
    assert [card.name for card in report.read_sources(path)] == ["b", "a"]
