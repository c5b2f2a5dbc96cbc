"""Which runs were started from here: one line per submission in ``.manyeyes/submissions.jsonl``.

So ``status``, ``logs``, ``cancel`` and ``resume`` need no id. Ids and names only: a token is never
written.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from manyeyes.errors import UserError, unknown
from manyeyes.runtime.home import home
from manyeyes.runtime.journal import append_line


@dataclass(frozen=True)
class Submission:
    """One run that was started from here."""

    recipe: str
    profile: str
    """As ``load_profile`` takes it: a name, or an absolute path."""
    run: str
    name: str
    version: str
    time: str


def record(submission: Submission) -> None:
    """Append a submission, in one write."""
    path = _path()
    path.parent.mkdir(parents=True, exist_ok=True)
    append_line(path, asdict(submission))


def find(word: str | None) -> Submission:
    """Return the latest submission, of all or of those a word means.

    Args:
        word: a recipe's name, the path of its file, a run's id or its name; None means any.

    Raises:
        UserError: nothing was submitted from here, or nothing that the word means.
    """
    known = submissions()
    if not known:
        raise UserError(
            f"Nothing was submitted from here ({_path()} is empty): "
            "use manyeyes submit RECIPE --profile PROFILE, or name a run and --profile."
        )
    if word is None:
        return known[-1]
    meant = _recipe_name(word)
    for one in reversed(known):
        if meant in (one.recipe, one.run, one.name):
            return one
    raise unknown("run", word, {name for one in known for name in (one.recipe, one.run)})


def submissions() -> list[Submission]:
    """Return all submissions, the oldest first; a line that is half written is left out."""
    try:
        lines = _path().read_text(encoding="utf-8").splitlines(keepends=True)
    except FileNotFoundError:
        return []
    return [Submission(**json.loads(line)) for line in lines if line.endswith("\n")]


def _recipe_name(word: str) -> str:
    """Turn the path of a recipe into its name; leave every other word as it is."""
    if Path(word).suffix not in {".yaml", ".yml"}:
        return word
    from manyeyes.config.recipe import load_recipe

    return load_recipe(Path(word)).name


def _path() -> Path:
    return home() / "submissions.jsonl"
