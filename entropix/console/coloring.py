"""Text on a terminal, coloured by what the sampler did or by a metric.

A strategy is the colour of the letters. A metric is the colour behind them, on `metric_labels.SCALE`, with letters in
black or white, whichever is easier to read: one of the two always has a contrast above 4.5 to 1, since the worst of all
colours has √21 : 1 = 4.58 : 1 to both.
"""

import difflib
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, TextIO

from rich.color import Color, ColorSystem
from rich.color_triplet import ColorTriplet
from rich.console import Console
from rich.style import Style

from entropix import metric_labels
from entropix.showing import visible as visible

WHEN = ("auto", "always", "never")
STRATEGY = "strategy"
_SWATCHES = 24  # cells of a legend's bar
# Terminals with sixteen colours choose these themselves: what comes closest to `metric_labels.STRATEGIES`, the
# first being the terminal's own, and four steps of a scale with the letters that are readable on them.
_COARSE = (None, "magenta", "blue", "red", "cyan")
_COARSE_SCALE = (
    ("blue", "bright_white"),
    ("bright_cyan", "black"),
    ("bright_yellow", "black"),
    ("bright_white", "black"),
)
_SYSTEMS = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
}


class Choice(NamedTuple):
    """What colours show, and when there are any."""

    what: str = STRATEGY  # or a metric
    when: str = "auto"  # or "always" or "never"


def read_choice(text: str) -> Choice:
    """The choice in `--color`: what, or when, or both with a comma between. Raises a ValueError for other words."""
    known = (STRATEGY, *metric_labels.known())
    words = [word.strip() for word in text.split(",")]
    what = [word for word in words if word in known]
    when = [word for word in words if word in WHEN]
    strange = [word for word in words if word not in (*known, *WHEN)]
    if strange:
        within = [name for name in known if strange[0] in name]  # as entropy in logits_entropy
        near = within or difflib.get_close_matches(strange[0], (*known, *WHEN), n=1)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join((*known, *WHEN))}"
        raise ValueError(f"--color {text}: unknown word {strange[0]!r}; {hint}")
    if len(what) > 1 or len(when) > 1:
        raise ValueError(f"--color {text}: give one thing to show and one of {', '.join(WHEN)}")
    return Choice(*(what or [STRATEGY]), *(when or ["auto"]))


def color_system(when: str, stream: TextIO, environment: Mapping[str, str]) -> ColorSystem | None:
    """The colours to write to a stream with; None for none.

    "auto" is for terminals that can, unless NO_COLOR is set (https://no-color.org). "always" takes 256
    colours where nobody says what can be shown. The third choice is "never".
    """
    if when == "auto":
        dumb = environment.get("NO_COLOR") or environment.get("TERM") == "dumb"
        when = "always" if stream.isatty() and not dumb else "never"
    if when == "never":
        return None
    return _SYSTEMS.get(Console(file=stream).color_system or "", ColorSystem.EIGHT_BIT)


def paint(text: str, style: Style, system: ColorSystem | None) -> str:
    """The text in a style. Line ends stay outside, or a colour would fill the rest of the line."""
    parts = re.split(r"([\r\n]+)", text)  # text and line ends in turn
    return "".join(part if i % 2 else style.render(part, color_system=system) for i, part in enumerate(parts))


def token_style(
    record: Mapping[str, Any], what: str, strategies: Sequence[str], system: ColorSystem | None
) -> Style:
    """Of a token, by its record: underlined if it was inserted."""
    if what == STRATEGY:
        style = strategy_style(record["strategy"], strategies, system)
    else:
        style = metric_style(what, record[what], system)
    return style + Style(underline=True) if record["injected"] else style


def strategy_style(name: str, strategies: Sequence[str], system: ColorSystem | None) -> Style:
    """A sampler's first strategy, maybe its only one, has the terminal's own colour."""
    place = strategies.index(name) % len(_COARSE)
    fine = metric_labels.STRATEGIES[place] if place else None
    return Style(color=_COARSE[place] if system == ColorSystem.STANDARD else fine)


def metric_style(name: str, value: float | None, system: ColorSystem | None) -> Style:
    """A place on the metric's scale; what is beyond an end looks like the end, and no number like plain text."""
    if value is None:
        return Style()
    low, high, _ = metric_labels.span(name)
    share = min(max((value - low) / (high - low), 0.0), 1.0)
    if system == ColorSystem.STANDARD:
        behind, letters = _COARSE_SCALE[min(int(share * len(_COARSE_SCALE)), len(_COARSE_SCALE) - 1)]
        return Style(color=letters, bgcolor=behind)
    return on(Color.parse(metric_labels.scale_color(share)), system)


def on(behind: Color, system: ColorSystem | None) -> Style:
    """Letters on this colour, in black or white, whichever is easier to read where the terminal rounds colours."""
    shown = behind if system is None else behind.downgrade(system)
    # WCAG's contrasts of white and of black are equal where 1.05 / (L + 0.05) = (L + 0.05) / 0.05.
    is_light = luminance(shown.get_truecolor()) > (1.05 * 0.05) ** 0.5 - 0.05
    return Style(color="#000000" if is_light else "#ffffff", bgcolor=behind)


def luminance(color: ColorTriplet) -> float:
    """Relative luminance, from 0 for black to 1 for white (WCAG 2.2)."""
    linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in color.normalized)
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


def legend(what: str, counts: Mapping[str, int], system: ColorSystem | None, inserted: bool = False) -> str:
    """One line that explains the colours.

    By strategy: each one in its colour, with its number of tokens, `counts`. By metric: its name and its scale between
    the ends with their unit; a + says that larger values have the last colour too.
    """
    if what == STRATEGY:
        strategies = list(counts)
        entries = [
            paint(f"{name} {count}", strategy_style(name, strategies, system), system)
            for name, count in counts.items()
        ]
    else:
        label, (low, high, is_bound) = metric_labels.label(what), metric_labels.span(what)
        steps = (low + (high - low) * (i + 0.5) / _SWATCHES for i in range(_SWATCHES))
        bar = "".join(paint(" ", metric_style(what, value, system), system) for value in steps)
        end = f"{high:g}{'' if is_bound else '+'} {label.unit}".rstrip()
        entries = [f"{label.title}  {low:g} {bar if system else 'to'} {end}"]
    if inserted:
        entries.append(paint("inserted", Style(underline=True), system))
    return "  ".join(entries)
