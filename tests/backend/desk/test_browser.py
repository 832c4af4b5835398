"""The desk in a real browser: every page, at two widths, light and dark; what it says, loads and lacks."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from typing import Any
from urllib.parse import urlsplit

import pytest
from werkzeug.serving import make_server

from active_learning.ledger import Role

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")

pytestmark = pytest.mark.browser

PAGES = (
    "",
    "/threshold",
    "/queue",
    "/queue?as=table",
    "/queue/strategy",
    "/quality",
    "/models",
    "/cycles",
    "/policy",
)
ARGUMENTS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run")
WAIT_MS = 60_000


@pytest.fixture
def url(spills: Any) -> Iterator[str]:
    """The desk of a project with audits of both kinds, served."""
    spills.audit(good=40, bad=1)
    spills.add(0.92, 0.85, 0.3)
    web = make_server("127.0.0.1", 0, spills.client.application, threaded=True)
    thread = threading.Thread(target=web.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{web.server_port}"
    web.shutdown()
    web.server_close()
    thread.join()


@pytest.fixture
def page(url: str) -> Iterator[Any]:
    """A browser in which the lead has signed in; at the end nothing was complained of or asked elsewhere."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium: apt-get install chromium")
    complaints: list[str] = []
    with playwright.sync_playwright() as play:
        browser = play.chromium.launch(executable_path=program, args=list(ARGUMENTS))
        context = browser.new_context(base_url=url, viewport={"width": 1280, "height": 900})
        context.set_default_timeout(WAIT_MS)
        made = context.new_page()
        made.on("console", lambda m: complaints.append(m.text) if m.type in {"error", "warning"} else None)
        made.on("pageerror", lambda error: complaints.append(str(error)))
        made.on(
            "request",
            lambda r: (
                complaints.append(f"asked {r.url}")
                if urlsplit(r.url).netloc not in {urlsplit(url).netloc, ""}
                else None
            ),
        )
        made.goto("/desk/")
        made.get_by_label("Name").fill("lea")
        made.get_by_label("Password").fill("a few words will do")
        made.get_by_role("button", name="Sign in").click()
        made.wait_for_url("**/desk/1")
        yield made
        browser.close()
    assert complaints == []


def seen(page: Any, path: str) -> None:
    """Go to a page, and wait until its charts are drawn."""
    page.goto(f"/desk/1{path}")
    playwright.expect(page.locator("[data-chart]:not([data-drawn])")).to_have_count(0, timeout=WAIT_MS)


def looks(page: Any) -> Iterator[str]:
    """At each width and in each colour scheme; tells which."""
    for width, scheme in ((1280, "light"), (1280, "dark"), (390, "light"), (390, "dark")):
        page.set_viewport_size({"width": width, "height": 900})
        page.emulate_media(color_scheme=scheme)
        yield f"{page.url} at {width}, {scheme}"


def can_be_read(page: Any, look: str) -> None:
    """By everybody: nothing runs out of the window, and axe finds nothing grave."""
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0, f"{look} is {wide} px too wide"
    found = axe.Axe().run(page).response["violations"]
    grave = [
        (one["id"], [node["html"] for node in one["nodes"]][:3])
        for one in found
        if one["impact"] in {"serious", "critical"}
    ]
    assert grave == [], look


def test_every_page_can_be_read_by_everybody(page):
    for look in looks(page):
        for path in PAGES:
            seen(page, path)
            assert "cannot be drawn" not in page.inner_text("body")
            can_be_read(page, f"{path}: {look}")


def test_an_admin_adds_a_user_who_makes_a_token(page, add_user):
    add_user("ada", Role.ADMIN)
    page.on("dialog", lambda dialog: dialog.accept())

    def sign_in(name: str, password: str) -> None:
        page.get_by_role("button", name="Sign out").click()
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(password)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("button", name="Sign out").wait_for()

    assert page.get_by_role("link", name="Users").count() == 0
    sign_in("ada", "a few words will do")
    page.get_by_role("link", name="Users").click()
    page.get_by_label("Name").fill("vera")
    page.get_by_role("button", name="Add").click()
    page.get_by_text("One-time password of vera").wait_for()
    first = page.locator(".secret code").inner_text()
    page.get_by_role("button", name="New one-time password").click()
    playwright.expect(page.locator(".secret code")).not_to_have_text(first)
    password = page.locator(".secret code").inner_text()
    for look in looks(page):
        can_be_read(page, look)
    sign_in("vera", password)
    page.get_by_label("New password").fill("vera's own words")
    page.get_by_label("Once more").fill("vera's own words")
    page.get_by_role("button", name="Change it").click()
    page.get_by_role("link", name="vera").click()
    page.get_by_text("No token yet").wait_for()
    for look in looks(page):
        can_be_read(page, look)
    page.get_by_label("What it is for").fill("nightly export")
    page.get_by_role("button", name="Make a token").click()
    page.get_by_text("The token, shown this once").wait_for()
    for look in looks(page):
        can_be_read(page, look)
    page.get_by_role("button", name="Revoke the token for nightly export").click()
    page.get_by_text("worthless from now on").wait_for()
    sign_in("ada", "a few words will do")
    page.goto("/desk/users?user=vera")
    page.get_by_label("Role").first.select_option("lead")
    page.get_by_role("button", name="Give this role").click()
    page.get_by_text("vera is a lead from now on.").wait_for()
    page.get_by_role("button", name="Remove").click()
    page.get_by_text("vera is removed.").wait_for()
    for look in looks(page):
        can_be_read(page, look)


def test_the_slider_answers_without_asking_the_server(page):
    seen(page, "/threshold")
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    slider, accepted = page.locator("input[type=range]"), page.locator("[data-accepted]")
    before = accepted.inner_text()
    page.context.set_offline(True)
    slider.fill("0.3")
    assert page.locator("[data-at]").inner_text() == "0.300"
    assert page.locator(".heap i").count() == 50  # of 0.02 each; those from 0.30 on would be accepted
    assert page.locator(".heap i.above").count() == 35
    assert page.locator(".heap i[title^='1 from 0.92']").bounding_box()["height"] > 0
    assert int(accepted.inner_text()) > int(before)
    assert page.locator("[data-bad]").inner_text().endswith("%")
    assert asked == []
    page.context.set_offline(False)
    slider.press("ArrowRight")  # by keyboard; then the pictures come
    assert page.locator("[data-at]").inner_text() == "0.305"
    page.locator("[data-near]").get_by_text("0.300").wait_for()


def test_a_lead_goes_from_a_look_to_a_threshold(page):
    seen(page, "/threshold")
    page.get_by_label("risk in percent").fill("30")
    page.get_by_role("button", name="What can be promised?").click()
    page.get_by_text("It can be kept from predicted IoU").wait_for()
    page.get_by_label("Why").first.fill("we looked at the audits")
    page.get_by_role("button", name="Let this promise set the threshold").click()
    page.get_by_text("A promise sets the threshold").wait_for()
    page.on("dialog", lambda dialog: dialog.accept())
    page.get_by_role("button", name="Undo the last move").click()
    page.get_by_role("heading", name="Accepted from 0.900 on").wait_for()
    page.get_by_role("button", name="Sign out").click()
    page.get_by_role("heading", name="Sign in").wait_for()


def test_masks_can_be_hidden(page):
    seen(page, "/threshold")
    mask = page.locator("img.mask").first
    assert mask.evaluate("m => getComputedStyle(m).visibility") == "visible"
    page.get_by_role("checkbox", name="model's mask").uncheck()
    assert mask.evaluate("m => getComputedStyle(m).visibility") == "hidden"


def test_a_strategy_is_tried_and_chosen_by_keyboard(page):
    seen(page, "/queue")
    page.get_by_role("link", name="Try another strategy").press("Enter")
    page.get_by_role("link", name="entropy").press("Enter")
    page.get_by_role("heading", name="By entropy").wait_for()
    mask = page.locator("img.mask.model").first
    page.get_by_role("checkbox", name="model's mask").press("Space")
    assert mask.evaluate("m => getComputedStyle(m).visibility") == "hidden"
    page.get_by_label("Why").fill("what the model doubts")
    page.get_by_role("button", name="Apply").press("Enter")
    page.get_by_text("entropy orders the queue from now on").wait_for()


def test_parts_that_take_longer_come_by_themselves(page):
    seen(page, "/quality")
    page.get_by_text("No image was labelled by two people yet").wait_for()
    page.get_by_text("It takes 20 audited scenes").wait_for()
