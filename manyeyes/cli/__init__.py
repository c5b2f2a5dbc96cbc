"""The command line: parsers, and one call each.

A verb's module is imported when the verb is used, so that ``manyeyes --help`` answers at once.
Errors end here: their text goes to standard error, their exit code to the shell.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from typing import TextIO

from manyeyes import ranks
from manyeyes.cli.parser import VERBS, build_parser
from manyeyes.disk import AGAIN, full_disk, no_room
from manyeyes.errors import Followed, Interrupted, ManyeyesError, UserError

QUIET = {
    "GX_ANALYTICS_ENABLED": "false",
    "DVC_NO_ANALYTICS": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ALLOW_PICKLE_DESERIALIZATION": "false",
    "TOKENIZERS_PARALLELISM": "false",
}
"""Nothing reports home, nothing is unpickled."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
    parser = build_parser()
    parsed = parser.parse_args(arguments)
    if parsed.verb is None:
        parser.print_help()
        return 0
    try:
        return _dispatch(parsed)
    except ManyeyesError as error:
        return _report(error, debug=parsed.debug, stream=sys.stderr)
    except KeyboardInterrupt:
        return _report(Interrupted("Stopped."), debug=parsed.debug, stream=sys.stderr)
    except BrokenPipeError:
        return 1
    except Exception as error:
        number = full_disk(error)
        if number is None or parsed.debug:
            raise
        where = str(getattr(error, "filename", None) or "the result")
        return _report(no_room(number, where, AGAIN), debug=False, stream=sys.stderr)


def _dispatch(parsed: argparse.Namespace) -> int:
    module = importlib.import_module(f"manyeyes.cli.{VERBS[parsed.verb]}")
    code: int = module.run(parsed)
    return code


def _report(error: ManyeyesError, *, debug: bool, stream: TextIO) -> int:
    if debug:
        raise error
    # What the user did wrong, and why another process ended, process 0 says for all of them.
    if ranks.rank() == 0 or not isinstance(error, UserError | Followed):
        stream.write(f"{error}\n")
    if ranks.world_size() > 1:
        # A broken exchange leaves threads behind that would wait at the interpreter's end.
        sys.stdout.flush()
        stream.flush()
        os._exit(error.exit_code)
    return error.exit_code
