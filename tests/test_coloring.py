"""Colours on a terminal and their legend."""

import io
import itertools
import re

import pytest
from results import record
from rich.color import Color, ColorSystem
from rich.style import Style

from entropix import metric_labels
from entropix.console import coloring
from entropix.console.coloring import Choice
from entropix.metrics import Metrics
from entropix.samplers import SAMPLERS
from entropix.samplers.entropix import STRATEGIES

TRUE = ColorSystem.TRUECOLOR
SYSTEMS = list(ColorSystem)[:3]
ESCAPE = re.compile(r"\x1b\[[0-9;]*m")


@pytest.fixture(autouse=True)
def styles_of_no_other_test() -> None:
    """Rich keeps the codes of a sum of styles, whatever colours the terminal had that they were first made for."""
    Style._add.cache_clear()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(
    ("when", "stream", "environment", "colored"),
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
    when: str, stream: io.StringIO, environment: dict[str, str], colored: bool
) -> None:
    assert (coloring.color_system(when, stream, environment) is not None) == colored


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("auto", Choice("strategy", "auto")),
        ("never", Choice("strategy", "never")),
        ("strategy", Choice("strategy", "auto")),
        ("top_prob", Choice("top_prob", "auto")),
        ("always,top_prob", Choice("top_prob", "always")),
        ("logits_entropy, always", Choice("logits_entropy", "always")),
    ],
)
def test_a_choice_says_what_or_when_or_both(text: str, choice: Choice) -> None:
    assert coloring.read_choice(text) == choice


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("pink", "--color pink: unknown word 'pink'; there are strategy, logits_entropy, "),
        ("logit_entropy", "unknown word 'logit_entropy'; did you mean logits_entropy?"),
        ("always,", "unknown word ''"),
        ("always,never", "give one thing to show and one of auto, always, never"),
        ("top_prob,margin", "give one thing to show"),
    ],
)
def test_words_that_are_no_choice_are_refused(text: str, message: str) -> None:
    with pytest.raises(ValueError, match=re.escape(message)):
        coloring.read_choice(text)


# ----- contrast ---------------------------------------------------------------------------------------------


def contrast(a: Color, b: Color) -> float:
    """Of "#rrggbb" colours (WCAG 2.2), from 1 to 21."""
    light, dark = sorted((luminance(color.get_truecolor()) for color in (a, b)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(channels: tuple[int, int, int]) -> float:
    """WCAG's relative luminance, written down here a second time."""
    linear = [
        c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (x / 255 for x in channels)
    ]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def shown(color: Color | None, system: ColorSystem) -> Color:
    """The colour as a terminal of that kind gets it."""
    assert color is not None
    return color.downgrade(system)


@pytest.mark.parametrize("color", metric_labels.STRATEGIES)
def test_every_strategy_can_be_read_on_white_and_on_black(color: str) -> None:
    """Contrast of at least 3 to 1, WCAG's minimum for large text and for what is not text."""
    assert contrast(Color.parse(color), Color.parse("#ffffff")) >= 3
    assert contrast(Color.parse(color), Color.parse("#000000")) >= 3


@pytest.mark.parametrize("system", SYSTEMS)
def test_letters_can_be_read_all_along_a_scale(system: ColorSystem) -> None:
    """WCAG's minimum for text, also where the terminal rounds the colours (sixteen as in rich's table of them)."""
    for step in range(401):
        style = coloring.metric_style("logits_entropy", 8 * step / 400, system)
        letters, behind = shown(style.color, system), shown(style.bgcolor, system)
        assert contrast(letters, behind) >= 4.5, step


@pytest.mark.parametrize("color", metric_labels.STRATEGIES)
@pytest.mark.parametrize("system", SYSTEMS)
def test_letters_can_be_read_on_every_strategy(color: str, system: ColorSystem) -> None:
    style = coloring.on(Color.parse(color), system)
    assert contrast(shown(style.color, system), shown(style.bgcolor, system)) >= 4.5


def test_a_scale_grows_lighter_from_end_to_end() -> None:
    """Strictly, so that it can be read without telling hues apart."""
    lightness = [luminance(Color.parse(metric_labels.scale_color(i / 64)).get_truecolor()) for i in range(65)]
    assert all(a < b for a, b in itertools.pairwise(lightness))
    assert (metric_labels.scale_color(0), metric_labels.scale_color(1)) == (
        metric_labels.SCALE[0],
        metric_labels.SCALE[-1],
    )
    assert metric_labels.scale_color(0.5) == metric_labels.SCALE[4]


# ----- tokens -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("system", SYSTEMS)
def test_every_strategy_looks_different_on_every_terminal(system: ColorSystem) -> None:
    looks = {coloring.strategy_style(name, STRATEGIES, system).render("x") for name in STRATEGIES}
    assert len(looks) == len(STRATEGIES) == len(metric_labels.STRATEGIES)


def test_a_sampler_with_one_strategy_is_not_coloured() -> None:
    style = coloring.strategy_style("greedy", SAMPLERS["greedy"].strategies, TRUE)
    assert coloring.paint("x", style, TRUE) == "x"


def painted(text: str, what: str, **fields: object) -> str:
    token = record("flow") | fields
    return coloring.paint(text, coloring.token_style(token, what, STRATEGIES, TRUE), TRUE)


def test_tokens_have_the_colour_of_their_strategy_and_inserted_ones_a_line_below() -> None:
    assert painted("ab", "strategy", strategy="explore") == "\x1b[38;2;0;114;178mab\x1b[0m"
    inserted = painted("ab", "strategy", strategy="clarify", injected=True)
    assert inserted == "\x1b[4;38;2;204;121;167mab\x1b[0m"
    assert painted("ab", "strategy") == "ab"


def test_tokens_have_the_colour_of_their_metric_behind_them() -> None:
    low, high = "\x1b[38;2;255;255;255;48;2;68;1;84mab\x1b[0m", "\x1b[38;2;0;0;0;48;2;253;231;37mab\x1b[0m"
    assert painted("ab", "logits_entropy", logits_entropy=0.0) == low
    assert painted("ab", "logits_entropy", logits_entropy=8.0) == high
    assert painted("ab", "logits_entropy", logits_entropy=13.0) == high
    assert painted("ab", "top_prob", top_prob=1.0) == high
    assert painted("ab", "top_prob", top_prob=0.5) == "\x1b[38;2;0;0;0;48;2;33;145;140mab\x1b[0m"


def test_no_number_is_shown_plainly() -> None:
    assert painted("ab", "logits_entropy", logits_entropy=None) == "ab"
    assert painted("ab", "margin", margin=None, injected=True) == "\x1b[4mab\x1b[0m"


def test_sixteen_colours_show_four_steps_of_a_metric() -> None:
    system = ColorSystem.STANDARD
    looks = [
        coloring.metric_style("top_prob", i / 100, system).render("x", color_system=system)
        for i in range(101)
    ]
    assert [looks.count(look) for look in dict.fromkeys(looks)] == [25, 25, 25, 26]


def test_every_metric_has_a_scale() -> None:
    assert metric_labels.SPANS.keys() == metric_labels.METRICS.keys() == set(Metrics._fields)
    assert all(low < high for low, high, _ in metric_labels.SPANS.values())


@pytest.mark.parametrize(
    "text", ["\ttab", "a\nb\r\n", "\n\n", "\x07\x1b", "", "  ", "[bold]markup[/]", "é\u2028"]
)
@pytest.mark.parametrize("what", ["strategy", "logits_entropy"])
def test_colours_add_codes_and_change_no_character(text: str, what: str) -> None:
    for name in STRATEGIES:
        style = coloring.token_style(record(name, injected=True), what, STRATEGIES, TRUE)
        assert ESCAPE.sub("", coloring.paint(text, style, TRUE)) == text
        assert coloring.paint(text, style, None) == text


def test_line_ends_are_never_coloured() -> None:
    style = Style(bgcolor="#ff0000")
    on, off = "\x1b[48;2;255;0;0m", "\x1b[0m"
    assert coloring.paint("a\r\n\nb\n", style, TRUE) == f"{on}a{off}\r\n\n{on}b{off}\n"


# ----- the legend -------------------------------------------------------------------------------------------

COUNTS = {"flow": 1, "clarify": 0, "explore": 2, "resample": 0, "adaptive": 0}


def test_the_legend_counts_every_strategy_in_its_colour() -> None:
    legend = coloring.legend("strategy", COUNTS, TRUE)
    assert ESCAPE.sub("", legend) == "flow 1  clarify 0  explore 2  resample 0  adaptive 0"
    assert "\x1b[38;2;0;114;178mexplore 2\x1b[0m" in legend
    assert coloring.legend("strategy", COUNTS, None) == ESCAPE.sub("", legend)


def test_the_legend_of_a_metric_is_its_scale_with_ends_and_unit() -> None:
    legend = coloring.legend("logits_entropy", COUNTS, TRUE)
    assert ESCAPE.sub("", legend) == f"logits entropy  0 {' ' * 24} 8+ bits"
    behind = re.findall(r"48;2;(\d+);(\d+);(\d+)m \x1b", legend)
    colors = [metric_labels.scale_color((i + 0.5) / 24) for i in range(24)]
    assert [f"#{int(r):02x}{int(g):02x}{int(b):02x}" for r, g, b in behind] == colors
    assert coloring.legend("logits_entropy", COUNTS, None) == "logits entropy  0 to 8+ bits"
    assert coloring.legend("margin", COUNTS, None) == "margin  0 to 1"


@pytest.mark.parametrize("what", ["strategy", "margin"])
def test_the_legend_explains_underlines_where_there_are_any(what: str) -> None:
    assert coloring.legend(what, COUNTS, TRUE, inserted=True).endswith("  \x1b[4minserted\x1b[0m")
    assert "inserted" not in coloring.legend(what, COUNTS, TRUE)


def test_what_a_terminal_would_obey_is_shown_instead() -> None:
    assert coloring.visible("a\x1b[31mb\x07\x9b2J\x7f\tc\n") == "a\\x1b[31mb\\x07\\x9b2J\\x7f\tc\n"
    assert coloring.visible("é☃ 😀") == "é☃ 😀"
