"""``manyeyes du`` and ``manyeyes gc``: who holds what of the disk, and what may go."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import click

from manyeyes.cli.command import json_option, verb
from manyeyes.cli.output import print_json, print_table
from manyeyes.cli.values import PLACE, FiniteNumber

if TYPE_CHECKING:
    from pydantic import JsonValue

    from manyeyes.upkeep.collect import Garbage
    from manyeyes.upkeep.usage import Usage

UNITS = ("kB", "MB", "GB", "TB")


@verb("gc")
@click.option("--apply", "--yes", "apply", is_flag=True, help="remove it")
@click.option(
    "--older-than",
    type=FiniteNumber("a number of days, 0 or more"),
    default=30.0,
    show_default="30",
    metavar="DAYS",
    help="keep unfinished work and records of runs for so long",
)
@click.option(
    "--forget",
    type=PLACE,
    multiple=True,
    metavar="PLACE",
    help="do not ask this pointer, folder of pointers, project or registry any more: it is "
    "gone for good",
)
@json_option
def gc(apply: bool, older_than: float, forget: tuple[str, ...], as_json: bool) -> int:
    """List what nobody holds any more, or remove it."""
    from manyeyes.store import open_store
    from manyeyes.upkeep.collect import collect, garbage

    found = (collect if apply else garbage)(open_store(), days=older_than, forget=list(forget))
    if as_json:
        print_json(_garbage_json(found, applied=apply))
    else:
        _print_garbage(found, applied=apply)
    return 0


def readable(size: int) -> str:
    """Write a number of bytes as a person reads it."""
    if size < 1000:
        return f"{size} B"
    value, units = size / 1000, iter(UNITS)
    unit = next(units)
    while value >= 1000 and unit != UNITS[-1]:
        value, unit = value / 1000, next(units)
    return f"{value:.1f} {unit}"


@verb("du")
@json_option
def du(as_json: bool) -> int:
    """Tell who holds how much."""
    from manyeyes.store import open_store
    from manyeyes.upkeep.usage import usage

    found = usage(open_store())
    if as_json:
        print_json(_usage_json(found))
        return 0
    rows = [(line.kind, line.name, readable(line.size), readable(line.own)) for line in found.lines]
    print_table(
        f"{found.store}: {readable(found.total)}", ("kind", "held by", "all", "alone"), rows
    )
    folders = [(name, readable(size)) for name, size in found.folders.items()]
    print_table("Beside the store", ("folder", "size"), folders)
    for silent in found.silent:
        print(f"Not counted: {silent}.")
    if found.free:
        print(f"Held by nobody: {readable(found.free)}; 'manyeyes gc' lists it.")
    return 0


def _usage_json(found: Usage) -> JsonValue:
    return {
        "store": found.store,
        "bytes": found.total,
        "held_by_nobody": found.free,
        "holders": [
            {"kind": line.kind, "name": line.name, "bytes": line.size, "alone": line.own}
            for line in found.lines
        ],
        "folders": dict(found.folders),
        "silent": list(found.silent),
    }


def _garbage_json(found: Garbage, *, applied: bool) -> JsonValue:
    return {
        "applied": applied,
        "results": [
            {"dir_id": name, "made_by": found.made_by[name], "bytes": found.lonely_bytes(name)}
            for name in found.results
        ],
        "objects": len(found.objects),
        "bytes": found.size,
        "freed": found.freed,
        "leftovers": [
            {"path": str(left.path), "what": left.what, "bytes": left.size}
            for left in found.leftovers
        ],
    }


def _print_garbage(found: Garbage, *, applied: bool) -> None:
    words = "removed" if applied else "may go"
    rows = [
        (found.made_by[name], name[:12], readable(found.lonely_bytes(name)))
        for name in found.results
    ]
    if rows:
        print_table(f"Results that nobody holds: {words}", ("made by", "object", "bytes"), rows)
    counted = Counter(left.what for left in found.leftovers)
    sizes: Counter[str] = Counter()
    for left in found.leftovers:
        sizes[left.what] += left.size
    left_rows = [(what, str(number), readable(sizes[what])) for what, number in counted.items()]
    if left_rows:
        print_table(f"Left over: {words}", ("what", "number", "bytes"), left_rows)
    did = "Removed" if applied else "May go"
    print(
        f"{did}: {len(found.objects)} objects of {readable(found.size)} and "
        f"{len(found.leftovers)} leftovers; the disk gets {readable(found.freed)} back."
    )
    if not applied and (found.objects or found.leftovers):
        print("Nothing was removed; 'manyeyes gc --apply' removes it.")


COMMANDS = (du, gc)
