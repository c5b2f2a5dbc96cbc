"""``manyeyes zoo build``: pretrain the tiny parts again."""

from __future__ import annotations

import argparse

from manyeyes.cli.output import print_json


def run(arguments: argparse.Namespace) -> int:
    """Pretrain the tiny parts into a folder."""
    from manyeyes.zoo.build import PARTS, build

    parts = tuple(arguments.parts or PARTS)
    accuracies = build(arguments.out, seed=arguments.seed, parts=parts)
    if arguments.json:
        print_json({"out": str(arguments.out), "accuracies": dict(accuracies)})
    else:
        print(f"Built {', '.join(parts)} in {arguments.out}.")
    return 0
