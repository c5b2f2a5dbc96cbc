"""What stands in a table is shown as it is: no markup is obeyed, no cursor moved."""

import io
import sys

import pytest

from manyeyes.cli import main
from manyeyes.cli.output import plain, print_table
from manyeyes.serve.chat import Conversation


def test_markup_in_a_table_is_text(capsys):
    print_table("[/red] t", ("[b]", "task"), [("[x]", "[/red]"), ("[bold]a[/bold]", "\x1b[2J")])
    out = capsys.readouterr().out
    for word in ("[/red] t", "[b]", "[x]", "[/red]", "[bold]a[/bold]", "\\x1b[2J"):
        assert word in out
    assert "\x1b" not in out


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\tb\nc", "a\tb\nc"),
        ("\x1b]0;x\x07", "\\x1b]0;x\\x07"),
        ("\ud83d", "\\ud83d"),
        ("a\u202eb", "a\\u202eb"),
        ("é 漢 😀 [x]", "é 漢 😀 [x]"),
    ],
)
def test_what_a_terminal_would_obey_is_spelled_out(text, shown):
    assert plain(text) == shown


def test_a_name_that_is_no_text_is_shown_in_an_error(tmp_path, capsys):
    assert main(["check", f"{tmp_path}/a\udce4.yaml"]) == 2
    assert capsys.readouterr().err == (
        f"No recipe at {tmp_path}/a\\udce4.yaml: give the path of a .yaml file.\n"
    )


def test_a_note_of_a_run_with_markup_is_drawn(monkeypatch):
    from rich.console import Console

    from manyeyes.runtime import watch

    drawn = io.StringIO()
    monkeypatch.setattr(
        "rich.console.Console", lambda **_: Console(file=drawn, force_terminal=False)
    )
    watcher = watch.Watcher.__new__(watch.Watcher)
    notes = iter([{"event": "note", "stage": "eval", "text": "[/red] is worse", "time": 0.0}])

    class Once:
        count = 0

        def is_set(self):
            self.count += 1
            return self.count > 1

        def wait(self, _):
            return None

    watcher._stop, watcher._read, watcher._table = Once(), lambda: notes, lambda: ""
    watcher._draw_live()
    assert "[/red] is worse" in drawn.getvalue()


def test_a_question_that_is_no_text_is_told_and_the_chat_goes_on():
    from test_chat import Echo, talk

    conversation = Conversation(Echo())
    assert talk(conversation, "caf\udce9", "caf\u00e9") == (
        "The question holds bytes that are not UTF-8: let the terminal, or what feeds it, write "
        "UTF-8.\n0 pictures, 1 turns\n\n"
    )


def test_bytes_that_are_no_text_reach_a_chat_as_a_question(monkeypatch, capsys):
    from test_chat import Echo

    class Model(Echo):
        positions = 16

    monkeypatch.setattr("manyeyes.serve.chat.open_model", lambda _: Model())
    monkeypatch.setattr(
        sys, "stdin", io.TextIOWrapper(io.BytesIO(b"caf\xe9\nhello\n"), encoding="utf-8")
    )
    assert main(["chat", "m", "--max-new-tokens", "100000"]) == 0
    said = capsys.readouterr()
    assert "The question holds bytes that are not UTF-8" in said.out
    assert said.out.endswith("> 0 pictures, 1 turns\n> \n")
    assert said.err == (
        "This model has 16 positions: answers end there, not after 100000 tokens.\n"
    )
