"""``manyeyes zoo build``: pretrain the tiny parts again."""

from __future__ import annotations

import argparse

from pydantic import JsonValue

from manyeyes.cli.output import print_json, print_table
from manyeyes.disk import ELSEWHERE, explained
from manyeyes.zoo import PARTS


def run(arguments: argparse.Namespace) -> int:
    """Pretrain the tiny parts into a folder."""
    from manyeyes.zoo.build import build

    parts = tuple(arguments.parts or PARTS)
    with explained(arguments.out, ELSEWHERE):
        accuracies = build(arguments.out, seed=arguments.seed, parts=parts)
    if arguments.json:
        measured: dict[str, JsonValue] = {name: dict(row) for name, row in accuracies.items()}
        print_json({"out": str(arguments.out), "accuracies": measured})
        return 0
    rows = [
        (name, what, f"{100 * share:.1f}")
        for name, row in accuracies.items()
        for what, share in row.items()
    ]
    print_table(f"built in {arguments.out}", ("part", "reads", "accuracy %"), rows)
    return 0
