"""People at the screen: an annotator corrects a prefilled mask, a lead moves the threshold at the desk."""

from __future__ import annotations

import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import select

from active_learning import registry
from active_learning.ledger import Label, LabelSource, Ledger, Prediction, Project, Role, Task, TaskStatus
from active_learning.signals import signals
from backend import accounts
from backend.actions import Who
from backend.credentials import Credentials
from backend.projects import create
from model.checkpoint import ModelCard, load_trunk, save_checkpoint
from model.elnet import SAM2ELNet
from model.hiera import trunk_spec
from model.metrics import iou
from tests.integration.chromium import WAIT_MS

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")

pytestmark = [pytest.mark.browser, pytest.mark.label_studio]

SIDE = 64
QUALITY = 0.42
VERSION = "elnet-0001"
PASSWORD = "only for this test"


@pytest.fixture
def project(site: Any, draw: Any, tmp_path: Path) -> Project:
    """Three images with a prefilled mask that we know, in the review queue."""
    return _in_review(site, draw, "in the browser", tmp_path)


@pytest.fixture
def unseen(site: Any, draw: Any, tmp_path: Path) -> Project:
    """Two images whose mask is known to the ledger, and hidden from those who audit them."""
    draw(tmp_path / "images", 2, SIDE)
    made = create(site.ledger, site.stack.settings, site.tool, "unseen", ["oil"], tmp_path / "images")
    with site.ledger.session() as session:
        row = session.get_one(Project, made.id)
        row.audit_share = row.blind_share = 1.0
    site.settle(made)
    _promote(site.ledger, made, tmp_path / VERSION)
    site.settle(made)
    return made


@pytest.fixture
def offered(site: Any, draw: Any, tmp_path: Path) -> Project:
    """The same, of another name."""
    return _in_review(site, draw, "at the desk", tmp_path)


def _in_review(site: Any, draw: Any, name: str, folder: Path) -> Project:
    """Three images in the review queue, none of them drawn for the audit."""
    draw(folder / "images", 3, SIDE)
    made = create(site.ledger, site.stack.settings, site.tool, name, ["oil"], folder / "images")
    with site.ledger.session() as session:
        session.get_one(Project, made.id).audit_share = 0.0
    site.settle(made)
    _promote(site.ledger, made, folder / VERSION)
    site.settle(made)  # the worker has pushed the prefills
    return made


def known_mask() -> NDArray[np.bool_]:
    """(1, SIDE, SIDE): a large L, which nothing in the images resembles."""
    mask = np.zeros((1, SIDE, SIDE), np.bool_)
    mask[0, 8:56, 8:20] = True
    mask[0, 44:56, 8:40] = True
    return mask


def _promote(ledger: Ledger, project: Project, folder: Path) -> None:
    """Make a checkpoint champion whose predictions are the known mask."""
    trunk, trunk_sha256 = load_trunk("random-nano")
    torch.manual_seed(0)
    model = SAM2ELNet(trunk, trunk_spec("random-nano"), 1, width=8)
    card = ModelCard(VERSION, "random-nano", trunk_sha256, ("oil",), SIDE, model.architecture)
    sha256 = save_checkpoint(folder, model, card)
    mask = known_mask()
    measured = signals(np.where(mask, 0.9, 0.1).astype(np.float32)).to_dict()
    with ledger.session() as session:
        row = session.get_one(Project, project.id)
        version = registry.register(session, row, folder, sha256, name=VERSION)
        for task in session.scalars(select(Task).where(Task.project_id == row.id)):
            session.add(
                Prediction(
                    task_id=task.id,
                    model_version_id=version.id,
                    score=QUALITY,
                    quality=QUALITY,
                    signals=measured,
                    masks=mask,
                )
            )
        registry.promote(session, version)


def _sign_in(page: Any, site: Any) -> None:
    page.goto(f"{site.tool.url}/user/login/", wait_until="domcontentloaded")
    page.fill("input[name=email]", site.stack.settings.label_studio.username)
    page.fill("input[name=password]", Credentials.load(site.stack.settings.state).password)
    page.keyboard.press("Enter")
    page.wait_for_url(lambda url: "/login" not in url, wait_until="commit")


def _until(page: Any, what: str, holds: Callable[[], bool]) -> None:
    """Look again and again; `wait_for_timeout` lets the browser's requests pass meanwhile."""
    for _ in range(WAIT_MS // 250):
        if holds():
            return
        page.wait_for_timeout(250)
    raise AssertionError(what)


def _pink(page: Any) -> NDArray[np.bool_]:
    """(SIDE, SIDE): which pixels of the image appear in the colour of its class, #FF2D95, on the screen.

    The image is grey, and magnified about ten times; the middle of each magnified pixel is looked at.
    """
    box = page.locator("img[alt=image]").bounding_box()
    shot = Image.open(io.BytesIO(page.screenshot(clip=box))).convert("RGB")
    seen = np.asarray(shot, np.int16)
    rows = ((np.arange(SIDE) + 0.5) * seen.shape[0] / SIDE).astype(int)
    columns = ((np.arange(SIDE) + 0.5) * seen.shape[1] / SIDE).astype(int)
    red, green, blue = np.moveaxis(seen[np.ix_(rows, columns)], -1, 0)
    return (red - green > 40) & (blue - green > 15)


def test_an_annotator_sees_the_mask_and_corrects_it(site, project, page, tmp_path):
    _sign_in(page, site)
    page.goto(f"{site.tool.url}/projects/{project.tool_project_id}/data", wait_until="domcontentloaded")
    page.get_by_text("Review queue", exact=True).click()
    rows = page.locator("[class*=table__row-wrapper]")
    playwright.expect(rows).to_have_count(3, timeout=WAIT_MS)
    playwright.expect(rows.first).to_contain_text(VERSION, timeout=WAIT_MS)
    page.screenshot(path=tmp_path / "1-queue.png")

    rows.first.click()
    region = page.locator(".lsf-outliner-item").first
    playwright.expect(region).to_contain_text("oil", timeout=WAIT_MS)
    playwright.expect(region).to_contain_text(f"{QUALITY}", timeout=WAIT_MS)
    mask = known_mask()[0]
    _until(page, "the mask on the screen", lambda: iou(_pink(page), mask) > 0.95)
    page.screenshot(path=tmp_path / "2-prefilled.png")

    region.click()
    _stroke(page)
    page.screenshot(path=tmp_path / "3-stroke.png")
    annotation = _submit(page)
    page.screenshot(path=tmp_path / "4-submitted.png")
    assert page.refused == []  # Label Studio needs nothing from outside

    label, prediction, status = site.until("the label", lambda: site.ask(_what_came(annotation["id"])))
    assert annotation["task"] == prediction.task.tool_task_id
    assert label.source is LabelSource.HUMAN
    assert label.soft_edges  # strokes are anti-aliased
    assert label.prediction_id == prediction.id
    drawn = label.masks[0] & ~mask
    assert drawn[8:36, 42:60].sum() == drawn.sum() > 10  # the stroke, where it was drawn
    assert (label.masks[0] & mask).sum() == mask.sum()  # and of the prefill nothing is lost
    assert label.prefill_iou == pytest.approx(iou(known_mask(), label.masks))
    assert label.prefill_iou < 1
    assert status is TaskStatus.DONE


def test_a_lead_moves_the_threshold_at_the_desk_and_label_studio_follows(site, offered, page, tmp_path):
    with site.ledger.session() as session:
        user, _ = accounts.add(session, "lea", Role.LEAD, Who("test"))
        accounts.set_password(session, user, PASSWORD, Who("test"))
    desk = f"{site.stack.settings.desk_url}/desk"
    page.goto(f"{desk}/{offered.id}/queue")  # it leads to the sign-in, and from there back
    page.get_by_label("Name").fill("lea")
    page.get_by_label("Password").fill(PASSWORD)
    page.get_by_role("button", name="Sign in").click()
    pictures = page.locator(".picture img:not(.mask)")
    playwright.expect(pictures).to_have_count(3, timeout=WAIT_MS)
    for image in page.locator(".picture img").all():  # the image and its mask, from the real Label Studio
        image.scroll_into_view_if_needed()
        _until(page, "a picture", lambda i=image: i.evaluate("i => i.naturalWidth") == SIDE)
    page.screenshot(path=tmp_path / "1-queue.png")

    page.goto(f"{desk}/{offered.id}/threshold")
    page.get_by_label("Accept from a predicted IoU of").last.fill(str(QUALITY - 0.02))
    page.get_by_label("Why").last.fill("they look right")
    page.get_by_role("button", name="Accept from there on").click()
    page.get_by_role("heading", name=f"Accepted from {QUALITY - 0.02:.3f} on").wait_for()
    page.screenshot(path=tmp_path / "2-threshold.png", full_page=True)
    assert page.refused == []

    def accepted() -> bool:
        made = site.tool.annotations(offered.tool_project_id, offered.classes)
        return sum(one.machine for one in made) == 3

    site.until("the accepted masks in Label Studio", accepted)
    site.settle(offered)
    page.goto(f"{desk}/{offered.id}")
    playwright.expect(page.locator(".key .accepted")).to_contain_text("3", timeout=WAIT_MS)
    playwright.expect(page.locator("main")).to_contain_text("they look right")


def test_an_annotator_of_a_blind_audit_sees_no_mask(site, unseen, page, tmp_path):
    _sign_in(page, site)
    page.goto(f"{site.tool.url}/projects/{unseen.tool_project_id}/data", wait_until="domcontentloaded")
    page.get_by_text("Audit", exact=True).click()
    rows = page.locator("[class*=table__row-wrapper]")
    playwright.expect(rows).to_have_count(2, timeout=WAIT_MS)
    rows.first.click()
    page.locator(".lsf-label", has_text="oil").first.click()  # nothing is drawn, so nothing is selected
    assert page.locator(".lsf-outliner-item").count() == 0
    page.screenshot(path=tmp_path / "1-blind.png")
    assert not _pink(page).any()

    _stroke(page)
    page.screenshot(path=tmp_path / "2-stroke.png")
    annotation = _submit(page)
    label, prediction, status = site.until("the label", lambda: site.ask(_what_came(annotation["id"])))
    assert (label.source, status) == (LabelSource.AUDIT, TaskStatus.DONE)
    assert label.blind
    assert label.prediction_id == prediction.id
    assert (label.masks[0] & ~known_mask()[0]).sum() == label.masks.sum() > 10  # the stroke alone
    assert label.prefill_iou == 0  # compared with what was not shown


def _stroke(page: Any) -> None:
    """Draw with the brush, beside the known mask."""
    page.get_by_label("brush-tool").click()
    box = page.locator("img[alt=image]").bounding_box()

    def at(column: float, row: float) -> tuple[float, float]:
        return box["x"] + column / SIDE * box["width"], box["y"] + row / SIDE * box["height"]

    page.mouse.move(*at(45, 10))
    page.mouse.down()
    page.mouse.move(*at(52, 20), steps=8)
    page.mouse.move(*at(56, 34), steps=8)
    page.mouse.up()
    _until(page, "the stroke on the screen", lambda: _pink(page)[8:36, 42:60].sum() > 10)


def _submit(page: Any) -> dict[str, Any]:
    """Submit, and return the annotation as Label Studio answers."""
    with page.expect_response(_is_submission) as answered:
        page.locator("button", has_text="Submit").click()
    submitted = answered.value
    assert submitted.status == 201
    playwright.expect(page.locator("button", has_text="Update")).to_be_visible(timeout=WAIT_MS)
    annotation: dict[str, Any] = submitted.json()
    return annotation


def _is_submission(response: Any) -> bool:
    is_post = response.request.method == "POST"
    return is_post and re.search(r"/api/tasks/\d+/annotations", response.url) is not None


def _what_came(annotation: int) -> Callable[[Any], tuple[Label, Prediction, TaskStatus] | None]:
    """The label of an annotation, the prefill it began with, and where its task stands."""

    def read(session: Any) -> tuple[Label, Prediction, TaskStatus] | None:
        label = session.scalar(select(Label).where(Label.tool_annotation_id == annotation))
        if label is None:
            return None
        prediction = session.scalars(select(Prediction).where(Prediction.task_id == label.task_id)).one()
        _ = prediction.task
        return label, prediction, label.task.status

    return read
