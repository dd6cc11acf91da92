"""A real browser for tests: Debian's `chromium` or another one of its kind, without a window."""

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
HINT = "no Chromium: `apt-get install chromium`, or name one in ENTROPIX_CHROMIUM"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def find() -> str | None:
    """The program; None if there is none."""
    named = os.environ.get("ENTROPIX_CHROMIUM")
    return named or next(filter(None, map(shutil.which, NAMES)), None)


@contextlib.contextmanager
def launch() -> Iterator[Browser]:
    """The browser. Where there is none, the test is skipped, but for CI (which sets CI), where it fails."""
    program = find()
    if program is None:
        (pytest.fail if os.environ.get("CI") else pytest.skip)(HINT)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(FLAGS))
        yield browser
        browser.close()


class Watched:
    """A page that was opened from a file, and what it did that it should not have done."""

    def __init__(self, page: Page, path: str | Path) -> None:
        self.page = page
        self.complaints: list[str] = []
        page.set_default_timeout(120_000)  # ms: a busy machine takes its time over plotly.js
        page.on("console", lambda message: self.complaints.append(f"console: {message.text}"))
        page.on("pageerror", lambda error: self.complaints.append(f"error: {error}"))
        page.on("request", lambda request: self._note(request.url))
        page.goto(Path(path).resolve().as_uri())
        page.wait_for_selector("html[data-ready]", state="attached")

    def _note(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.complaints.append(f"request: {url}")
