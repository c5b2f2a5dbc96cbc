"""Chat with drawing and reading: what the model is asked, what is drawn, what is missing."""

from dataclasses import dataclass

import pytest
from PIL import Image, ImageDraw, ImageFont

from manyeyes.cli import main
from manyeyes.errors import UserError
from manyeyes.serve import drawing, reading
from manyeyes.serve.chat import Conversation
from manyeyes.serve.drawing import Artist, prompt_in
from manyeyes.serve.reading import Tesseract, join_lines, with_text


@pytest.mark.parametrize(
    ("answer", "prompt"),
    [
        ("Sure. <h>a red cat</h> Done.", "a red cat"),
        ("<h>first</h> or rather <h> second </h>", "second"),
        ("<h>first</h> and <h>unfinished", "first"),
        ("<h>kept <h>inner</h>", "inner"),
        ("no picture", None),
        ("closed only</h>", None),
        ("<h></h>", None),
        ("</h> the wrong way <h>", None),
    ],
)
def test_the_last_whole_prompt_is_drawn(answer, prompt):
    assert prompt_in(answer) == prompt


@dataclass
class Says:
    """Answers always the same."""

    text: str
    asked: list

    def answer(self, turns, images, *, max_new_tokens, on_text=None):
        self.asked.append(turns[-1].text)
        return self.text


class Draws:
    def __init__(self):
        self.prompts = []

    def draw(self, prompt):
        self.prompts.append(prompt)
        return "drawn.png"


class Reads:
    def __init__(self, *lines):
        self.lines = lines

    def read(self, picture):
        return list(self.lines)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "sign.png"
    canvas = Image.new("RGB", (420, 160), "white")
    font = ImageFont.load_default(size=44)
    pen = ImageDraw.Draw(canvas)
    pen.text((20, 10), "STOP HERE", "black", font=font)
    pen.text((20, 90), "now", "black", font=font)
    canvas.save(path)
    return path


def test_a_question_asks_for_a_picture_and_the_answer_s_prompt_is_drawn():
    artist = Draws()
    model = Says("Here: <h>a cat</h>", [])
    answer = Conversation(model, artist=artist).ask("draw a cat")
    assert model.asked == ["draw a cat <GEN>"]
    assert artist.prompts == ["a cat"]
    assert (answer.question, answer.drawn) == ("draw a cat", "drawn.png")


def test_an_answer_without_a_prompt_draws_nothing():
    artist = Draws()
    assert Conversation(Says("No.", []), artist=artist).ask("draw").drawn is None
    assert artist.prompts == []


def test_the_text_of_the_pictures_comes_after_the_question(picture):
    model = Says("stop", [])
    conversation = Conversation(model, reader=Reads("STOP HERE", "now"), artist=Draws())
    conversation.show(picture)
    answer = conversation.ask("what does it say?")
    conversation.ask("and?")
    assert model.asked == [
        "<image>\nwhat does it say?\nReference OCR Token: STOP HERE, now <GEN>",
        "and? <GEN>",
    ]
    assert answer.recognised == ("STOP HERE", "now")


def test_a_picture_without_text_leaves_the_question_as_it_is():
    assert with_text("what?", []) == "what?"


def test_words_are_joined_by_line_and_unsure_ones_left_out():
    words = [
        ((1, 1, 1), "STOP", 0.9),
        ((1, 1, 1), "~|", 0.2),
        ((1, 1, 1), "HERE", 0.5),
        ((1, 1, 2), " ", 0.95),
        ((1, 1, 3), "", -0.01),
        ((2, 1, 1), "now", 0.8),
    ]
    assert join_lines(words, 0.5) == ["STOP HERE", "now"]


@pytest.mark.parametrize(
    ("module", "make", "expected"),
    [
        (
            drawing,
            lambda folder: Artist("some/pipeline", folder / "x.png"),
            "--draw needs the package diffusers: install it with pip install 'manyeyes[generate]'.",
        ),
        (
            reading,
            lambda _: Tesseract(),
            "--ocr needs the package pytesseract: install it with pip install 'manyeyes[ocr]'.",
        ),
    ],
    ids=["diffusers", "pytesseract"],
)
def test_a_missing_library_is_one_sentence(monkeypatch, tmp_path, module, make, expected):
    monkeypatch.setattr(module, "find_spec", lambda _: None)
    with pytest.raises(UserError) as error:
        make(tmp_path)
    assert str(error.value) == expected


@pytest.mark.parametrize("flags", [["--ocr"], ["--draw", "some/pipeline"]], ids=["ocr", "draw"])
def test_what_is_missing_ends_chat_before_the_model_is_loaded(monkeypatch, capsys, flags):
    monkeypatch.setattr(drawing, "find_spec", lambda _: None)
    monkeypatch.setattr(reading, "find_spec", lambda _: None)
    assert main(["chat", "no/such/model", *flags]) == 2
    assert "install it with pip install 'manyeyes[" in capsys.readouterr().err


def test_tesseract_reads_a_sign(picture):
    pytest.importorskip("pytesseract")
    try:
        reader = Tesseract()
    except UserError:
        pytest.skip("the program tesseract is not installed")
    assert reader.read(Image.open(picture)) == ["STOP HERE", "now"]


def test_a_missing_program_is_one_sentence(monkeypatch):
    pytesseract = pytest.importorskip("pytesseract")
    monkeypatch.setattr(pytesseract.pytesseract, "tesseract_cmd", "/no/such/tesseract")
    with pytest.raises(UserError) as error:
        Tesseract()
    assert str(error.value) == (
        "--ocr needs the program tesseract: install the system's package tesseract-ocr."
    )


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory):
    """A whole text-to-image pipeline with random weights of a few kilobytes."""
    pytest.importorskip("diffusers")
    import torch
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline
    from diffusers import UNet2DConditionModel as Unet
    from tokenizer_kit import make_tokenizer
    from transformers import CLIPTextConfig, CLIPTextModel

    tokenizer = make_tokenizer("qwen")
    tokenizer.model_max_length = 16
    tokenizer.pad_token = "<|endoftext|>"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = StableDiffusionPipeline(
            vae=AutoencoderKL(
                block_out_channels=(8,), norm_num_groups=2, latent_channels=4,
                down_block_types=("DownEncoderBlock2D",), up_block_types=("UpDecoderBlock2D",),
            ),
            text_encoder=CLIPTextModel(CLIPTextConfig(
                vocab_size=len(tokenizer), hidden_size=8, intermediate_size=8,
                num_hidden_layers=1, num_attention_heads=1, max_position_embeddings=16,
                bos_token_id=0, eos_token_id=2,
            )),
            tokenizer=tokenizer,
            unet=Unet(
                sample_size=16, block_out_channels=(8, 8), norm_num_groups=2, layers_per_block=1,
                down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
                cross_attention_dim=8, attention_head_dim=4,
            ),
            scheduler=DDIMScheduler(steps_offset=1, clip_sample=False),
            safety_checker=None, feature_extractor=None, requires_safety_checker=False,
        )  # fmt: skip
    folder = tmp_path_factory.mktemp("pipeline")
    made.save_pretrained(folder, safe_serialization=True)
    return str(folder)


def test_a_pipeline_draws_what_the_answer_asks_for(tmp_path, pipeline):
    artist = Artist(pipeline, tmp_path / "cat.png", num_steps=2)
    conversation = Conversation(Says("<h>a cat</h>", []), artist=artist)
    first, second = conversation.ask("draw"), conversation.ask("again")
    assert [first.drawn, second.drawn] == [f"{tmp_path}/cat.png", f"{tmp_path}/cat-2.png"]
    with Image.open(first.drawn) as one, Image.open(second.drawn) as two:
        assert one.size == (16, 16)
        assert one.tobytes() == two.tobytes()


def test_a_pipeline_that_cannot_be_loaded_is_one_sentence(tmp_path, pipeline):
    with pytest.raises(UserError) as error:
        Artist(f"{tmp_path}/none", tmp_path / "x.png")
    assert str(error.value) == (
        f"There is no pipeline at {tmp_path}/none: the folder does not exist."
    )
    with pytest.raises(UserError) as error:
        Artist(str(tmp_path), tmp_path / "x.png").draw("a cat")
    assert str(error.value).startswith(f"Cannot load the pipeline '{tmp_path}': ")
