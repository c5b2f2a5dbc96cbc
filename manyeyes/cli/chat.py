"""``manyeyes chat``: talk to a model in the terminal, or ask once."""

from __future__ import annotations

import argparse
import io
import sys
from dataclasses import asdict

from manyeyes.cli.output import print_json
from manyeyes.errors import UserError
from manyeyes.serve.chat import Conversation, converse, open_model, read_picture
from manyeyes.serve.drawing import Artist
from manyeyes.serve.reading import Tesseract


def run(arguments: argparse.Namespace) -> int:
    """Open a model and talk to it.

    Raises:
        UserError: a flag, a picture or the model cannot be used.
    """
    if arguments.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens is {arguments.max_new_tokens}; give 1 or more.")
    if arguments.json and arguments.question is None:
        raise UserError("--json prints one answer: give the question with --question.")
    for path in arguments.image:
        read_picture(path)
    reader = Tesseract() if arguments.ocr else None
    artist = Artist(arguments.draw, arguments.draw_to) if arguments.draw else None
    assistant = open_model(arguments.model)
    longest = min(arguments.max_new_tokens, assistant.positions)
    if longest < arguments.max_new_tokens:
        sys.stderr.write(
            f"This model has {longest} positions: answers end there, not after "
            f"{arguments.max_new_tokens} tokens.\n"
        )
    conversation = Conversation(assistant, longest, reader=reader, artist=artist)
    for path in arguments.image:
        conversation.show(path)
    if arguments.question is None:
        if isinstance(sys.stdin, io.TextIOWrapper):
            sys.stdin.reconfigure(errors="surrogateescape")  # a question's mistake, not the chat's
        converse(conversation, input, _write)
        return 0
    if arguments.json:
        answer = conversation.ask(arguments.question)
        plain = asdict(answer)
        plain["images"], plain["recognised"] = list(answer.images), list(answer.recognised)
        print_json(plain)
        return 0
    answer = conversation.ask(arguments.question, on_text=_write)
    _write("\n")
    if answer.drawn:
        _write(f"(drawn: {answer.drawn})\n")
    return 0


def _write(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()
