"""``manyeyes data starter|import|pull|push``: make datasets; move artifacts by the store."""

from __future__ import annotations

import argparse
import re
from pathlib import Path

from pydantic import JsonValue

from manyeyes.cli.output import plain, print_json
from manyeyes.config.recipe.base import NAME_PATTERN


def run(arguments: argparse.Namespace) -> int:
    """Make a dataset, or move an artifact, and say what it is."""
    match arguments.action:
        case "pull":
            return _pull(arguments)
        case "push":
            return _push(arguments)
        case _:
            return _make(arguments)


def _make(arguments: argparse.Namespace) -> int:
    out: Path = arguments.out
    if arguments.action == "starter":
        from manyeyes.pipeline.stages.prepare import starter_dataset

        manifest = starter_dataset(
            out, seed=arguments.seed, scale=arguments.scale, image_size=arguments.image_size
        )
    else:
        from manyeyes.data.sources.importing import import_llava

        manifest = import_llava(
            arguments.conversations,
            arguments.images,
            out,
            licence=arguments.licence,
            source=arguments.source,
            quarantine=arguments.quarantine,
            number_ids=arguments.number_ids,
        )
    if arguments.json:
        print_json({"out": str(out), "digest": manifest.digest, "details": manifest.details})
    else:
        samples = manifest.details.get("samples")
        print(f"{out}: {samples} samples, dataset {manifest.digest[:12]}")
        for line in summary(out, manifest.details):
            print(f"  {line}")
    return 0


def summary(out: Path, details: dict[str, JsonValue]) -> list[str]:
    """Return what to know of a dataset that was made, a line for each thing."""
    counts = _pairs(details.get("counts"))
    lines = [f"{counts}; {details.get('images')} pictures"] if counts else []
    if details.get("quarantined"):
        reasons = _pairs(details.get("quarantine_reasons"))
        where = out / "quarantine.parquet"
        lines.append(f"put aside: {details['quarantined']} records ({reasons}), listed in {where}")
    lines += [text.format(details[name]) for name, text in _NOTES.items() if details.get(name)]
    if details.get("control_tokens"):
        spelled = _pairs(details.get("control_token_spellings"))
        lines.append(
            f"{details['control_tokens']} samples hold what is spelled like a control token "
            f"({spelled}); it is learned as plain text"
        )
    if details.get("keys_not_read"):
        lines.append(f"keys that are not read: {_pairs(details['keys_not_read'])}")
    if not re.fullmatch(NAME_PATTERN, out.name):
        lines.append(
            f"no recipe can name {out.name!r}: rename the folder (small letters, digits, . _ -)"
        )
    return [plain(line) for line in lines]


LONGEST_SHOWN = 100
_NOTES = {
    "placeholders_added": "<image> was put in front of the first question for {} pictures",
    "lookalikes": "in {} of those samples something like <img> stands in a question, as text",
    "literal_placeholders": "<image> is a plain word {} times, in answers or without pictures",
    "ids_numbered": "{} ids were used before and got a number",
    "pictures_turned": "{} pictures are turned upright, as their EXIF orientation says",
}


def _pairs(counts: JsonValue) -> str:
    """Write counts down: ``a 3, b 1``; a name that a file chose is kept on its line, and short."""
    found = counts if isinstance(counts, dict) else {}
    return ", ".join(f"{_short(name)} {number}" for name, number in found.items())


def _short(name: str) -> str:
    name = name.replace("\n", "\\n")
    return name if len(name) <= LONGEST_SHOWN else f"{name[:LONGEST_SHOWN]}..."


def _pull(arguments: argparse.Namespace) -> int:
    from manyeyes.artifact.manifest import read_manifest
    from manyeyes.store.exchange import pull

    what: str = arguments.what
    if what.startswith("models:/"):
        from manyeyes.registry.catalogue import locate_weights

        what = locate_weights(what).digest
    out = pull(what, arguments.out)
    manifest = read_manifest(out)
    if arguments.json:
        print_json({"out": str(out), "digest": manifest.digest, "kind": manifest.kind})
    else:
        print(f"{out}: {manifest.kind} {manifest.digest} made by {manifest.stage}")
    return 0


def _push(arguments: argparse.Namespace) -> int:
    from manyeyes.store.exchange import push

    pushed = push(arguments.directory, arguments.name)
    if arguments.json:
        print_json(
            {
                "store": pushed.store,
                "digest": pushed.digest,
                "dir_id": pushed.dir_id,
                "name": pushed.name,
                "pointer": str(pushed.pointer),
            }
        )
        return 0
    print(f"{pushed.store}: {pushed.digest}")
    if pushed.name:
        print(f"In a recipe: data: {{kind: dataset, name: {pushed.name}}}")
    print(f"Elsewhere: manyeyes data pull {pushed.digest}, or dvc pull {pushed.pointer}")
    return 0
