"""The part policy as one figure for paper: what is right, what is found, and the declared differences."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from entropix.lab import lanes
from entropix.lab.evaluation.policy_figures import Declared, Figures
from entropix.lab.statistics import Interval, is_apart

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LANE, _REST = 0.22, 1.6  # inches


def draw(found: Figures) -> "Figure":
    """A lane for each arm, with right answers and, where there are sets, coverage; below one for each contrast.

    Intervals of 95 % over items; dotted: the first arm. Marks are filled where an interval of a difference leaves zero
    out; differences within the grey are mostly not seen with so many items.
    """
    from entropix.report import figures

    arms, declared = found.arms, [each for each in found.declared if each.found is not None]
    columns: list[tuple[str, Sequence[Interval | None]]] = [("right answers", [arm.right for arm in arms])]
    if any(arm.coverage is not None for arm in arms):
        columns.append(("coverage of sets", [arm.coverage for arm in arms]))
    names = [name for name, _ in columns]
    heights = [len(arms), len(declared)] if declared else [len(arms)]
    figure = figures.new(_REST + _LANE * sum(heights))
    layout: list[Any] = [names, ["difference"] * len(names)] if declared else [names]
    places = figure.subplot_mosaic(layout, height_ratios=heights)
    for name, values in columns:
        axes: Any = places[name]
        lanes.lanes(axes, [arm.name if name == names[0] else "" for arm in arms])
        if values[0] is not None:
            axes.axvline(values[0].mean, color=lanes.MUTED, linewidth=0.8, linestyle=":")
        for lane, value in enumerate(values):
            lanes.interval(axes, value, lane, is_filled=True)
        axes.set_xlabel(name)
    if declared:
        _differences(places["difference"], declared)
    return figure


def _differences(axes: Any, declared: Sequence[Declared]) -> None:
    lanes.lanes(axes, [f"{each.arm} − {each.minus}" for each in declared])
    axes.axvline(0, color=lanes.MUTED, linewidth=0.8)
    for lane, each in enumerate(declared):
        assert each.found is not None
        if each.found.detectable is not None:
            ends = [-each.found.detectable, each.found.detectable]
            axes.plot(ends, [lane, lane], color="#dddddd", linewidth=7, solid_capstyle="butt", zorder=0)
        lanes.interval(axes, each.found.difference, lane, is_filled=is_apart(each.found.difference))
    axes.set_xlabel("difference of right answers")
