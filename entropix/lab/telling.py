"""What a part of an evaluation says, in a form that terminals and pages share: tables of cells that are text."""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from entropix.lab import plots
from entropix.lab.statistics import Interval
from entropix.tables import aligned

if TYPE_CHECKING:
    from matplotlib.figure import Figure


class Table(NamedTuple):
    """Rows of cells, the first of which names the row."""

    title: str
    note: str  # how it is to be read
    heads: Sequence[str]
    rows: Sequence[Sequence[str]]


class Told(NamedTuple):
    """A part: for people in tables and figures, for programs as JSON has it."""

    part: str
    said: str  # in a sentence or two
    tables: Sequence[Table]
    sections: Sequence[plots.Section]
    summary: dict[str, Any]
    draw: "Callable[[], Figure] | None" = None  # one figure for paper


def lines(told: Told) -> list[str]:
    """The part for a terminal."""
    found = [f"== {told.part} ==", told.said]
    for table in told.tables:
        found += ["", table.title, *aligned([table.heads, *table.rows])]
        if table.note:
            found.append(table.note)
    return found


def percent(value: float | None, decimals: int = 1) -> str:
    """A share; a dash for none."""
    return "-" if value is None else f"{100 * value:.{decimals}f}"


def percents(found: Interval | None, sign: str = "") -> str:
    """A share with its interval, in per cent."""
    if found is None:
        return "-"
    if found.low is None or found.high is None:
        return f"{100 * found.mean:{sign}.1f}"
    return f"{100 * found.mean:{sign}.1f} [{100 * found.low:{sign}.1f}, {100 * found.high:{sign}.1f}]"


def numbers(found: Interval | None, decimals: int = 3, sign: str = "") -> str:
    """A number with its interval; a dash where there is none."""
    if found is None or found.mean != found.mean:
        return "-"
    if found.low is None or found.high is None:
        return f"{found.mean:{sign}.{decimals}f}"
    ends = f"[{found.low:{sign}.{decimals}f}, {found.high:{sign}.{decimals}f}]"
    return f"{found.mean:{sign}.{decimals}f} {ends}"


def as_json(value: Any) -> Any:
    """Intervals and the like as objects, and None for what is not finite."""
    if hasattr(value, "_asdict"):
        return {name: as_json(part) for name, part in value._asdict().items()}
    if isinstance(value, dict):
        return {str(name): as_json(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [as_json(part) for part in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
