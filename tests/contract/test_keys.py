"""Which change of the source makes which stages run again; and the lock is that of the code."""

import json
import shutil

import golden_kit
import pytest
import renew_lock

from manyeyes import steps
from manyeyes.config.recipe import load_recipe
from manyeyes.config.recipe.slices import slice_json
from manyeyes.pipeline import code_lock
from manyeyes.pipeline.explain import _code_changes, _edited
from manyeyes.pipeline.source import Package

RECIPE = load_recipe(steps.PACKAGE.parent / "recipes/tiny/eagle-x5.yaml")
EXPERTS = [f"prealign:{name}" for name in RECIPE.prealign.experts]
TRAININGS = [*EXPERTS, "pretrain", "sft"]
MODEL = [*TRAININGS, "eval"]


def uses(recipe):
    """Stage of a recipe to the labels of the lock that its key holds."""
    found = {}
    for step in steps.STEPS:
        for expert in recipe.prealign.experts if step.per_expert else [None]:
            piece = json.loads(slice_json(recipe, step.name, expert))
            label = f"{step.name}:{expert}" if expert else step.name
            found[label] = {step.name, *code_lock.parts_of(step.name, piece)}
    return found


class Edited(Package):
    """A copy of a package, of which only the files that differ are parsed anew."""

    def __init__(self, folder, like):
        super().__init__(folder)
        self.like = like

    def module(self, name):
        path = "/".join(name.split(".")[1:])
        for file in (f"{path}/__init__.py", f"{path}.py"):
            mine, theirs = self.folder / file, self.like.folder / file
            if mine.is_file() and theirs.is_file() and mine.read_bytes() == theirs.read_bytes():
                return self.like.module(name)
        return super().module(name)


def digests_of(package):
    return {
        label: package.digest(roots, stop=code_lock.STOP, outside=code_lock.CARRIERS)
        for label, roots in code_lock.known().items()
    }


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A copy of the package's source, and the digests of its code."""
    folder = tmp_path_factory.mktemp("source") / "manyeyes"
    shutil.copytree(
        steps.PACKAGE,
        folder,
        symlinks=True,
        ignore=shutil.ignore_patterns("*.safetensors", "__pycache__", "*.md"),
    )
    package = Package(folder)
    return package, digests_of(package)


def replaced(file, before, after):
    def edit(folder):
        path = folder / file
        text = path.read_text(encoding="utf-8")
        assert before in text, f"{file} has no {before!r}: give the test another line"
        path.write_text(text.replace(before, after, 1), encoding="utf-8")

    return edit


def written(file, text):
    return lambda folder: (folder / file).write_text(text, encoding="utf-8")


def several(*edits):
    def edit(folder):
        for one in edits:
            one(folder)

    return edit


NEW_METRIC = several(
    replaced(
        "evaluation/metrics.py",
        "def anls(",
        "def new(given, answers):\n    return 1.0\n\n\ndef anls(",
    ),
    replaced(
        "evaluation/metrics.py",
        '    "exact_match": Metric(',
        '    "new": Metric(new, "mean", "ours", "new"),\n    "exact_match": Metric(',
    ),
)
NEW_ENCODER = several(
    written("model/encoders/new.py", "class NewArchitecture: ...\n\n\nclass NewEncoder: ...\n"),
    replaced(
        "model/encoders/registry.py",
        '    "clip": Family(',
        '    "new": Family("NewArchitecture", "NewEncoder"),\n    "clip": Family(',
    ),
    replaced(
        "model/encoders/registry.py",
        "ENCODERS: dict[str, EncoderSpec] = {",
        "ENCODERS: dict[str, EncoderSpec] = {\n"
        '    "new-tiny": EncoderSpec("zoo:new", 112, 8, 96, CLIP_L_14),',
    ),
)
NEW_TEMPLATE = replaced(
    "data/loading/templates.py",
    "TEMPLATES: dict[str, Template] = {",
    'TEMPLATES: dict[str, Template] = {\n    "new": Template(question="Q", answer="A"),',
)
CHANGES = {
    "a comment": (replaced("training/optimizer.py", "\n\n\n", "\n\n\n# Said otherwise.\n"), []),
    "a docstring": (
        replaced("evaluation/metrics.py", '"""Return the edit distance:', '"""Return how far apart:'),
        [],
    ),
    "blank lines": (replaced("training/optimizer.py", "\n\n\n", "\n\n\n\n\n"), []),
    "an unused file": (written("data/dataset/unused.py", "VALUE = 1\n"), []),
    "a new metric": (NEW_METRIC, []),
    "a new encoder": (NEW_ENCODER, []),
    "a new template": (NEW_TEMPLATE, []),
    "a new importer": (written("data/sources/other_format.py", "def read(path):\n    return []\n"), []),
    "the importer of a source that the recipe does not use": (
        written("data/sources/llava.py", "def read(path):\n    return []\n"),
        [],
    ),
    "the command line": (written("cli/show.py", "def run(arguments):\n    return 0\n"), []),
    "an encoder that the recipe does not use": (
        replaced("model/encoders/siglip.py", "    def rename(", "    extra = 1\n\n    def rename("),
        [],
    ),
    "the optimizer": (replaced("training/optimizer.py", "EPSILON = ", "EPSILON = 2 * "), TRAININGS),
    "the arithmetic of a metric": (
        replaced("evaluation/metrics.py", "ANLS_THRESHOLD = 0.5", "ANLS_THRESHOLD = 0.6"),
        ["eval"],
    ),
    "a metric that the recipe does not use": (
        replaced("evaluation/metrics.py", "    return _leave_one_out(\n", "    return 1 - _leave_one_out(\n"),
        [],
    ),
    "one encoder": (
        replaced(
            "model/encoders/clip.py",
            "    def native(",
            "    def other(self):\n        return 1\n\n    def native(",
        ),
        ["prealign:clip", "pretrain", "sft", "eval"],
    ),
    "one encoder's row": (
        replaced("model/encoders/registry.py", "depth=3, heads=3,", "depth=4, heads=3,"),
        ["prealign:clip", "pretrain", "sft", "eval"],
    ),
    "the template": (
        replaced("data/loading/templates.py", 'question=" user"', 'question=" human"'),
        MODEL,
    ),
    "the starter data": (replaced("data/sources/starter/quotas.py", 'SMALLEST = {"numbers": 6', 'SMALLEST = {"numbers": 7'), ["prepare"]),
    "what the shipped zoo has learned": (replaced("data/sources/starter/learned.py", 'SHA256 = "', 'SHA256 = "0'), ["prepare"]),
}  # fmt: skip


@pytest.mark.parametrize(("edit", "expected"), CHANGES.values(), ids=CHANGES)
def test_a_change_reruns_what_it_reaches_and_no_more(source, tmp_path, edit, expected):
    package, before = source
    copy = tmp_path / "manyeyes"
    shutil.copytree(package.folder, copy, symlinks=True)
    edit(copy)
    after = digests_of(Edited(copy, package))
    moved = {label for label in before if before[label] != after[label]}
    assert [stage for stage, labels in uses(RECIPE).items() if labels & moved] == expected


def test_a_function_that_all_models_use_reruns_all_models(source, tmp_path):
    package, before = source
    copy = tmp_path / "manyeyes"
    shutil.copytree(package.folder, copy, symlinks=True)
    path = copy / "model/loss.py"
    text = path.read_text(encoding="utf-8")
    assert "def supervised_loss" in text
    path.write_text(text.replace("    return ", "    return 1 * ", 1), encoding="utf-8")
    after = digests_of(Edited(copy, package))
    moved = {label for label in before if before[label] != after[label]}
    found = [stage for stage, labels in uses(RECIPE).items() if labels & moved]
    assert set(TRAININGS) <= set(found) <= set(MODEL)


def test_the_lock_is_that_of_the_code():
    locked, now = code_lock.read_lock(code_lock.LOCK), code_lock.entries()
    moved = [code_lock.said(label) for label in renew_lock.moved(locked, now)]
    assert not moved, (
        f"The code of {', '.join(moved)} is not that of the lock: raise the version where results "
        "change, and run `make lock`."
    )
    assert set(locked) == set(now)


def test_every_entry_of_the_lock_has_a_recorded_result():
    records = json.loads(golden_kit.RESULTS.read_text())
    for kernels, record in records.items():
        assert set(record) <= set(code_lock.read_lock(code_lock.LOCK)), kernels
    assert set().union(*records.values()) == set(code_lock.read_lock(code_lock.LOCK))


OLD = {"version": 1, "code": "a"}
NEW = {"version": 1, "code": "b"}
REFUSALS = [
    (None, NEW, None, [1.0], ""),
    (OLD, {"version": 2, "code": "b"}, [1.0], [2.0], ""),
    (OLD, NEW, [1.0, {"x": "y"}], [1.0, {"x": "y"}], ""),
    (OLD, NEW, [1.0], [1.0 + 1e-9], ""),
    (
        OLD,
        NEW,
        {"losses": [1.0, 2.0]},
        {"losses": [1.0, 2.5]},
        "The metric anls gives other results than are recorded (losses[1]: 2.0 -> 2.5): raise its "
        "version in manyeyes/evaluation/metrics.py (METRICS) and run `make lock` again.",
    ),
    (
        OLD,
        NEW,
        None,
        [1.0],
        "Nothing is recorded of the metric anls on AVX2: run `make lock` where it is, with "
        "ATEN_CPU_CAPABILITY=avx2 perhaps, or raise its version in manyeyes/evaluation/metrics.py "
        "(METRICS).",
    ),
    (
        {"version": 2, "code": "a"},
        NEW,
        [1.0],
        [1.0],
        "The version of the metric anls fell from 2 to 1: a version only rises "
        "(manyeyes/evaluation/metrics.py (METRICS)).",
    ),
]


@pytest.mark.parametrize(("locked", "entry", "recorded", "result", "expected"), REFUSALS)
def test_a_lock_is_renewed_where_the_version_rose_or_results_stay(
    locked, entry, recorded, result, expected
):
    assert renew_lock.refusal("metric anls", locked, entry, recorded, result, "AVX2") == expected


def test_installed_code_that_is_not_the_locks_joins_the_key_and_is_named(monkeypatch):
    text = slice_json(RECIPE, "eval")
    monkeypatch.setattr(code_lock, "_locked", code_lock.entries)
    before = code_lock.code_of("eval", text)
    key = code_lock.code_digest("eval", text)
    other = code_lock.code_digest("sft", slice_json(RECIPE, "sft"))
    assert not any(code_lock.EDITED in version for version in before.values())
    changed = {**code_lock.digests(), "metric anls": "0123456789abcdef"}
    locked = code_lock.entries()
    monkeypatch.setattr(code_lock, "_locked", lambda: locked)
    monkeypatch.setattr(code_lock, "digests", lambda: changed)
    after = code_lock.code_of("eval", text)
    assert after == {**before, "metric anls": "1 edited 0123456789abcdef"}
    assert code_lock.code_digest("eval", text) != key
    assert code_lock.code_digest("sft", slice_json(RECIPE, "sft")) == other
    assert _code_changes(before, after) == ["the code of the metric anls changed"]
    assert _edited(after) == (
        " (the installed code of the metric anls differs from the lock, so it is in the key)"
    )
    assert _code_changes(before, {**before, "eval": "2"}) == [
        "the stage eval has version 2 (before: 1)"
    ]


@pytest.mark.parametrize("text", [None, "", "{", "[]"])
def test_a_lock_that_cannot_be_read_locks_nothing(tmp_path, text):
    path = tmp_path / "code_lock.json"
    if text is not None:
        path.write_text(text)
    assert code_lock.read_lock(path) == {}
