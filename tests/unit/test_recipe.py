import io
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from manyeyes.cli import main
from manyeyes.config.recipe import Batch, load_recipe, parse_recipe, recipe_yaml
from manyeyes.config.recipe.slices import SLICE_TYPES, parse_slice, slice_json, stage_slice
from manyeyes.config.recipe.strict_yaml import line_of as line_of_key
from manyeyes.errors import UserError

ROOT = Path(__file__).parents[2]
TINY = ROOT / "recipes/tiny/eagle-x5.yaml"
LONG = ROOT / "tests/recipes/long.yaml"
"""The same recipe as it was written before there were defaults: every key stands in it."""
TEXT = LONG.read_text(encoding="utf-8")


def line_of(text: str, part: str) -> int:
    return next(number for number, line in enumerate(text.splitlines(), 1) if part in line)


# (what is replaced, by what, the whole error with LINE for the line of the second text)
MISTAKES = [
    (
        "  grid: 8",
        "  gird: 8",
        "r.yaml:{model}: model.grid: this key is required and missing\n"
        "r.yaml:LINE: model.gird: unknown key; allowed are encoders, grid, normalization, fusion, "
        "projector, llm, max_length, alignment; did you mean 'grid'?",
    ),
    ("seed: 7", "seed: seven", "r.yaml:LINE: seed: input should be a valid integer, got 'seven'"),
    (
        "seed: 7",
        "seed: -1",
        "r.yaml:LINE: seed: input should be greater than or equal to 0, got -1",
    ),
    (
        "kind: starter",
        "kind: startr",
        "r.yaml:{data}: data: kind 'startr' is unknown; allowed are 'starter', 'dataset'; "
        "did you mean 'starter'?",
    ),
    (
        "split: test",
        "split: tst",
        "r.yaml:LINE: eval.split: got 'tst'; allowed are 'val' or 'test'; did you mean 'test'?",
    ),
    (
        "    - name: sam\n",
        "    - name: clip\n",
        "r.yaml:{model}: model: encoder names must differ, but clip is used twice",
    ),
    (
        "  max_length: 256",
        "  max_length: 64",
        "r.yaml:{model}: model: grid 8 makes 64 visual tokens, which leaves no room for text in "
        "max_length 64; raise max_length or lower grid",
    ),
]


@pytest.mark.parametrize(("right", "wrong", "expected"), MISTAKES)
def test_a_mistake_is_named_with_line_key_value_and_what_is_allowed(right, wrong, expected):
    text = TEXT.replace(right, wrong, 1)
    line = line_of(text, wrong.strip())
    expected = expected.replace("LINE", str(line))
    expected = expected.replace("{model}", str(line_of(text, "model:")))
    expected = expected.replace("{data}", str(line_of(text, "data:")))
    with pytest.raises(UserError) as error:
        parse_recipe(text, "r.yaml")
    assert str(error.value) == expected


WEIGHTS = "allowed are zoo:NAME, package:NAME, a model of the Hugging Face hub, a folder, or random"
NAME = (
    "allowed are 1 to 60 small letters, digits, '.', '_' and '-', of which the first is a letter "
    "or a digit"
)
PATTERN = "allowed are patterns over names of parameters, like projector.*"
NOTHING = {
    "model.encoders.0.weights": WEIGHTS,
    "model.encoders.0.name": NAME,
    "model.llm.weights": "allowed are zoo:NAME, a model of the Hugging Face hub, or a folder",
    "model.projector.weights": "allowed is a folder of manyeyes import-weights; without the key "
    "all starts at random",
    "sft.train.0": PATTERN,
    "sft.learning_rates.0.modules": PATTERN,
    "validate.licences.0": "allowed are SPDX names, like CC-BY-4.0",
    "register.model_name": NAME,
    "name": NAME,
    "data.name": NAME,
    "eval.split": "allowed are 'val' or 'test'",
}
"""Key of a text, to what the error says."""


def with_value(key, value):
    """Return the recipe's text with another value for one key, and where the key stands."""
    yaml = YAML()
    tree = yaml.load(TEXT)
    if key == "data.name":
        tree["data"] = {"kind": "dataset", "name": "mine"}
    location = [int(part) if part.isdigit() else part for part in key.split(".")]
    node = tree
    for part in location[:-1]:
        node = node[part]
    node[location[-1]] = value
    written = io.StringIO()
    yaml.dump(tree, written)
    return written.getvalue(), line_of_key(written.getvalue(), location)


@pytest.mark.parametrize("key", NOTHING)
def test_a_text_of_nothing_is_refused_with_what_is_allowed(key):
    text, line = with_value(key, "")
    with pytest.raises(UserError) as error:
        parse_recipe(text, "r.yaml")
    assert str(error.value) == f"r.yaml:{line}: {key}: got ''; {NOTHING[key]}"


TABLES = {
    "model.encoders.0.spec": "Unknown encoder spec '': known are clip-tiny, clip-vit-l-14-336, ",
    "model.llm.template": "Unknown conversation template '': known are chatml_yi, ",
    "sft.template": "Unknown conversation template '': known are chatml_yi, ",
    "eval.tasks.chart": "Unknown metric '': known are ",
}
"""Key of a row of a table, to how the error begins, which lists the table."""


@pytest.mark.parametrize("key", TABLES)
def test_a_row_of_nothing_is_refused_with_the_table(key, tmp_path, capsys):
    text, line = with_value(key, "")
    path = tmp_path / "r.yaml"
    path.write_text(text)
    assert main(["check", str(path)]) == 2
    assert capsys.readouterr().err.startswith(f"{path}:{line}: {key}: {TABLES[key]}")


@pytest.mark.parametrize(("key", "value"), [("eval.tasks", "exact_match"), ("sft.sources", 1.0)])
@pytest.mark.parametrize("name", ["", " "])
def test_a_task_of_nothing_is_refused(key, value, name):
    text, line = with_value(key, {name: value})
    with pytest.raises(UserError) as error:
        parse_recipe(text, "r.yaml")
    assert str(error.value) == (
        f"r.yaml:{line + 1}: {key}.{name!r}: got {name!r}; allowed are tasks of the dataset"
    )


def test_all_mistakes_of_a_file_are_reported_at_once():
    text = TEXT.replace("seed: 7", "seed: x").replace("split: test", "split: x")
    with pytest.raises(UserError) as error:
        parse_recipe(text, "r.yaml")
    assert len(str(error.value).splitlines()) == 2


def test_a_batch_that_does_not_divide_proposes_sizes_that_do():
    text = TEXT.replace("      size: 32\n", "      size: 33\n", 1).replace(
        "        size: 32\n", "        size: 33\n", 1
    )
    with pytest.raises(UserError) as error:
        parse_recipe(text, "r.yaml")
    assert str(error.value).endswith(
        "size 33 is not a multiple of per_device x accumulation = 32; size 32 or 64 would be"
    )


def test_prealign_must_name_every_encoder():
    text = TEXT.replace("    eva02:\n", "    eva03:\n", 1)
    with pytest.raises(UserError) as error:
        parse_recipe(text, "r.yaml")
    assert str(error.value).endswith(
        "prealign.experts must name exactly the encoders of the model (or none, to skip prealign): missing eva02; unknown eva03"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "- a\n",
            "r.yaml:1: a recipe is a mapping with the keys name, seed, model, data, validate, "
            "prealign, pretrain, sft, eval, register.",
        ),
        (
            "name: a\nname: b\n",
            'r.yaml:2: this is not valid YAML: found duplicate key "name" with '
            'value "b" (original value: "a").',
        ),
    ],
)
def test_text_that_is_no_recipe_is_refused_with_its_line(text, expected):
    with pytest.raises(UserError) as error:
        parse_recipe(text, "r.yaml")
    assert str(error.value) == expected


def test_a_missing_file_is_one_sentence(tmp_path):
    with pytest.raises(UserError) as error:
        load_recipe(tmp_path / "none.yaml")
    assert (
        str(error.value) == f"No recipe at {tmp_path / 'none.yaml'}: give the path of a .yaml file."
    )


def test_scientific_notation_is_a_number():
    recipe = parse_recipe(TEXT.replace("learning_rate: 5.0e-4", "learning_rate: 2e-5"), "r.yaml")
    assert recipe.prealign.experts["clip"].learning_rate == 2e-5


def test_the_resolved_recipe_loads_back_to_the_same_recipe():
    recipe = load_recipe(TINY)
    assert parse_recipe(recipe_yaml(recipe), "again") == recipe


def test_a_slice_survives_its_canonical_json():
    recipe = load_recipe(TINY)
    for stage, kind in SLICE_TYPES.items():
        expert = "clip" if stage == "prealign" else None
        text = slice_json(recipe, stage, expert)
        assert parse_slice(text, kind) == stage_slice(recipe, stage, expert)


@pytest.mark.parametrize(
    ("right", "wrong", "affected"),
    [
        ("max_new_tokens: 12", "max_new_tokens: 13", {"eval"}),
        ("model_name: eagle-x5-tiny", "model_name: other", {"register"}),
        ("scale: 1.0", "scale: 2.0", {"prepare"}),
    ],
)
def test_a_change_reaches_only_the_stages_that_see_it(right, wrong, affected):
    before, after = parse_recipe(TEXT, "a"), parse_recipe(TEXT.replace(right, wrong, 1), "b")
    changed = {
        stage
        for stage in SLICE_TYPES
        if slice_json(before, stage, "clip") != slice_json(after, stage, "clip")
    }
    assert changed == affected


ENGINES = [
    (
        "kind: deepspeed\n    zero: 0\n    offload: cpu",
        "float32",
        "zero 0 shares nothing out to offload; use zero 1, 2 or 3",
    ),
    (
        "kind: deepspeed\n    zero: 0\n    offload: none",
        "bfloat16",
        "engine deepspeed with zero 0 trains wrongly in bfloat16; use zero 1, 2 or 3, or "
        "precision float32",
    ),
    ("kind: deepspeed\n    zero: 4\n    offload: none", "float32", "allowed are 0, 1, 2 or 3"),
    (
        "kind: deepsped",
        "float32",
        "kind 'deepsped' is unknown; allowed are 'single', 'deepspeed'; did you mean 'deepspeed'?",
    ),
]


@pytest.mark.parametrize(("engine", "precision", "expected"), ENGINES)
def test_an_engine_that_cannot_train_is_refused(engine, precision, expected):
    head, tail = TEXT.split("\nsft:\n", 1)
    tail = tail.replace("kind: single", engine, 1).replace(
        "precision: float32", f"precision: {precision}", 1
    )
    with pytest.raises(UserError) as error:
        parse_recipe(f"{head}\nsft:\n{tail}", "r.yaml")
    assert str(error.value).endswith(expected)


@pytest.mark.parametrize(
    ("size", "per_device", "accumulation", "processes", "expected"),
    [(32, 32, 1, 1, 1), (32, 4, 2, 4, 2), (32, 4, "auto", 1, 8), (32, 4, "auto", 8, 1)],
)
def test_accumulation_makes_the_global_batch(size, per_device, accumulation, processes, expected):
    batch = Batch(size=size, per_device=per_device, accumulation=accumulation)
    assert batch.accumulation_for(processes) == expected


UNDIVIDED = [
    (
        (32, 4, 2, 2),
        "batch: per_device 4 x accumulation 2 x 2 processes is 16, not size 32; size 16, "
        "accumulation 4 or 4 processes would fit.",
    ),
    (
        (32, 16, 1, 1),
        "batch: per_device 16 x accumulation 1 x 1 process is 16, not size 32; size 16, "
        "accumulation 2 or 2 processes would fit.",
    ),
    (
        (12, 4, 3, 2),
        "batch: per_device 4 x accumulation 3 x 2 processes is 24, not size 12; size 24 or "
        "1 process would fit.",
    ),
    (
        (12, 4, "auto", 2),
        "batch: size 12 is not a multiple of per_device 4 x 2 processes = 8; size 8 or 16 would "
        "be.",
    ),
]


@pytest.mark.parametrize(("numbers", "expected"), UNDIVIDED)
def test_a_batch_that_the_processes_do_not_divide_proposes_what_would(numbers, expected):
    size, per_device, accumulation, processes = numbers
    batch = Batch(size=size, per_device=per_device, accumulation=accumulation)
    with pytest.raises(UserError) as error:
        batch.accumulation_for(processes)
    assert str(error.value) == expected


@pytest.mark.parametrize(("word", "shown"), [("none", "'none'"), ("0", "0"), ("true", "True")])
def test_accumulation_is_a_number_or_auto(word, shown):
    text = TEXT.replace("accumulation: 1", f"accumulation: {word}", 1)
    with pytest.raises(UserError) as error:
        parse_recipe(text, "r.yaml")
    assert str(error.value) == (
        f"r.yaml:{line_of(text, f'accumulation: {word}')}: "
        f"prealign.experts.clip.batch.accumulation: got {shown}; allowed are 'auto' or a whole "
        "number from 1"
    )


WIDE = "{} text without a mark that says so; run 'iconv -f {} -t UTF-8' on it"
NOT_UTF8 = {
    **{
        name: (TEXT.encode(name), WIDE.format(name, name))
        for name in ("UTF-16LE", "UTF-16BE", "UTF-32LE", "UTF-32BE")
    },
    "UTF-16 with a mark": (TEXT.encode("utf-16"), "UTF-16 text; save it as UTF-8"),
    "Latin-1": (
        f"# tiny\n# caf\u00e9\n{TEXT}".encode("latin-1", "replace"),
        "not UTF-8 text (the byte 0xe9 in line 2); save it as UTF-8",
    ),
    "gzip": (b"\x1f\x8b\x08\0\xff\xff", "gzip-compressed; unpack it first"),
}


@pytest.mark.parametrize("case", NOT_UTF8)
def test_a_recipe_that_is_not_utf8_is_told_as_what_it_is(case, tmp_path):
    data, expected = NOT_UTF8[case]
    path = tmp_path / "r.yaml"
    path.write_bytes(data)
    with pytest.raises(UserError) as caught:
        load_recipe(path)
    assert str(caught.value) == f"Cannot read the recipe {path}: it is {expected}."
