"""The report's page about traces of all kinds, in a real browser: several, incomplete, hostile and long ones."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import traces
from chromium import Watched
from playwright.sync_api import Browser, Page
from report_pages import TEXTS, focused, number, opened, settle, tokens, value

from entropix.metrics import Metrics
from entropix.report import shell

pytestmark = [pytest.mark.browser, pytest.mark.slow]

Open = Callable[..., Page]


@pytest.fixture
def show(browser: Browser, tmp_path: Path) -> Iterator[Open]:
    """Opens the page about traces with these paths. At the end it must not have complained or asked for anything."""
    watched = []

    def open_page(*paths: str, **options: Any) -> Page:
        watched.append(opened(browser, tmp_path, *paths, **options))
        return watched[-1].page

    yield open_page
    for each in watched:
        each.page.close()
        assert each.complaints == []


# ----- several traces and rows ------------------------------------------------------------------------------


def test_traces_stand_side_by_side_and_part_at_their_first_difference(show: Open, tmp_path: Path) -> None:
    other = [*TEXTS[:4], " at", " night"]
    page = show(
        traces.write(tmp_path / "a.jsonl", traces.tokens(TEXTS)),
        traces.write(tmp_path / "b.jsonl", traces.tokens(other), sampler="min-p"),
        viewport={"width": 1400, "height": 900},
    )
    forks = page.locator(".fork")
    assert forks.all_inner_texts() == ["First difference: token 5"] * 2
    after = forks.evaluate_all("all => all.map((fork) => fork.nextElementSibling.dataset.step)")
    assert after == ["4", "4"]
    left, right = (forks.nth(i).bounding_box() for i in range(2))
    assert left and right
    assert left["y"] == right["y"] and left["x"] + left["width"] < right["x"]
    tokens(page, 1).nth(5).hover()
    assert page.locator(".token.peer").evaluate_all("all => all.map((t) => t.textContent)") == [" because"]
    assert "min-p · token 6 of 6" in page.locator('[data-name="facts"]').inner_text()


def test_series_are_subtracted_as_far_as_both_go(show: Open, tmp_path: Path) -> None:
    page = show(
        traces.write(tmp_path / "a.jsonl", traces.tokens(TEXTS)),
        traces.write(tmp_path / "b.jsonl", traces.tokens("ab", logits_entropy=3.0), sampler="min-p"),
    )
    page.check("#difference")
    settle(page)
    drawn = page.evaluate("document.getElementById('series').data.map((t) => [t.name, t.y])")
    assert drawn == [["min-p", [2.875, 1.875]], ["min-p", [0, 0]]]
    assert page.evaluate("document.getElementById('series').layout.yaxis.title.text") == (
        "Δ logits entropy (bits)"
    )
    page.locator('.key button[data-name="min-p"]').click()
    settle(page)
    assert page.evaluate("document.getElementById('series').data.map((t) => t.visible)") == [False, False]


def test_a_trace_that_parts_later_than_others_has_a_mark_of_its_own(show: Open, tmp_path: Path) -> None:
    rows = ["abcd", "axxx", "abcx"]
    page = show(
        *(traces.write(tmp_path / f"{i}.jsonl", traces.tokens(row)) for i, row in enumerate(rows)),
    )
    assert page.locator("#strip-2 .fork").all_inner_texts() == ["First difference: token 2", "⑂"]


def test_equal_traces_have_no_mark_and_a_narrow_window_no_sideways_scrolling(
    show: Open, tmp_path: Path
) -> None:
    path = traces.write(tmp_path / "a.jsonl", traces.tokens(TEXTS))
    page = show(path, path, viewport={"width": 380, "height": 700})
    assert page.locator(".fork").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 380


def test_in_a_narrow_window_the_readout_begins_at_the_lower_edge_and_is_whole_below_the_text(
    show: Open, tmp_path: Path
) -> None:
    page = show(
        traces.write(tmp_path / "a.jsonl", traces.tokens(TEXTS * 60)), viewport={"width": 400, "height": 700}
    )
    page.locator("#strip-0 .token").nth(5).click()
    assert " because" in page.locator('[data-name="text"]').inner_text().replace("␣", " ")
    box = "(name) => document.querySelector(name).getBoundingClientRect()"
    quote = page.evaluate(box, '[data-name="text"]')
    assert 500 < quote["top"] < quote["bottom"] <= 700
    details = page.locator(".details")
    assert details.evaluate("e => [getComputedStyle(e).overflowY, e.scrollHeight <= e.clientHeight + 1]") == [
        "visible",
        True,
    ]
    details.evaluate(
        "e => window.scrollTo(0, document.querySelector('.texts').getBoundingClientRect().bottom)"
    )
    text, readout = page.evaluate(box, ".texts"), page.evaluate(box, ".details")
    assert text["bottom"] <= readout["top"] < text["bottom"] + 40
    assert page.evaluate("document.documentElement.scrollWidth") <= 400


def test_rows_can_be_chosen(show: Open, tmp_path: Path) -> None:
    page = show(traces.write(tmp_path / "a.jsonl", traces.tokens("abc"), traces.tokens("xy"), []))
    page.select_option("#row", "1")
    assert page.locator("#strip-0").inner_text() == "xy"
    assert page.locator("#matching").inner_text() == "2 tokens"
    page.select_option("#row", "2")
    assert page.locator("#strip-0").inner_text() == ""
    assert page.locator("#ending-0").inner_text().startswith("0 tokens")
    assert page.locator("#details").inner_text() == "No token."


def test_a_row_that_one_trace_lacks_is_shown_by_the_other(show: Open, tmp_path: Path) -> None:
    page = show(
        traces.write(tmp_path / "a.jsonl", traces.tokens("abc")),
        traces.write(tmp_path / "b.jsonl", traces.tokens("abc"), traces.tokens("xy")),
    )
    page.select_option("#row", "1")
    assert page.locator("#prompt-size-0").inner_text() == "No such row in this trace"
    assert page.locator("#strip-1").inner_text() == "xy"
    assert "token 1 of 2" in page.locator('[data-name="facts"]').inner_text()


# ----- what a trace may lack --------------------------------------------------------------------------------


def test_a_trace_without_extras_and_numbers_is_shown(show: Open, tmp_path: Path) -> None:
    nothing = dict.fromkeys(("temperature", "top_p", "min_p", "logprob", "draw_logprob", *Metrics._fields))
    page = show(
        traces.write(tmp_path / "a.jsonl", [traces.token(0, "a", **nothing)], finish="nan", sampler="min-p")
    )
    assert page.locator("#heads-section").is_hidden()
    assert page.locator(".alternatives").count() == 0
    assert value(page, "logits_entropy") == value(page, "probability") == "–"
    said = "document.getElementById('scatter-0').layout.annotations?.[0].text"
    assert page.evaluate(said) == "nothing to draw"
    page.select_option("#colour", "logits_entropy")
    assert page.locator(".token.nothing").count() == 1
    assert "not finite" in page.locator("#ending-0").inner_text()


def test_inserted_tokens_and_the_stop_token_are_marked(show: Open, tmp_path: Path) -> None:
    row = traces.tokens(["a", " ...", "<end>"])
    row[1]["injected"] = True
    page = show(traces.write(tmp_path / "a.jsonl", row, finish="stop_token"))
    classes = tokens(page).evaluate_all(
        "all => all.map((t) => ['injected', 'stop'].filter((c) => t.classList.contains(c)))"
    )
    assert classes == [[], ["injected"], ["stop"]]
    assert page.locator("#legend").inner_text() == "inserted"
    assert tokens(page).nth(1).get_attribute("aria-label") == "..., clarify, inserted"


def test_markup_in_a_token_is_text(show: Open, tmp_path: Path) -> None:
    """Also in plotly's labels, which know some HTML, and in a strategy's and a file's name."""
    hostile = [
        "</script><script>document.title = 'broken'</script>",
        "<img src=x onerror=\"document.title = 'broken'\">",
        "<!--",
        "%{x}<b>&lt;",
    ]
    rows = [
        {**record, "alternatives": [{**traces.alternatives(0, "a")[0], "text": record["text"]}]}
        for record in traces.tokens(hostile)
    ]
    page = show(traces.write(tmp_path / "<img src=x>.jsonl", rows, sampler="<b>"))
    assert page.title() != "broken"
    assert page.locator("#strip-0").inner_text() == "".join(hostile)
    assert page.locator("main img, main script, main b").count() == 0
    for step in range(len(hostile)):
        tokens(page).nth(step).hover()
        assert page.locator(".alternatives tbody th").first.inner_text().startswith("‘")
    assert page.title() != "broken"


def test_no_script_runs_but_the_pages_own(browser: Browser, tmp_path: Path) -> None:
    """A handler and a script in a body, as if escaping had failed: the policy stops both, and says so."""
    file = tmp_path / "page.html"
    body = (
        "<img src='data:,' onerror=\"document.title = 'broken'\"><script>document.title = 'broken'</script>"
    )
    file.write_text(
        shell.document("whole", body, data={"x": 1}, scripts=["document.body.id = report.data.x"])
    )
    watched = Watched(browser.new_page(), file)
    settle(watched.page)
    assert watched.page.title() == "whole"
    assert watched.page.evaluate("document.body.id") == "1"
    assert len([c for c in watched.complaints if "Content Security Policy" in c]) == 2
    watched.page.close()


# ----- what depends on the sampler and its draws -----------------------------------------------------------


def test_alternatives_name_the_chosen_token_even_where_it_is_none_of_the_likeliest(
    show: Open, tmp_path: Path
) -> None:
    unlikely = traces.token(0, "x", alternatives=traces.alternatives(5, "a"), draw_logprob=-0.5, logprob=-9.0)
    page = show(traces.write(tmp_path / "x.jsonl", [unlikely]))
    rows = page.locator(".alternatives tbody tr")
    assert rows.count() == 4
    assert rows.last.locator("th").inner_text() == "‘x’ ◂"
    assert page.locator(".alternatives .chosen").count() == 1


def test_only_samplers_that_choose_by_the_two_numbers_have_regions(show: Open, tmp_path: Path) -> None:
    row = traces.tokens(TEXTS)
    names = ("entropix-torch", "min-p")
    page = show(*(traces.write(tmp_path / f"{name}.jsonl", row, sampler=name) for name in names))
    kinds = [page.evaluate(f"document.getElementById('scatter-{i}').data[0].type") for i in range(2)]
    assert kinds == ["heatmap", "scatter"]


# ----- size -------------------------------------------------------------------------------------------------


def test_two_thousand_tokens_work(show: Open, tmp_path: Path) -> None:
    """With 5 alternatives and 30 × 9 heads each: the page stays below 9 MB, and everything reacts."""
    row = [
        traces.token(
            step,
            f" w{step % 97}",
            alternatives=[{**traces.alternatives(step, "a")[1], "id": i, "text": f"w{i}"} for i in range(5)],
            head_entropies=traces.heads(step, 30, 9),
        )
        for step in range(2000)
    ]
    page = show(traces.write(tmp_path / "long.jsonl", row))
    assert (tmp_path / "report.html").stat().st_size < 9e6
    tokens(page).nth(1998).hover()
    assert number(value(page, "logits_entropy")) == pytest.approx(1998.125, rel=1e-3)
    tokens(page).nth(1998).click()
    page.keyboard.press("ArrowRight")
    assert focused(page) == 1999
    settle(page)
    assert page.evaluate("document.getElementById('heads').data[0].z[29][8]") == pytest.approx(
        traces.heads(1999, 30, 9)[29][8], abs=1e-3
    )
    page.select_option("#colour", "margin")
    page.locator('.chip[data-strategy="flow"]').click()
    assert page.locator("#matching").inner_text() == "1600 of 2000 tokens"
