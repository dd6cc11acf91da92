"""What tests of the report's page share: opening it, and reading it."""

import math
from pathlib import Path
from typing import Any

import pytest
from chromium import Watched
from playwright.sync_api import Browser, Locator, Page

from entropix.metrics import Metrics
from entropix.report import page as report_page

TEXTS = ["The", " sky", " is", " blue", ",", " because", "\n", "light", " scatters", "."]


def opened(browser: Browser, folder: Path, *paths: str, **options: Any) -> Watched:
    """The page about traces with these paths, written into the folder and opened."""
    file = folder / "report.html"
    file.write_text(report_page.page(report_page.read(paths)), encoding="utf-8")
    watched = Watched(browser.new_page(**options), file)
    settle(watched.page)
    return watched


def settle(page: Page) -> None:
    """Waits until what was asked for is drawn: plots follow in the next frame."""
    page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")


def tokens(page: Page, trace: int = 0) -> Locator:
    return page.locator(f"#strip-{trace} .token")


def value(page: Page, name: str) -> str:
    """A number in the details, as shown."""
    return page.locator(f'#details tr[data-name="{name}"] td').first.inner_text()


def number(text: str) -> float:
    return float(text.replace("−", "-").removesuffix(" %"))


def assert_shows(page: Page, record: dict[str, Any]) -> None:
    """The details have every number of the record, to four digits."""
    facts = page.locator('[data-name="facts"]').inner_text()
    assert f"id {record['id']}" in facts and record["strategy"] in facts
    names = [*Metrics._fields, "temperature", "top_p", "top_k", "min_p", "kept", "logprob", "draw_logprob"]
    for name in names:
        assert number(value(page, name)) == pytest.approx(record[name], rel=1e-3), name
    assert number(value(page, "probability")) == pytest.approx(100 * math.exp(record["logprob"]), rel=1e-3)
    for alternative in record["alternatives"]:
        before, after = page.locator(f'#details tr[data-id="{alternative["id"]}"] td').all_inner_texts()
        assert number(before) == pytest.approx(100 * math.exp(alternative["logprob"]), rel=1e-3)
        if alternative["draw_logprob"] is None:
            assert after == "out"
        else:
            assert number(after) == pytest.approx(100 * math.exp(alternative["draw_logprob"]), rel=1e-3)


def focused(page: Page) -> int | None:
    step = page.evaluate("document.activeElement.dataset.step ?? null")
    return None if step is None else int(step)
