"""The results as pictures, one a measurement: bars at the median with whiskers from the lowest to the highest round."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter

#: Ours, and everybody else.
_COLOURS = ("#1f6feb", "#9aa4af")

_FORMATS = ("svg", "png")


def draw(found: dict[str, Any], folder: Path) -> list[Path]:
    """Draw every measurement into a folder, as SVG and as PNG.

    Args:
        found: results as :mod:`scripts.benchmark.report` describes them.
        folder: where to.

    Returns:
        The SVG files.
    """
    mpl.rcParams["svg.hashsalt"] = "vhostuser"  # the same results give the same file
    return [draw_one(measurement, folder) for measurement in found["measurements"] if _shown(measurement)]


def draw_one(measurement: dict[str, Any], folder: Path) -> Path:
    """Draw one measurement: a row of bars for each metric that says what is better."""
    metrics = _shown(measurement)
    heights = [0.7 + 0.28 * sum(map(bool, metric["contenders"].values())) for metric in metrics]
    figure = Figure(figsize=(8, 0.4 + sum(heights)), layout="constrained")
    figure.suptitle(measurement["title"], fontsize=12)
    rows = figure.subplots(len(metrics), squeeze=False, height_ratios=heights)[:, 0]
    for axes, metric in zip(rows, metrics, strict=True):
        _bars(axes, metric)
    paths = [folder / f"{measurement['name']}.{kind}" for kind in _FORMATS]
    for path in paths:
        figure.savefig(path, dpi=120, metadata={"Date": None} if path.suffix == ".svg" else None)
    return paths[0]


def _shown(measurement: dict[str, Any]) -> list[dict[str, Any]]:
    """The metrics of which one is better than another, and which somebody has any of."""
    return [
        metric
        for metric in measurement["metrics"].values()
        if metric["better"] and any(spread and spread["max"] > 0 for spread in metric["contenders"].values())
    ]


def _bars(axes: Axes, metric: dict[str, Any]) -> None:
    spreads = {name: spread for name, spread in metric["contenders"].items() if spread}
    names = list(spreads)
    medians = [spreads[name]["median"] for name in names]
    below = [spreads[name]["median"] - spreads[name]["min"] for name in names]
    above = [spreads[name]["max"] - spreads[name]["median"] for name in names]
    colours = [_COLOURS[0] if name.startswith("vhostuser") else _COLOURS[1] for name in names]
    axes.barh(names, medians, xerr=[below, above], color=colours, error_kw={"capsize": 3, "ecolor": "#333333"})
    axes.invert_yaxis()
    axes.set_xlabel(f"{metric['unit']} ({metric['better']} is better)", fontsize=9)
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter())
    axes.spines[["top", "right"]].set_visible(False)
