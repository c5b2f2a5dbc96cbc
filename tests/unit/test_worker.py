"""What surrounds a stage in a step process, apart from kfp."""

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from manyeyes.artifact.manifest import Header, Manifest, write_manifest
from manyeyes.errors import ManyeyesError
from manyeyes.pipeline.worker import (
    EXECUTOR_REWRITES,
    EXPERTS,
    Event,
    _with_experts,
    expert_items,
    protect,
    read_journal,
    reveal,
    write_event,
)

WORDS = st.sampled_from(
    ["python3", "{{", "{{$.inputs}}", "/kfp-workspace", "\\", '"', "a", "é", "\n"]
)
TEXT = st.lists(WORDS | st.text(max_size=5)).map("".join)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | TEXT,
    lambda part: st.lists(part, max_size=3) | st.dictionaries(TEXT, part, max_size=3),
    max_leaves=8,
)


def canonical(value: object) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


@settings(deadline=None)
@given(JSON)
def test_protected_json_is_the_same_json_and_holds_nothing_kfp_rewrites(value: object) -> None:
    text = canonical(value)
    safe = protect(text)
    assert json.loads(safe) == json.loads(text)
    assert reveal(safe) == text
    assert not any(word in safe for word in (*EXECUTOR_REWRITES, "{{"))


def test_the_items_of_the_loop_have_whole_fingerprints() -> None:
    plan = [{"expert": "sam", "recipe_slice": "{}", "fingerprint": "c.s.{dataset}+{validation}"}]
    assert expert_items(plan, dataset="d1", validation="v2") == [
        {"expert": "sam", "recipe_slice": "{}", "fingerprint": "c.s.d1+v2"}
    ]


def checkpoint(folder: Path, name: str) -> Manifest:
    folder.mkdir()
    (folder / "weights").write_text(name)
    header = Header(
        kind="checkpoint", stage="prealign", name=name, recipe_slice="", fingerprint="", parents={},
        code="", revision="", libraries={}, seed=0,
    )  # fmt: skip
    return write_manifest(folder, header)


def test_experts_enter_the_fingerprint_by_name_whatever_their_order(tmp_path: Path) -> None:
    digests = {name: checkpoint(tmp_path / name, name).digest for name in ("sam", "clip")}
    paths = [tmp_path / "sam", tmp_path / "clip"]
    text = _with_experts(f"c.s.d+{EXPERTS}+v", paths, list(digests.values()))
    assert text == f"c.s.d+{digests['clip']}+{digests['sam']}+v"


def test_experts_that_were_not_announced_are_refused(tmp_path: Path) -> None:
    checkpoint(tmp_path / "sam", "sam")
    with pytest.raises(ManyeyesError) as error:
        _with_experts(EXPERTS, [tmp_path / "sam"], ["other"])
    assert str(error.value) == (
        "The collected experts are not those the pipeline announced: their content digests differ; "
        "start the run again."
    )


def test_a_journal_reads_back_as_written(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    events = [
        Event("sft", "started", process=7),
        Event("sft", "failed", message="é\n", exit_code=2),
    ]
    for event in events:
        write_event(path, event)
    assert read_journal(path) == events


def test_a_line_that_is_still_being_written_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "journal.jsonl"
    path.write_text('{"step": "sft", "event": "started"}\n{"step": "sf')
    assert [event.step for event in read_journal(path)] == ["sft"]
