"""The page of a grid: measures, plots, and the answers to every prompt side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from entropix import files, metric_labels
from entropix.checkpoint.loading import Model
from entropix.lab.experiments import summary
from entropix.lab.experiments.engine import Grid
from entropix.lab.experiments.results import Line
from entropix.lab.experiments.summary import MEANING, MEASURES, Summary, by_prompt, number
from entropix.report import shell

if TYPE_CHECKING:
    import plotly.graph_objects as go

_POINTS = 101  # of each entropy distribution
_MAPPED = ("logprob", "distinct-2", "rep-4", "length")  # what a sweep is drawn for


class Plot(NamedTuple):
    """A figure, and what is to be seen in it, in words."""

    title: str
    says: str
    height: float  # rem
    figure: "go.Figure"


def write(
    path: str | Path,
    title: str,
    grid: Grid,
    model: Model,
    summaries: Sequence[Summary],
    lines: Sequence[Line],
    fields: Sequence[str] = (),
) -> None:
    """Writes the page. Replaces a file of that name only when complete."""
    files.write_text(path, [page(title, grid, model, summaries, lines, fields)], "a page")


def page(
    title: str,
    grid: Grid,
    model: Model,
    summaries: Sequence[Summary],
    lines: Sequence[Line],
    fields: Sequence[str] = (),
) -> str:
    """One self-contained HTML document. fields: what a sweep varies; one or two of them are drawn as axes."""
    plots = figures(grid, summaries, lines, fields)
    timed = summary.was_timed(summaries)
    body = shell.fragment(
        "comparison.html.jinja",
        model={"name": model.name, "dtype": model.dtype.name},
        variants=[variant.label for variant in grid.variants],
        compared=len(grid.variants) > 1 and len(grid.prompts) > 1,
        n_prompts=len(grid.prompts),
        n_seeds=len(grid.seeds),
        max_new_tokens=grid.options.max_new_tokens,
        untimed="" if timed else summary.UNTIMED,
        heads=_heads(timed),
        rows=[
            {"label": found.label, "cells": _cells(found, found is summaries[0], timed)}
            for found in summaries
        ],
        figures=[
            {"name": name, "title": plot.title, "says": plot.says, "height": plot.height}
            for name, plot in plots.items()
        ],
        prompts=_prompts(grid, lines),
    )
    drawn = {name: plot.figure for name, plot in plots.items()}
    return shell.document(title, body, drawn, styles=[shell.asset("comparison.css")])


def _heads(timed: bool) -> list[dict[str, str]]:
    names = ["answers", "tokens", *["tokens/s"] * timed, *MEASURES]
    return [{"name": name, "meaning": MEANING.get(name, "")} for name in names]


def _cells(found: Summary, is_first: bool, timed: bool) -> list[dict[str, str]]:
    counts = [str(found.answers), str(found.tokens), *[number(found.tokens_per_second, 1)] * timed]
    cells = [{"value": value, "interval": ""} for value in counts]
    for name, mean in found.means.items():
        value = number(mean, 1 if name == "length" else 3)
        if name == "length" and found.length_sd is not None:
            value += f" ± {found.length_sd:.1f}"
        interval = "" if is_first else summary.interval(found, name)
        cells.append({"value": value, "interval": interval.replace("-", "\N{MINUS SIGN}")})
    return cells


def _prompts(grid: Grid, lines: Sequence[Line]) -> list[dict[str, Any]]:
    """Each prompt with a column of answers for each variant."""
    of_prompt = by_prompt(lines)
    return [
        {
            "text": text,
            "columns": [
                {
                    "label": variant.label,
                    "answers": [
                        {**line, "logprob": line["mean_logprob"] and f"{line['mean_logprob']:.3f}"}
                        for line in of_prompt.get(prompt, [])
                        if line["variant"] == variant.label
                    ],
                }
                for variant in grid.variants
            ],
        }
        for prompt, text in enumerate(grid.texts)
    ]


# ----- figures ----------------------------------------------------------------------------------------------


def figures(
    grid: Grid, summaries: Sequence[Summary], lines: Sequence[Line], fields: Sequence[str] = ()
) -> dict[str, Plot]:
    """By name, in the order of the page."""
    plots = {}
    if len(fields) in (1, 2):
        plots["sweep"] = sweep(grid, summaries, fields)
    plots |= {"tradeoff": tradeoff(summaries), "lengths": lengths(summaries, lines)}
    if summary.strategy_names(summaries):
        plots["strategies"] = strategies(grid, summaries)
    return plots | {"entropies": entropies(summaries, lines)}


def tradeoff(summaries: Sequence[Summary]) -> Plot:
    """Likely against varied: a point for each variant."""
    go = shell.require("plotly.graph_objects", "the page")
    names = ("logprob", "distinct-2")
    shown = [found for found in summaries if None not in [found.means[name] for name in names]]
    figure = go.Figure(
        go.Scatter(
            x=[found.means["logprob"] for found in shown],
            y=[found.means["distinct-2"] for found in shown],
            text=[found.label for found in shown],
            mode="markers+text" if len(shown) <= 6 else "markers",  # more of them cover each other
            textposition="top center",
            marker={"size": 10},
            cliponaxis=False,
            hovertemplate="%{text}<br>%{x:.3f} nats<br>distinct-2 %{y:.3f}<extra></extra>",
        )
    )
    # Labels reach beyond the outermost points.
    figure.update_layout(margin={"l": 52, "r": 52, "t": 32, "b": 44})
    figure.update_layout(xaxis_title="mean log-probability (nats per token)", yaxis_title="distinct-2")
    return Plot(
        "How likely and how varied",
        "mean log-probability against the share of different pairs of tokens, a point for each variant; the numbers "
        "are in the table",
        24,
        figure,
    )


def lengths(summaries: Sequence[Summary], lines: Sequence[Line]) -> Plot:
    """A box and its points for each variant."""
    go = shell.require("plotly.graph_objects", "the page")
    figure = go.Figure(
        [
            go.Box(
                x=[line["new_tokens"] for line in lines if line["variant"] == found.label],
                name=found.label,
                boxpoints="all",
                jitter=0.5,
                pointpos=0,
                marker={"size": 4, "opacity": 0.6},
                fillcolor="rgba(0,0,0,0)",
            )
            for found in summaries
        ]
    )
    figure.update_layout(xaxis_title="tokens", showlegend=False)
    figure.update_yaxes(autorange="reversed", automargin=True)
    return Plot("Lengths", "the tokens of every answer, a box for each variant", _rows(summaries), figure)


def strategies(grid: Grid, summaries: Sequence[Summary]) -> Plot:
    """A stacked bar for each variant that has a choice."""
    go = shell.require("plotly.graph_objects", "the page")
    shown = [found for found in summaries if len(found.strategies) > 1]
    rule = {variant.label: variant.sampler.rule for variant in grid.variants}
    figure = go.Figure()
    for name in summary.strategy_names(summaries):
        [known, *_] = [s for f in shown if name in (s := rule[f.label].strategies)]
        figure.add_bar(
            y=[found.label for found in shown],
            x=[found.strategies.get(name, 0) for found in shown],
            name=name,
            orientation="h",
            marker={"color": metric_labels.strategy_color(name, known)},
            hovertemplate="%{y}: " + name + " %{x:.1%}<extra></extra>",
        )
    figure.update_layout(
        barmode="stack",
        legend={"orientation": "h", "traceorder": "normal", "y": 1, "yanchor": "bottom"},
        xaxis={"title": "share of tokens", "tickformat": ".0%", "range": [0, 1]},
    )
    figure.update_yaxes(autorange="reversed", automargin=True)
    said = "; ".join(
        f"{found.label}: " + ", ".join(f"{name} {share:.0%}" for name, share in found.strategies.items())
        for found in shown
    )
    return Plot("Strategies", said, _rows(shown), figure)


def entropies(summaries: Sequence[Summary], lines: Sequence[Line]) -> Plot:
    """How uncertain the model was on the way: a cumulative distribution for each variant."""
    go = shell.require("plotly.graph_objects", "the page")
    observed = {
        found.label: np.array(
            [
                bits
                for line in lines
                if line["variant"] == found.label
                for bits in line["logits_entropy"]
                if bits is not None
            ]
        )
        for found in summaries
    }
    highest = max((float(bits.max()) for bits in observed.values() if len(bits)), default=1.0)
    points = np.linspace(0, highest, _POINTS)
    figure = go.Figure()
    for label, bits in observed.items():
        below = np.searchsorted(np.sort(bits), points, side="right") / max(len(bits), 1)
        figure.add_scatter(
            x=points.round(4).tolist(),
            y=below.round(4).tolist(),
            name=label,
            mode="lines",
            hovertemplate="%{y:.1%} up to %{x:.2f} bits",
        )
    figure.update_layout(
        xaxis_title="entropy of the model's distribution (bits)",
        yaxis={"title": "share of tokens up to it", "tickformat": ".0%"},
        hovermode="x unified",
        showlegend=True,
    )
    return Plot(
        "Entropies on the way",
        "the share of tokens drawn where the model's entropy was at most so many bits, a line for each variant",
        24,
        figure,
    )


def sweep(grid: Grid, summaries: Sequence[Summary], fields: Sequence[str]) -> Plot:
    """Measures over the one or two fields that were varied: lines, or heat maps."""
    subplots = shell.require("plotly.subplots", "the page")
    go = shell.require("plotly.graph_objects", "the page")
    values = {
        name: list(dict.fromkeys(getattr(v.sampler.numbers, name) for v in grid.variants)) for name in fields
    }
    figure = subplots.make_subplots(rows=2, cols=2, subplot_titles=_MAPPED)
    for i, measure in enumerate(_MAPPED):
        place = {"row": 1 + i // 2, "col": 1 + i % 2}
        means = [found.means[measure] for found in summaries]
        if len(fields) == 1:
            [name] = fields
            drawn = go.Scatter(x=values[name], y=means, mode="lines+markers", showlegend=False)
        else:
            down, across = fields
            drawn = go.Heatmap(
                x=list(map(str, values[across])),
                y=list(map(str, values[down])),
                z=np.reshape(np.array(means, float), (len(values[down]), len(values[across]))).tolist(),
                colorscale="Viridis",
                texttemplate="%{z:.3g}",
                showscale=False,
            )
            figure.update_yaxes(title_text=down, type="category", **place)
            figure.update_xaxes(type="category", **place)
        figure.add_trace(drawn, **place)
        figure.update_xaxes(title_text=fields[-1], **place)
    figure.update_layout(margin={"l": 52, "r": 12, "t": 36, "b": 44})  # room for the titles
    said = f"{', '.join(_MAPPED)} over {' and '.join(fields)}; the numbers are in the table"
    return Plot("Measures over what was varied", said, 38, figure)


def _rows(shown: Sequence[Any]) -> float:
    """Height of a plot with a row for each."""
    return 7 + 2.25 * len(shown)
