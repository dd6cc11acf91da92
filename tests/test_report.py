"""Colours, legend and statistics."""

import io
import math
import re

import pytest
from rich.color import ColorSystem

from entropix import report
from entropix.generation import Result
from entropix.metrics import Metrics
from entropix.samplers import SAMPLERS
from entropix.samplers.entropix import STRATEGIES

TRUE = ColorSystem.TRUECOLOR
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def record(strategy: str, injected: bool = False, **metrics: float | None) -> dict[str, object]:
    return {"strategy": strategy, "injected": injected, **dict.fromkeys(Metrics._fields, 1.0), **metrics}


def result(*records: dict[str, object]) -> Result:
    return Result(prompt_ids=[1, 2, 3], token_ids=[0] * len(records), records=list(records))


# ----- colours ----------------------------------------------------------------------------------------------


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
    assert (report.color_system(choice, stream, environment) is not None) == colored


def luminance(color: str) -> float:
    """Relative luminance of "#rrggbb" (WCAG 2.2)."""
    channels = [int(color[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))


@pytest.mark.parametrize("color", [fine for fine, _ in report.PALETTE if fine])
def test_every_colour_can_be_read_on_white_and_on_black(color: str) -> None:
    """Contrast of at least 3 to 1, WCAG's minimum for large text and for what is not text."""
    assert 1.05 / (luminance(color) + 0.05) >= 3
    assert (luminance(color) + 0.05) / 0.05 >= 3


@pytest.mark.parametrize("system", list(ColorSystem)[:3])
def test_every_strategy_looks_different_on_every_terminal(system: ColorSystem) -> None:
    looks = {report.paint("x", name, STRATEGIES, system) for name in STRATEGIES}
    assert len(looks) == len(STRATEGIES) == len(report.PALETTE)


def test_a_sampler_with_one_strategy_is_not_coloured() -> None:
    assert report.paint("x", "greedy", SAMPLERS["greedy"].strategies, TRUE) == "x"


def test_tokens_have_the_colour_of_their_strategy_and_inserted_ones_a_line_below() -> None:
    assert report.paint("ab", "explore", STRATEGIES, TRUE) == "\x1b[38;2;0;114;178mab\x1b[0m"
    inserted = report.paint("ab", "clarify", STRATEGIES, TRUE, injected=True)
    assert inserted == "\x1b[4;38;2;204;121;167mab\x1b[0m"
    assert report.paint("ab", "flow", STRATEGIES, TRUE) == "ab"


@pytest.mark.parametrize("text", ["\ttab", "a\nb\r\n", "\x07\x1b", "", "  ", "[bold]markup[/]", "é\u2028"])
def test_colours_add_codes_and_change_no_character(text: str) -> None:
    for name in STRATEGIES:
        assert ESCAPE.sub("", report.paint(text, name, STRATEGIES, TRUE)) == text
        assert report.paint(text, name, STRATEGIES, None, injected=True) == text


def test_the_legend_counts_every_strategy_in_its_colour() -> None:
    results = [result(record("flow"), record("explore")), result(record("explore"))]
    legend = report.legend(results, STRATEGIES, TRUE)
    assert ESCAPE.sub("", legend) == "flow 1  clarify 0  explore 2  resample 0  adaptive 0"
    assert report.paint("explore 2", "explore", STRATEGIES, TRUE) in legend
    assert report.legend(results, STRATEGIES, None) == ESCAPE.sub("", legend)


def test_the_legend_explains_underlines_where_there_are_any() -> None:
    legend = report.legend([result(record("clarify", True))], STRATEGIES, TRUE)
    assert legend.endswith("  \x1b[4minserted\x1b[0m")


# ----- figures ----------------------------------------------------------------------------------------------


def test_means_are_over_tokens_and_not_over_rows() -> None:
    long = result(*(record("flow", margin=x) for x in (1.0, 2.0, 3.0)))
    short = result(record("flow", margin=10.0))
    assert report.mean_metrics([long, short])["margin"] == 4.0


def test_means_leave_out_what_is_not_finite() -> None:
    means = report.mean_metrics([result(record("flow", margin=None), record("flow", margin=3.0))])
    assert means["margin"] == 3.0
    assert means.keys() == set(Metrics._fields)
    assert all(math.isnan(mean) for mean in report.mean_metrics([result()]).values())


def test_statistics_are_a_line_a_figure() -> None:
    results = [result(record("flow"), record("flow"), record("explore", logits_entropy=2.5)), result()]
    timing = report.Timing(first_token=1.23456, total=2.0, tokens_per_second=12.3456, forward_passes=7)
    assert report.stats(results, STRATEGIES, timing).split("\n")[:12] == [
        "prompt tokens                          6",
        "new tokens                             3",
        "time to first token                1.235  s, compilation included",
        "forward passes                         7",
        "total time                             2  s",
        "speed                              12.35  tokens/s after the first chunk",
        "flow                                   2  66.7 %",
        "clarify                                0  0.0 %",
        "explore                                1  33.3 %",
        "resample                               0  0.0 %",
        "adaptive                               0  0.0 %",
        "mean logits_entropy                  1.5",
    ]


def test_statistics_of_nothing_are_dashes() -> None:
    lines = report.stats([result()], ("greedy",), report.Timing(None, 0.5, None, 1)).split("\n")
    assert lines[2:7] == [
        "time to first token                    -  s, compilation included",
        "forward passes                         1",
        "total time                           0.5  s",
        "speed                                  -  tokens/s after the first chunk",
        "greedy                                 0",
    ]
    assert lines[7] == "mean logits_entropy                    -"
