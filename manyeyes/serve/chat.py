"""``manyeyes chat``: a conversation with a checkpoint or a registered model.

The conversation and its commands are here; reading and writing the terminal are passed in, so the
same code runs in a terminal, in a test and behind ``--json``.
"""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from manyeyes.data.dataset.images import as_image, decode_for_model
from manyeyes.data.dataset.sample import IMAGE_PLACEHOLDER, MAX_FILE_BYTES, Turn
from manyeyes.data.dataset.texts import is_whole
from manyeyes.errors import UserError, suggest
from manyeyes.runtime.plain_files import read_plain
from manyeyes.serve.drawing import REQUEST, prompt_in
from manyeyes.serve.reading import with_text

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from manyeyes.data.dataset.images import Picture
    from manyeyes.serve.assistant import Assistant
    from manyeyes.serve.drawing import Artist
    from manyeyes.serve.reading import Reader

MAX_NEW_TOKENS = 64
PROMPT = "> "
COMMANDS = {
    "/image": "/image PATH  show the model a picture with the next question",
    "/clear": "/clear       begin a new conversation",
    "/help": "/help        this list",
    "/quit": "/quit        end (so does Ctrl-D)",
}


class Answerer(Protocol):
    """What a chat needs of a model; ``Assistant`` is one."""

    def answer(
        self,
        turns: Sequence[Turn],
        images: Sequence[Picture],
        *,
        max_new_tokens: int,
        on_text: Callable[[str], None] | None = None,
    ) -> str:
        """Continue a conversation that ends with a question."""


@dataclass(frozen=True)
class Answer:
    """One answer, as ``--json`` prints it."""

    question: str
    images: tuple[str, ...]
    """Paths of the pictures shown with the question."""
    answer: str
    seconds: float
    recognised: tuple[str, ...] = ()
    """Lines of text that were read in the pictures and added to the question."""
    drawn: str | None = None
    """Path of the picture that the answer asked for."""


@dataclass
class Conversation:
    """A conversation so far; a failed question leaves it as it was."""

    assistant: Answerer
    max_new_tokens: int = MAX_NEW_TOKENS
    turns: list[Turn] = field(default_factory=list)
    images: list[Picture] = field(default_factory=list)
    waiting: list[tuple[Path, Picture]] = field(default_factory=list)
    """Pictures that go with the next question."""
    reader: Reader | None = None
    """Adds the text of the pictures to the question."""
    artist: Artist | None = None
    """Draws what the answers ask for; the model is told so in every question."""

    def show(self, path: Path) -> None:
        """Take a picture for the next question.

        Raises:
            UserError: there is no such file, or it is not a whole picture.
        """
        self.waiting.append((path, read_picture(path)))

    def ask(self, question: str, on_text: Callable[[str], None] | None = None) -> Answer:
        """Ask, and remember question and answer.

        Raises:
            UserError: an empty question, one that is no text, a placeholder typed by hand, a
                conversation that is too long for the model, or text or a prompt that cannot be
                read or drawn.
        """
        words = question.strip()
        if not words:
            raise UserError("The question is empty: say what you want to know.")
        if not is_whole(words):
            raise UserError(
                "The question holds bytes that are not UTF-8: let the terminal, or what feeds it, "
                "write UTF-8."
            )
        if IMAGE_PLACEHOLDER in words:
            raise UserError(
                f"The question holds {IMAGE_PLACEHOLDER}, which stands for a picture: "
                "leave it out and give the picture with --image or /image PATH."
            )
        places = f"{IMAGE_PLACEHOLDER}\n" * len(self.waiting)
        started = time.monotonic()
        lines = self._recognised()
        asked = with_text(words, lines) + (REQUEST if self.artist else "")
        turns = [*self.turns, Turn("human", f"{places}{asked}")]
        images = [*self.images, *(picture for _, picture in self.waiting)]
        text = self.assistant.answer(
            turns, images, max_new_tokens=self.max_new_tokens, on_text=on_text
        )
        shown = tuple(str(path) for path, _ in self.waiting)
        self.turns, self.images, self.waiting = [*turns, Turn("gpt", text)], images, []
        prompt = prompt_in(text) if self.artist else None
        drawn = str(self.artist.draw(prompt)) if self.artist and prompt else None
        seconds = round(time.monotonic() - started, 3)
        return Answer(words, shown, text, seconds, lines, drawn)

    def _recognised(self) -> tuple[str, ...]:
        """Read the pictures of the next question."""
        if self.reader is None:
            return ()
        pictures = [as_image(picture) for _, picture in self.waiting]
        return tuple(line for picture in pictures for line in self.reader.read(picture))

    def clear(self) -> None:
        """Forget everything said and shown."""
        self.turns, self.images, self.waiting = [], [], []


def open_model(model: str) -> Assistant:
    """Load what ``MODEL`` names: a checkpoint's folder, ``models:/NAME@alias``, digest or pointer.

    Raises:
        UserError: no such checkpoint or registered model, or its weights are not here.
    """
    from manyeyes.serve.assistant import Assistant

    return Assistant.load(checkpoint_of(model))


def checkpoint_of(model: str) -> Path:
    """Return the folder of the checkpoint that ``MODEL`` names, bringing it back if need be.

    Raises:
        UserError: as for ``open_model``.
    """
    from manyeyes.registry.weights import whole_copy
    from manyeyes.store.exchange import is_name

    if model.startswith("models:"):
        from manyeyes.registry.catalogue import locate_weights

        return locate_weights(model).bring()
    if is_name(model):
        return _from_store(model)
    path = Path(model)
    if not path.is_dir():
        raise UserError(
            f"There is no checkpoint at {model}: give a checkpoint's directory or a registered "
            "model, models:/NAME@champion ('manyeyes models' lists them)."
        )
    whole, damage = whole_copy(path)
    if damage:
        sys.stderr.write(f"{damage.split('; ')[0]}; the content store's whole copy is used.\n")
    return whole


def _from_store(name: str) -> Path:
    """Bring a checkpoint by its digest or by a pointer, every byte of it checked.

    Raises:
        UserError: the content store has no such thing, or it is no checkpoint.
    """
    from manyeyes.registry.weights import Weights
    from manyeyes.store.exchange import find

    store, dir_id = find(name)
    manifest = store.manifest(dir_id)
    if manifest.kind != "checkpoint":
        raise UserError(
            f"{name} is a {manifest.kind} (made by {manifest.stage}), but a checkpoint is needed."
        )
    weights = Weights(digest=manifest.digest, directory="", store=store.where, dir_id=dir_id)
    return weights.bring()


def read_picture(path: Path) -> Picture:
    """Read a picture file as a model sees it.

    Raises:
        UserError: there is no such file, or it is not a whole picture of a sensible size.
    """
    try:
        data = read_plain(path, MAX_FILE_BYTES)
    except OSError as error:
        raise UserError(f"Cannot read the picture {path}: {error.strerror}.") from None
    return decode_for_model(data, str(path))


def converse(
    conversation: Conversation, read: Callable[[str], str], write: Callable[[str], None]
) -> None:
    """Talk until the user ends it; a mistake is said and the conversation goes on.

    Args:
        conversation: Begun or empty.
        read: Returns the user's next line after showing a prompt; ``EOFError`` or
            ``KeyboardInterrupt`` ends the conversation.
        write: Shows a piece of text at once, without a line end of its own.
    """
    write("\n".join(COMMANDS.values()) + "\n")
    while True:
        try:
            line = read(PROMPT).strip()
        except (EOFError, KeyboardInterrupt):
            write("\n")
            return
        if line == "/quit":
            return
        try:
            _respond(conversation, line, write)
        except UserError as error:
            write(f"{error}\n")
        except KeyboardInterrupt:
            write("\n(stopped)\n")


def _respond(conversation: Conversation, line: str, write: Callable[[str], None]) -> None:
    """Carry out a command or ask a question."""
    command, _, rest = line.partition(" ")
    match command:
        case "":
            return
        case "/image":
            path = Path(rest.strip()).expanduser()
            if not rest.strip():
                raise UserError("/image needs the path of a picture: /image PATH.")
            conversation.show(path)
            write(f"({path.name} goes with the next question)\n")
        case "/clear":
            conversation.clear()
            write("(a new conversation)\n")
        case "/help":
            write("\n".join(COMMANDS.values()) + "\n")
        case _ if command.startswith("/"):
            hint = suggest(command, COMMANDS) or "."
            raise UserError(f"Unknown command {command}: known are {', '.join(COMMANDS)}{hint}")
        case _:
            answer = conversation.ask(line, write)
            write("\n")
            if answer.drawn:
                write(f"(drawn: {answer.drawn})\n")
