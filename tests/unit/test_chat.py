"""Chat: a conversation that survives mistakes, and the model's words as they come."""

import json

import pytest
from PIL import Image
from track_kit import write_checkpoint, write_model

from manyeyes.data.dataset.sample import Turn
from manyeyes.errors import UserError
from manyeyes.serve.assistant import Assistant, decode
from manyeyes.serve.chat import COMMANDS, Conversation, checkpoint_of, converse, open_model
from manyeyes.store import Store

HELP = "\n".join(COMMANDS.values()) + "\n"


class Echo:
    """Answers with how many pictures and turns it was given, in two pieces."""

    def __init__(self, error=None):
        self.error = error
        self.seen = []

    def answer(self, turns, images, *, max_new_tokens, on_text=None):
        if self.error:
            raise self.error
        self.seen.append([turn.text for turn in turns])
        pieces = [f"{len(images)} pictures, ", f"{len(turns)} turns"]
        for piece in pieces:
            if on_text:
                on_text(piece)
        return "".join(pieces)


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "red.png"
    Image.new("RGB", (8, 8), "red").save(path)
    return path


def talk(conversation, *lines):
    """Say ``lines``, then end the input; return what was written after the help."""
    said, written = iter(lines), []

    def read(prompt):
        assert prompt == "> "
        try:
            line = next(said)
        except StopIteration:
            raise EOFError from None
        if isinstance(line, BaseException):
            raise line
        return line

    converse(conversation, read, written.append)
    text = "".join(written)
    assert text.startswith(HELP)
    return text.removeprefix(HELP)


def test_a_conversation_remembers_pictures_and_turns_until_it_is_cleared(picture):
    echo = Echo()
    lines = [f"/image {picture}", "what is this", "and now", "/clear", "again"]
    assert talk(Conversation(echo), *lines) == (
        "(red.png goes with the next question)\n"
        "1 pictures, 1 turns\n"
        "1 pictures, 3 turns\n"
        "(a new conversation)\n"
        "0 pictures, 1 turns\n"
        "\n"
    )
    assert echo.seen == [
        ["<image>\nwhat is this"],
        ["<image>\nwhat is this", "1 pictures, 1 turns", "and now"],
        ["again"],
    ]


def test_two_pictures_go_with_one_question(picture):
    echo = Echo()
    talk(Conversation(echo), f"/image {picture}", f"/image {picture}", "compare", "/quit", "unread")
    assert echo.seen == [["<image>\n<image>\ncompare"]]


@pytest.mark.parametrize(
    ("line", "reply"),
    [
        ("", ""),
        ("/image", "/image needs the path of a picture: /image PATH.\n"),
        ("/image {tmp}/none.png", "Cannot read the picture {tmp}/none.png: "
         "No such file or directory.\n"),
        ("/image {tmp}", "Cannot read the picture {tmp}: it is a folder.\n"),
        ("/image {tmp}/text.png", "{tmp}/text.png: the file is not a picture; "
         "give it as PNG, JPEG, WebP, GIF, BMP, TIFF, AVIF, JPEG 2000, ICO or PPM.\n"),
        ("/imgae x.png", "Unknown command /imgae: known are /image, /clear, /help, /quit; "
         "did you mean '/image'?\n"),
        ("/xyzzy", "Unknown command /xyzzy: known are /image, /clear, /help, /quit.\n"),
        ("is <image> here", "The question holds <image>, which stands for a picture: leave it out "
         "and give the picture with --image or /image PATH.\n"),
        ("/help", HELP),
    ],
)  # fmt: skip
def test_a_mistake_is_said_and_the_conversation_goes_on(tmp_path, line, reply):
    (tmp_path / "text.png").write_text("no picture", encoding="utf-8")
    said = talk(Conversation(Echo()), line.format(tmp=tmp_path), "hello")
    assert said == reply.format(tmp=tmp_path) + "0 pictures, 1 turns\n\n"


def test_a_question_that_fails_leaves_the_conversation_as_it_was(picture):
    conversation = Conversation(Echo(UserError("The conversation is too long.")))
    said = talk(conversation, f"/image {picture}", "what")
    assert said.endswith("The conversation is too long.\n\n")
    assert (conversation.turns, len(conversation.waiting)) == ([], 1)


def test_an_answer_can_be_stopped():
    said = talk(Conversation(Echo(KeyboardInterrupt())), "what")
    assert said == "\n(stopped)\n\n"


def test_an_interrupt_at_the_prompt_ends_the_conversation():
    assert talk(Conversation(Echo()), KeyboardInterrupt()) == "\n"


def test_one_question_gives_one_answer_with_its_pictures(picture):
    conversation = Conversation(Echo())
    conversation.show(picture)
    answer = conversation.ask(" what ")
    assert (answer.question, answer.images, answer.answer) == (
        "what", (str(picture),), "1 pictures, 1 turns",
    )  # fmt: skip
    assert answer.seconds >= 0
    with pytest.raises(UserError) as error:
        conversation.ask("  ")
    assert str(error.value) == "The question is empty: say what you want to know."


@pytest.mark.parametrize(
    ("model", "text"),
    [
        ("{tmp}/none", "There is no checkpoint at {tmp}/none: give a checkpoint's directory or a "
         "registered model, models:/NAME@champion ('manyeyes models' lists them)."),
        ("models:/eagle", "'models:/eagle' is not a model reference: write models:/NAME@champion "
         "(or another alias) or models:/NAME/3 (a version); 'manyeyes models' lists what there "
         "is."),
        ("{tmp}/empty", "{tmp}/empty is not a finished artifact: it has no manifest.json. "
         "Run the stage that makes it again; it continues where it stopped."),
        ("{tmp}/bare", "{tmp}/bare/recipe.json is missing or is not a checkpoint's recipe: train "
         "the checkpoint again or fetch it with 'dvc pull'."),
    ],
)  # fmt: skip
def test_what_is_no_model_is_one_sentence(tmp_path, home, model, text):
    (tmp_path / "empty").mkdir()
    write_checkpoint(tmp_path / "bare")
    with pytest.raises(UserError) as error:
        open_model(model.format(tmp=tmp_path))
    assert str(error.value) == text.format(tmp=tmp_path)


def test_a_damaged_folder_is_answered_from_the_whole_copy_of_the_store(tmp_path, home, capsys):
    manifest = write_checkpoint(tmp_path / "sft")
    store = Store(home / "store")
    store.remember(manifest.fingerprint, store.put(tmp_path / "sft", manifest), manifest.digest)
    (tmp_path / "sft/llm.safetensors").write_text("WEIGHTS", encoding="utf-8")
    place = checkpoint_of(str(tmp_path / "sft"))
    assert (place / "llm.safetensors").read_text(encoding="utf-8") == "weights"
    assert capsys.readouterr().err == (
        f"{tmp_path}/sft/llm.safetensors does not match the sha256 in the manifest; the content "
        "store's whole copy is used.\n"
    )


def test_a_damaged_folder_without_a_whole_copy_is_not_answered_from(tmp_path, home):
    write_checkpoint(tmp_path / "sft")
    (tmp_path / "sft/llm.safetensors").write_text("WEIGHTS", encoding="utf-8")
    with pytest.raises(UserError) as error:
        open_model(str(tmp_path / "sft"))
    assert str(error.value) == (
        f"{tmp_path}/sft/llm.safetensors does not match the sha256 in the manifest; fetch the "
        "artifact again or run its stage again."
    )


class Letters:
    """A tokenizer whose ids are bytes; 0 ends an answer."""

    eos_token_id = 0

    def decode(self, ids, *, skip_special_tokens):
        return bytes(ids).decode("utf-8", errors="replace")


def test_an_answer_ends_before_the_end_token():
    assert decode(Letters(), [104, 105, 0, 33], (0,)) == "hi"


def test_words_arrive_in_pieces_that_join_to_the_answer():
    import torch

    from manyeyes.serve.assistant import _Streamer

    pieces = []
    streamer = _Streamer(Letters(), (0,), pieces.append)
    streamer.put(torch.empty(1, 0, dtype=torch.long))
    for byte in [*" é!".encode(), 0]:
        streamer.put(torch.tensor([byte]))
    streamer.end()
    # The two bytes of one letter come together, the leading space not at all.
    assert pieces == ["é", "!"]


def test_a_checkpoint_answers_and_says_its_words_as_they_come(tmp_path, picture):
    write_model(tmp_path / "sft")
    assert checkpoint_of(str(tmp_path / "sft")) == tmp_path / "sft"
    assistant = open_model(str(tmp_path / "sft"))
    pieces = []
    conversation = Conversation(assistant, max_new_tokens=6)
    conversation.show(picture)
    answer = conversation.ask("what is this", pieces.append)
    assert answer.answer
    assert "".join(pieces).strip() == answer.answer
    assert len(pieces) > 1
    again = Conversation(assistant, max_new_tokens=6)
    again.show(picture)
    assert again.ask("what is this").answer == answer.answer
    with pytest.raises(UserError) as error:
        assistant.answer([Turn("human", "the " * 300)], [], max_new_tokens=4)
    length = str(error.value).split()[3]
    assert str(error.value) == (
        f"The conversation takes {length} positions, but this model reads 256: "
        "begin a new one (/clear) or ask a shorter question."
    )


def test_a_checkpoint_of_another_template_is_read_from_its_recipe(tmp_path):
    write_model(tmp_path / "sft")
    path = tmp_path / "sft" / "recipe.json"
    recipe = json.loads(path.read_text(encoding="utf-8"))
    recipe["model"]["llm"]["template"] = "vicuna_v1"
    text = json.dumps(recipe)
    path.write_text(text, encoding="utf-8")
    (tmp_path / "sft" / "manifest.json").unlink()
    from track_kit import finish

    finish(tmp_path / "sft")
    assert Assistant.load(tmp_path / "sft").template == "vicuna_v1"
