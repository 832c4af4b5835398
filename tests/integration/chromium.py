"""Debian's Chromium, which reaches this machine alone."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final
from urllib.parse import urlsplit

import pytest

WAIT_MS: Final = 120_000  # for anything to happen: machines that run tests may be slow and busy
_ARGUMENTS: Final = (
    "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update --disable-sync "
    "--no-first-run"
)


@contextmanager
def chromium() -> Iterator[Any]:
    """A page; its `refused` says what else it tried to reach. Skips where there is no browser."""
    playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no Chromium here: install the package `chromium`")
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=_ARGUMENTS.split(), timeout=WAIT_MS)
        context = browser.new_context(viewport={"width": 1400, "height": 1100}, service_workers="block")
        context.set_default_timeout(WAIT_MS)
        refused: list[str] = []

        def pass_or_refuse(route: Any) -> None:
            url = urlsplit(route.request.url)
            if url.scheme in {"http", "https"} and url.hostname != "127.0.0.1":
                refused.append(route.request.url)
                route.abort()
            else:
                route.continue_()

        context.route("**/*", pass_or_refuse)
        opened = context.new_page()
        opened.refused = refused
        yield opened
        context.unroute_all(behavior="ignoreErrors")
        context.close()
        browser.close()
