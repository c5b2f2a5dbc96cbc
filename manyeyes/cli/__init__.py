"""The command line: options, and one call each.

``verbs`` is the table of verbs; a verb's module is imported when the verb is used, so that
``manyeyes --help`` answers at once. ``command`` is what verbs are made of, ``values`` their types.
Errors end here: their text goes to standard error, their exit code to the shell.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
from collections.abc import Sequence
from typing import TextIO

import click

from manyeyes.cli.command import Call
from manyeyes.cli.output import plain
from manyeyes.cli.program import COMPLETE, NAME, program
from manyeyes.cli.signals import ending_tidily
from manyeyes.cli.usage import sentence
from manyeyes.errors import Followed, Interrupted, ManyeyesError, UserError
from manyeyes.runtime import ranks
from manyeyes.runtime.defaults import set_defaults
from manyeyes.runtime.disk import AGAIN, full_disk, no_room, refused
from manyeyes.runtime.home import OWED, home

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    set_defaults()
    for stream in (sys.stdout, sys.stderr):
        # A name that is no UTF-8 is shown with escapes; it is no reason to fail.
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    if arguments is None and COMPLETE in os.environ:
        from click.shell_completion import shell_complete

        return shell_complete(program, {"obj": Call()}, NAME, COMPLETE, os.environ[COMPLETE])
    call = Call()
    code = _run(sys.argv[1:] if arguments is None else list(arguments), call)
    if call.began and ranks.rank() == 0:
        _send_owed()
    return code


def _run(words: list[str], call: Call) -> int:
    """Read a command and carry it out; return its exit code."""
    try:
        with ending_tidily(), program.make_context(NAME, words, obj=call) as context:
            code: int | None = program.invoke(context)
            return code or 0
    except click.exceptions.Exit as done:
        return done.exit_code
    except click.UsageError as error:
        return _report(UserError(sentence(error)), debug=False, stream=sys.stderr)
    except ManyeyesError as error:
        return _report(error, debug=call.debug, stream=sys.stderr)
    except KeyboardInterrupt:
        return _report(Interrupted("Stopped."), debug=call.debug, stream=sys.stderr)
    except BrokenPipeError:
        return 1
    except Exception as error:
        said = _disk_error(error)
        if said is None or call.debug:
            raise
        return _report(said, debug=False, stream=sys.stderr)


def _send_owed() -> None:
    """Send MLflow what this command or an earlier one left unsent, however that one ended.

    Whatever fails here, the command's own end stands.
    """
    folder = home() / OWED
    try:
        if not any(path.is_file() for path in folder.rglob("*")):
            return
        from manyeyes.tracking.sync import send_owed

        with contextlib.redirect_stdout(sys.stderr):
            report = send_owed()
        for note in report.notes:
            sys.stderr.write(f"{note}\n")
    except (KeyboardInterrupt, Exception) as error:
        logger.debug("what is owed to MLflow was not sent: %r", error)


def _disk_error(error: Exception) -> UserError | None:
    """Explain what a disk says that is full, read-only, without locks; None for another error."""
    number = full_disk(error)
    if number is None:
        return refused(error)
    return no_room(number, str(getattr(error, "filename", None) or "the result"), AGAIN)


def _report(error: ManyeyesError, *, debug: bool, stream: TextIO) -> int:
    if debug:
        raise error
    # What the user did wrong, and why another process ended, process 0 says for all of them.
    if ranks.rank() == 0 or not isinstance(error, UserError | Followed):
        stream.write(f"{plain(str(error))}\n")
    if ranks.world_size() > 1:
        # A broken exchange leaves threads behind that would wait at the interpreter's end.
        sys.stdout.flush()
        stream.flush()
        os._exit(error.exit_code)
    return error.exit_code
