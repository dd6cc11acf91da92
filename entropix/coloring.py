"""Text on a terminal, coloured by what the sampler did."""

from collections.abc import Mapping, Sequence
from typing import TextIO

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from entropix import palette, statistics
from entropix.generation import Result

# What comes closest to `palette.STRATEGIES` on terminals with sixteen colours; the first is the terminal's own.
_COARSE = (None, "magenta", "blue", "red", "cyan")

_SYSTEMS = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
}


def color_system(choice: str, stream: TextIO, environment: Mapping[str, str]) -> ColorSystem | None:
    """The colours to write to a stream with; None for none.

    "auto" is for terminals that can, unless NO_COLOR is set (https://no-color.org). "always" takes 256
    colours where nobody says what can be shown. The third choice is "never".
    """
    if choice == "auto":
        dumb = environment.get("NO_COLOR") or environment.get("TERM") == "dumb"
        choice = "always" if stream.isatty() and not dumb else "never"
    if choice == "never":
        return None
    return _SYSTEMS.get(Console(file=stream).color_system or "", ColorSystem.EIGHT_BIT)


def paint(
    text: str, strategy: str, strategies: Sequence[str], system: ColorSystem | None, injected: bool = False
) -> str:
    """The text in the colour of a strategy, underlined if it was inserted.

    A sampler's first strategy, maybe its only one, has the terminal's own colour.
    """
    place = strategies.index(strategy) % len(_COARSE)
    fine = palette.STRATEGIES[place] if place else None
    style = Style(
        color=_COARSE[place] if system == ColorSystem.STANDARD else fine, underline=injected or None
    )
    return style.render(text, color_system=system)


def legend(results: Sequence[Result], strategies: Sequence[str], system: ColorSystem | None) -> str:
    """One line: each strategy in its colour, with the number of its tokens."""
    counts = statistics.strategy_counts(results, strategies)
    entries = [paint(f"{name} {counts[name]}", name, strategies, system) for name in strategies]
    if any(record["injected"] for result in results for record in result.records):
        entries.append(Style(underline=True).render("inserted", color_system=system))
    return "  ".join(entries)
