"""``manyeyes chat``: talk to a model in the terminal, or ask once."""

from __future__ import annotations

import io
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from manyeyes.cli.command import json_option, verb
from manyeyes.cli.output import print_json
from manyeyes.cli.values import PATH, PLACE, TEXT, WholeNumber
from manyeyes.errors import UserError

if TYPE_CHECKING:
    from manyeyes.serve.chat import Conversation


@verb("chat")
@click.argument(
    "model", metavar="MODEL", type=PLACE, help="checkpoint folder or models:/NAME@ALIAS"
)
@click.option("--image", "images", type=PATH, multiple=True, help="image to ask about")
@click.option("--question", type=TEXT, help="ask once and leave")
@click.option(
    "--max-new-tokens", type=WholeNumber(1), default=32, show_default=True, help="longest answer"
)
@click.option("--ocr", is_flag=True, help="add the text of the images to the question")
@click.option(
    "--draw", metavar="PIPELINE", type=PLACE, help="draw what the answer asks for: folder or hub id"
)
@click.option(
    "--draw-to",
    metavar="FILE",
    type=PATH,
    default=Path("drawn.png"),
    show_default=True,
    help="file for the drawing",
)
@json_option
def chat(
    model: str,
    images: tuple[Path, ...],
    question: str | None,
    max_new_tokens: int,
    ocr: bool,
    draw: str | None,
    draw_to: Path,
    as_json: bool,
) -> int:
    """Open a model and talk to it.

    Raises:
        UserError: an option, an image or the model cannot be used.
    """
    if as_json and question is None:
        raise UserError("--json prints one answer: give the question with --question.")
    from manyeyes.serve.chat import Conversation, converse, open_model, read_picture
    from manyeyes.serve.drawing import Artist
    from manyeyes.serve.reading import Tesseract

    for path in images:
        read_picture(path)
    reader = Tesseract() if ocr else None
    artist = Artist(draw, draw_to) if draw else None
    assistant = open_model(model)
    longest = min(max_new_tokens, assistant.positions)
    if longest < max_new_tokens:
        sys.stderr.write(
            f"This model has {longest} positions: answers end there, not after "
            f"{max_new_tokens} tokens.\n"
        )
    conversation = Conversation(assistant, longest, reader=reader, artist=artist)
    for path in images:
        conversation.show(path)
    if question is None:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # a question's mistake, not the chat's
        converse(conversation, input, _write)
    else:
        _ask(conversation, question, as_json=as_json)
    return 0


def _ask(conversation: Conversation, question: str, *, as_json: bool) -> None:
    """Ask once; as JSON, print the answer when it is whole."""
    if as_json:
        answer = conversation.ask(question)
        plain = asdict(answer)
        plain["images"], plain["recognised"] = list(answer.images), list(answer.recognised)
        print_json(plain)
        return
    answer = conversation.ask(question, on_text=_write)
    _write("\n")
    if answer.drawn:
        _write(f"(drawn: {answer.drawn})\n")


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


COMMANDS = (chat,)
