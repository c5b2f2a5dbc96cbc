"""How the words of a command are read: help, mistakes, exit codes, completion."""

import os
import subprocess
import sys
from pathlib import Path

import click
import pytest

from manyeyes import __version__, cli
from manyeyes.cli import main
from manyeyes.cli.command import Group, Several, Verb
from manyeyes.cli.values import PATH, TEXT
from manyeyes.cli.verbs import PANELS, VERBS
from manyeyes.errors import GateRefused, Interrupted, ManyeyesError, UserError

ROOT = Path(__file__).parents[2]
VERB_NAMES = ", ".join(sorted(VERBS))

MISTAKES = {
    "verb": (["chekc", "r.yaml"], f"Unknown verb 'chekc': known are {VERB_NAMES}; did you mean 'check'?"),
    "verb like nothing": (["qqqq"], f"Unknown verb 'qqqq': known are {VERB_NAMES}."),
    "empty verb": ([""], f"Unknown verb '': known are {VERB_NAMES}."),
    "verb that moves the cursor": (["\x1b[2J"], f"Unknown verb '\\x1b[2J': known are {VERB_NAMES}."),
    "no action": (["data"], "manyeyes data needs an action: import, pull, push or starter."),
    "action": (
        ["data", "strater"],
        "Unknown action of manyeyes data 'strater': known are import, pull, push, starter; did you mean 'starter'?",
    ),
    "option": (
        ["run", "r.yaml", "--uot", "x"],
        "Unknown option of manyeyes run '--uot': known are --help, --json, --out, --set, -h; did you mean '--out'?",
    ),
    "option of the program": (
        ["--verbose", "run"],
        "Unknown option of manyeyes '--verbose': known are --debug, --help, --version, -h; did you mean '--version'?",
    ),
    "short option": (
        ["explain", "-x"], "Unknown option of manyeyes explain '-x': known are --help, --json, --set, -h; did you mean '-h'?",
    ),
    "option before the verb": (
        ["--json", "run", "r.yaml"],
        "Unknown option of manyeyes '--json': known are --debug, --help, --version, -h; did you mean '--version'?",
    ),
    "nothing that is needed": (
        ["sft"],
        "manyeyes sft needs RECIPE, --dataset, --validation, --checkpoint and --out; manyeyes sft --help says what it "
        "takes.",
    ),
    "something that is needed": (
        ["sft", "r.yaml", "--out", "o", "--dataset", "d", "--checkpoint", "c"],
        "manyeyes sft needs --validation; manyeyes sft --help says what it takes.",
    ),
    "no recipe": (["check"], "manyeyes check needs RECIPE; manyeyes check --help says what it takes."),
    "a word too many": (
        ["show", "a.yaml", "b.yaml"], "manyeyes show does not take 'b.yaml'; manyeyes show --help says what it takes.",
    ),
    "no value": (["run", "r.yaml", "--out"], "--out needs a value: write --out DIR."),
    "an option for a value": (
        ["run", "r.yaml", "--out", "--json"],
        "--out needs a value, and '--json' looks like an option; if it is the value, write --out=--json.",
    ),
    "an option for a short option's value": (
        ["compile", "r.yaml", "-o", "--json"],
        "--out needs a value, and '--json' looks like an option; if it is the value, write --out=--json.",
    ),
    "a value for a flag": (["run", "r.yaml", "--json=yes"], "--json takes no value; write --json alone."),
    "a value for the program's flag": (["--debug=1"], "--debug takes no value; write --debug alone."),
    "an empty recipe": (["show", ""], "RECIPE is empty; give a value."),
    "an empty option": (["run", "r.yaml", "--out", ""], "--out is empty; give a value."),
    "an empty one of several": (
        ["pretrain", "r.yaml", "--experts", "a", "", "b"], "--experts is empty; give a value.",
    ),
    "no text": (
        ["data", "import", "f", "--license", "\udce4"],
        "--license is '\\udce4', which is not UTF-8; write it in UTF-8.",
    ),
    "no number": (["data", "starter", "--seed", "x"], "--seed is 'x'; give a whole number."),
    "no whole number": (["data", "starter", "--seed", "1.5"], "--seed is '1.5'; give a whole number."),
    "a number too small": (["data", "starter", "--seed", "-1"], "--seed is -1; give 0 or more."),
    "a number too large": (
        ["data", "starter", "--seed", "9223372036854775808"],
        "--seed is 9223372036854775808; give 9223372036854775807 or less.",
    ),
    "a number of thousands of digits": (
        ["data", "starter", "--seed", "9" * 5000],
        f"--seed is '{'9' * 99}...{'9' * 11}'; give a whole number.",
    ),
    "a small image": (["data", "starter", "--image-size", "63"], "--image-size is 63; give 64 or more."),
    "a huge image": (["data", "starter", "--image-size", "1025"], "--image-size is 1025; give 1024 or less."),
    "an endless scale": (["data", "starter", "--scale", "inf"], "--scale is inf; give a number above 0, up to 1000."),
    "no share": (
        ["data", "import", "f", "--quarantine", "1.5"], "--quarantine is 1.5; give a share from 0 to 1.",
    ),
    "a price of nothing known": (["plan", "r", "--price", "nan"], "--price is nan; give a number, 0 or more."),
    "no utilization": (["plan", "r", "--mfu", "40"], "--mfu is 40; give a share above 0 and up to 1, like 0.4."),
    "no tokens": (["chat", "m", "--max-new-tokens", "0"], "--max-new-tokens is 0; give 1 or more."),
    "no pair": (
        ["completion", "tcsh"], "Unknown shell 'tcsh': known are bash, fish, zsh; did you mean 'zsh'?",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("words", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(words, said, capsys):
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.err == f"{said}\n"
    assert printed.out == ""


class Seen(dict):
    def note(self, **given):
        self.update(given)
        return self.get("code") or 0


@pytest.fixture
def seen(monkeypatch):
    """What a verb with every kind of option was given."""
    found = Seen()
    command = Verb(
        "check",
        callback=found.note,
        params=[
            click.Argument(["path"], type=PATH),
            click.Option(["-o", "--out"], type=PATH),
            Several(["--experts"], multiple=True, type=PATH),
            click.Option(["--question"], type=TEXT),
            click.Option(["--seed"], type=int),
            click.Option(["-f", "--follow"], is_flag=True),
        ],
    )
    monkeypatch.setattr("manyeyes.cli.check.COMMANDS", (command,))
    return found


READINGS = {
    "a word of its own": (["r", "--out", "x"], {"out": Path("x")}),
    "after a sign": (["r", "--out=x"], {"out": Path("x")}),
    "short": (["r", "-o", "x"], {"out": Path("x")}),
    "short, attached": (["r", "-ox"], {"out": Path("x")}),
    "short, after a sign": (["r", "-o=x"], {"out": Path("x")}),
    "a sign within": (["r", "--out=a=b"], {"out": Path("a=b")}),
    "like an option, after a sign": (["r", "--out=--json"], {"out": Path("--json")}),
    "options first": (["--out", "x", "r"], {"out": Path("x"), "path": Path("r")}),
    "the last one counts": (["r", "--out", "x", "--out", "y"], {"out": Path("y")}),
    "several": (["r", "--experts", "a", "b", "--out", "x"], {"experts": (Path("a"), Path("b")), "out": Path("x")}),
    "several, one by one": (["r", "--experts", "a", "--experts=b"], {"experts": (Path("a"), Path("b"))}),
    "none of several": (["r", "--experts", "--out", "x"], {"experts": (), "out": Path("x")}),
    "several at the end": (["r", "--experts", "a", "b"], {"experts": (Path("a"), Path("b"))}),
    "a negative number": (["r", "--seed", "-3"], {"seed": -3}),
    "a text with a dash": (["r", "--question", "- what is it?"], {"question": "- what is it?"}),
    "a single dash": (["r", "--out", "-"], {"out": Path("-")}),
    "what begins like an option": (["--", "--recipe"], {"path": Path("--recipe")}),
    "bytes that are not UTF-8, in a path": (["a\udce4"], {"path": Path("a\udce4")}),
    "a flag": (["r", "-f"], {"follow": True}),
}  # fmt: skip


@pytest.mark.parametrize(("words", "given"), READINGS.values(), ids=READINGS)
def test_words_are_read_as_they_were_meant(words, given, seen):
    assert main(["check", *words]) == 0
    assert given.items() <= seen.items()


@pytest.mark.parametrize("before", [["check"], ["--debug", "check"]])
def test_debug_stands_before_or_after_the_verb(before, monkeypatch, capsys):
    def fail(**_):
        raise UserError("Not this one.")

    monkeypatch.setattr("manyeyes.cli.check.COMMANDS", (Verb("check", callback=fail),))
    words = before if "--debug" in before else [*before, "--debug"]
    with pytest.raises(UserError, match="Not this one"):
        main(words)
    assert main(["check"]) == 2
    assert capsys.readouterr().err == "Not this one.\n"


ENDS = {
    "done": (None, 0, ""),
    "failed": (ManyeyesError("It failed."), 1, "It failed.\n"),
    "wrong": (UserError("It is wrong."), 2, "It is wrong.\n"),
    "refused": (GateRefused("No."), 3, "No.\n"),
    "stopped": (Interrupted("Stopped at step 3."), 75, "Stopped at step 3.\n"),
    "by hand": (KeyboardInterrupt(), 75, "Stopped.\n"),
    "nobody reads": (BrokenPipeError(), 1, ""),
    "full": (
        OSError(28, "No space left on device", "out"), 2,
        "There is no room to write out (No space left on device): free some space and run the same command again; what "
        "was finished is kept.\n",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("error", "code", "said"), ENDS.values(), ids=ENDS)
def test_a_verb_ends_with_its_exit_code_and_one_sentence(error, code, said, monkeypatch, capsys):
    def end(**_):
        if error is not None:
            raise error

    monkeypatch.setattr("manyeyes.cli.check.COMMANDS", (Verb("check", callback=end),))
    assert main(["check"]) == code
    assert capsys.readouterr().err == said


def test_what_is_owed_to_mlflow_is_sent_after_work_and_not_after_a_mistake(monkeypatch):
    sent = []
    monkeypatch.setattr(cli, "_send_owed", lambda: sent.append("owed"))
    monkeypatch.setattr("manyeyes.cli.check.COMMANDS", (Verb("check", callback=lambda: 0),))
    for words in ([], ["--help"], ["--version"], ["chekc"], ["check", "--help"], ["check", "x"]):
        main(words)
    assert sent == []
    main(["check"])
    assert sent == ["owed"]


def test_no_verb_prints_the_help(capsys):
    assert main([]) == 0
    alone = capsys.readouterr().out
    assert main(["--help"]) == 0
    assert capsys.readouterr().out == alone
    assert main(["-h"]) == 0
    assert capsys.readouterr().out == alone


def test_the_help_shows_every_verb_in_its_panel_with_acronyms_intact(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for panel, rows in PANELS.items():
        start = lines.index(f"{panel}:") + 1
        shown = [line.split(maxsplit=1) for line in lines[start : start + len(rows)]]
        assert shown == [[name, row.text] for name, row in rows.items()]
    assert any(line.endswith("compile the pipeline to KFP IR YAML") for line in lines)


def test_the_page_shows_the_help_as_it_is(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "100")
    assert main(["--help"]) == 0
    page = (ROOT / "docs/commands.md").read_text()
    assert f"```\n{capsys.readouterr().out}```\n" in page


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["compile"], "Compile the pipeline to KFP IR YAML."),
        (["data", "import"], "Import conversations in the LLaVA format."),
        (["dvc"], "Write the pipeline of a recipe for DVC."),
    ],
)
def test_acronyms_keep_their_letters_in_a_help(words, sentence, capsys):
    assert main([*words, "--help"]) == 0
    assert f"  {sentence}\n" in capsys.readouterr().out


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"manyeyes {__version__}\n"


@pytest.mark.parametrize("spelling", ["--license", "--licence"])
def test_a_license_is_read_in_both_spellings(spelling, tmp_path, capsys):
    words = [
        "data",
        "import",
        f"{tmp_path}/no.json",
        "--images",
        str(tmp_path),
        "--out",
        f"{tmp_path}/out",
    ]
    assert main([*words, spelling, "MIT"]) == 2
    assert capsys.readouterr().err == (
        f"Cannot read {tmp_path}/no.json: No such file or directory; check the path.\n"
    )


def complete(*words, shell="bash"):
    """What a shell is told when TAB is pressed behind words."""
    environment = {
        **os.environ,
        "_MANYEYES_COMPLETE": f"{shell}_complete",
        "COMP_WORDS": " ".join(["manyeyes", *words]),
        "COMP_CWORD": str(len(words)),
        "PYTHONPATH": str(ROOT),
    }
    answer = subprocess.run(
        [sys.executable, "-m", "manyeyes"], capture_output=True, text=True, env=environment
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    return answer.stdout.splitlines()


@pytest.mark.parametrize(
    ("words", "offered"),
    [
        (["re"], ["plain,register", "plain,resume"]),
        (["--v"], ["plain,--version"]),
        (["data", ""], ["plain,import", "plain,pull", "plain,push", "plain,starter"]),
        (["plan", "--m"], ["plain,--mfu"]),
        (["pretrain", "r.yaml", "--ex"], ["plain,--experts"]),
        (["run", "rec"], ["file,rec"]),
        (["run", "r.yaml", "--out", "ru"], ["file,ru"]),
        (["completion", ""], ["plain,bash", "plain,zsh", "plain,fish"]),
    ],
    ids="-".join,
)
def test_a_shell_completes(words, offered):
    assert [line for line in complete(*words) if line] == offered


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_that_asks_the_program(shell, capsys):
    assert main(["completion", shell]) == 0
    script = capsys.readouterr().out
    assert f"_MANYEYES_COMPLETE={shell}_complete" in script
    assert "manyeyes" in script


def test_a_group_completes_without_a_word_too_many():
    group = Group("data", commands=[Verb("pull")])
    context = group.make_context("data", [], resilient_parsing=True)
    assert [item.value for item in group.shell_complete(context, "")] == ["pull"]
