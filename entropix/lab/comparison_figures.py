"""The plots of a grid's page, in sections: what is compared, in the same colours and marks throughout."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from entropix import metric_labels
from entropix.lab.experiments import summary
from entropix.lab.experiments.engine import Grid
from entropix.lab.experiments.results import Line
from entropix.lab.experiments.summary import CUT_OFF, Summary
from entropix.lab.plots import (
    MAPPED,
    UNITS,
    Plot,
    Section,
    axis_title,
    bars,
    lanes,
    new_figure,
    plain,
)
from entropix.lab.statistics import Interval, is_apart
from entropix.report import looks

_POINTS = 101  # of each entropy distribution
_HALF = 0.3  # of a row: how far its points spread


def differences(summaries: Sequence[Summary]) -> Section:
    """For each measure that is drawn the mean difference of every variant to the first, with its interval."""
    first, *others = summaries
    plots = []
    for measure in MAPPED:
        figure = new_figure()
        for row, found in enumerate(others):
            change = found.differences[measure]
            if change is None:
                continue
            seen = looks.look(row + 1)
            mark = seen.mark if is_apart(change) else f"{seen.mark}-open"
            figure.add_scatter(
                x=[change.mean],
                y=[row],
                error_x=bars([change], seen.color),
                mode="markers",
                marker={"color": seen.color, "symbol": mark, "size": 9}
                | {"line": {"color": seen.color, "width": 1.5}},
                hovertemplate=f"{plain(found.label)}<br>{_told(change, measure)}<extra></extra>",
            )
        figure.update_layout(
            xaxis={"title": UNITS[measure], "zeroline": True, "zerolinecolor": "var(--muted)"},
            yaxis=lanes([found.label for found in others]),
        )
        said = "; ".join(f"{found.label}: {_told(found.differences[measure], measure)}" for found in others)
        plots.append(Plot(f"difference-{measure}", measure, said, 5.5 + 2.25 * len(others), figure))
    return Section(
        f"Differences to {first.label}",
        "The mean over prompts of the difference, with its 95 % interval (Student's). A filled mark: the interval "
        "leaves zero out. A hollow one: it does not.",
        [],
        plots,
    )


def _told(found: Interval | None, measure: str) -> str:
    """A mean with its interval, in words."""
    if found is None:
        return "no number"
    decimals = 1 if measure == "length" else 3
    ends = [f"{end:+.{decimals}f}" for end in (found.low, found.high) if end is not None]
    interval = f", 95 % from {ends[0]} to {ends[1]}" if ends else ""
    return looks.signed(f"{found.mean:+.{decimals}f}{interval}")


def tradeoff(summaries: Sequence[Summary]) -> Section:
    """Likely against varied: a point with its intervals for each variant."""
    names = ("logprob", "distinct-2")
    figure = new_figure()
    for i, found in enumerate(summaries):
        across, up = (found.intervals[name] for name in names)
        if across is None or up is None:
            continue
        seen = looks.look(i)
        figure.add_scatter(
            x=[across.mean],
            y=[up.mean],
            name=plain(found.label),
            error_x=bars([across], seen.color),
            error_y=bars([up], seen.color),
            mode="markers",
            marker={"size": 11, "color": seen.color, "symbol": seen.mark},
            hovertemplate=f"{plain(found.label)}<br>%{{x:.3f}} nats a token<br>distinct-2 %{{y:.3f}}<extra></extra>",
        )
    figure.update_layout(
        xaxis={"title": "mean log-probability (nats a token)", "zeroline": False},
        yaxis={"title": axis_title("distinct-2"), "zeroline": False},
    )
    plot = Plot(
        "tradeoff",
        "",
        "mean log-probability against the share of different pairs of tokens, a point for each variant; the numbers "
        "are in the table",
        26,
        figure,
    )
    return Section(
        "How likely and how varied",
        "Bars: the 95 % interval of the mean over prompts. Prompts differ more than variants do, so variants whose "
        "bars overlap may well differ: the intervals of the differences say it.",
        looks.marks([found.label for found in summaries]),
        [plot],
    )


def lengths(grid: Grid, summaries: Sequence[Summary], lines: Sequence[Line]) -> Section:
    """Every answer as a point, a row for each variant; where some were cut off there is one mark, and no median that
    would be theirs."""
    figure = new_figure()
    limit = grid.options.max_new_tokens
    of_kind: dict[bool, tuple[list[float], list[float]]] = {False: ([], []), True: ([], [])}
    medians = []
    for row, found in enumerate(summaries):
        mine = [line for line in lines if line["variant"] == found.label]
        cut = {line["new_tokens"] for line in mine if line["finish"] in CUT_OFF}
        ended = sorted(line["new_tokens"] for line in mine if line["finish"] not in CUT_OFF)
        for is_cut, here in ((False, ended), (True, sorted(cut))):
            xs, ys = of_kind[is_cut]
            xs += here
            ys += [row + offset for offset in _beside(here)]
        median = float(np.median([line["new_tokens"] for line in mine])) if mine else math.nan
        medians.append(math.nan if cut and median >= min(cut) else median)
    for is_cut, name, mark in ((False, "ended", "circle"), (True, "cut off", "triangle-right-open")):
        xs, ys = of_kind[is_cut]
        figure.add_scatter(
            x=xs,
            y=ys,
            mode="markers",
            marker={"color": looks.COLORS[0], "symbol": mark, "size": 11 if is_cut else 7, "opacity": 0.8},
            cliponaxis=False,
            hovertemplate=f"{name} at %{{x}} tokens<extra></extra>",
        )
    figure.add_scatter(
        x=[None if math.isnan(median) else median for median in medians],
        y=list(range(len(summaries))),
        mode="markers",
        marker={"symbol": "line-ns-open", "size": 24, "color": "var(--text)", "line": {"width": 2.5}},
        hovertemplate="median %{x} tokens<extra></extra>",
    )
    figure.update_layout(
        xaxis={"title": "tokens of an answer", "range": [0, 1.04 * limit], "zeroline": False},
        yaxis=lanes(
            [found.label for found in summaries],
            [f"{found.cut_off} of {found.answers} cut off" if found.cut_off else "" for found in summaries],
        ),
        shapes=[
            {"type": "line", "x0": limit, "x1": limit, "y0": 0, "y1": 1, "yref": "paper"}
            | {"line": {"color": "var(--muted)", "dash": "dot", "width": 1}}
        ],
    )
    told = "; ".join(
        f"{found.label}: {'no median' if math.isnan(median) else f'median {median:g} tokens'}, {found.cut_off} of "
        f"{found.answers} cut off"
        for found, median in zip(summaries, medians, strict=True)
    )
    key = [
        looks.entry("ended by itself", looks.COLORS[0], "circle"),
        looks.entry(f"cut off at {limit} tokens", looks.COLORS[0], "triangle-right", is_hollow=True),
        looks.entry("median, where enough answers ended", "var(--text)", "line-ns"),
    ]
    said = summary.limit_said(summaries) or "every answer ended by itself"
    note = f"{said[0].upper()}{said[1:]}."
    return Section("Lengths", note, key, [Plot("lengths", "", told, _rows(summaries), figure)])


def _beside(values: Sequence[int]) -> list[float]:
    """For sorted values how far each point goes off its row, so that equal ones stand beside each other."""
    offsets: list[float] = []
    for value in dict.fromkeys(values):
        n = values.count(value)
        step = min(0.1, 2 * _HALF / n)
        offsets += [(k - (n - 1) / 2) * step for k in range(n)]
    return offsets


def strategies(grid: Grid, summaries: Sequence[Summary]) -> Section:
    """A stacked bar for each variant that has a choice, with the shares written in."""
    shown = [found for found in summaries if len(found.strategies) > 1]
    rule = {variant.label: variant.sampler.rule for variant in grid.variants}
    figure = new_figure()
    key = []
    for name in summary.strategy_names(summaries):
        [known, *_] = [s for f in shown if name in (s := rule[f.label].strategies)]
        color = metric_labels.strategy_color(name, known)
        shares = [found.strategies.get(name, 0) for found in shown]
        key.append(looks.entry(name, color, "bar"))
        figure.add_bar(
            y=list(range(len(shown))),
            x=shares,
            text=[f"{100 * share:.0f} %" if share >= 0.06 else "" for share in shares],
            textposition="inside",
            insidetextanchor="middle",
            textangle=0,
            textfont={"color": "#ffffff" if color in ("#0072b2", "#808080") else "#000000"},
            orientation="h",
            marker={"color": color, "line": {"color": "var(--ground)", "width": 1}},
            hovertemplate=f"{plain(name)} %{{x:.1%}}<extra></extra>",
        )
    figure.update_layout(
        barmode="stack",
        xaxis={"title": "share of tokens (%)", "range": [0, 1], "zeroline": False}
        | {"tickvals": [0, 0.25, 0.5, 0.75, 1], "ticktext": ["0", "25", "50", "75", "100"]},
        yaxis=lanes([found.label for found in shown]),
    )
    said = "; ".join(
        f"{found.label}: "
        + ", ".join(f"{name} {100 * share:.0f} %" for name, share in found.strategies.items())
        for found in shown
    )
    return Section("Strategies", "", key, [Plot("strategies", "", said, _rows(shown), figure)])


def entropies(summaries: Sequence[Summary], lines: Sequence[Line]) -> Section:
    """How uncertain the model was on the way: a cumulative distribution for each variant."""
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
    figure = new_figure()
    for i, (label, bits) in enumerate(observed.items()):
        below = np.searchsorted(np.sort(bits), points, side="right") / max(len(bits), 1)
        seen = looks.look(i)
        figure.add_scatter(
            x=points.round(4).tolist(),
            y=(100 * below).round(2).tolist(),
            name=plain(label),
            legendgroup=label,
            mode="lines",
            line={"color": seen.color, "dash": seen.dash, "width": 1.75},
            hovertemplate="%{y:.0f} %",
        )
    figure.update_layout(
        xaxis={
            "title": "entropy of the model's distribution (bits)",
            "hoverformat": ".2f",
            "zeroline": False,
        },
        yaxis={"title": "tokens up to it (%)", "range": [0, 101]},
        hovermode="x unified",
    )
    said = "the share of tokens drawn where the model's entropy was at most so many bits, a line for each variant"
    return Section(
        "Entropies on the way",
        "",
        looks.lines(list(observed)),
        [Plot("entropies", "", said, 26, figure)],
        is_switch=True,
    )


def _rows(shown: Sequence[Any]) -> float:
    """Height of a plot with a row for each."""
    return 5.5 + 3 * len(shown)
