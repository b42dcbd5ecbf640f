"""Pages in a real Chromium, for tests."""

import shutil
from collections.abc import Iterator
from typing import Any

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

FLAGS = [
    *("--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
]


def chromium() -> Iterator[Browser]:
    """A browser, for a fixture to yield from."""
    path = shutil.which("chromium") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("there is no chromium to open the page with")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=FLAGS)
        yield browser
        browser.close()


class OpenedPage:
    """A page in a browser, and whatever its console complained of or it asked another server for."""

    def __init__(self, browser: Browser, url: str, **context: Any) -> None:
        self.page: Page = browser.new_page(**{"viewport": {"width": 1440, "height": 900}, **context})
        self.complaints: list[str] = []
        own = ("file:", "data:") if url.startswith("file:") else (url.split("?")[0], "data:")
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("request", lambda request: self._note(request.url, own))
        self.page.goto(url)

    def _note(self, url: str, own: tuple[str, ...]) -> None:
        if not url.startswith(own):
            self.complaints.append(f"asked for {url}")
