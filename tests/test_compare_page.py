"""The pages of `compare` and `sweep` in a real browser: they open offline, draw their plots and fit their window."""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from chromium import Watched
from playwright.sync_api import Browser
from report_pages import settle

from entropix import compare, sweep
from entropix.config import GenerateConfig
from entropix.lab import comparison_figures
from entropix.lab.experiments.summary import Summary
from entropix.report import looks

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.slow
@pytest.mark.browser
@pytest.mark.parametrize(
    ("main", "flags", "n_rows", "n_figures"),
    [
        (compare.main, ("--samplers", "entropix,greedy"), 2, 8),
        (sweep.main, ("--sampler", "min-p", "--grid", "temp=0.5,1", "--grid", "min_p=0.1,0.2"), 4, 7),
    ],
)
def test_the_page_opens_offline_without_complaint_and_draws_its_plots(
    run_command: Command,
    toy_folder: str,
    browser: Browser,
    tmp_path: Path,
    main: Callable[..., None],
    flags: tuple[str, ...],
    n_rows: int,
    n_figures: int,
) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("Why?\n<b>How</b> & when?\n")
    usual = ("--weights", toy_folder, "--seeds", "2", "--max-new-tokens", "8", "--out", str(tmp_path / "out"))
    assert run_command(main, "--prompts", str(prompts), *usual, *flags)[0] == 0
    page = browser.new_page(viewport={"width": 400, "height": 700})
    watched = Watched(page, tmp_path / "out" / "report.html")
    settle(page)
    assert page.locator("table.numbers tbody tr").count() == n_rows
    assert page.locator(".figure .main-svg").first.is_visible()
    drawn = page.locator(".figure").evaluate_all(
        "all => all.filter((e) => e.querySelector('.main-svg')).length"
    )
    assert (drawn, page.locator(".figure").count()) == (n_figures, n_figures)
    assert page.locator("details.prompt summary").all_inner_texts() == ["1. Why?", "2. <b>How</b> & when?"]
    assert page.evaluate("document.documentElement.scrollWidth") <= 400
    assert "-" not in "".join(page.locator("table.numbers td").all_inner_texts())  # a minus is one
    button = page.locator(".key button").first
    button.click()
    settle(page)
    hidden = page.evaluate("document.getElementById('entropies').data.map((line) => line.visible ?? true)")
    assert hidden == [False] + [True] * (n_rows - 1) and button.get_attribute("aria-pressed") == "false"
    page.close()
    assert watched.complaints == []


def test_answers_at_the_limit_are_told_from_those_that_ended() -> None:
    """Of three answers of 8 tokens two were cut off, which is one mark."""
    lines = [
        {"variant": "a", "new_tokens": n, "finish": finish}
        for n, finish in ((8, "length"), (8, "context"), (8, "stop_token"), (3, "stop_string"))
    ]
    nothing: dict[str, dict[str, Any]] = {
        name: {} for name in ("strategies", "means", "intervals", "contrasts", "corrected")
    }
    finishes = dict(Counter(line["finish"] for line in lines))
    costs: dict[str, Any] = dict.fromkeys(("tokens_per_second", "length_sd", "paths"))
    found = Summary(
        label="a", answers=4, tokens=27, computed_tokens=27, finishes=finishes, **costs, **nothing
    )
    options = GenerateConfig(max_new_tokens=8)
    section = comparison_figures.lengths(SimpleNamespace(options=options), [found], lines)  # type: ignore[arg-type]
    ended, cut, median = section.plots[0].figure.data
    assert (ended.x, cut.x, median.x) == ((3, 8), (8,), (None,))  # the median answer was cut off
    assert (ended.y, cut.y) == ((0, 0), (0,))
    assert section.plots[0].figure.layout.yaxis.ticktext[0].endswith(">2 of 4 cut off</span>")
    assert section.note.startswith("2 of 4 answers were cut off by the limit")


def test_things_drawn_together_look_different() -> None:
    assert len(set(map(looks.look, range(210)))) == 210
