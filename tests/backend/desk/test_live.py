"""What the page of a cycle does in a browser while the cycle goes on."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from typing import Any

import pytest
from werkzeug.serving import make_server

from active_learning.journal import Journal
from active_learning.ledger import CycleState

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

pytestmark = pytest.mark.browser

WAIT_MS = 60_000
ARGUMENTS = "--no-sandbox --disable-gpu --disable-background-networking --disable-component-update"
POINTS = "#chart-cycle-losses svg .mark-symbol path"


@pytest.fixture
def page(site: Any) -> Iterator[Any]:
    """A page of Debian's Chromium beside the application on a port of its own; `page.home` is its address."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no Chromium here: install the package `chromium`")
    web = make_server("127.0.0.1", 0, site.app, threaded=True)
    thread = threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    with playwright.sync_playwright() as running:
        browser = running.chromium.launch(executable_path=program, args=ARGUMENTS.split(), timeout=WAIT_MS)
        home, cookie = f"http://127.0.0.1:{web.server_port}", site.client.get_cookie("elnet")
        context = browser.new_context()
        context.add_cookies([{"name": cookie.key, "value": cookie.value, "url": home}])  # the lead's
        opened = context.new_page()
        opened.set_default_timeout(WAIT_MS)
        opened.home = home
        yield opened
        browser.close()
    web.shutdown()
    web.server_close()
    thread.join()


def test_a_cycle_is_followed_without_disturbing_its_reader(history: Any, page: Any) -> None:
    cycle = history.cycle(CycleState.RUNNING, step="train")
    history.epoch(cycle, 1, 9, 2.5)
    history.epoch(cycle, 2, 9, 2.25)
    page.goto(f"{page.home}/desk/1/cycles/{cycle}")
    playwright.expect(page.locator(POINTS)).to_have_count(2, timeout=WAIT_MS)

    history.epoch(cycle, 3, 9, 2.0)
    page.wait_for_selector("text=Epoch 3 of 9, loss 2.000")
    playwright.expect(page.locator(POINTS)).to_have_count(3, timeout=WAIT_MS)  # drawn a second time
    assert page.locator("#log tbody tr").count() == 3

    page.focus("#actions button")
    Journal(history.ledger, cycle).end(CycleState.FAILED, "train: no memory")
    page.wait_for_selector("#state >> text=train: no memory")
    assert (
        page.evaluate("document.activeElement.textContent") == "Cancel"
    )  # under the reader's hand: it stays
    page.evaluate("document.activeElement.blur()")
    page.wait_for_selector("#actions >> text=Resume")


def test_a_cancel_asks_first(history: Any, page: Any) -> None:
    cycle = history.cycle(CycleState.RUNNING, step="train")
    page.goto(f"{page.home}/desk/1/cycles/{cycle}")
    asked: list[str] = []
    page.once("dialog", lambda dialog: (asked.append(dialog.message), dialog.dismiss()))
    page.click("#actions button")
    assert history.cycle_state(cycle) is CycleState.RUNNING
    page.once("dialog", lambda dialog: dialog.accept())
    page.click("#actions button")
    page.wait_for_selector(f"text=Cycle {cycle} is cancelled")
    assert "Cancel it?" in asked[0]
    assert history.cycle_state(cycle) is CycleState.CANCELLED
