"""The page's plots without their points, which assets/charts.js fills in from the data that is there already."""

from collections.abc import Mapping, Sequence
from typing import Any

import plotly.graph_objects as go

from entropix import metric_labels
from entropix.metric_labels import Label
from entropix.report.regions import RULES, limits, regions, sampler_config
from entropix.samplers.entropix import STRATEGIES
from entropix.trace import Trace


def figures(traces: Sequence[Trace]) -> dict[str, go.Figure]:
    """`scatter-i` and `timeline-i` of every trace, `series` of all, `heads` of a token."""
    right, top = limits([t.header for t in traces], [r for t in traces for r in t.results])
    return {
        **{f"scatter-{i}": scatter(trace.header, right, top) for i, trace in enumerate(traces)},
        **{f"timeline-{i}": timeline() for i in range(len(traces))},
        "series": series(),
        "heads": heads(),
    }


def scatter(header: Mapping[str, Any], right: float, top: float) -> go.Figure:
    """Axes of entropy and varentropy, over the regions of the strategies if the sampler's rule has such. Scripts put
    other metrics there if they are asked to."""
    figure = go.Figure(
        layout={
            "xaxis": {
                "title": metric_labels.axis_title("logits_entropy"),
                "range": [-0.02 * right, right],
            },
            "yaxis": {
                "title": metric_labels.axis_title("logits_varentropy"),
                "range": [-0.02 * top, top],
            },
            "showlegend": False,
            "hovermode": "closest",
        }
    )
    if header["sampler"] in RULES:
        found = regions(header["sampler"], sampler_config(header), right, top)
        last = len(STRATEGIES) - 1
        figure.add_heatmap(
            x=found.entropy_edges.tolist(),
            y=found.varentropy_edges.tolist(),
            z=found.strategy_YX.tolist(),
            zmin=0,
            zmax=last,
            colorscale=[[i / last, color] for i, color in enumerate(metric_labels.STRATEGIES[: last + 1])],
            opacity=0.22,
            showscale=False,
            hoverinfo="skip",
        )
    return figure


def timeline() -> go.Figure:
    """Steps to the right, a lane for each strategy."""
    return go.Figure(
        layout={
            "xaxis": {"title": "token"},
            "yaxis": {"autorange": "reversed", "showgrid": False, "zeroline": False},
            "showlegend": False,
            "hovermode": "closest",
            "dragmode": "zoom",
        }
    )


def series() -> go.Figure:
    """Two metrics, one above the other, over the same steps."""
    return go.Figure(
        layout={
            "grid": {"rows": 2, "columns": 1, "subplots": [["xy"], ["xy2"]], "ygap": 0.12},
            "xaxis": {"title": "token", "anchor": "y2"},
            "yaxis": {"rangemode": "tozero"},
            "yaxis2": {"rangemode": "tozero"},
            "showlegend": False,
            "hovermode": "closest",
            "margin": {"t": 24},  # for the words at the first difference
        }
    )


def heads() -> go.Figure:
    """Layers to the right, heads downwards."""
    return go.Figure(
        layout={
            "xaxis": {"title": "layer", "showgrid": False, "zeroline": False},
            "yaxis": {"title": "head", "autorange": "reversed", "showgrid": False, "zeroline": False},
            "margin": {"l": 36, "r": 4, "t": 4, "b": 36},
        }
    )


def titles(labels: Mapping[str, Label]) -> list[dict[str, str]]:
    """What scripts need to know of the metrics."""
    return [{"name": name, "axis": label.axis_title, **label._asdict()} for name, label in labels.items()]
