"""The table that compares trained recipes, read from their artifacts."""

import hashlib
import json

import pytest
import torch
from safetensors.torch import save_file
from store_kit import write_artifact

from manyeyes.errors import ManyeyesError
from manyeyes.pipeline import comparison
from manyeyes.pipeline.comparison import Line, compare, markdown, write_table
from manyeyes.pipeline.explain import Explanation
from manyeyes.steps import Task
from manyeyes.store import open_store

ESTIMATE = {"value": 50.0, "low": 40.0, "high": 60.0}
SCORE = {"count": 4, "score": ESTIMATE, "blind": ESTIMATE, "gain": {**ESTIMATE, "value": 25.5}}


class Recipe:
    name = "tiny-concat"


@pytest.fixture
def trained(tmp_path, monkeypatch):
    """Put a checkpoint and a report into the store, and let ``explain`` point at them."""
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "home"))
    task = {
        "metric": "exact_match", "version": 1, "protocol": "", "questions": "q" * 64,
        "visual": True,
        "floor": {"value": 50.0, "constant": "5", "constant_score": 20.0, "highest": 100.0,
                  "headroom": 0.505},
        "answered": {"num_empty": 0, "num_equal": 1, "commonest": "5", "num_equal_labels": 1},
        "total": {**SCORE, "score": {**ESTIMATE, "value": 75.25}}, "subsets": {}, "details": {},
    }  # fmt: skip
    scores = {
        "format": 2, "conditions": {"split": "test", "limit": 0, "max_new_tokens": 4}, "seed": 1,
        "num_draws": 10, "average": SCORE, "floor": 50.0, "highest": 100.0,
        "tasks": {"numbers": task},
    }  # fmt: skip
    curve = [{"samples_per_second": 10.0 * i, "tokens_per_second": 100.0 * i} for i in (1, 2, 9)]
    sft, report = tmp_path / "sft", tmp_path / "eval"
    sft.mkdir()
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, sft / "projector.safetensors")
    files = {
        "projector.safetensors": (sft / "projector.safetensors").read_bytes(),
        "config.json": json.dumps({"num_visual_tokens": 64}).encode(),
        "measurements/metrics.jsonl": "".join(json.dumps(row) + "\n" for row in curve).encode(),
    }
    store, answers = open_store(), []
    for stage, folder, content in (
        ("sft", sft, files),
        ("eval", report, {"metrics.json": json.dumps(scores).encode()}),
    ):
        manifest = write_artifact(folder, content)
        key = hashlib.sha256(stage.encode()).hexdigest()
        store.remember(key, store.put(folder, manifest), manifest.digest)
        answers.append(Explanation(Task(stage), True, "", key, manifest.digest))
    monkeypatch.setattr(comparison, "explain", lambda _recipe: answers)
    return answers


def test_a_line_is_read_from_the_artifacts(trained):
    (line,) = compare({"concat": Recipe()})
    assert line == Line(
        name="concat", recipe="tiny-concat", scores={"numbers": 75.25}, average=50.0,
        gain_over_blind=25.5, visual_tokens=64, fusion_parameters=0, projector_parameters=17,
        samples_per_second=20.0, tokens_per_second=200.0,
        checkpoint=trained[0].digest, report=trained[1].digest,
    )  # fmt: skip


def test_a_line_without_its_results_is_refused(trained):
    trained[1] = Explanation(Task("eval"), False, "", "0" * 64, None)
    with pytest.raises(ManyeyesError) as error:
        compare({"concat": Recipe()})
    assert str(error.value) == (
        "The content store has no result of eval for tiny-concat: run the same command again to "
        "make it."
    )


def line(name, average, tokens, parameters, gain=1.0):
    return Line(
        name, "r", {"charts": average + 1}, average, gain, tokens, parameters, 1000, 9.75, 1234.5,
        "c", "e",
    )  # fmt: skip


def test_the_table_for_people(tmp_path):
    lines = [line("channel_concat", 70.0, 64, 0), line("patch_info_mining", 60.0, 64, 5000, None)]
    files = write_table("tiny", lines, tmp_path / "deep/out")
    assert files.markdown.read_text() == markdown("tiny", lines)
    assert files.markdown.read_text().splitlines()[:6] == [
        "# Fusions compared: tiny",
        "",
        "| fusion | charts | average | over blind | visual tokens | parameters | samples/s | tokens/s |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
        "| channel_concat | **71.0** | **70.0** | +1.0 | 64 | 1,000 | 9.8 | 1,234 |",
        "| patch_info_mining | 61.0 | 60.0 |  | 64 | 6,000 | 9.8 | 1,234 |",
    ]
    assert [one["average"] for one in json.loads(files.json.read_text())["lines"]] == [70.0, 60.0]
