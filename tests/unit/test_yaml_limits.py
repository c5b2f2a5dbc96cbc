"""A recipe cannot be endless: what it stands for is counted before it is built."""

from pathlib import Path

import pytest

from manyeyes.cli import main
from manyeyes.config.recipe import load_recipe, parse_recipe
from manyeyes.errors import UserError

TINY = Path(__file__).parents[2] / "recipes/tiny/eagle-x5.yaml"
WHOLE = (TINY.parents[2] / "tests/recipes/long.yaml").read_text()
SEED = "seed: 7"
SEED_LINE = WHOLE[: WHOLE.index(SEED)].count("\n") + 1


def laughs(levels):
    """Each line stands for nine of the line before it."""
    lines = ["a0: &a0 [" + ", ".join("x" * 9) + "]"]
    lines += [
        f"a{level}: &a{level} [" + ", ".join([f"*a{level - 1}"] * 9) + "]"
        for level in range(1, levels)
    ]
    return "\n".join(lines) + "\n"


def with_seed(value):
    return WHOLE.replace(SEED, f"seed: {value}", 1)


DEEP = "it nests deeper than 50 levels."
TEXTS = {
    "a billion laughs": (laughs(9), 5, "with what its aliases stand for it has more than 10000 values."),
    "brackets": ("name: " + "[" * 20_000, 1, DEEP),
    "brackets with words between": ("name: " + "[a, " * 20_000, 1, DEEP),
    "braces": ("name: " + "{a: " * 20_000, 1, DEEP),
    "deep lines": ("name:\n" + "".join(" " * i + "-\n" for i in range(1, 300)), 51, DEEP),
    "an alias in what it names": ("name: &a {x: *a}\n", 1, "*a names nothing that ended before it."),
    "an alias of nothing": ("name: *a\n", 1, "*a names nothing that ended before it."),
    "an endless number": (with_seed("9" * 5000), SEED_LINE, "a number of 5000 digits is no setting."),
    "a call in a tag": (with_seed("!!python/object/apply:os.system [x]"), SEED_LINE, "the tag !!python/object/apply:os.system is not read; remove it."),
    "a tag of nobody": (with_seed("!mine 7"), SEED_LINE, "the tag !mine is not read; remove it."),
    "two documents": (f"{WHOLE}\n---\n{WHOLE}", WHOLE.count("\n") + 2, "a second document begins here; write it to another file."),
    "too large": ("# " + "x" * 400_000, 1, "it has 400002 characters, more than 400000."),
    "a NUL": (with_seed("\0"), 1, None),
    "a date that is none": (with_seed("2001-13-45"), SEED_LINE, "a value cannot be read (month must be in 1..12)."),
    "a year that is none": (with_seed("0000-00-00"), SEED_LINE, "a value cannot be read (year 0 is out of range)."),
    "a truth that is none": (with_seed("!!bool maybe"), SEED_LINE, "'maybe' is no bool."),
    "a number that is none": (with_seed("!!int abc"), SEED_LINE, "a value cannot be read (invalid literal for int() with base 10: 'abc')."),
    "a number of no digits": (with_seed("!!int ''"), SEED_LINE, "'' is no int."),
    "many lines": ("".join(f"k{i}: 1\n" for i in range(30_000)), 5000, "with what its aliases stand for it has more than 10000 values."),
    "a character that is none": (with_seed('"\\U99999999"'), 1, "this is not valid YAML: a character has no such number."),
    "half a character": (with_seed('"\\uD800"'), SEED_LINE, "it holds \\ud800, half of a character."),
    "half a character in a key": (f'{WHOLE}\n"x\\uD800": 1\n', WHOLE.count("\n") + 2, "it holds \\ud800, half of a character."),
    "a seed of no generator": (with_seed(2**64), SEED_LINE, "seed: input should be less than 9223372036854775808, got 18446744073709551616"),
    "an endless seed in other digits": (with_seed("0x" + "f" * 5000), SEED_LINE, "seed: input should be less than 9223372036854775808, got a int without end"),
    "an endless text": (with_seed("'" + "x" * 5000 + "'"), SEED_LINE, "seed: input should be a valid integer, got '" + "x" * 99 + "..." + "x" * 11 + "'"),
}  # fmt: skip


@pytest.mark.parametrize("case", TEXTS)
def test_a_text_without_end_is_refused_with_its_line(case):
    text, line, told = TEXTS[case]
    with pytest.raises(UserError) as caught:
        parse_recipe(text, "r.yaml")
    if told is None:
        assert str(caught.value).startswith("r.yaml:1: this is not valid YAML: unacceptable char")
        assert "\n" not in str(caught.value)
    else:
        assert str(caught.value) == f"r.yaml:{line}: {told}"


NUMBERS = {
    "learning_rate: 5.0e-4": (".inf", ".nan", "-.inf"),
    "scale: 1.0": (".inf", ".nan", "1e300"),
    "weight_decay: 0.0": (".inf", ".nan"),
    "gradient_clipping: 1.0": (".inf", ".nan"),
}


@pytest.mark.parametrize(
    ("old", "value"), [(old, value) for old, values in NUMBERS.items() for value in values]
)
def test_numbers_that_are_none_or_endless_are_refused(old, value):
    assert old in WHOLE
    key = old.partition(":")[0]
    with pytest.raises(UserError, match=rf"{key}: input should be "):
        parse_recipe(WHOLE.replace(old, f"{key}: {value}", 1), "r.yaml")


def test_anchors_and_merge_keys_go_on_working(tmp_path):
    file = tmp_path / "r.yaml"
    file.write_text(WHOLE.replace(SEED, "<<: &x {seed: 7}", 1))
    assert load_recipe(file) == load_recipe(TINY)


def test_check_of_an_endless_recipe_ends(tmp_path, capsys):
    file = tmp_path / "r.yaml"
    file.write_text(laughs(12))
    assert main(["check", str(file)]) == 2
    assert capsys.readouterr().err == (
        f"{file}:5: with what its aliases stand for it has more than 10000 values.\n"
    )
