import pytest

from manyeyes import steps
from manyeyes.artifact.manifest import Header, read_manifest, write_manifest
from manyeyes.errors import UserError
from manyeyes.pipeline.code_lock import code_digest
from manyeyes.pipeline.fingerprint import fingerprint, fingerprint_text, open_parents


def make(folder, *, kind, stage, name=None, content="x", parents=()):
    folder.mkdir(parents=True)
    (folder / "file").write_text(content)
    write_manifest(
        folder,
        Header(
            kind=kind,
            stage=stage,
            name=name or stage,
            recipe_slice="",
            fingerprint="",
            parents=dict(parents),
            code="",
            revision="",
            libraries={},
            seed=0,
        ),
    )
    return folder


@pytest.fixture
def inputs(tmp_path):
    dataset = make(tmp_path / "data", kind="dataset", stage="prepare")
    made_of = {"dataset": read_manifest(dataset).digest}
    return {
        "dataset": dataset,
        "validation": make(tmp_path / "val", kind="report", stage="validate", parents=made_of),
        "experts": [
            make(tmp_path / name, kind="checkpoint", stage="prealign", name=name, content=name)
            for name in ("sam", "clip")
        ],
    }


def test_experts_are_told_apart_by_name_not_by_position(inputs):
    parents = open_parents("pretrain", inputs)
    turned = open_parents("pretrain", {**inputs, "experts": inputs["experts"][::-1]})
    assert set(parents.paths) == {"dataset", "validation", "expert.sam", "expert.clip"}
    assert fingerprint("pretrain", "{}", parents.digests) == fingerprint(
        "pretrain", "{}", turned.digests
    )


def test_the_readable_fingerprint_names_code_slice_and_parents(inputs):
    digests = open_parents("pretrain", inputs).digests
    code, recipe_slice, outside, parents = fingerprint_text("pretrain", "{}", digests).split(".")
    assert code == code_digest("pretrain", "{}")
    assert len(recipe_slice) == 64
    assert outside == "none"
    assert parents.split("+") == [digest for _, digest in sorted(digests.items())]


@pytest.mark.parametrize("changed", ["slice", "parent"])
def test_a_changed_ingredient_changes_the_fingerprint(changed, inputs):
    digests = open_parents("pretrain", inputs).digests
    before = fingerprint("pretrain", "{}", digests)
    if changed == "slice":
        assert fingerprint("pretrain", '{"seed":1}', digests) != before
    else:
        assert fingerprint("pretrain", "{}", {**digests, "dataset": "0" * 64}) != before


def test_a_wrong_input_is_refused_in_one_sentence(inputs, tmp_path):
    cases = {
        "needs": (
            {k: v for k, v in inputs.items() if k != "dataset"},
            "Stage pretrain needs --dataset: the prepare artifact.",
        ),
        "extra": ({**inputs, "report": tmp_path}, "Stage pretrain takes no input 'report'."),
        "kind": (
            {**inputs, "dataset": tmp_path / "val"},
            f"{tmp_path / 'val'} holds a report (made by validate), but a dataset is needed.",
        ),
        "stage": (
            {**inputs, "experts": [make(tmp_path / "sft", kind="checkpoint", stage="sft")]},
            f"{tmp_path / 'sft'} was made by sft, but pretrain needs the output of prealign as "
            "--experts.",
        ),
        "twice": (
            {**inputs, "experts": [inputs["experts"][0], inputs["experts"][0]]},
            f"{tmp_path / 'sam'} is a second checkpoint of expert 'sam'.",
        ),
    }
    for given, expected in cases.values():
        with pytest.raises(UserError) as error:
            open_parents("pretrain", given)
        assert str(error.value) == expected


def digest(folder):
    return read_manifest(folder).digest


@pytest.mark.parametrize(
    ("stage", "role", "of"),
    [(stage, "validation", "dataset") for stage in ("prealign", "pretrain", "sft", "eval")]
    + [("register", "report", "checkpoint")],
)
@pytest.mark.parametrize("said", ["another", "nothing"])
def test_a_report_of_something_else_is_refused(stage, role, of, said, tmp_path):
    made_by = {"validation": "validate", "report": "eval"}[role]
    trained_by = {"sft": "pretrain"}.get(stage, "sft")
    given = {
        "dataset": make(tmp_path / "dataset", kind="dataset", stage="prepare"),
        "checkpoint": make(tmp_path / "checkpoint", kind="checkpoint", stage=trained_by),
    }
    other = make(tmp_path / "other", kind="dataset", stage="prepare", content="other")
    made_of = {of: digest(other)} if said == "another" else {}
    given[role] = make(tmp_path / role, kind="report", stage=made_by, parents=made_of)
    roles = {needed.role for needed in steps.step(stage).inputs}
    wanted = {key: value for key, value in given.items() if key in roles}
    if "experts" in roles:
        wanted["experts"] = []
    with pytest.raises(UserError) as error:
        open_parents(stage, wanted)
    about = f"the {of} {digest(other)[:12]}" if made_of else f"no {of} that it names"
    assert str(error.value) == (
        f"{tmp_path / role} was made by {made_by} of {about}, not of {given[of]} "
        f"({digest(given[of])[:12]}): run {made_by} on this {of} and give its result as --{role}."
    )


def test_a_checkpoint_of_another_dataset_is_taken_and_told(inputs, tmp_path):
    other = "0" * 64
    trained = make(tmp_path / "sft", kind="checkpoint", stage="sft", parents={"dataset": other})
    parents = open_parents(
        "eval",
        {"dataset": inputs["dataset"], "validation": inputs["validation"], "checkpoint": trained},
    )
    assert parents.notes == (
        f"{trained} was trained on another dataset (000000000000) than the one given here "
        f"({digest(inputs['dataset'])[:12]}): its training may have held what is asked here",
    )
    assert open_parents("pretrain", inputs).notes == ()
