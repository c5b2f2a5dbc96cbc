"""EVE's three stages one after the other, at toy size, on pictures of many shapes."""

import hashlib
import io
import shutil

import pytest
import torch
from eve_kit import SIZES, eve_section, noise, table
from model_kit import WORDS, write_llama
from safetensors.torch import load_file
from training_kit import make_section, sample

from manyeyes.artifact.files import CURVES_FILE, QUARANTINE_FILE
from manyeyes.artifact.manifest import STATES, Header, open_artifact, write_manifest
from manyeyes.config.recipe import Batch
from manyeyes.config.recipe.slices import TrainSlice
from manyeyes.data.dataset.dataset import Dataset
from manyeyes.data.dataset.quarantine import write_quarantine
from manyeyes.data.dataset.sample import Turn
from manyeyes.data.dataset.writer import DatasetWriter
from manyeyes.data.loading.conversation import Codec
from manyeyes.errors import Interrupted, UserError
from manyeyes.evaluation.generate import GreedyAnswerer, Subject
from manyeyes.model.processor import Processor
from manyeyes.model.transformer import load_tokenizer
from manyeyes.model.vlm import VisionLanguageModel
from manyeyes.pipeline.stages import StageContext
from manyeyes.pipeline.stages.prealign import prealign
from manyeyes.pipeline.stages.pretrain import pretrain
from manyeyes.pipeline.stages.sft import sft
from manyeyes.runtime.progress import Progress
from manyeyes.training.metering import Row

VISION = ("encoders.patches.*", "projector.*", "alignment.*")
PROGRESS = Progress("test")


@pytest.fixture(scope="module", autouse=True)
def home_of_its_own(tmp_path_factory):
    """Where the tokens of these stages lie."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MANYEYES_HOME", str(tmp_path_factory.mktemp("home")))
        yield


def finish(folder, kind, stage, name):
    """Finish a result as the runner does, which takes the states of training away."""
    shutil.rmtree(folder / STATES, ignore_errors=True)
    header = Header(
        kind=kind, stage=stage, name=name, recipe_slice="a" * 64,
        fingerprint=hashlib.sha256(stage.encode()).hexdigest(), parents={},
        code="c", revision="r", libraries={}, seed=0,
    )  # fmt: skip
    return write_manifest(folder, header)


def png(image):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Samples of one picture, of two, and of none."""
    folder = tmp_path_factory.mktemp("data")
    with DatasetWriter(folder / "dataset") as writer:
        refs = [
            writer.add_image(png(image), f"picture-{i}") for i, image in enumerate(noise(SIZES * 3))
        ]
        for i, ref in enumerate(refs):
            turns = (Turn("human", "<image>\nwhat is this"), Turn("gpt", WORDS[7 + i % 3]))
            writer.add(sample(f"one-{i}", "colours", turns, (ref,)))
        for i in range(4):
            turns = (Turn("human", "<image> a <image> what is"), Turn("gpt", "red circle"))
            writer.add(sample(f"two-{i}", "colours", turns, (refs[i], refs[i + 4])))
            turns = (Turn("human", "what is " + "the " * i), Turn("gpt", "a blue circle"))
            writer.add(sample(f"none-{i}", "chat", turns, ()))
    finish(folder / "dataset", "dataset", "prepare", "prepare")
    (folder / "validation").mkdir()
    write_quarantine(folder / "validation" / QUARANTINE_FILE, [])
    finish(folder / "validation", "report", "validate", "validate")
    return {role: folder / role for role in ("dataset", "validation")}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """The recipe's section; its language model lies on disk."""
    llm = write_llama(tmp_path_factory.mktemp("llm"), vocab_size=len(WORDS))
    with table(1):
        yield eve_section(llm)


def section(*patterns, **changes):
    values = {
        "train": patterns,
        "steps": 3,
        "batch": Batch(size=4, per_device=2, accumulation=2),
        "checkpoint_every": 2,
    }
    return make_section(**{**values, **changes})


def piece(model, section, expert=None):
    return TrainSlice(seed=5, model=model, section=section, expert=expert)


def weights(folder):
    found = {}
    for path in folder.glob("*.safetensors"):
        found |= load_file(path)
    return found


def changed(before, after, prefix):
    """Say of the weights under a prefix whether all moved, none did, or some."""
    moved = {not torch.equal(before[key], after[key]) for key in after if key.startswith(prefix)}
    assert moved
    return moved


@pytest.fixture(scope="module")
def chain(model, data, tmp_path_factory):
    """The outputs of the three stages."""
    out = tmp_path_factory.mktemp("runs")
    prealigned, pretrained, tuned = (out / name for name in ("prealign", "pretrain", "sft"))
    prealign(piece(model, section(*VISION), "patches"), StageContext(data, prealigned, PROGRESS))
    finish(prealigned, "checkpoint", "prealign", "patches")
    everything = section(*VISION, "llm.*", inherit="whole")
    given = {**data, "expert.patches": prealigned}
    pretrain(piece(model, everything), StageContext(given, pretrained, PROGRESS))
    finish(pretrained, "checkpoint", "pretrain", "pretrain")
    last = section(*VISION, "llm.*")
    given = {**data, "checkpoint": pretrained}
    sft(piece(model, last), StageContext(given, tuned, PROGRESS))
    finish(tuned, "checkpoint", "sft", "sft")
    return prealigned, pretrained, tuned


def test_each_stage_starts_from_the_whole_of_the_one_before(model, chain):
    prealigned, pretrained, tuned = map(weights, chain)
    fresh = VisionLanguageModel.from_recipe(model, seed=5)
    start = dict(fresh.state_dict())
    assert changed(start, prealigned, "llm.") == {False}
    for prefix in ("encoders.", "projector.", "alignment."):
        assert changed(start, prealigned, prefix) == {True}
        # Three steps at 1e-3 move a weight by a few thousandths: it began where the stage before
        # ended, not where random numbers would have put it.
        for key in (key for key in pretrained if key.startswith(prefix)):
            assert (pretrained[key] - prealigned[key]).abs().max() < 0.01
        assert changed(prealigned, pretrained, prefix) == {True}
    assert changed(prealigned, pretrained, "llm.") == {True}
    for key in (key for key in tuned if key.startswith(("encoders.", "projector."))):
        assert (tuned[key] - pretrained[key]).abs().max() < 0.01


def test_what_is_registered_knows_no_teacher_and_no_alignment(chain):
    for folder in chain:
        assert not any("teacher" in key for key in weights(folder))
    assert [(folder / "alignment.safetensors").exists() for folder in chain] == [True, True, False]
    assert not any(key.startswith("alignment.") for key in weights(chain[-1]))
    open_artifact(chain[-1], "checkpoint")


def test_the_alignment_is_a_curve_of_its_own(chain):
    for folder in chain:
        rows = [
            Row.model_validate_json(line)
            for line in (folder / CURVES_FILE).read_text().splitlines()
        ]
        assert len(rows) == 3
        assert all(0.0 < row.alignment_loss < 2.0 for row in rows if row.alignment_loss is not None)
        assert any(row.alignment_loss is not None for row in rows)


def test_a_stopped_stage_continues_to_the_same_weights(model, data, tmp_path, monkeypatch, chain):
    from manyeyes.training import loop

    def run(out):
        prealign(piece(model, section(*VISION), "patches"), StageContext(data, out, PROGRESS))

    once = loop.Run.measure

    def stop_after_two(self, outcome, counts):
        if outcome.step == 3:
            raise Interrupted("stopped")
        return once(self, outcome, counts)

    with monkeypatch.context() as patch:
        patch.setattr(loop.Run, "measure", stop_after_two)
        with pytest.raises(Interrupted):
            run(tmp_path)
    run(tmp_path)
    whole, continued = weights(chain[0]), weights(tmp_path)
    assert whole.keys() == continued.keys()
    assert all(torch.equal(whole[key], continued[key]) for key in whole)


def test_questions_about_any_shape_are_answered(model, chain, data):
    vlm = VisionLanguageModel.from_pretrained(chain[-1])
    tokenizer = load_tokenizer(model.llm.weights)
    subject = Subject(vlm, tokenizer, Processor.load(chain[-1]), "plain_chat")
    dataset = Dataset.open(data["dataset"])
    prompts = subject.prompts(dataset.samples("train", tasks={"colours"}))
    by_id = {prompt.id: prompt for prompt in prompts}
    words = len([i for i in by_id["one-0"].input_ids if i >= 0])
    lengths = [by_id[f"one-{i}"].length - words for i in range(4)]
    assert lengths == [vlm.picture_tokens(*size) for size in SIZES]
    answers = GreedyAnswerer(subject, dataset.pictures, max_new_tokens=3)(prompts[:6])
    assert len(answers) == 6


def test_a_picture_that_does_not_fit_is_cut_off_by_its_own_size(model, data):
    vlm = VisionLanguageModel.from_recipe(model, seed=0)
    samples = {s.id: s for s in Dataset.open(data["dataset"]).samples("train")}
    tokenizer = load_tokenizer(model.llm.weights)
    encoded = Codec(tokenizer, "plain_chat", 256, vlm.picture_tokens).encode(samples["two-0"])
    square = vlm.picture_tokens(*SIZES[0])
    assert encoded.num_images == 2
    assert encoded.length == len(encoded.input_ids) + 2 * (square - 1)
    short = encoded.length - square
    cut = Codec(tokenizer, "plain_chat", short, vlm.picture_tokens).encode(samples["two-0"])
    assert (cut.num_images, cut.truncated) == (1, True)


def test_whole_needs_the_one_checkpoint(model, data, tmp_path):
    with pytest.raises(UserError) as error:
        pretrain(
            piece(model, section("*", inherit="whole")), StageContext(data, tmp_path, PROGRESS)
        )
    assert str(error.value) == (
        "pretrain.inherit whole continues the one checkpoint of prealign, but was given 0."
    )
