"""The desk over a ledger that a demo has filled: every page, every action, and who may not act."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

import pytest
from rich.console import Console
from sqlalchemy import select

from active_learning import holdout
from active_learning.journal import ACTIVE
from active_learning.ledger import ActionRecord, Cycle, CycleState, ModelVersion, Project, Role
from backend import accounts
from backend.actions import Who
from backend.demo import Demo, DemoPlan
from backend.demo_data import DemoImage
from backend.oracle import OracleAnnotator
from backend.projects import create
from model.raster import open_raster
from tests.integration.chromium import WAIT_MS

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

pytestmark = [pytest.mark.browser, pytest.mark.label_studio, pytest.mark.timeout(900)]

IMAGES, JUDGES = 20, 4
PASSWORD = "only for this test"
PEOPLE = {"vera": Role.VIEWER, "lina": Role.LEAD}
KINDS = {  # pages of a project, below /desk/ID
    "", "threshold", "queue", "queue/strategy", "quality", "models", "models/*", "cycles", "cycles/*",
    "policy",
}  # fmt: skip
_LINKS = """all => all.map(a =>
    [a.href, a.hasAttribute('download') || /[.](csv|png|json)$/.test(a.pathname)])"""


@dataclass(frozen=True)
class Filled:
    """The desk of a project with two cycles behind it."""

    site: Any
    project: Project

    @property
    def root(self) -> str:
        return str(self.site.stack.settings.desk_url)

    def sign_in(self, page: Any, name: str) -> None:
        page.goto(f"{self.root}/desk/sign-in")
        page.get_by_label("Name").fill(name)
        page.get_by_label("Password").fill(PASSWORD)
        page.get_by_role("button", name="Sign in").click()
        page.get_by_role("button", name="Sign out").wait_for()

    def open(self, page: Any, path: str = "") -> None:
        page.goto(f"{self.root}/desk/{self.project.id}{path}")

    def champion(self) -> str:
        with self.site.ledger.session(write=False) as session:
            return str(session.get_one(Project, self.project.id).champion.name)

    def last_cycle(self) -> Cycle:
        with self.site.ledger.session(write=False) as session:
            mine = select(Cycle).where(Cycle.project_id == self.project.id)
            return session.scalars(mine.order_by(Cycle.id.desc())).first()


@pytest.fixture(scope="module")
def filled(site: Any, draw: Any, tmp_path_factory: pytest.TempPathFactory) -> Filled:
    """As `elnet demo` fills it: an oracle labels in Label Studio; the loop trains, judges and promotes."""
    folder: Path = tmp_path_factory.mktemp("demo") / "images"
    truths = draw(folder, IMAGES)
    project = create(site.ledger, site.stack.settings, site.tool, "a demo", ["oil"], folder)
    with site.ledger.session() as session:
        row = session.get_one(Project, project.id)
        row.accept_threshold, row.audit_share = 0.9, 0.3
        holdout.draw(session, row, JUDGES)
        for name, role in PEOPLE.items():
            user, _ = accounts.add(session, name, role, Who("test"))
            accounts.set_password(session, user, PASSWORD, Who("test"))
    images = [DemoImage(stem, open_raster(folder / f"{stem}.png"), truth) for stem, truth in truths.items()]
    oracle = OracleAnnotator(site.tool, project.tool_project_id, ["oil"], truths, tolerance_px=1)
    plan = DemoPlan(cycles=2, wait_s=300.0)
    Demo(site.stack, site.ledger, project.id, oracle, images, plan, Console(quiet=True)).run()
    return Filled(site, project)


@pytest.fixture
def watched(page: Any) -> Iterator[Any]:
    """A page that must not complain, nor ask anybody else."""
    complaints: list[str] = []
    page.on("console", lambda m: complaints.append(m.text) if m.type in {"error", "warning"} else None)
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("response", lambda r: complaints.append(f"{r.status} {r.url}") if r.status >= 400 else None)
    page.on("dialog", lambda dialog: dialog.accept())
    yield page
    assert complaints == []
    assert page.refused == []


def follow(page: Any, filled: Filled) -> Iterator[str]:
    """Open every page that a link of the desk leads to, one of each kind of query; tells its address."""
    todo, known = [f"{filled.root}/desk/{filled.project.id}"], set()
    while todo:
        address = todo.pop(0)
        url = urlsplit(address)
        kind = (url.path, tuple(sorted(name for name, _ in parse_qsl(url.query))))
        if kind in known:
            continue
        known.add(kind)
        page.goto(address)
        playwright.expect(page.locator("[data-chart]:not([data-drawn])")).to_have_count(0, timeout=WAIT_MS)
        playwright.expect(page.locator("[data-part] [data-waiting]")).to_have_count(0, timeout=WAIT_MS)
        yield address
        for link, is_file in page.eval_on_selector_all("a[href]", _LINKS):
            found = urlsplit(link)
            if f"{found.scheme}://{found.netloc}" != filled.root or not found.path.startswith(
                ("/desk", "/api")
            ):
                continue
            if re.match(rf"/desk/(?!{filled.project.id}\b)\d+", found.path):
                continue  # another test's project
            if is_file:
                assert page.request.get(link).ok, link
            else:
                todo.append(link)


def kind_of(address: str, project: int) -> str | None:
    """`models/*` of the address of one version."""
    path = urlsplit(address).path.removeprefix(f"/desk/{project}").strip("/")
    return None if path.startswith("desk") else re.sub(r"^(models|cycles)/[^/]+$", r"\1/*", path)


def test_every_page_shows_what_the_demo_left(filled, watched):
    filled.sign_in(watched, "vera")
    kinds: set[str | None] = set()
    for address in follow(watched, filled):
        kinds.add(kind_of(address, filled.project.id))
        text = watched.inner_text("body")
        assert "cannot be drawn" not in text, address
        for image in watched.locator("main img[src*='/pictures/']").all():
            assert watched.request.get(image.evaluate("i => i.src")).ok
    assert kinds >= KINDS, sorted(KINDS - kinds)


def test_a_viewer_is_refused_whatever_a_lead_may_do(filled, watched):
    filled.sign_in(watched, "lina")
    forms: set[str] = set()
    for _ in follow(watched, filled):
        own = "all => all.map(f => f.action)"
        forms.update(watched.eval_on_selector_all("form[method=post]", own))
    root = f"{filled.root}/desk/{filled.project.id}/"
    forms = {form for form in forms if form.startswith(root)} | {f"{root}models/rollback"}
    ends = {form.rpartition("/")[2] for form in forms}
    assert ends >= {"threshold", "promise", "policy", "cycles", "promote", "strategy"}
    watched.get_by_role("button", name="Sign out").click()
    filled.sign_in(watched, "vera")
    filled.open(watched)
    token = watched.locator("input[name=csrf_token]").first.get_attribute("value")
    before = filled.champion(), filled.last_cycle().id
    for form in sorted(forms):
        answer = watched.request.post(form, form={"csrf_token": token, "why": "let me"})
        assert answer.status == 403, form
    assert (filled.champion(), filled.last_cycle().id) == before


def test_a_lead_does_everything_that_there_is_to_do(filled, watched):
    page = watched
    filled.sign_in(page, "lina")

    filled.open(page, "/threshold")
    page.get_by_label("Accept from a predicted IoU of").last.fill("0.25")
    page.get_by_label("Why").last.fill("to see")
    page.get_by_role("button", name="Accept from there on").click()
    page.get_by_role("heading", name="Accepted from 0.250 on").wait_for()
    page.get_by_role("button", name="Undo the last move").click()
    page.get_by_role("heading", name="Accepted from 0.900 on").wait_for()
    page.get_by_label("risk in percent").fill("40")
    page.get_by_role("button", name="What can be promised?").click()
    page.get_by_label("Why").first.fill("audits count, not my eye")
    page.get_by_role("button", name="Let this promise set the threshold").click()
    page.get_by_text("This promise stands.").wait_for()

    filled.open(page, "/queue/strategy")
    page.get_by_role("link", name="entropy").click()
    page.get_by_label("Why").fill("what the model doubts")
    page.get_by_role("button", name="Apply").click()
    page.get_by_text("entropy orders the queue from now on").wait_for()

    filled.open(page, "/policy")
    page.get_by_label("audit_share").fill("0.35")
    page.get_by_label("Why").fill("more to calibrate on")
    page.get_by_role("button", name="Change what differs").click()
    page.get_by_text("more to calibrate on").wait_for()

    champion, versions = filled.champion(), []
    with filled.site.ledger.session(write=False) as session:
        mine = select(ModelVersion.name).where(ModelVersion.project_id == filled.project.id)
        versions = list(session.scalars(mine.order_by(ModelVersion.id)))
    other = next(name for name in versions if name != champion)
    filled.open(page, f"/models/{other}")
    page.get_by_role("button", name="Promote").click()
    back = page.get_by_role("button", name=f"Go back to {champion}")
    back.wait_for()
    assert filled.champion() == other
    back.click()
    playwright.expect(back).to_have_count(0)
    assert filled.champion() == champion

    filled.open(page, "/cycles")
    page.get_by_role("button", name="Start a cycle now").click()
    page.get_by_role("button", name="Cancel").click()
    page.get_by_role("button", name="Resume").click()
    filled.site.until("the end of the cycle", lambda: filled.last_cycle().state not in ACTIVE)
    assert filled.last_cycle().state in {CycleState.PROMOTED, CycleState.REJECTED}
    page.get_by_text(f"Cycle {filled.last_cycle().id}").first.wait_for()

    page.goto(f"{filled.root}/desk/log")
    for said in ("threshold.set", "threshold.undo", "threshold.promise", "policy.set", "cycles.resume"):
        page.get_by_text(said).first.wait_for()
    with filled.site.ledger.session(write=False) as session:
        done = session.scalars(select(ActionRecord.action).where(ActionRecord.who == "lina")).all()
    assert {
        "threshold.set", "threshold.undo", "threshold.promise", "policy.set", "models.promote",
        "models.rollback", "cycles.start", "cycles.cancel", "cycles.resume",
    } <= set(done)  # fmt: skip
