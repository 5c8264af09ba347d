"""Pages in a real browser, for the tests marked `browser`: Debian's chromium through playwright."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

WIDTHS = (390, 1440)
"""px: a telephone held upright, and a desk."""


def chromium() -> str:
    """Return the browser's path; without it, or without playwright, the test is skipped with the reason."""
    pytest.importorskip("playwright", reason="playwright is not installed: pip install playwright")
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if path is None:
        pytest.skip("no chromium on this machine: apt-get install chromium")
    return path


@dataclass
class Opened:
    """A page in the browser, with what went wrong on it and what it asked for beyond its own file or server.

    Attributes:
        page: playwright's page.
        errors: Texts of the console's errors and warnings, uncaught errors and failed requests, as they come.
        requests: Every address asked for, data: and blob: left out.
    """

    page: Any
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def overflow(self) -> int:
        """Return by how many px the page is wider than the window; 0 where nothing has to be scrolled sideways."""
        wide = self.page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        return max(0, int(wide))

    def focused(self) -> str:
        """Return the id, the label or the text of the element that has the keyboard's focus."""
        script = "(e => e.id || e.getAttribute('aria-label') || e.textContent.trim())(document.activeElement)"
        return str(self.page.evaluate(script))


@contextmanager
def open_page(width: int, url: str | Path, *, height: int = 900, wait: str = "load") -> Iterator[Opened]:
    """Open a page: a file of this machine, or an address on it.

    Args:
        width: Of the window in px, as of ``WIDTHS``.
        url: A path, or a text that starts with http:// or file://.
        height: Of the window in px.
        wait: What has to have happened first: "load", or "networkidle" for pages that draw themselves afterwards.
    """
    address = str(url) if "://" in str(url) else Path(url).resolve().as_uri()
    path = chromium()
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        try:
            page = browser.new_page(viewport={"width": width, "height": height})
            opened = Opened(page)
            page.on("console", lambda m: opened.errors.append(m.text) if m.type in ("error", "warning") else None)
            page.on("pageerror", lambda error: opened.errors.append(str(error)))
            page.on("requestfailed", lambda r: opened.errors.append(f"{r.url}: {r.failure}"))
            page.on("request", lambda r: opened.requests.append(r.url) if r.url[:5] not in ("data:", "blob:") else None)
            page.goto(address, wait_until=wait)
            yield opened
        finally:
            browser.close()
