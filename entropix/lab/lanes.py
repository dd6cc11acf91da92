"""Lanes with means and their intervals, for figures on paper."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from entropix.lab.statistics import Interval, halves

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COLOR, MUTED = "#0068a3", "#888888"


def lanes(axes: "Axes", labels: Sequence[str]) -> None:
    """A lane for each, the first on top."""
    axes.set_yticks(range(len(labels)), [label.replace("$", r"\$") for label in labels])
    axes.set_ylim(len(labels) - 0.5, -0.5)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)


def interval(axes: "Axes", found: Interval | None, row: int, is_filled: bool) -> None:
    """A mean with its interval in a lane."""
    if found is None:
        return
    below, above = halves(found)
    axes.errorbar(
        [found.mean],
        [row],
        xerr=[[below], [above]],
        fmt="o",
        markersize=4,
        color=COLOR,
        markerfacecolor=COLOR if is_filled else "white",
        capsize=2,
        linewidth=1,
    )
