"""The validation report: one small HTML file that needs nothing else.

Plain tables with the few colours that tell good from bad; every text of the data is escaped.
"""

from __future__ import annotations

from html import escape
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from manyeyes.data.contract.expectations import Outcome
    from manyeyes.data.contract.rules import Rule
    from manyeyes.data.contract.validate import Breach, GateResult

EXAMPLES = 5
"""Quarantined samples shown per reason; the parquet file has them all."""

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1d2430; background: #fff;
  max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin-bottom: .2rem; } h2 { font-size: 1.1rem; margin-top: 2rem; }
.passed { color: #146c2e; } .refused { color: #a1161b; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #d9dee6;
  vertical-align: top; overflow-wrap: break-word; }
th { white-space: nowrap; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
.bar { display: inline-block; height: .7rem; background: #a1161b; border-radius: 2px; }
"""


def render(
    result: GateResult, table: Sequence[Rule], outcomes: Sequence[Outcome], found: Sequence[Breach]
) -> str:
    """Return the report as HTML text."""
    word = "passed" if result.passed else "refused"
    verdict = f'<h1>Data contract: <span class="{word}">{word}</span></h1>'
    facts = (
        f"<p>{result.num_samples:,} samples, {result.num_pictures:,} pictures; "
        f"{result.num_quarantined:,} samples ({result.share:.2%}) in quarantine.</p>"
    )
    control = (
        f"<p>{result.num_control_tokens:,} samples hold what is spelled like a control token "
        "(&lt;/s&gt;, &lt;|im_end|&gt;); it is learned as plain text.</p>"
    )
    parts = [
        verdict,
        facts,
        control if result.num_control_tokens else "",
        *(f'<p class="refused">{escape(refusal)}.</p>' for refusal in result.refusals),
        _reasons(result, table),
        _examples(found),
        _outcomes(outcomes),
        _splits(result),
        _counts("Licences of what is kept", ("licence", "samples"), result.licences),
    ]
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>Data contract: {word}</title><style>{_STYLE}</style></head>\n<body>\n"
        + "\n".join(part for part in parts if part)
        + "\n</body></html>\n"
    )


def _reasons(result: GateResult, table: Sequence[Rule]) -> str:
    if not result.reasons:
        return ""
    words = {rule.reason: rule.text for rule in table}
    most = max(result.reasons.values())
    rows = [
        f"<tr><td>{escape(reason)}</td><td>{escape(words[reason])}</td>"
        f'<td class="number">{number:,}</td>'
        f'<td><span class="bar" style="width: {8 * number / most:.2f}rem"></span></td></tr>'
        for reason, number in result.reasons.items()
    ]
    head = '<tr><th>reason</th><th>broken rule</th><th class="number">samples</th><th></th></tr>'
    return _table("Quarantine", head, rows)


def _examples(found: Sequence[Breach]) -> str:
    shown: dict[str, list[Breach]] = {}
    for breach in found:
        shown.setdefault(breach.reason, []).append(breach)
    rows = [
        f"<tr><td>{escape(breach.reason)}</td><td>{escape(breach.id)}</td>"
        f"<td>{escape(breach.detail)}</td></tr>"
        for breaches in shown.values()
        for breach in breaches[:EXAMPLES]
    ]
    if not rows:
        return ""
    head = "<tr><th>reason</th><th>sample</th><th>detail</th></tr>"
    return _table(f"Examples (up to {EXAMPLES} per reason; all in quarantine.parquet)", head, rows)


def _outcomes(outcomes: Sequence[Outcome]) -> str:
    rows = []
    for outcome in outcomes:
        word = "passed" if outcome.success else "refused"
        number = outcome.num_unexpected if outcome.observed is None else outcome.observed
        rows.append(
            f"<tr><td>{escape(outcome.text)}</td><td>{escape(outcome.expectation)}</td>"
            f'<td class="number">{"" if number is None else f"{number:g}"}</td>'
            f'<td class="{word}">{word}</td></tr>'
        )
    head = (
        "<tr><th>rule</th><th>Great Expectations</th>"
        '<th class="number">number</th><th>verdict</th></tr>'
    )
    return _table("Expectations", head, rows)


def _splits(result: GateResult) -> str:
    tasks = sorted({task for counts in result.splits.values() for task in counts})
    names = [split for split in ("train", "val", "test") if split in result.splits]
    head = "<tr><th>task</th>" + "".join(
        f'<th class="number">{escape(name)}</th>' for name in names
    )
    rows = [
        f"<tr><td>{escape(task)}</td>"
        + "".join(f'<td class="number">{result.splits[name].get(task, 0):,}</td>' for name in names)
        + "</tr>"
        for task in tasks
    ]
    return _table("What is kept", head + "</tr>", rows)


def _counts(title: str, head: tuple[str, str], counts: dict[str, int]) -> str:
    rows = [
        f'<tr><td>{escape(name)}</td><td class="number">{number:,}</td></tr>'
        for name, number in counts.items()
    ]
    return _table(title, f'<tr><th>{head[0]}</th><th class="number">{head[1]}</th></tr>', rows)


def _table(title: str, head: str, rows: Iterable[str]) -> str:
    body = "\n".join(rows)
    return f"<h2>{escape(title)}</h2>\n<table>\n{head}\n{body}\n</table>"
