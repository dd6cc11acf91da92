"""The plots of a sweep: measures over what was varied."""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from entropix.lab.experiments.engine import Grid
from entropix.lab.experiments.summary import Summary
from entropix.lab.plots import MAPPED, UNITS, Plot, Section, axis_title, bars, new_figure, plain
from entropix.report import looks

if TYPE_CHECKING:
    import plotly.graph_objects as go

_LOGARITHMIC = 20  # values of a sweep that reach so many times as far are drawn by their ratios
_LABELLED = 8  # points, at most, whose numbers do not cover each other


def sweep(grid: Grid, summaries: Sequence[Summary], fields: Sequence[str]) -> Section:
    """Measures over the one or two fields that were varied: lines with intervals, or heat maps."""
    values = varied(grid, fields)
    titles = {name: field_title(grid, name) for name in fields}
    draw = _line if len(fields) == 1 else _map
    plots = [
        Plot(
            f"sweep-{measure}",
            axis_title(measure),
            f"{measure} over {' and '.join(fields)}; the numbers are in the table",
            19,
            draw(measure, summaries, values, titles),
        )
        for measure in MAPPED
    ]
    note = (
        "Means over prompts, with their 95 % intervals (Student's)."
        if len(fields) == 1
        else "Means over prompts; the stronger the colour, the larger."
    )
    return Section("Measures over what was varied", note, [], plots)


def _line(
    measure: str, summaries: Sequence[Summary], values: Mapping[str, list[Any]], titles: Mapping[str, str]
) -> "go.Figure":
    [(name, steps)] = values.items()
    found = [each.intervals[measure] for each in summaries]
    numeric = all(isinstance(step, int | float) and not isinstance(step, bool) for step in steps)
    figure = new_figure()
    x = steps if numeric else list(map(str, steps))
    figure.add_scatter(
        x=x,
        y=[each and each.mean for each in found],
        error_y=bars(found, looks.COLORS[0]),
        mode="lines+markers",
        line={"color": looks.COLORS[0], "width": 1.5},
        marker={"size": 8},
        hovertemplate=f"{plain(name)} %{{x}}: %{{y:.4g}}<extra></extra>",
    )
    if len(steps) <= _LABELLED:
        figure.add_scatter(
            x=x,
            y=[each and (each.mean if each.high is None else each.high) for each in found],
            text=["" if each is None else short(each.mean) for each in found],
            textposition="top center",
            textfont={"color": "var(--text)", "size": 12.5},
            mode="markers+text",
            marker={"size": 10, "opacity": 0},  # keeps the number off the bar
            cliponaxis=False,
            hoverinfo="skip",
        )
    few = numeric and len(steps) <= _LABELLED
    ticks = {"tickvals": steps, "ticktext": [f"{step:g}" for step in steps]} if few else {}
    far = numeric and is_far(steps)
    figure.update_layout(
        xaxis={"title": titles[name], "type": "log" if far else "linear" if numeric else "category"} | ticks,
        yaxis={"title": UNITS[measure], "zeroline": False},
    )
    return figure


def _map(
    measure: str, summaries: Sequence[Summary], values: Mapping[str, list[Any]], titles: Mapping[str, str]
) -> "go.Figure":
    down, across = values
    means = [math.nan if (mean := found.means[measure]) is None else mean for found in summaries]
    mean_YX = np.reshape(means, (len(values[down]), len(values[across])))
    figure = new_figure()
    figure.add_heatmap(
        x=list(map(str, values[across])),
        y=list(map(str, values[down])),
        z=[[None if math.isnan(mean) else mean for mean in row] for row in mean_YX.tolist()],
        text=[["–" if math.isnan(mean) else short(mean) for mean in row] for row in mean_YX.tolist()],
        texttemplate="%{text}",
        textfont={"color": "var(--text)", "size": 13},
        colorscale=[[0, "var(--map-low)"], [1, "var(--map-high)"]],
        xgap=2,
        ygap=2,
        showscale=False,
        hovertemplate=f"{plain(across)} %{{x}}, {plain(down)} %{{y}}: %{{text}}<extra></extra>",
    )
    figure.update_layout(
        xaxis={"title": titles[across], "type": "category", "showgrid": False},
        yaxis={"title": {"text": titles[down], "standoff": 8}, "type": "category", "showgrid": False},
    )
    return figure


def varied(grid: Grid, fields: Sequence[str]) -> dict[str, list[Any]]:
    """The values of each of these numbers, in the order of the variants."""
    return {
        name: list(dict.fromkeys(getattr(v.sampler.numbers, name) for v in grid.variants)) for name in fields
    }


def is_far(steps: Sequence[float]) -> bool:
    """Whether these reach so far that they are drawn by their ratios."""
    return min(steps) > 0 and max(steps) / min(steps) >= _LOGARITHMIC


def field_title(grid: Grid, name: str) -> str:
    """A number of the rule with its unit, if it has one."""
    unit = type(grid.variants[0].sampler.numbers).__dataclass_fields__[name].metadata["unit"]
    return f"{name} ({unit})" if unit else name


def short(value: float) -> str:
    """A number as a plot has room for it."""
    return looks.signed(f"{value:#.3g}")
