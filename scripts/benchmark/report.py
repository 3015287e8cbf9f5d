"""The results: JSON, tables on a terminal, and the block of them in the README.

The JSON has one schema, version 1:

    schema        1
    machine       where: commit, processor, kernel, mitigations, versions (see machine.describe)
    settings      rounds, seconds a window, the revision compared with or null
    measurements  a list of
      name, title
      errors      sentences about contenders that failed
      metrics     by name:
        unit, better ("more", "less" or null)
        contenders  by name: median, min, max, values (one a round); null where there is none
        ratios      by name, for all but the first contender: the first one's value over this one's, in the same round
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from scripts.benchmark.runs import Outcome

SCHEMA = 1

#: Between these two lines of the README stands what the last run wrote.
BEGIN, END = "<!-- benchmark: begin -->", "<!-- benchmark: end -->"


def results(machine: dict[str, Any], settings: dict[str, Any], outcomes: list[Outcome]) -> dict[str, Any]:
    """All of a run."""
    return {
        "schema": SCHEMA,
        "machine": machine,
        "settings": settings,
        "measurements": [outcome.as_json() for outcome in outcomes],
    }


def write_json(path: Path, found: dict[str, Any]) -> None:
    """Write the results."""
    path.write_text(json.dumps(found, indent=1, ensure_ascii=False) + "\n")


def show(console: Console, measurement: dict[str, Any]) -> None:
    """One measurement as a table: the median of each metric, its ends, and the first one's over it."""
    metrics = {name: metric for name, metric in measurement["metrics"].items() if any(metric["contenders"].values())}
    units = [metric["unit"] for metric in metrics.values()]
    table = Table("", *units, title=measurement["title"], title_justify="left")
    for contender in next(iter(measurement["metrics"].values()))["contenders"]:
        table.add_row(contender, *(_cell(metric, contender) for metric in metrics.values()))
    console.print(table)
    for error in measurement["errors"]:
        console.print(f"[red]failed[/] {error}", highlight=False)


def _cell(metric: dict[str, Any], contender: str) -> str:
    spread = metric["contenders"][contender]
    if spread is None:
        return ""
    ratio = metric["ratios"].get(contender)
    return _figure(spread) + (f"\nfirst / it: {_figure(ratio)}" if ratio else "")


def _figure(spread: dict[str, Any]) -> str:
    """The median, and the ends where they differ."""
    low, middle, high = (number(spread[name]) for name in ("min", "median", "max"))
    return middle if low == high else f"{middle} ({low}..{high})"


def number(value: float) -> str:
    """A figure with no more digits than it deserves."""
    if abs(value) >= 10_000:
        return f"{value / 1000:,.0f} k"
    if abs(value) >= 100 or value == int(value):
        return f"{value:,.0f}"
    return f"{value:.3g}"


def readme_block(found: dict[str, Any], plots: list[str]) -> str:
    """The results in Markdown: a table a measurement, of its first metric, and the pictures.

    Args:
        found: what :func:`results` returned.
        plots: paths of pictures, seen from the README.
    """
    machine, settings = found["machine"], found["settings"]
    where = f"{machine['cpu']}, {machine['cores']} cores{' (virtual)' if machine['virtual'] else ''}"
    how = f"{settings['rounds']} rounds of {settings['seconds']:g} s, the contenders in turn"
    lines = [
        f"{where}, Linux {machine['kernel']}; {how}. Medians (min..max); the ratio is the first row's value over this "
        "one's, round by round.",
        "",
        "| | | | first / it |",
        "|---|---|---|---|",
    ]
    for measurement in found["measurements"]:
        lines += _rows(measurement)
    lines += ["", *(f"![{Path(plot).stem}]({plot})" for plot in plots)]
    return "\n".join(lines)


def _rows(measurement: dict[str, Any]) -> list[str]:
    rows = []
    shown = [metric for metric in measurement["metrics"].values() if any(metric["contenders"].values())]
    for metric in [metric for metric in shown if metric["better"] is not None][:2]:
        what = f"{measurement['title']}, {metric['unit']}"
        for contender, spread in metric["contenders"].items():
            if spread is None:
                continue
            ratio = metric["ratios"].get(contender)
            rows.append(f"| {what} | {contender} | {_figure(spread)} | {_figure(ratio) if ratio else ''} |")
            what = ""
    return rows


def update_readme(readme: Path, block: str) -> None:
    """Put a block between the README's two marks. Raises ValueError when it has none."""
    text = readme.read_text()
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} has no lines {BEGIN} and {END} for the table to go between")
    readme.write_text(f"{before}{BEGIN}\n{block}\n{END}{after}")
