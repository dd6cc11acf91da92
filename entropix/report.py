"""What a reader sees of a generation: tokens coloured by strategy, a legend, and a table of figures."""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple, TextIO

from rich.color import ColorSystem
from rich.console import Console
from rich.style import Style

from entropix.generation import Result
from entropix.metrics import Metrics

# The terminal's own colour, for a sampler's first strategy; then the four of Okabe & Ito's palette for
# colour-blind readers ("Color Universal Design", 2008) whose contrast is 3 or more on white and on black.
# Beside each, what comes closest on terminals with sixteen colours.
PALETTE = ((None, None), ("#cc79a7", "magenta"), ("#0072b2", "blue"), ("#d55e00", "red"), ("#009e73", "cyan"))

_SYSTEMS = {
    "standard": ColorSystem.STANDARD,
    "256": ColorSystem.EIGHT_BIT,
    "truecolor": ColorSystem.TRUECOLOR,
}


class Timing(NamedTuple):
    """How long a generation took, in seconds from its start. None where it did not get so far."""

    first_token: float | None
    total: float
    tokens_per_second: float | None  # of the steady state: after the first chunk, which includes compilation
    forward_passes: int  # of decoding; with drafts fewer than the longest answer has tokens


# ----- colours ----------------------------------------------------------------------------------------------


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
    fine, coarse = PALETTE[strategies.index(strategy) % len(PALETTE)]
    style = Style(color=coarse if system == ColorSystem.STANDARD else fine, underline=injected or None)
    return style.render(text, color_system=system)


def legend(results: Sequence[Result], strategies: Sequence[str], system: ColorSystem | None) -> str:
    """One line: each strategy in its colour, with the number of its tokens."""
    counts = strategy_counts(results, strategies)
    entries = [paint(f"{name} {counts[name]}", name, strategies, system) for name in strategies]
    if any(record["injected"] for result in results for record in result.records):
        entries.append(Style(underline=True).render("inserted", color_system=system))
    return "  ".join(entries)


# ----- figures ----------------------------------------------------------------------------------------------


def strategy_counts(results: Sequence[Result], strategies: Sequence[str]) -> dict[str, int]:
    """How many tokens each strategy chose, those with none included."""
    counts = Counter(record["strategy"] for result in results for record in result.records)
    return {name: counts[name] for name in strategies}


def mean_metrics(results: Sequence[Result]) -> dict[str, float]:
    """Mean of every metric over all tokens, leaving out numbers that are not finite; NaN if none is left."""
    means = {}
    for name in Metrics._fields:
        values = [r[name] for result in results for r in result.records if r[name] is not None]
        means[name] = math.fsum(values) / len(values) if values else math.nan
    return means


def stats(results: Sequence[Result], strategies: Sequence[str], timing: Timing) -> str:
    """Lines of speed, strategy counts with their share, and mean metrics."""
    counts = strategy_counts(results, strategies)
    total = sum(counts.values())
    rows = [
        ("prompt tokens", str(sum(len(result.prompt_ids) for result in results)), ""),
        ("new tokens", str(total), ""),
        ("time to first token", _number(timing.first_token), "s, compilation included"),
        ("forward passes", str(timing.forward_passes), ""),
        ("total time", _number(timing.total), "s"),
        ("speed", _number(timing.tokens_per_second), "tokens/s after the first chunk"),
        *(
            (name, str(count), f"{100 * count / total:.1f} %" if total else "")
            for name, count in counts.items()
        ),
        *((f"mean {name}", _number(mean), "") for name, mean in mean_metrics(results).items()),
    ]
    return "\n".join(f"{name:30}{value:>10}  {unit}".rstrip() for name, value, unit in rows)


def _number(value: float | None) -> str:
    """Four significant digits; a dash for no value."""
    return "-" if value is None or math.isnan(value) else f"{value:.4g}"
