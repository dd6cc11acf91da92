"""Figures of a grid for papers, drawn by matplotlib: the measures of its page, in the format of a file's ending.

A comparison has a panel a measure with a line for each variant, its mean and 95 % interval, and beside it the
differences to the first variant; a sweep has lines over one number, or maps over two.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from entropix.lab.experiments.engine import Grid
from entropix.lab.experiments.summary import Summary
from entropix.lab.lanes import COLOR, MUTED, interval, lanes
from entropix.lab.plots import MAPPED, UNITS, axis_title
from entropix.lab.statistics import halves, is_apart
from entropix.lab.sweep_figures import field_title, is_far, short, varied
from entropix.report import figures, shell

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_PANEL = 2.4  # inches: the height of a panel over a number


def write(path: str | Path, grid: Grid, summaries: Sequence[Summary], fields: Sequence[str]) -> None:
    """Draws the grid. fields: what a sweep varies. Replaces a file of that name only when complete."""
    matplotlib = shell.require("matplotlib", "a figure")
    values = varied(grid, fields)
    with matplotlib.rc_context(figures.STYLE):
        if len(fields) in (1, 2):
            figure = figures.new(_PANEL * math.ceil(len(MAPPED) / 2))
            titles = [field_title(grid, name) for name in fields]
            draw: Callable[..., None] = _line if len(fields) == 1 else _map
            for axes, measure in zip(figure.subplots(-(-len(MAPPED) // 2), 2).flat, MAPPED, strict=True):
                draw(axes, measure, summaries, values, titles)
        else:
            with_differences = len(summaries) > 1 and len(grid.prompts) > 1
            height = 0.75 + 0.22 * len(summaries)
            figure = figures.new(len(MAPPED) * height)
            panels = figure.subplots(len(MAPPED), 1 + with_differences, squeeze=False)
            for row, measure in zip(panels, MAPPED, strict=True):
                _means(row[0], measure, summaries)
                if with_differences:
                    _differences(row[1], measure, summaries)
            if with_differences:
                panels[0][1].set_title(f"minus {summaries[0].label}", fontsize="medium")
    figures.save(figure, path)


def _means(axes: "Axes", measure: str, summaries: Sequence[Summary]) -> None:
    lanes(axes, [found.label for found in summaries])
    for row, found in enumerate(summaries):
        interval(axes, found.intervals[measure], row, is_filled=True)
    axes.set_xlabel(axis_title(measure))


def _differences(axes: "Axes", measure: str, summaries: Sequence[Summary]) -> None:
    """Filled marks where the interval leaves zero out."""
    lanes(axes, [""] * len(summaries))
    axes.axvline(0, color=MUTED, linewidth=0.8)
    for row, found in enumerate(summaries[1:], start=1):
        change = found.differences[measure]
        interval(axes, change, row, is_filled=change is not None and is_apart(change))
    axes.set_xlabel(f"difference ({UNITS[measure]})")


def _line(
    axes: "Axes",
    measure: str,
    summaries: Sequence[Summary],
    values: Mapping[str, list[Any]],
    titles: Sequence[str],
) -> None:
    [steps] = values.values()
    numeric = all(isinstance(step, int | float) and not isinstance(step, bool) for step in steps)
    found = [each.intervals[measure] for each in summaries]
    axes.errorbar(
        steps if numeric else list(map(str, steps)),
        [math.nan if each is None else each.mean for each in found],
        yerr=list(zip(*map(halves, found), strict=True)),
        fmt="o-",
        markersize=4,
        color=COLOR,
        capsize=2,
        linewidth=1,
    )
    if numeric and is_far(steps):
        axes.set_xscale("log")
    axes.set(xlabel=titles[0], ylabel=axis_title(measure))


def _map(
    axes: "Axes",
    measure: str,
    summaries: Sequence[Summary],
    values: Mapping[str, list[Any]],
    titles: Sequence[str],
) -> None:
    down, across = values.values()
    means = [math.nan if (mean := found.means[measure]) is None else mean for found in summaries]
    mean_YX = np.reshape(means, (len(down), len(across)))
    axes.pcolormesh(np.ma.masked_invalid(mean_YX), cmap="Blues", edgecolors="white", linewidth=1)
    middle = (np.nanmin(mean_YX) + np.nanmax(mean_YX)) / 2 if np.isfinite(mean_YX).any() else 0.0
    for (y, x), mean in np.ndenumerate(mean_YX):
        ink = "white" if mean > middle else "black"
        text = "–" if math.isnan(mean) else short(float(mean))
        axes.text(x + 0.5, y + 0.5, text, ha="center", va="center", color=ink, fontsize=7)
    axes.set_xticks(np.arange(len(across)) + 0.5, list(map(str, across)))
    axes.set_yticks(np.arange(len(down)) + 0.5, list(map(str, down)))
    axes.set(xlabel=titles[1], ylabel=titles[0], title=axis_title(measure))
    axes.tick_params(length=0)
