"""How things that are drawn together are told apart, the same on every page: by colour and by mark or dash.

`Entry` is a line of a key, which assets/key.html.jinja writes above its plot: so no legend covers what is drawn.
"""

from collections.abc import Sequence
from typing import NamedTuple

COLORS = tuple(f"var(--series-{i})" for i in range(6))  # assets/shell.css has them, for light and for dark
MARKS = ("circle", "square", "diamond", "triangle-up", "x", "cross", "triangle-down")  # plotly's names
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MINUS = "\N{MINUS SIGN}"
# The marks as SVG paths around (12, 6).
_PATHS = {
    "circle": "M8 6a4 4 0 1 0 8 0a4 4 0 1 0-8 0z",
    "square": "M8.5 2.5h7v7h-7z",
    "diamond": "M12 1l5 5-5 5-5-5z",
    "triangle-up": "M12 1.5l4.5 8h-9z",
    "x": "M8 3.5l1.5-1.5 2.5 2.5 2.5-2.5 1.5 1.5-2.5 2.5 2.5 2.5-1.5 1.5-2.5-2.5-2.5 2.5-1.5-1.5 2.5-2.5z",
    "cross": "M10.5 2h3v2.5h2.5v3h-2.5v2.5h-3v-2.5h-2.5v-3h2.5z",
    "triangle-down": "M12 10.5l4.5-8h-9z",
    "triangle-right": "M8.5 1.5l8 4.5-8 4.5z",
    "line-ns": "M11 0.5h2v11h-2z",
    "bar": "M5 1h14v10h-14z",
}
_STROKES = {"solid": "", "dash": "7 3", "dot": "1.5 2.5", "dashdot": "7 2.5 1.5 2.5", "longdash": "11 2"}


class Look(NamedTuple):
    """A colour of the theme, a mark and a dash."""

    color: str
    mark: str
    dash: str


class Entry(NamedTuple):
    """A line of a key. path: of its mark, or empty; strokes: dashes of its line, None without one."""

    name: str
    color: str
    path: str
    strokes: str | None
    is_hollow: bool


def look(i: int) -> Look:
    """That of the i-th thing. Colours, marks and dashes have no common period, so that 210 things differ."""
    return Look(COLORS[i % len(COLORS)], MARKS[i % len(MARKS)], DASHES[i % len(DASHES)])


def marks(names: Sequence[str]) -> list[Entry]:
    """A key of points."""
    return [entry(name, look(i).color, look(i).mark) for i, name in enumerate(names)]


def lines(names: Sequence[str]) -> list[Entry]:
    """A key of lines."""
    return [entry(name, look(i).color, dash=look(i).dash) for i, name in enumerate(names)]


def entry(name: str, color: str, mark: str = "", dash: str | None = None, is_hollow: bool = False) -> Entry:
    """A line of a key by plotly's names of marks and dashes; the mark "bar" is a piece of a bar."""
    return Entry(
        name, color, _PATHS[mark] if mark else "", None if dash is None else _STROKES[dash], is_hollow
    )


def signed(text: str) -> str:
    """The text of a number, as pages write it: with a true minus sign."""
    return text.replace("-", MINUS)
