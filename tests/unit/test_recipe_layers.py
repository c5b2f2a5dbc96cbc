"""Where a recipe's values come from: its own file, the one it extends, ``--set``, defaults."""

import json

import pytest
from pipeline_kit import LONG, TINY
from record_slices import ROOT

from manyeyes.cli import main
from manyeyes.config.recipe import (
    load_recipe,
    parse_recipe,
    place_in,
    recipe_yaml,
    resolved_recipe,
    sourced_yaml,
    sources,
    with_overrides,
)
from manyeyes.config.recipe.slices import SLICE_TYPES, slice_json
from manyeyes.errors import UserError

BASE = TINY.read_text(encoding="utf-8")


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "base.yaml").write_text(BASE)
    return tmp_path


def variant(folder, text, name="own"):
    path = folder / f"{name}.yaml"
    path.write_text(f"extends: base\nname: {name}\n{text}")
    return path


def line_of(text, words, after=""):
    """Return the number of the first line that holds some words, perhaps behind others."""
    start = text[: text.index(after)].count("\n")
    lines = enumerate(text.splitlines(), 1)
    return next(number for number, line in lines if number > start and words in line)


def refused(call, *arguments):
    with pytest.raises(UserError) as caught:
        call(*arguments)
    return str(caught.value)


def test_a_variant_says_only_what_differs(folder):
    own = load_recipe(variant(folder, "sft:\n  steps: 5\n  batch: {size: 64}\n"))
    base = load_recipe(folder / "base.yaml")
    assert (own.name, own.registration.model_name) == ("own", "own")
    assert (own.sft.steps, own.sft.batch.size, own.sft.batch.per_device) == (5, 64, 64)
    assert own.sft.learning_rates == base.sft.learning_rates
    changed = {
        stage
        for stage in SLICE_TYPES
        if slice_json(own, stage, "clip") != slice_json(base, stage, "clip")
    }
    assert changed == {"sft", "register"}


MERGED = [
    ("a list is replaced", "sft: {learning_rates: []}", lambda r: r.sft.learning_rates, ()),
    (
        "a mixture is replaced",
        "sft: {sources: {charts: 1.0}}",
        lambda r: r.sft.sources,
        {"charts": 1.0},
    ),
    ("tasks are replaced", "eval: {tasks: {pope: pope_f1}}", lambda r: list(r.evaluation.tasks), ["pope"]),
    (
        "another kind is another section",
        "data: {kind: dataset, name: mine}",
        lambda r: r.data.model_dump(),
        {"kind": "dataset", "name": "mine"},
    ),
    ("the kind need not be said again", "sft: {schedule: {kind: constant, warmup: 0.0}}", lambda r: r.sft.schedule.kind, "constant"),
    ("null is none", "register: {gate: {min_gain: null}}", lambda r: r.registration.gate.min_gain, None),
    ("what all share", "prealign: {all: {steps: 3}}", lambda r: {s.steps for s in r.prealign.experts.values()}, {3}),
    (
        "one that differs",
        "prealign: {experts: {sam: {steps: 3}}}",
        lambda r: {name: s.steps for name, s in r.prealign.experts.items() if s.steps != 30},
        {"sam": 3},
    ),
    (
        "fewer encoders",
        "model: {encoders: [{name: sam, spec: sam-tiny, weights: zoo:sam-tiny}]}",
        lambda r: list(r.prealign.experts),
        ["sam"],
    ),
]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "get", "expected"), [m[1:] for m in MERGED], ids=[m[0] for m in MERGED]
)
def test_two_files_are_laid_over_each_other(text, get, expected, folder):
    assert get(load_recipe(variant(folder, text + "\n"))) == expected


def test_a_variant_of_a_long_recipe_may_say_what_all_encoders_share(folder):
    (folder / "base.yaml").write_text(LONG.read_text(encoding="utf-8"))
    own = load_recipe(
        variant(folder, "prealign:\n  all: {steps: 3}\n  experts: {sam: {steps: 4}}\n")
    )
    steps = {name: section.steps for name, section in own.prealign.experts.items()}
    assert steps == {"clip": 3, "convnext": 3, "sam": 4, "eva02": 3, "pix2struct": 3}
    assert {section.batch.size for section in own.prealign.experts.values()} == {32}


def test_a_base_is_found_beside_the_recipe_then_in_recipes(folder):
    (folder / "recipes").mkdir()
    (folder / "recipes/other.yaml").write_text(BASE.replace("seed: 7", "seed: 8"))
    path = folder / "own.yaml"
    for name, seed in (("base", 7), ("other", 8), ("tiny/eagle-x5", 7), ("base.yaml", 7)):
        path.write_text(f"extends: {name}\nname: own\n")
        assert load_recipe(path).seed == seed


CHAINS = {
    "a chain": ("base", "extends: mgm-7b\n", "base.yaml extends 'mgm-7b' itself; a recipe can only extend one that stands alone."),
    "a cycle": ("base", "extends: own\n", "base.yaml extends 'own' itself; a recipe can only extend one that stands alone."),
    "itself": ("own", "", "a recipe cannot extend itself."),
    "nothing": ("bass", "", "there is no bass.yaml in . or in recipes/; did you mean 'base'?"),
    "a number": ("7", "", "got 7; give the name of a recipe, like eagle-x5."),
    "a text of nothing": ("''", "", "got ''; give the name of a recipe, like eagle-x5."),
}  # fmt: skip


@pytest.mark.parametrize("case", CHAINS)
def test_what_cannot_be_extended_is_refused_in_a_sentence(case, folder, capsys):
    name, head, expected = CHAINS[case]
    (folder / "base.yaml").write_text(head + BASE)
    (folder / "own.yaml").write_text(f"name: own\nextends: {name}\n")
    assert main(["check", "own.yaml"]) == 2
    assert (
        capsys.readouterr().err.removeprefix("manyeyes: ") == f"own.yaml:2: extends: {expected}\n"
    )


def test_a_variant_needs_a_name_of_its_own(folder):
    (folder / "own.yaml").write_text("extends: base\nseed: 3\n")
    assert refused(load_recipe, folder / "own.yaml") == (
        f"{folder}/own.yaml:1: extends: a recipe that extends another needs a name of its own."
    )


def test_an_error_names_the_file_that_has_the_value(folder):
    (folder / "base.yaml").write_text(BASE.replace("seed: 7", "seed: seven"))
    path = variant(folder, "sft:\n  stepz: 4\n")
    assert refused(load_recipe, path).splitlines()[0] == (
        f"{folder}/base.yaml:{line_of(BASE, 'seed: 7')}: seed: input should be a valid integer, "
        "got 'seven'"
    )
    assert (
        refused(load_recipe, path)
        .splitlines()[1]
        .startswith(f"{folder}/own.yaml:4: sft.stepz: unknown key; allowed are train, steps, ")
    )


def test_an_error_in_what_all_encoders_share_is_told_once_and_where_it_stands():
    text = BASE.replace("    checkpoint_every: 10", "    checkpoint_evry: 10", 1)
    told = refused(parse_recipe, text, "r.yaml").splitlines()
    assert len(told) == 2
    assert told[0] == (
        f"r.yaml:{line_of(text, '  all:')}: prealign.all.checkpoint_every: "
        "this key is required and missing"
    )
    assert told[1].startswith(
        f"r.yaml:{line_of(text, 'checkpoint_evry')}: prealign.all.checkpoint_evry: unknown key; "
    )


def test_an_error_in_what_one_encoder_has_names_it():
    text = BASE.replace("  all:\n", "  experts: {sam: {steps: none}}\n  all:\n", 1)
    assert refused(parse_recipe, text, "r.yaml") == (
        f"r.yaml:{line_of(text, '  experts: {sam')}: prealign.experts.sam.steps: "
        "input should be a valid integer, got 'none'"
    )


@pytest.mark.parametrize(("value", "shown"), [("3", "3"), ("[a]", "('a',)")])
def test_what_all_share_is_a_section(value, shown):
    head, _, tail = BASE.partition("  all:\n")
    text = f"{head}  all: {value}\n\npretrain:{tail.partition('pretrain:')[2]}"
    (told,) = refused(parse_recipe, text, "r.yaml").splitlines()
    assert told.startswith(f"r.yaml:{line_of(text, '  all:')}: prealign.all: input should be ")
    assert told.endswith(f", got {shown}")


def test_an_encoder_that_is_none_is_named():
    text = BASE.replace("  all:\n", "  experts: {klip: {steps: 3}}\n  all:\n", 1)
    assert refused(parse_recipe, text, "r.yaml").endswith(": unknown klip")


@pytest.mark.parametrize("key", ["alll", "expert"])
def test_a_misspelt_key_of_prealign_is_told_with_what_is_allowed(key):
    text = BASE.replace("  all:\n", f"  {key}:\n", 1)
    assert ": unknown key; allowed are all, experts" in refused(parse_recipe, text, "r.yaml")


OVERRIDES = [
    ("sft.steps=10", lambda r: r.sft.steps, 10),
    ("sft.learning_rate=1e-3", lambda r: r.sft.learning_rate, 1e-3),
    ("model.encoders.0.weights=random", lambda r: r.model.encoders[0].weights, "random"),
    ("sft.sources={charts: 1.0}", lambda r: r.sft.sources, {"charts": 1.0}),
    ("sft.sources.charts=2.0", lambda r: (r.sft.sources["charts"], r.sft.sources["chat"]), (2.0, 0.1)),
    ("validate.licences=[CC0-1.0]", lambda r: r.validation.licences, ("CC0-1.0",)),
    ("register.gate.min_gain=null", lambda r: r.registration.gate.min_gain, None),
    ("eval.blind=true", lambda r: r.evaluation.blind, True),
    ("name=other", lambda r: r.name, "other"),
    ("prealign.all.steps=3", lambda r: {s.steps for s in r.prealign.experts.values()}, {3}),
    ("prealign.experts.sam.steps=3", lambda r: r.prealign.experts["sam"].steps, 3),
    ("sft.batch={size: 8}", lambda r: r.sft.batch.accumulation_for(1), 1),
    ("sft.sources={eagle-1.8m: 1.0}", lambda r: r.sft.sources, {"eagle-1.8m": 1.0}),
    ("  sft.steps = 10 ", lambda r: r.sft.steps, 10),
]  # fmt: skip


@pytest.mark.parametrize("form", [TINY, LONG], ids=["short", "long"])
@pytest.mark.parametrize(("override", "get", "expected"), OVERRIDES, ids=[o[0] for o in OVERRIDES])
def test_a_value_is_replaced(override, get, expected, form):
    assert get(with_overrides(form, [override])) == expected
    assert get(with_overrides(form.read_text(encoding="utf-8"), [override])) == expected


def test_the_last_override_of_a_key_holds_and_each_sees_those_before():
    recipe = with_overrides(
        BASE, ["sft.steps=1", "sft.steps=2", "sft.sources={a-1.5: 1.0}", "sft.sources.a-1.5=3.0"]
    )
    assert (recipe.sft.steps, recipe.sft.sources) == (2, {"a-1.5": 3.0})


WRONG = {
    "sft.stepz=10": "sft.stepz: unknown key; allowed are train, steps, ",
    "sft.bach.size=8": "sft.bach: unknown key; allowed are ",
    "nothing=1": "nothing: unknown key; allowed are extends, name, ",
    "sft.steps=ten": "sft.steps: input should be a valid integer, got 'ten'",
    "sft.learning_rate=": "sft.learning_rate: input should be a valid number, got None",
    "prealign.all.stepz=10": "prealign.all.stepz: unknown key; allowed are train, steps, ",
    "seed.x=1": "seed is 7 and has no keys.",
    "model.encoders.9.weights=random": "model.encoders is a list of 5; write a number from 0 to 4, not '9'.",
    "model.encoders.clip.weights=random": "model.encoders is a list of 5; write a number from 0 to 4, not 'clip'.",
    "sft.steps": "write KEY=VALUE, like sft.steps=10.",
    "=3": "write KEY=VALUE, like sft.steps=10.",
    "sft.train=[a": "the value is not valid YAML; quote a text, like '\"a: b\"'.",
    "sft.steps=!!python/name:x 1": "the tag !!python/name:x is not read; remove it.",
    "sft.learning_rate=.inf": "sft.learning_rate: input should be a finite number, got inf",
}  # fmt: skip


@pytest.mark.parametrize("override", WRONG)
def test_a_wrong_override_is_one_sentence_that_names_it(override):
    told = refused(with_overrides, BASE, [override])
    assert told.startswith(f"--set {override}: {WRONG[override]}")
    assert len(told.splitlines()) == 1


def test_the_nearest_key_is_proposed():
    assert refused(with_overrides, BASE, ["sft.stepz=10"]).endswith("; did you mean 'steps'?")


def test_where_each_value_comes_from(folder):
    path = variant(folder, "sft:\n  steps: 5\n")
    resolved = resolved_recipe(path, ["sft.sources.chat=0.2", "prealign.experts.sam.steps=9"])
    found = sources(resolved)
    base = f"{folder}/base.yaml"
    assert found["sft.steps"] == f"{path}:4"
    assert found["sft.batch.size"] == f"{base}:{line_of(BASE, 'batch:', after='sft:')}"
    assert found["sft.sources.chat"] == "--set sft.sources.chat=0.2"
    assert found["prealign.experts.sam.steps"] == "--set prealign.experts.sam.steps=9"
    assert found["prealign.experts.clip.steps"] == f"{base}:{line_of(BASE, 'steps: 30')}"
    defaults = ("sft.weight_decay", "sft.batch.accumulation", "register.model_name", "eval.split",
                "prealign.experts.clip.train.0", "model.normalization")  # fmt: skip
    assert {found[key] for key in defaults} == {"default"}
    assert parse_recipe(sourced_yaml(resolved), "again") == resolved.recipe
    assert f"# {path}:4" in sourced_yaml(resolved)


def test_show_says_where_each_value_comes_from(folder, capsys):
    path = variant(folder, "sft:\n  steps: 5\n")
    assert main(["show", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["sources"]["sft.steps"] == f"{path}:4"
    assert found["recipe"]["sft"]["steps"] == 5
    assert main(["show", str(path)]) == 0
    assert f"# {path}:4" in capsys.readouterr().out


def test_a_finding_of_check_names_the_file_that_has_the_value(folder, capsys):
    (folder / "base.yaml").write_text(BASE.replace("documents: anls", "documents: anl"))
    path = variant(folder, "")
    assert main(["check", str(path)]) == 2
    line = line_of(BASE, "documents: anls")
    assert capsys.readouterr().err.startswith(f"{folder}/base.yaml:{line}: eval.tasks.documents: ")
    assert place_in(path, ("eval", "tasks", "documents")).startswith(f"{folder}/base.yaml:{line}: ")


def test_a_place_knows_overrides(folder):
    path = variant(folder, "")
    key = ("eval", "tasks", "pope")
    assert (
        place_in(path, key, ["eval.tasks.pope=anl"]) == "--set eval.tasks.pope=anl: eval.tasks.pope"
    )


def test_a_recipe_written_down_remembers_what_was_set():
    overrides = ["sft.steps=10", "seed=3"]
    text = recipe_yaml(with_overrides(BASE, overrides), overrides)
    assert text.startswith("# --set sft.steps=10\n# --set seed=3\nname: eagle-x5-tiny\n")
    assert parse_recipe(text, "again") == with_overrides(BASE, overrides)


def test_the_stage_keys_of_dvc_sees_a_change_of_the_base(folder):
    """DVC reruns a stage whose file of keys changed, whichever file the value stands in."""
    path = variant(folder, "")

    def keys():
        assert main(["keys", str(path), "--out", "keys"]) == 0
        return {file.stem: file.read_text() for file in (folder / "keys").iterdir()}

    before = keys()
    (folder / "base.yaml").write_text(BASE.replace("  steps: 380", "  steps: 381"))
    after = keys()
    assert {name for name in before if before[name] != after[name]} == {"sft"}
    (folder / "base.yaml").write_text(BASE.replace("    steps: 30\n", "    steps: 31\n"))
    changed = {name for name, text in keys().items() if before[name] != text}
    assert changed == {
        f"prealign-{name}" for name in ("clip", "convnext", "sam", "eva02", "pix2struct")
    }


DEFAULTS = [
    ("batch: {size: 8}", 8, 1),
    ("batch: {size: 8, per_device: 2}", 2, 4),
    ("batch: {size: 8, per_device: 2, accumulation: auto}", 2, "auto"),
    ("batch: {size: 8}\n  engine: {kind: deepspeed, zero: 2}", 8, "auto"),
]


@pytest.mark.parametrize(("lines", "per_device", "accumulation"), DEFAULTS)
def test_how_a_batch_is_reached_when_nobody_says(lines, per_device, accumulation):
    head, tail = BASE.split("\nsft:\n", 1)
    text = f"{head}\nsft:\n{tail.replace('batch: {size: 32}', lines, 1)}"
    batch = parse_recipe(text, "r.yaml").sft.batch
    assert (batch.per_device, batch.accumulation) == (per_device, accumulation)


def test_a_base_of_the_shipped_recipes_stands_alone():
    texts = {p.stem: p.read_text(encoding="utf-8") for p in (ROOT / "recipes").rglob("*.yaml")}
    extended = {
        line.split()[1]
        for text in texts.values()
        for line in text.splitlines()
        if line.startswith("extends:")
    }
    assert extended
    assert all("\nextends:" not in texts[name.rpartition("/")[2]] for name in extended)
