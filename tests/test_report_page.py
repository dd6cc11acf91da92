"""The report's page about one trace, in a real browser: what it shows, how it is used, how it looks."""

from collections.abc import Iterator
from typing import Any

import pytest
import traces
from chromium import Watched
from playwright.sync_api import Browser, Page
from report_pages import TEXTS, assert_shows, focused, opened, settle, tokens

from entropix import metric_labels
from entropix.samplers.entropix import SamplerConfig

pytestmark = [pytest.mark.browser, pytest.mark.slow]


@pytest.fixture(scope="module")
def shared(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Watched]:
    """The page about one row with all that can be recorded, opened once, because plotly.js takes its time."""
    folder = tmp_path_factory.mktemp("shared")
    watched = opened(browser, folder, traces.write(folder / "a.jsonl", traces.tokens(TEXTS)))
    yield watched
    watched.page.close()


@pytest.fixture
def page(shared: Watched) -> Iterator[Page]:
    """`shared` as if it had just been opened."""
    page = shared.page
    page.emulate_media(color_scheme="light")
    page.mouse.move(0, 0)
    page.evaluate(AFRESH)
    settle(page)
    yield page
    assert shared.complaints == []


AFRESH = """() => {
  document.activeElement.blur();
  delete document.documentElement.dataset.theme;
  for (const [id, value] of [["colour", "strategy"], ["metric", ""], ["least", ""], ["most", ""]]) at(id).value = value;
  Object.assign(state, { colour: "strategy", metric: "", least: -Infinity, most: Infinity });
  state.hidden.clear();
  showRow();
}"""


# ----- reading a token --------------------------------------------------------------------------------------


def test_hovering_shows_the_numbers_of_the_token_and_leaving_those_of_the_selected(page: Page) -> None:
    records = traces.tokens(TEXTS)
    for step in (3, 9, 1):
        tokens(page).nth(step).hover()
        assert_shows(page, records[step])
        assert page.locator('[data-name="text"]').inner_text() == f"‘{TEXTS[step].replace(' ', '␣')}’"
    page.mouse.move(0, 0)
    assert_shows(page, records[0])


def test_the_strip_reads_as_the_text(page: Page) -> None:
    shown = page.locator("#strip-0").evaluate("strip => strip.textContent")
    assert shown.replace("↵", "") == "".join(TEXTS)


def test_the_heat_map_has_the_selected_tokens_head_entropies(page: Page) -> None:
    tokens(page).nth(5).hover()
    settle(page)
    shown = page.evaluate("document.getElementById('heads').data[0].z")
    largest = max(map(max, traces.heads(7)))
    for row, expected in zip(shown, traces.heads(5), strict=True):
        assert row == pytest.approx(expected, abs=0.5 * largest / 254 + 1e-9)  # half a step of a byte


def test_clicking_a_point_selects_its_token(page: Page) -> None:
    page.evaluate(
        "document.getElementById('scatter-0').emit('plotly_click', {points: [{customdata: 7}]});"
        "document.getElementById('series').emit('plotly_hover', {points: [{customdata: [0, 2]}]})"
    )
    assert tokens(page).nth(7).get_attribute("aria-selected") == "true"
    assert "token 3 of 10" in page.locator('[data-name="facts"]').inner_text()


# ----- the keyboard -----------------------------------------------------------------------------------------


def test_arrow_keys_walk_through_the_tokens_and_the_details_follow(page: Page) -> None:
    records = traces.tokens(TEXTS)
    tokens(page).first.focus()
    walk = [
        ("ArrowRight", 1),
        ("ArrowRight", 2),
        ("ArrowLeft", 1),
        ("End", 9),
        ("ArrowRight", 9),
        ("Home", 0),
    ]
    for key, step in walk:
        page.keyboard.press(key)
        assert focused(page) == step, key
        assert_shows(page, records[step])
    page.keyboard.press("ArrowDown")
    assert focused(page) == 7  # the token below: the line breaks after the seventh
    page.keyboard.press("ArrowUp")
    assert focused(page) == 0


def test_one_token_of_a_strip_is_a_tab_stop_and_it_is_the_selected(page: Page) -> None:
    tokens(page).nth(4).click()
    assert page.locator('#strip-0 [tabindex="0"]').evaluate_all("all => all.map((t) => t.dataset.step)") == [
        "4"
    ]
    page.locator("#most").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")  # past the summary of the prompt
    assert focused(page) == 4


def test_tokens_and_plots_have_words_for_screen_readers(page: Page) -> None:
    assert tokens(page).nth(1).get_attribute("aria-label") == "sky, clarify"
    assert tokens(page).nth(6).get_attribute("aria-label") == "line break, clarify"
    tokens(page).nth(1).focus()
    said = page.locator("#announcement").inner_text()
    assert said.startswith("sky: clarify; probability 96.92 %; entropy 1.125 bits")
    assert page.locator('[role="img"]:not([aria-label])').count() == 0
    assert "flow 2, clarify 2" in (page.locator("#timeline-0").get_attribute("aria-label") or "")


# ----- colours and filters ----------------------------------------------------------------------------------


def test_a_metric_colours_the_tokens_by_its_value(page: Page) -> None:
    page.select_option("#colour", "attn_entropy")
    shares = tokens(page).evaluate_all("all => all.map((t) => Number(t.style.getPropertyValue('--share')))")
    assert shares == sorted(shares) and (shares[0], shares[-1]) == (0, 1)
    assert tokens(page).nth(2).get_attribute("aria-label") == "is, attention entropy 2.375"
    legend = page.locator("#legend").inner_text()
    assert metric_labels.METRICS["attn_entropy"].meaning in legend and "9.375 bits" in legend


def test_strategies_can_be_hidden_and_are_passed_over_then(page: Page) -> None:
    chip = page.locator('.chip[data-strategy="clarify"]')
    assert chip.inner_text().split() == ["clarify", "2"]
    chip.click()
    assert chip.get_attribute("aria-pressed") == "false"
    out = page.locator(".token.out").evaluate_all("all => all.map((t) => t.dataset.step)")
    assert out == ["1", "6"]
    assert page.locator("#matching").inner_text() == "8 of 10 tokens"
    tokens(page).first.focus()
    page.keyboard.press("ArrowRight")
    assert focused(page) == 2
    settle(page)
    points = (
        "document.getElementById('scatter-0').data.filter((t) => t.type === 'scatter').map((t) => t.x.length)"
    )
    assert page.evaluate(points) == [2, 0, 2, 2, 2]
    chip.click()
    assert page.locator(".token.out").count() == 0


def test_a_range_of_a_metric_leaves_the_tokens_inside(page: Page) -> None:
    page.select_option("#metric", "logits_entropy")  # is step + 1/8
    page.fill("#least", "3")
    page.fill("#most", "5.125")
    inside = page.locator(".token:not(.out)").evaluate_all("all => all.map((t) => Number(t.dataset.step))")
    assert inside == [3, 4, 5]
    assert page.locator("#matching").inner_text() == "3 of 10 tokens"


# ----- plots ------------------------------------------------------------------------------------------------


def test_the_scatter_has_every_token_where_its_metrics_are(page: Page) -> None:
    data = page.evaluate("document.getElementById('scatter-0').data.slice(1).map((t) => [t.name, t.x, t.y])")
    found = {(name, x, y) for name, xs, ys in data for x, y in zip(xs, ys, strict=True)}
    assert found == {
        (record["strategy"], record["logits_entropy"], record["logits_varentropy"])
        for record in traces.tokens(TEXTS)
    }


def test_the_plane_has_the_axes_that_are_chosen_and_the_rules_thresholds_on_them(page: Page) -> None:
    page.select_option("#across", "logits_varentropy")
    page.select_option("#up", "logits_entropy")
    settle(page)
    area, first, *_ = page.evaluate("document.getElementById('scatter-0').data")
    record = traces.tokens(TEXTS)[0]
    assert (first["x"][0], first["y"][0]) == (record["logits_varentropy"], record["logits_entropy"])
    assert area["transpose"] and 0.1 in area["y"] and 0.1 in area["x"]  # the low thresholds
    page.select_option("#up", "margin")
    settle(page)
    kinds = page.evaluate("document.getElementById('scatter-0').data.map((t) => t.type)")
    lines = page.evaluate("document.getElementById('scatter-0').layout.shapes.map((s) => [s.type, s.x0])")
    cfg = SamplerConfig()
    assert set(kinds) == {"scatter"}
    assert lines[:-1] == [["line", cfg.low_vent_thresh], ["line", cfg.high_vent_thresh]]
    title = page.evaluate("document.getElementById('scatter-0').layout.yaxis.title.text")
    assert title == metric_labels.axis_title("margin")
    page.select_option("#across", "logits_entropy")
    page.select_option("#up", "logits_varentropy")


def test_a_series_can_be_a_mean_of_the_tokens_around(page: Page) -> None:
    page.select_option("#smoothing", "5")
    settle(page)
    raw, mean, *_ = page.evaluate("document.getElementById('series').data.map((t) => t.y)")
    page.select_option("#smoothing", "1")
    assert raw == [step + 1 / 8 for step in range(10)]
    assert mean == pytest.approx([1.125, 1.625, *raw[2:8], 7.625, 8.125])


def test_the_heat_map_and_the_controls_are_in_the_first_screen(page: Page) -> None:
    for size, element, share in (((1400, 900), "#heads", 1), ((390, 800), ".controls", 0.25)):
        page.set_viewport_size({"width": size[0], "height": size[1]})
        settle(page)
        box = page.locator(element).bounding_box()
        assert box and box["y"] + box["height"] <= share * size[1], element
    glance = page.locator(".glance")
    assert glance.inner_text().split() == [
        *("probability", "100", "%", "entropy", "0.125", "bits", "varentropy", "0.25", "bits²"),
        *("temperature", "0.5"),
    ]
    box = glance.bounding_box()
    assert box and box["y"] + box["height"] <= 800
    page.set_viewport_size({"width": 1280, "height": 720})


def test_the_series_shows_the_chosen_metrics(page: Page) -> None:
    page.select_option("#below", "margin")
    settle(page)
    upper, lower = page.evaluate("document.getElementById('series').data.map((t) => t.y)")
    records = traces.tokens(TEXTS)
    assert upper == [record["logits_entropy"] for record in records]
    assert lower == [record["margin"] for record in records]


def test_the_timeline_counts_the_strategies(page: Page) -> None:
    lanes = page.evaluate("document.getElementById('timeline-0').layout.yaxis.ticktext")
    assert lanes == [f"{name}  2 (20 %)" for name in ("flow", "clarify", "explore", "resample", "adaptive")]
    assert page.evaluate("document.getElementById('timeline-0').data[3].x") == [4, 9]


# ----- looks ------------------------------------------------------------------------------------------------


def luminance(color: list[float]) -> float:
    """Relative luminance of WCAG 2.2."""
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in (v / 255 for v in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: list[float], b: list[float]) -> float:
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


PIXELS = """colors => {
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  return colors.map((color) => {
    context.fillStyle = color;
    context.fillRect(0, 0, 1, 1);
    return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
  });
}"""


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize("colour", ["strategy", "logits_entropy"])
def test_text_is_legible_on_every_colour(page: Page, theme: Any, colour: str) -> None:
    """A contrast of at least 4.5, WCAG 2.2's AA, of every token's text and of what is muted."""
    page.emulate_media(color_scheme=theme)
    page.select_option("#colour", colour)
    styles = page.locator(".token .ink").evaluate_all(
        "all => all.map((ink) => [getComputedStyle(ink).color, getComputedStyle(ink).backgroundColor])"
    )
    ground, text, muted = (page.evaluate(f"report.colour('{name}')") for name in ("ground", "text", "muted"))
    for color, background in [*styles, [muted, ground], [text, ground]]:
        pixels = page.evaluate(PIXELS, [ground, background, color])
        assert contrast(pixels[1], pixels[2]) >= 4.5, (color, background)


def test_the_theme_follows_the_reader_and_the_button_and_so_do_the_plots(page: Page) -> None:
    page.emulate_media(color_scheme="dark")

    def colors() -> list[str]:
        settle(page)
        font = "document.getElementById('series').layout.font.color"
        return [page.evaluate(c) for c in ("getComputedStyle(document.body).color", font)]

    dark = colors()
    page.locator("#theme").click()
    light = colors()
    assert dark[0] == dark[1] != light[0] == light[1]
    page.locator("#theme").click()
    assert colors() == dark
