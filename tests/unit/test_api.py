"""``import manyeyes``: what it offers, what it costs, and that it does what the verbs do."""

import ast
import json
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from pipeline_kit import TINY
from preflight_kit import write_recipe
from track_kit import write_checkpoint, write_model

import manyeyes
from manyeyes.artifact.manifest import read_manifest
from manyeyes.data.sources.importing import import_llava
from manyeyes.errors import UserError
from manyeyes.serve.chat import Conversation
from manyeyes.serve.given_images import read_images
from manyeyes.store import open_store
from manyeyes.store.pointer import write_pointer

NAMES = ["Recipe", "evaluate", "load", "load_recipe", "train"]
HEAVY = ("torch", "transformers", "mlflow", "kfp", "pydantic", "numpy", "PIL", "ruamel")
QUESTION = "what is this"


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A checkpoint of a tiny model that answers in words."""
    folder = tmp_path_factory.mktemp("model") / "sft"
    write_model(folder)
    return folder


@pytest.fixture
def image(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (8, 8), "red").save(path)
    return path


def told(folder, code):
    """Run Python in a process of its own; return what it printed."""
    return subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, check=True
    ).stdout


def test_the_import_brings_nothing_but_the_names(tmp_path):
    code = f"import manyeyes, sys; print([name for name in {HEAVY} if name in sys.modules])"
    assert told(tmp_path, code) == "[]\n"
    code = "import manyeyes, sys; print(sorted(n for n in sys.modules if n.startswith('manyeyes')))"
    assert told(tmp_path, code) == "['manyeyes', 'manyeyes.version']\n"


def test_the_recipe_is_read_without_torch(tmp_path):
    code = (
        f"import manyeyes, sys; recipe = manyeyes.load_recipe({str(TINY)!r}); "
        "print(recipe.name, isinstance(recipe, manyeyes.Recipe), 'torch' in sys.modules)"
    )
    assert told(tmp_path, code) == "eagle-x5-tiny True False\n"


def test_the_names_are_listed_and_no_other_is_there():
    assert manyeyes.__all__ == NAMES
    assert set(NAMES) <= set(dir(manyeyes))
    with pytest.raises(AttributeError) as error:
        _ = manyeyes.lode
    assert str(error.value) == "module 'manyeyes' has no attribute 'lode'"


def test_the_type_checker_is_told_of_the_same_names():
    tree = ast.parse(Path(manyeyes.__file__).read_text(encoding="utf-8"))
    imports = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    (typed,) = [node for node in imports if node.module == "manyeyes.api"]
    assert [alias.name for alias in typed.names] == NAMES


def test_no_package_has_the_name_of_a_function():
    """Its import would put the package in the function's place."""
    here = Path(manyeyes.__file__).parent
    parts = {path.name for path in here.glob("*.py")} | {
        path.parent.name for path in here.glob("*/__init__.py")
    }
    assert not parts & {*NAMES, *(f"{name}.py" for name in NAMES)}


def test_a_question_is_answered_whatever_form_the_image_has(checkpoint, image, home):
    model = manyeyes.load(checkpoint)
    chat = Conversation(model)
    chat.show(image)
    expected = chat.ask(QUESTION).answer
    assert expected
    seen = model.processor.pixels(chat.images)
    for form in (image, str(image), image.read_bytes(), Image.open(image), [image]):
        assert model.ask(form, QUESTION) == expected
        assert model.processor.pixels(read_images(form)).equal(seen)
    chat = Conversation(model)
    chat.show(image)
    chat.show(image)
    assert model.ask([image, Image.open(image)], QUESTION) == chat.ask(QUESTION).answer
    assert len(read_images((image, image.read_bytes()))) == len(chat.images)
    chat = Conversation(model)
    assert model.ask(None, QUESTION) == model.ask([], QUESTION) == chat.ask(QUESTION).answer
    words = model.ask(image, QUESTION, max_new_tokens=2).split()
    assert words == expected.split()[: len(words)]


def test_its_parts_are_at_hand(checkpoint, image, home):
    model = manyeyes.load(str(checkpoint))
    assert model.model.config.model_type == "manyeyes_vlm"
    assert tuple(model.processor.pixels([Image.open(image)]).shape) == (1, 3, 64, 64)
    assert model.tokenizer.decode(model.tokenizer("what is")["input_ids"]) == "what is"


@pytest.mark.parametrize(
    ("image", "prompt", "text"),
    [
        ("{tmp}/none.png", QUESTION, "Cannot read the picture {tmp}/none.png: No such file or directory."),
        (b"GIF?", QUESTION, None),
        (3, QUESTION, "image is a int: give the path of an image file, its bytes, an image of Pillow, "
         "or a list of these."),
        ([b"x", {}], QUESTION, None),
        (None, "  ", "The question is empty: say what you want to know."),
        (None, "<image> what", "The prompt holds <image>, which stands for an image: leave it out, the "
         "images given with it are put in front of it."),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_one_sentence(checkpoint, tmp_path, home, image, prompt, text):
    model = manyeyes.load(checkpoint)
    given = image.format(tmp=tmp_path) if isinstance(image, str) else image
    with pytest.raises(UserError) as error:
        model.ask(given, prompt)
    if text:
        assert str(error.value) == text.format(tmp=tmp_path)
    with pytest.raises(UserError) as error:
        model.ask(None, QUESTION, max_new_tokens=0)
    assert str(error.value) == "max_new_tokens is 0; give 1 or more."


@pytest.fixture
def stored(checkpoint, home):
    """The digest of the checkpoint, which the content store has."""
    manifest = read_manifest(checkpoint)
    store = open_store()
    dir_id = store.put(checkpoint, manifest)
    store.remember(manifest.fingerprint, dir_id, manifest.digest)
    return manifest, dir_id


def test_a_model_is_found_by_digest_and_by_pointer(checkpoint, stored, image, tmp_path):
    manifest, dir_id = stored
    write_pointer(open_store(), dir_id, manifest, tmp_path / "pointer")
    dvc = open_store().export_pointer(dir_id, tmp_path / "elsewhere")
    expected = manyeyes.load(checkpoint).ask(image, QUESTION)
    names = (manifest.digest, manifest.fingerprint, dir_id, tmp_path / "pointer", dvc)
    for name in (*names, tmp_path / "pointer/pointer.json"):
        assert manyeyes.load(name).ask(image, QUESTION) == expected


def test_what_is_no_checkpoint_is_refused_by_digest_too(home, tmp_path):
    with pytest.raises(UserError) as error:
        manyeyes.load("a" * 64)
    assert str(error.value) == (
        f"The content store {home}/store has nothing whole with the digest or fingerprint "
        f"{'a' * 64}."
    )
    manifest = write_checkpoint(tmp_path / "other")
    text = (tmp_path / "other/manifest.json").read_text().replace('"checkpoint"', '"report"')
    (tmp_path / "other/manifest.json").write_text(text)
    manifest = read_manifest(tmp_path / "other")
    store = open_store()
    store.remember(manifest.fingerprint, store.put(tmp_path / "other", manifest), manifest.digest)
    with pytest.raises(UserError) as error:
        manyeyes.load(manifest.digest)
    assert str(error.value) == (
        f"{manifest.digest} is a report (made by sft), but a checkpoint is needed."
    )


def test_a_damaged_checkpoint_is_not_answered_from(tmp_path, home):
    write_checkpoint(tmp_path / "sft")
    (tmp_path / "sft/llm.safetensors").write_text("WEIGHTS", encoding="utf-8")
    with pytest.raises(UserError, match="does not match the sha256 in the manifest"):
        manyeyes.load(tmp_path / "sft")


def test_transformers_knows_a_checkpoint(checkpoint, image, home):
    """In a process of its own: what was registered before must not help."""
    code = f"""
import manyeyes.serve.auto
from transformers import AutoConfig, AutoModel, AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained({str(checkpoint)!r})
inputs = processor(images={str(image)!r}, text={QUESTION!r})
for kind in (AutoModel, AutoModelForImageTextToText):
    model = kind.from_pretrained({str(checkpoint)!r})
    print(processor.batch_decode(model.generate(**inputs, max_new_tokens=8)))
print(AutoConfig.from_pretrained({str(checkpoint)!r}).model_type)
"""
    answer = manyeyes.load(checkpoint).ask(image, QUESTION, max_new_tokens=8)
    assert told(checkpoint.parent, code).splitlines() == [f"{[answer]}"] * 2 + ["manyeyes_vlm"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"device_map": "cuda", "load_in_4bit": True, "trust_remote_code": False},
            "A checkpoint of manyeyes is not loaded with device_map, load_in_4bit: leave that out; "
            ".to(...) moves a model that is loaded.",
        ),
        ({"dtype": "auto"}, "dtype is 'auto': give one of torch's, as torch.bfloat16."),
    ],
)
def test_what_loading_does_not_do_is_not_passed_over(checkpoint, options, text):
    from manyeyes.model.vlm import VisionLanguageModel

    with pytest.raises(UserError) as error:
        VisionLanguageModel.from_pretrained(checkpoint, **options)
    assert str(error.value) == text


COLOURS = ("red", "blue")


@pytest.fixture
def own_data(tmp_path, home, monkeypatch):
    """A folder with a recipe and, imported, the data that it names: eight questions and a bad one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "images").mkdir()
    records = []
    for number in range(8):
        name, colour = f"{number}.png", COLOURS[number % 2]
        Image.new("RGB", (16, 16 + number), colour).save(tmp_path / "images" / name)
        turns = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": colour}]
        split = "test" if number > 1 else "train"
        records.append({"image": name, "split": split, "task": "vqa", "conversations": turns})
    # One that the contract puts aside: it is too long.
    records[-1]["conversations"][0]["value"] = QUESTION + " a" * 200
    (tmp_path / "talks.json").write_text(json.dumps(records))
    import_llava(
        tmp_path / "talks.json", tmp_path / "images", tmp_path / "data/mine", licence="CC0-1.0",
        source=None, quarantine=0.0, number_ids=False,
    )  # fmt: skip
    return write_recipe(tmp_path, ("max_characters: 9000", "max_characters: 300"))


def test_a_model_is_scored_on_the_questions_of_a_recipe(checkpoint, own_data, home):
    found = manyeyes.evaluate(checkpoint, own_data)
    assert [found.scores.tasks["vqa"].total.count, len(found.predictions)] == [5, 5]
    model = manyeyes.load(checkpoint)
    again = manyeyes.evaluate(model, manyeyes.load_recipe(own_data))
    assert again.scores == found.scores
    for prediction in found.predictions:
        asked = model.ask(
            Path("images") / f"{int(prediction.id.split('-')[1]) - 1}.png",
            QUESTION,
            max_new_tokens=4,
        )
        assert prediction.prediction == asked
    whole = manyeyes.evaluate(model, own_data, dataset="data/mine")
    assert whole.scores.tasks["vqa"].total.count == 6


def test_a_model_is_scored_as_it_is_now(checkpoint, own_data, home):
    model = manyeyes.load(checkpoint)
    before = manyeyes.evaluate(model, own_data, dataset="data/mine").predictions
    for weights in model.model.llm.parameters():
        weights.data.zero_()
    after = manyeyes.evaluate(model, own_data, dataset="data/mine").predictions
    assert [one.prediction for one in before] != [one.prediction for one in after]


def test_a_wrong_recipe_is_told_with_its_lines_where_it_has_a_file(checkpoint, own_data, home):
    text = own_data.read_text().replace("vqa: exact_match", "vqa: exact_mach")
    own_data.write_text(text)
    line = text.splitlines().index("    vqa: exact_mach") + 1
    known = "anls, exact_match, pope_f1, relaxed_accuracy, textvqa, vqa_accuracy"
    said = f"eval.tasks.vqa: Unknown metric 'exact_mach': known are {known}; did you mean 'exact_match'?"
    for call in (manyeyes.train, lambda recipe: manyeyes.evaluate(checkpoint, recipe)):
        with pytest.raises(UserError) as error:
            call(str(own_data))
        assert str(error.value) == f"{own_data}:{line}: {said}"
        with pytest.raises(UserError) as error:
            call(manyeyes.load_recipe(own_data))
        assert str(error.value) == said
