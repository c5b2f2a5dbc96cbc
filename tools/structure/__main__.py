"""``python -m tools.structure [CHECKOUT ...]``: how many rooms, arrows, hops and private words.

With several checkouts they stand side by side; the glossary is that of this one.
"""

from __future__ import annotations

import argparse
import tomllib
from collections import Counter
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path

from rich.console import Console
from rich.table import Table

from tools.structure.hops import hops
from tools.structure.rooms import arrows, circles, names_at_the_top
from tools.structure.source import CODE, Source
from tools.structure.words import private_words, replaced_words

HERE = Path(__file__).parents[2]
Row = Mapping[str, str]


def installed(root: Path) -> list[str]:
    """Return the names of the packages that an installation brings."""
    find = tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = find["tool"]["setuptools"]["packages"]["find"]["include"]
    return [name for name in CODE if any(fnmatchcase(name, pattern) for pattern in patterns)]


def recipe_lines(root: Path) -> dict[Path, int]:
    """Return the number of lines of each shipped recipe."""
    files = sorted((root / "recipes").rglob("*.yaml"))
    return {
        path.relative_to(root): len(path.read_text(encoding="utf-8").splitlines()) for path in files
    }


def measured(root: Path, *, with_hops: bool) -> Row:
    """Return the measures of one checkout, by what they count."""
    source = Source(root)
    modules = source.modules.values()
    lines = sum(module.num_code_lines for module in modules)
    functions = sum(module.num_functions for module in modules)
    flat, data = arrows(source, "manyeyes"), arrows(source, "manyeyes.data", inside_only=True)
    classes = Counter(name for module in modules for name in module.classes)
    words = private_words(source, replaced_words())
    recipes = recipe_lines(root)
    tiny = recipes.pop(Path("recipes/tiny/eagle-x5.yaml"))
    row = {
        "packages installed": ", ".join(installed(root)),
        "names at the top of manyeyes/": str(len(names_at_the_top(root / "manyeyes"))),
        "arrows between them": str(len(flat)),
        "circles of them": str(len(circles(flat))),
        "rooms of manyeyes/data/": str(len(names_at_the_top(root / "manyeyes/data"))),
        "arrows between those": str(len(data)),
        "modules": str(len(source.modules)),
        "code lines": f"{lines:,}",
        "functions per 1,000 code lines": f"{1000 * functions / lines:.0f}",
        "class names that stand for several classes": str(sum(n > 1 for n in classes.values())),
        "replaced words still used": f"{len(words)} ({words.total():,} places)",
        "lines of recipes/tiny/eagle-x5.yaml": str(tiny),
        "lines of the other recipes": f"{sum(recipes.values()):,}",
    }
    if with_hops:
        row["functions from the verb sft to forward"] = str(len(hops(root)))
    return row


def main() -> None:
    """Print the measures of each checkout in a column."""
    parser = argparse.ArgumentParser(prog="python -m tools.structure", description=__doc__)
    parser.add_argument("checkouts", nargs="*", type=Path, default=[HERE])
    parser.add_argument(
        "--hops", action="store_true", help="count them, too (runs a small pipeline)"
    )
    parser.add_argument("--list", action="store_true", help="name the words, classes and hops")
    arguments = parser.parse_args()
    roots = [path.resolve() for path in arguments.checkouts]
    rows = [measured(root, with_hops=arguments.hops) for root in roots]
    table = Table("", *(root.name for root in roots))
    for what in rows[0]:
        table.add_row(what, *(row[what] for row in rows))
    console = Console()
    console.print(table)
    if arguments.list:
        for root in roots:
            _name_all(Source(root), console)


def _name_all(source: Source, console: Console) -> None:
    words = replaced_words()
    console.print(f"\n{source.root}")
    for word, places in private_words(source, words).most_common():
        console.print(f"  {word} -> {words[word]}: {places}", highlight=False)
    where: dict[str, list[str]] = {}
    for module in source.modules.values():
        for name in module.classes:
            where.setdefault(name, []).append(module.name)
    for name, modules in sorted(where.items()):
        if len(modules) > 1:
            console.print(f"  class {name}: {', '.join(modules)}", highlight=False)


if __name__ == "__main__":
    main()
