"""No code comes with weights: it is ignored, and that is said, or the model is refused; never asked."""

import ast
import io
import json
import logging
from pathlib import Path

import pytest
from model_kit import write_llama

from manyeyes.cli import main
from manyeyes.errors import UserError
from manyeyes.model.transformer import (
    load_language_model,
    load_language_model_config,
    load_tokenizer,
)
from manyeyes.model.weights import foreign_code
from manyeyes.model.weights.foreign_code import refuse_foreign_code

ROOT = Path(__file__).parents[2]
OWN = ("VisionLanguageModel", "GenerationConfig")
"""Ours, and one that reads numbers: it would keep the flag as one of them."""
CODE = "open('PWNED', 'a').write('x')\nfrom transformers import LlamaConfig as C\n"


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("llama")
    write_llama(folder)
    return folder


@pytest.fixture
def folder(plain, tmp_path, monkeypatch):
    """A model with code of its own beside it, in the folder somebody stands in."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(foreign_code, "_said", set())
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 1000))
    target = tmp_path / "llm"
    target.mkdir()
    for path in plain.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    (target / "evil.py").write_text(CODE)
    return target


def change(path, **values):
    config = json.loads(path.read_text()) if path.exists() else {}
    path.write_text(json.dumps({**config, **values}))


def evil(folder, kind=None):
    """Let config and tokenizer ask for the code beside them."""
    classes = {"AutoConfig": "evil.C", "AutoModelForCausalLM": "evil.M"}
    change(folder / "config.json", auto_map=classes, **({"model_type": kind} if kind else {}))
    change(
        folder / "tokenizer_config.json", tokenizer_class="T",
        auto_map={"AutoTokenizer": ["evil.T", None]},
    )  # fmt: skip


LOADERS = (load_language_model_config, load_tokenizer, load_language_model)


@pytest.mark.parametrize("load", LOADERS)
def test_code_beside_a_known_kind_is_ignored_and_that_is_said_once(folder, caplog, load):
    evil(folder)
    with caplog.at_level(logging.WARNING):
        load(str(folder))
        load(str(folder))
    said = [record.message for record in caplog.records if record.name == foreign_code.__name__]
    assert said == [
        f"{folder} names code of its own (auto_map: evil.C), which is not run: transformers' own "
        "llama is used."
    ]
    assert not Path("PWNED").exists()


@pytest.mark.parametrize("load", LOADERS)
def test_a_kind_that_needs_code_is_refused_without_a_question(folder, load):
    evil(folder, "evil_llama")
    with pytest.raises(UserError) as caught:
        load(str(folder))
    assert str(caught.value) == (
        f"'{folder}' needs code of its own (auto_map: evil.C), because transformers knows no model "
        "of kind 'evil_llama'. Code that comes with weights is never run: use a model of a kind "
        "that transformers knows."
    )
    assert not Path("PWNED").exists()


@pytest.mark.parametrize(
    "words", [{"auto_map": "evil.C"}, {"auto_map": ["evil.C"]}, {"auto_map": 3}]
)
def test_every_form_of_an_auto_map_is_one(folder, words):
    change(folder / "config.json", model_type="other", **words)
    with pytest.raises(UserError, match="needs code of its own"):
        refuse_foreign_code(str(folder), "llm")


def test_import_weights_leaves_the_request_for_code_behind(folder, capsys):
    evil(folder)
    assert main(["import-weights", str(folder), "--out", "taken", "--as", "llm"]) == 0
    for name in ("config.json", "tokenizer_config.json"):
        assert "auto_map" not in json.loads(Path("taken", name).read_text())
    assert not Path("taken/evil.py").exists()
    assert not Path("PWNED").exists()


VERBS = {
    "show": ("show", "recipe.yaml"),
    "plan": ("plan", "recipe.yaml", "--gpus", "1xA100-80G"),
    "import-weights": ("import-weights", "llm", "--out", "taken"),
}


@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_asks_or_runs_code(folder, capsys, verb):
    evil(folder, "evil_llama")
    text = (ROOT / "recipes/tiny/eagle-x5.yaml").read_text()
    Path("recipe.yaml").write_text(text.replace("zoo:llama-tiny", "./llm"))
    assert main(list(VERBS[verb])) == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1, said.err
    assert "needs code of its own" in said.err
    assert "[y/N]" not in said.out + said.err
    assert not Path("PWNED").exists()
    assert not Path("taken").exists()


REFUSED = {
    "a kernel of the Hub": (
        lambda at: change(at / "config.json", attn_implementation="evil/kernel"),
        "'llm' asks for compiled code from the Hub (attn_implementation: evil/kernel), which is "
        "never loaded: take attn_implementation out of its config.json.",
    ),
    "a kernel of the model within": (
        lambda at: change(at / "config.json", text_config={"experts_implementation": "evil/k"}),
        "'llm' asks for compiled code from the Hub (experts_implementation: evil/k), which is "
        "never loaded: take experts_implementation out of its config.json.",
    ),
    "an adapter": (
        lambda at: change(at / "adapter_config.json", base_model_name_or_path="../elsewhere"),
        "{at} has adapter_config.json, which leads to other weights than those beside it: merge the "
        "adapter into them (with peft, merge_and_unload() and save_pretrained), or take the file "
        "out.",
    ),
    "a deep config": (
        lambda at: (at / "config.json").write_text("[" * 100_000),
        "Cannot read {at}/config.json: it nests deeper than any description does; get it again.",
    ),
    "an index that leads elsewhere": (
        lambda at: change(
            at / "model.safetensors.index.json", weight_map={"a": "../elsewhere.safetensors"}
        ),
        "{at}/model.safetensors.index.json names '../elsewhere.safetensors', which lies elsewhere: "
        "take it out.",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_what_leads_away_from_a_model_is_refused(folder, case):
    prepare, text = REFUSED[case]
    prepare(folder)
    with pytest.raises(UserError) as caught:
        load_language_model(str(folder))
    assert str(caught.value).replace(f"'{folder}'", "'llm'") == text.format(at=folder)


def test_every_loader_of_transformers_is_told_to_run_no_code():
    """``from_pretrained`` and the auto classes' ``from_config``, in every module."""
    bare = []
    for path in sorted([*ROOT.glob("manyeyes/**/*.py"), *ROOT.glob("pipelines/*.py")]):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                owner = ast.unparse(node.func.value)
                flags = {word.arg: ast.unparse(word.value) for word in node.keywords}
                if node.func.attr == "from_pretrained" and owner not in OWN:
                    bare += [path] if flags.get("trust_remote_code") != "False" else []
    assert bare == []
    text = (ROOT / "manyeyes/model/transformer.py").read_text(encoding="utf-8")
    assert text.count("AutoModelForCausalLM.from_config") == 1
    assert text.count("trust_remote_code=False") == 4
    everything = "".join(path.read_text() for path in ROOT.glob("manyeyes/**/*.py"))
    assert "trust_remote_code=True" not in everything
