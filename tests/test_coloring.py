"""Colours on a terminal and their legend."""

import io
import re

import pytest
from results import record, result
from rich.color import ColorSystem

from entropix import coloring, palette
from entropix.samplers import SAMPLERS
from entropix.samplers.entropix import STRATEGIES

TRUE = ColorSystem.TRUECOLOR
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("choice", "stream", "environment", "colored"),
    [
        ("auto", Terminal(), {"TERM": "xterm-256color"}, True),
        ("auto", Terminal(), {}, True),
        ("auto", Terminal(), {"NO_COLOR": "1"}, False),
        ("auto", Terminal(), {"NO_COLOR": ""}, True),
        ("auto", Terminal(), {"TERM": "dumb"}, False),
        ("auto", io.StringIO(), {"TERM": "xterm-256color"}, False),
        ("always", io.StringIO(), {"NO_COLOR": "1", "TERM": "dumb"}, True),
        ("never", Terminal(), {"TERM": "xterm-256color"}, False),
    ],
)
def test_colours_are_for_terminals_unless_told_otherwise(
    choice: str, stream: io.StringIO, environment: dict[str, str], colored: bool
) -> None:
    assert (coloring.color_system(choice, stream, environment) is not None) == colored


def luminance(color: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.2)."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("color", palette.STRATEGIES)
def test_every_colour_can_be_read_on_white_and_on_black(color: str) -> None:
    """Contrast of at least 3 to 1, WCAG's minimum for large text and for what is not text."""
    assert 1.05 / (luminance(color) + 0.05) >= 3
    assert (luminance(color) + 0.05) / 0.05 >= 3


@pytest.mark.parametrize("system", list(ColorSystem)[:3])
def test_every_strategy_looks_different_on_every_terminal(system: ColorSystem) -> None:
    looks = {coloring.paint("x", name, STRATEGIES, system) for name in STRATEGIES}
    assert len(looks) == len(STRATEGIES) == len(palette.STRATEGIES)


def test_a_sampler_with_one_strategy_is_not_coloured() -> None:
    assert coloring.paint("x", "greedy", SAMPLERS["greedy"].strategies, TRUE) == "x"


def test_tokens_have_the_colour_of_their_strategy_and_inserted_ones_a_line_below() -> None:
    assert coloring.paint("ab", "explore", STRATEGIES, TRUE) == "\x1b[38;2;0;114;178mab\x1b[0m"
    inserted = coloring.paint("ab", "clarify", STRATEGIES, TRUE, injected=True)
    assert inserted == "\x1b[4;38;2;204;121;167mab\x1b[0m"
    assert coloring.paint("ab", "flow", STRATEGIES, TRUE) == "ab"


@pytest.mark.parametrize("text", ["\ttab", "a\nb\r\n", "\x07\x1b", "", "  ", "[bold]markup[/]", "é\u2028"])
def test_colours_add_codes_and_change_no_character(text: str) -> None:
    for name in STRATEGIES:
        assert ESCAPE.sub("", coloring.paint(text, name, STRATEGIES, TRUE)) == text
        assert coloring.paint(text, name, STRATEGIES, None, injected=True) == text


def test_the_legend_counts_every_strategy_in_its_colour() -> None:
    results = [result(record("flow"), record("explore")), result(record("explore"))]
    legend = coloring.legend(results, STRATEGIES, TRUE)
    assert ESCAPE.sub("", legend) == "flow 1  clarify 0  explore 2  resample 0  adaptive 0"
    assert coloring.paint("explore 2", "explore", STRATEGIES, TRUE) in legend
    assert coloring.legend(results, STRATEGIES, None) == ESCAPE.sub("", legend)


def test_the_legend_explains_underlines_where_there_are_any() -> None:
    legend = coloring.legend([result(record("clarify", True))], STRATEGIES, TRUE)
    assert legend.endswith("  \x1b[4minserted\x1b[0m")
