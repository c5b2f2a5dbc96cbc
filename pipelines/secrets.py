"""No secret may enter a pipeline: KFP shows parameters to all, and keeps them.

Two searches. The values of the submitter's own secrets are known, they stand in environment
variables: none of them may occur. And some secrets have a shape that nothing else has. The error
names what was found and never repeats it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

from manyeyes.errors import UserError

_SECRET_NAMES = re.compile(r"TOKEN|SECRET|PASSWORD|PASSWD|CREDENTIAL|API_?KEY|ACCESS_?KEY")
_SHORTEST = 8
"""Shorter values of such variables are switches and words, and would occur by chance."""
_SHAPES: Mapping[str, re.Pattern[str]] = {
    "an AWS access key": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a Hugging Face token": re.compile(r"\bhf_[A-Za-z0-9]{30,}\b"),
    "a GitHub token": re.compile(r"\bgh[pousr]_[A-Za-z0-9]{36,}\b"),
    "a JSON web token": re.compile(r"\beyJ[\w-]{10,}\.eyJ[\w-]{10,}\.[\w-]+"),
    "a private key": re.compile(r"-----BEGIN [A-Z ]*PRIVATE KEY-----"),
    "a password in an address": re.compile(r"\b[a-z][a-z0-9+.-]*://[^\s/:@'\"]+:[^\s/@'\"]+@"),
}


def refuse_secrets(texts: Mapping[str, str], token_variable: str | None = None) -> None:
    """Refuse texts that hold a secret.

    Args:
        texts: what is about to be written or sent, by the name a person knows it under.
        token_variable: the environment variable with the token for KFP, whatever its name.

    Raises:
        UserError: a secret was found; the text says where and which, not its value.
    """
    for where, text in texts.items():
        for variable, value in _own_secrets(token_variable).items():
            if value in text:
                raise _refusal(where, f"the value of ${variable}")
        for what, shape in _SHAPES.items():
            if shape.search(text):
                raise _refusal(where, what)


def _own_secrets(token_variable: str | None) -> dict[str, str]:
    return {
        name: value
        for name, value in os.environ.items()
        if len(value) >= _SHORTEST
        and (name == token_variable or _SECRET_NAMES.search(name.upper()))
    }


def _refusal(where: str, what: str) -> UserError:
    return UserError(
        f"There is {what} in {where}, and KFP shows it to everyone who can see a run; "
        "put it into a Kubernetes secret and name that under secrets in the profile."
    )
