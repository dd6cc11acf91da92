"""The pages of `compare` and `sweep` in a real browser: they open offline, draw their plots and fit their window."""

from collections.abc import Callable
from pathlib import Path

import pytest
from chromium import Watched
from playwright.sync_api import Browser
from report_pages import settle

from entropix import compare, sweep

pytestmark = pytest.mark.browser

Command = Callable[..., tuple[int, str, str]]


@pytest.mark.parametrize(
    ("main", "flags", "n_rows", "n_figures"),
    [
        (compare.main, ("--samplers", "entropix,greedy"), 2, 4),
        (sweep.main, ("--sampler", "min-p", "--grid", "temp=0.5,1", "--grid", "min_p=0.1,0.2"), 4, 4),
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
    page.close()
    assert watched.complaints == []
