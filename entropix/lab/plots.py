"""What the plots of a grid's page are made of."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from entropix.lab.experiments.measures import REPEATED
from entropix.lab.statistics import Interval, halves, is_apart
from entropix.report import looks, shell
from entropix.report.looks import Entry

if TYPE_CHECKING:
    import plotly.graph_objects as go

# What a number is counted in, in the table's head and at axes.
UNITS = {
    "length": "tokens",
    "logprob": "nats a token",
    "distinct-1": "share of tokens",
    "distinct-2": "share of pairs",
    "distinct-3": "share of triples",
    f"rep-{REPEATED}": f"share of {REPEATED}-grams",
    "self-BLEU": "0 to 1",
}
MAPPED = ("logprob", "distinct-2", f"rep-{REPEATED}", "length")  # measures with a plot of their own
_LABEL = 20  # characters of a line


class Plot(NamedTuple):
    """A figure, and what is to be seen in it, in words."""

    name: str
    title: str  # empty where the section's is enough
    says: str
    height: float  # rem
    figure: "go.Figure"


class Section(NamedTuple):
    """A heading of the page with its plots. is_switch: whether the key shows and hides the first plot's lines."""

    title: str
    note: str
    key: list[Entry]
    plots: list[Plot]
    is_switch: bool = False


def axis_title(measure: str) -> str:
    """A measure with its unit."""
    return f"{measure} ({UNITS[measure]})"


def new_figure() -> "go.Figure":
    """An empty figure, whose key stands above it."""
    go = shell.require("plotly.graph_objects", "the page")
    figure: Any = go.Figure(layout={"showlegend": False, "hovermode": "closest"})
    return figure


def bars(found: Sequence[Interval | None], color: str) -> dict[str, Any]:
    """plotly's error bars, up and down to the ends of each interval, nothing where there is none."""
    below, above = zip(*map(halves, found), strict=True) if found else ((), ())
    ends = {"symmetric": False, "array": list(above), "arrayminus": list(below)}
    return {"type": "data", **ends, "color": color, "thickness": 1.5, "width": 3}


def add_difference(figure: Any, lane: int, found: Interval, hover: str) -> None:
    """A point with its interval in a row of `lanes`, hollow where the interval holds zero."""
    color = looks.look(0).color
    figure.add_scatter(
        x=[found.mean],
        y=[lane],
        error_x=bars([found], color),
        mode="markers",
        marker={"color": color, "size": 9, "symbol": "circle" if is_apart(found) else "circle-open"},
        hovertemplate=f"{hover}<extra></extra>",
    )


def from_zero(title: str) -> dict[str, Any]:
    """An axis of differences, with a line where there is none."""
    return {"title": title, "zeroline": True, "zerolinecolor": "var(--muted)"}


def lanes(labels: Sequence[str], below: Sequence[str] = ()) -> dict[str, Any]:
    """An axis with a row for each, the first on top; below: a smaller line under each label."""
    ticks = [
        "<br>".join(map(plain, _lines(label)))
        + (f"<br><span style='font-size:11px'>{more}</span>" if more else "")
        for label, more in zip(labels, below or [""] * len(labels), strict=True)
    ]
    return {
        "tickvals": list(range(len(labels))),
        "ticktext": ticks,
        "range": [len(labels) - 0.4, -0.6],
        "zeroline": False,
        "showgrid": False,
    }


def _lines(label: str) -> list[str]:
    """A long label in two lines, at the break that is nearest to its middle: a telephone has little room."""
    breaks = [i + 1 for i, letter in enumerate(label) if letter in "-+, /"]
    if len(label) <= _LABEL or not breaks:
        return [label]
    middle = min(breaks, key=lambda i: abs(2 * i - len(label)))
    return [label[:middle], label[middle:]]


def plain(text: str) -> str:
    """The text for plotly, which reads some HTML, and names in braces."""
    return text.replace("&", "&amp;").replace("<", "&lt;").replace("%{", "%\N{ZERO WIDTH SPACE}{")
