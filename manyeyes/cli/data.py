"""``manyeyes data starter|import|pull|push``: make datasets; move artifacts by the store."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import click

from manyeyes.artifact.files import QUARANTINE_FILE
from manyeyes.cli.command import Group, as_sentence, json_option
from manyeyes.cli.output import plain, print_json
from manyeyes.cli.values import PATH, PLACE, TEXT, FiniteNumber, WholeNumber
from manyeyes.cli.verbs import VERBS

if TYPE_CHECKING:
    from pydantic import JsonValue

    from manyeyes.artifact.manifest import Manifest


@click.group("data", cls=Group, help=as_sentence(VERBS["data"].text), subcommand_metavar="ACTION")
def data() -> None:
    """Make datasets, or move artifacts; an action does it."""


@data.command("starter", help="Build the starter data from real sources, offline.")
@click.option(
    "--out", type=PATH, default=Path("data/starter"), show_default=True, help="folder to make"
)
@click.option(
    "--scale",
    type=FiniteNumber("a number above 0, up to 1000", most=1000.0),
    default=1.0,
    show_default=True,
    help="1.0 is about ten thousand samples",
)
@click.option(
    "--image-size", type=WholeNumber(64, 1024), default=128, show_default=True, help="pixels a side"
)
@click.option(
    "--seed", type=WholeNumber(0), default=7, show_default=True, help="another one, other data"
)
@json_option
def starter(out: Path, scale: float, image_size: int, seed: int, as_json: bool) -> int:
    """Build the starter data."""
    from manyeyes.pipeline.stages.prepare import starter_dataset

    manifest = starter_dataset(out, seed=seed, scale=scale, image_size=image_size)
    _print_dataset(out, manifest, as_json=as_json)
    return 0


@data.command("import", help="Import conversations in the LLaVA format.")
@click.argument("conversations", metavar="FILE", type=PATH, help="JSON or JSON lines")
@click.option(
    "--images", metavar="DIR", type=PATH, required=True, help="folder the image paths refer to"
)
@click.option("--out", metavar="DIR", type=PATH, required=True, help="folder to make")
@click.option(
    "--license",
    "--licence",
    "license_name",
    metavar="NAME",
    type=TEXT,
    required=True,
    help="SPDX name of the data's license",
)
@click.option("--source", type=TEXT, help="name of the source (default: the file's name)")
@click.option(
    "--quarantine",
    type=FiniteNumber("a share from 0 to 1", most=1.0),
    default=0.0,
    metavar="SHARE",
    help="put up to this share of bad records aside instead of refusing",
)
@click.option(
    "--number-ids",
    is_flag=True,
    help="let ids repeat, as LLaVA's do: the second one gets '-2' added",
)
@json_option
def import_(
    conversations: Path,
    images: Path,
    out: Path,
    license_name: str,
    source: str | None,
    quarantine: float,
    number_ids: bool,
    as_json: bool,
) -> int:
    """Import conversations."""
    from manyeyes.data.sources.importing import import_llava

    manifest = import_llava(
        conversations,
        images,
        out,
        licence=license_name,
        source=source,
        quarantine=quarantine,
        number_ids=number_ids,
    )
    _print_dataset(out, manifest, as_json=as_json)
    return 0


def _print_dataset(out: Path, manifest: Manifest, *, as_json: bool) -> None:
    if as_json:
        print_json({"out": str(out), "digest": manifest.digest, "details": manifest.details})
        return
    print(f"{out}: {manifest.details.get('samples')} samples, dataset {manifest.digest[:12]}")
    for line in summary(out, manifest.details):
        print(f"  {line}")


def summary(out: Path, details: dict[str, JsonValue]) -> list[str]:
    """Return what to know of a dataset that was made, a line for each thing."""
    from manyeyes.config.recipe.base import NAME_PATTERN

    counts = _pairs(details.get("counts"))
    lines = [f"{counts}; {details.get('images')} pictures"] if counts else []
    if details.get("quarantined"):
        reasons = _pairs(details.get("quarantine_reasons"))
        where = out / QUARANTINE_FILE
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


@data.command("pull", help="Bring an artifact from the content store.")
@click.argument(
    "what",
    metavar="DIGEST_OR_POINTER",
    type=PLACE,
    help="content digest or fingerprint, MD5.dir, models:/NAME@ALIAS, or a pointer: "
    "pointer.json, its folder, a .dvc file",
)
@click.option(
    "--out", metavar="DIR", type=PATH, help="folder for it (default: its digest's first 12)"
)
@json_option
def pull_verb(what: str, out: Path | None, as_json: bool) -> int:
    """Bring an artifact here."""
    from manyeyes.artifact.manifest import read_manifest
    from manyeyes.store.exchange import pull

    if what.startswith("models:/"):
        from manyeyes.registry.catalogue import locate_weights

        what = locate_weights(what).digest
    place = pull(what, out)
    manifest = read_manifest(place)
    if as_json:
        print_json({"out": str(place), "digest": manifest.digest, "kind": manifest.kind})
    else:
        print(f"{place}: {manifest.kind} {manifest.digest} made by {manifest.stage}")
    return 0


@data.command("push", help="Put a finished artifact into the content store.")
@click.argument("directory", metavar="DIR", type=PATH, help="a Dataset, Checkpoint or Report")
@click.option("--name", type=TEXT, help="a dataset's name in recipes (default: the folder's name)")
@json_option
def push_verb(directory: Path, name: str | None, as_json: bool) -> int:
    """Put an artifact into the store."""
    from manyeyes.store.exchange import push

    pushed = push(directory, name)
    if as_json:
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


COMMANDS = (data,)
