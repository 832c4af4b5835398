"""What tests of the desk share: users, a browser that keeps its cookies, a project with something in it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Blueprint
from flask.testing import FlaskClient
from flask_wtf.csrf import generate_csrf
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug.test import TestResponse

from active_learning import labels, registry, routing
from active_learning.ledger import (
    Cycle,
    CycleEvent,
    CycleState,
    HoldoutMask,
    Label,
    LabelSource,
    Ledger,
    ModelState,
    ModelVersion,
    Prediction,
    Project,
    Role,
    Snapshot,
    Task,
    User,
)
from active_learning.ledger.types import utc_now
from active_learning.ports import ToolAnnotation
from active_learning.signals import signals
from active_learning.snapshot_files import stem_of
from backend import accounts
from backend.actions import Who
from backend.desk.access import check, current_user, note, requires
from backend.services import services

PASSWORD = "a few words will do"
T0 = datetime(2026, 11, 20, 3, 0, tzinfo=UTC)
FIGURES = ("fg_iou", "fg_iou_per_image", "miou_2class", "dice", "boundary_f1", "boundary_iou", "cl_dice")
SQUARE = np.zeros((1, 8, 8), np.bool_)
SQUARE[:, 2:6, 2:6] = True
SIGNALS = signals(np.where(SQUARE, 0.9, 0.1)).to_dict()


@pytest.fixture(autouse=True)
def _cheap(cheap_passwords: None) -> None:
    """Every test of the desk signs in."""


@pytest.fixture
def add_user(ledger: Ledger) -> Callable[..., User]:
    """Makes a user whose password is `Browser.PASSWORD`."""

    def add(name: str, role: Role = Role.VIEWER) -> User:
        with ledger.session() as session:
            user, _ = accounts.add(session, name, role, Who("tester"))
            accounts.set_password(session, user, PASSWORD, Who("tester"))
        return user

    return add


class Browser:
    """A client that sends the CSRF token of the page before, as its forms would."""

    PASSWORD = PASSWORD

    def __init__(self, client: FlaskClient, address: str = "127.0.0.1") -> None:
        self.client = client
        self.address = address

    def get(self, path: str, **options: Any) -> TestResponse:
        return self.client.get(path, environ_overrides={"REMOTE_ADDR": self.address}, **options)

    def post(self, path: str, form: dict[str, str] | None = None, **options: Any) -> TestResponse:
        token = options.pop("token", None) or self.token()
        return self.client.open(
            path,
            method="POST",
            data={"csrf_token": token, **(form or {})},
            environ_overrides={"REMOTE_ADDR": self.address},
            **options,
        )

    def token(self) -> str:
        page = self.get("/desk/trial/form")
        if page.status_code == 200:
            return page.text
        page = self.get("/desk/password")
        if page.status_code == 302:
            page = self.get("/desk/sign-in")
        found = re.search(r'name="csrf_token" value="([^"]+)"', page.text)
        assert found, page.text
        return found[1]

    def sign_in(self, name: str, password: str = PASSWORD, **form: str) -> TestResponse:
        return self.post("/desk/sign-in", {"name": name, "password": password, **form})

    def cookie(self) -> Any:
        return self.client.get_cookie("elnet") or self.client.get_cookie("__Host-elnet")


def trial_pages() -> tuple[Blueprint, Blueprint]:
    """Pages and addresses for each role, as the desk's own are made."""
    pages = Blueprint("trial", __name__, url_prefix="/desk/trial")
    api = Blueprint("trial_api", __name__, url_prefix="/api/v1/trial")

    @pages.get("/form")
    def form() -> str:
        return generate_csrf()

    @pages.get("/viewer")
    @api.get("/viewer")
    @requires(Role.VIEWER)
    def viewer() -> str:
        person = current_user()
        assert person is not None
        return f"{person.name} {person.role} {person.by}"

    @pages.route("/lead", methods=["GET", "POST"])
    @api.route("/lead", methods=["GET", "POST"])
    @requires(Role.LEAD)
    def lead() -> str:
        with services().ledger.session() as session:
            note(session, "trial", "thing", to=1)
        return "done"

    @pages.get("/admin")
    @api.get("/admin")
    def admin() -> str:
        check(Role.ADMIN)
        return "done"

    return pages, api


@pytest.fixture
def make_desk(make_site: Callable[..., Any]) -> Callable[..., Any]:
    """Makes a site with pages for each role; keyword arguments are those of `DeskSettings`, and `web`."""

    def make(*, web: dict[str, Any] | None = None, **desk: Any) -> Any:
        site = make_site(desk=desk, **(web or {}))
        for blueprint in trial_pages():
            site.app.register_blueprint(blueprint)
        return site

    return make


@pytest.fixture
def desk(make_desk: Callable[..., Any]) -> Any:
    """A site with pages for each role."""
    return make_desk()


@pytest.fixture
def browse() -> Callable[..., Browser]:
    """Makes a browser for a site, with cookies of its own."""
    return lambda site, address="127.0.0.1": Browser(site.app.test_client(), address)


@pytest.fixture
def site(make_site: Callable[..., Any], add_user: Callable[..., User], browse: Callable[..., Browser]) -> Any:
    """An application in which a lead has signed in: its client sends forms with the token of the page."""
    made = make_site()
    add_user("lea", Role.LEAD)
    browser = browse(made)
    browser.sign_in("lea")
    send = browser.client.post
    browser.client.post = lambda path, data=None, **options: send(  # type: ignore[method-assign]
        path, data={"csrf_token": browser.token(), **(data or {})}, **options
    )
    made.client = browser.client
    return made


@pytest.fixture
def browser(desk: Any, browse: Callable[..., Browser]) -> Browser:
    """A browser that nobody has signed in with."""
    return browse(desk)


@dataclass
class Spills:
    """The project, and how it is filled."""

    ledger: Ledger
    client: FlaskClient
    browser: Browser
    images: Any
    project_id: int = 1

    @property
    def path(self) -> str:
        return f"/desk/{self.project_id}"

    def project(self, session: Session) -> Project:
        return session.get_one(Project, self.project_id)

    def browser_of(self, name: str) -> Browser:
        """One that another user has signed in with."""
        other = Browser(self.client.application.test_client())
        other.sign_in(name)
        return other

    def page(self, path: str = "", **query: Any) -> str:
        answer = self.client.get(self.path + path, query_string=query)
        assert answer.status_code == 200, answer.get_data(as_text=True)
        return answer.get_data(as_text=True)

    def post(self, path: str, **form: Any) -> str:
        """Send a form; the page that comes next."""
        answer = self.browser.post(self.path + path, form, follow_redirects=True)
        assert answer.status_code == 200, answer.get_data(as_text=True)
        return answer.get_data(as_text=True)

    def promote(self, name: str = "elnet-0001") -> None:
        with self.ledger.session() as session:
            project, sha256 = self.project(session), f"{int(name[-4:]):064d}"
            version = registry.register(session, project, Path("models") / name, sha256, name=name)
            registry.promote(session, version)

    def add(self, *qualities: float, audit_share: float = 0.0) -> list[Task]:
        """Images with a prediction each, routed; scenes of their own."""
        with self.ledger.session() as session:
            project = self.project(session)
            before, project.audit_share = project.audit_share, audit_share
            first = len(session.scalars(select(Task.id)).all())
            tasks = []
            for number, quality in enumerate(qualities, start=first):
                task = Task(
                    project_id=project.id, tool_task_id=number, image_uri=f"{number}.png", scene=str(number)
                )
                session.add(task)
                session.flush()
                said = {"score": quality, "quality": quality, "signals": SIGNALS, "masks": SQUARE}
                session.add(Prediction(task_id=task.id, model_version_id=project.champion_id, **said))
                tasks.append(task)
            session.flush()
            routing.route(session, project, tasks)
            project.audit_share = before
            return tasks

    def label(self, task: Task, *, good: bool = True, annotator: str = "ada") -> None:
        with self.ledger.session() as session:
            said = ToolAnnotation(
                id=1000 + task.id,
                task_id=task.tool_task_id,
                masks=SQUARE if good else ~SQUARE,
                annotator=annotator,
                machine=False,
                cancelled=False,
                updated_at=utc_now() + timedelta(seconds=1),
                lead_time_s=60.0,
            )
            labels.record(session, self.project(session), said)

    def audit(self, good: int, bad: int, quality: float = 0.8) -> None:
        for number, task in enumerate(self.add(*[quality] * (good + bad), audit_share=1.0)):
            self.label(task, good=number < good)


@pytest.fixture
def empty_spills(
    make_site: Callable[..., Any], add_user: Callable[..., User], browse: Callable[..., Browser]
) -> Spills:
    """Without images and versions; a lead has signed in."""
    site = make_site()
    project = site.add_project(name="spills", tool_project_id=1, classes=["oil"])
    add_user("lea", Role.LEAD)
    browser = browse(site)
    browser.sign_in("lea")
    return Spills(site.ledger, browser.client, browser, site.images, project.id)


@pytest.fixture
def spills(empty_spills: Spills) -> Spills:
    """With a champion, and images of qualities 0.95 (accepted from 0.9 on), 0.7 and 0.5."""
    with empty_spills.ledger.session() as session:
        empty_spills.project(session).accept_threshold = 0.9
    empty_spills.promote()
    empty_spills.add(0.95, 0.7, 0.5)
    return empty_spills


class History:
    """Project "spills" with 12 labelled images, ledger ids 1 to 12, the tool's ids 101 to 112."""

    def __init__(self, ledger: Ledger, images: int = 12) -> None:
        self.ledger = ledger
        self.sha256s: dict[int, str] = {}
        with ledger.session() as session:
            project = Project(name="spills", tool_url="http://tool", tool_project_id=7, classes=["oil"])
            session.add(project)
            session.flush()
            self.project_id = project.id
            for number in range(1, images + 1):
                uri = f"{number}.png"
                session.add(Task(project_id=project.id, tool_task_id=100 + number, image_uri=uri, scene=uri))
                session.flush()
                self._label(session, number, annotator="1" if number % 4 else "2")

    def _label(self, session: Any, task: int, annotator: str, later: int = 0) -> None:
        masks = np.ones((1, 6, 8), np.bool_)
        masks[0, 0, : task % 8] = False
        masks[0, 5, 7] = not later
        session.add(
            Label(
                project_id=self.project_id,
                task_id=task,
                tool_annotation_id=task,
                revision=f"{task}-{later}",
                source=LabelSource.HUMAN,
                annotator=annotator,
                masks=masks,
                updated_at=T0 + timedelta(days=later),
            )
        )

    def label_anew(self, task: int) -> None:
        with self.ledger.session() as session:
            self._label(session, task, "1", later=1)

    def snapshot(self, train: Sequence[int], holdout: Sequence[int], **changed: str) -> int:
        """Freeze labels of tasks; `t3="x"` gives task 3 another content than its label's."""
        with self.ledger.session() as session:
            labels = {label.task_id: label for label in session.scalars(select(Label).order_by(Label.id))}

            def entry(task: int) -> dict[str, Any]:
                return {
                    "stem": stem_of(task),
                    "task_id": task,
                    "tool_task_id": 100 + task,
                    "scene": f"{task}.png",
                    "label_id": labels[task].id,
                    "content": changed.get(f"t{task}", labels[task].content),
                    "source": "audit" if task % 3 == 0 else "human",
                    "weight": 1.0,
                }

            manifest = {
                "classes": ["oil"],
                "train": list(map(entry, train)),
                "holdout": list(map(entry, holdout)),
                "left_out": [],
            }
            sha256 = hashlib.sha256(repr(manifest).encode()).hexdigest()
            snapshot = Snapshot(project_id=self.project_id, sha256=sha256, manifest=manifest)
            session.add(snapshot)
            session.flush()
            return snapshot.id

    def scores(self, ious: Mapping[int, float], **figures: Any) -> dict[str, Any]:
        """Metrics as `evaluation.evaluate` writes them, of task -> IoU; every figure is their mean."""
        mean = float(np.mean(list(ious.values())))
        per_image = [
            {"image": stem_of(task), "iou": iou, "smoothed_iou": iou, "boundary_f1": iou / 2}
            for task, iou in ious.items()
        ]
        return {"n": len(ious), **dict.fromkeys(FIGURES, mean), "per_image": per_image, **figures}

    def version(
        self,
        name: str,
        snapshot: int | None = None,
        parent: str | None = None,
        metrics: dict[str, Any] | None = None,
        *,
        promote: bool = False,
        who: str | None = None,
        state: ModelState | None = None,
    ) -> int:
        with self.ledger.session() as session:
            project = session.get_one(Project, self.project_id)
            version = registry.register(
                session,
                project,
                Path(name),
                hashlib.sha256(name.encode()).hexdigest(),
                snapshot=session.get(Snapshot, snapshot) if snapshot else None,
                parent=registry.find(session, project, parent) if parent else None,
                metrics=metrics,
                name=name,
            )
            if promote:
                registry.promote(session, version, who)
            if state is not None:
                version.state = state
            return version.id

    def predict(self, version: int, *tasks: int, quality: float = 0.5) -> None:
        with self.ledger.session() as session:
            for task in tasks:
                session.add(
                    Prediction(
                        task_id=task,
                        model_version_id=version,
                        score=quality,
                        quality=quality,
                        signals={},
                        masks=np.ones((1, 6, 8), np.bool_),
                    )
                )

    def judge(self, version: int, *tasks: int) -> None:
        """Keep masks by which a version was judged: the left half of each image."""
        masks = np.zeros((1, 6, 8), np.bool_)
        masks[..., :4] = True
        with self.ledger.session() as session:
            session.add_all(
                HoldoutMask(task_id=task, model_version_id=version, masks=masks) for task in tasks
            )

    def cycle(self, state: CycleState = CycleState.REQUESTED, **values: Any) -> int:
        with self.ledger.session() as session:
            row = {"trigger": "command by ada", "requested_at": T0, **values}
            cycle = Cycle(project_id=self.project_id, state=state, **row)
            session.add(cycle)
            session.flush()
            return cycle.id

    def event(self, cycle: int, step: str, message: str, after_s: float = 0, **data: Any) -> int:
        with self.ledger.session() as session:
            at = T0 + timedelta(seconds=after_s)
            event = CycleEvent(cycle_id=cycle, step=step, message=message, data=data, at=at)
            session.add(event)
            session.flush()
            return event.id

    def epoch(self, cycle: int, epoch: int, epochs: int, loss: float, after_s: float = 0) -> int:
        said = {"epoch": epoch, "epochs": epochs, "loss": loss, "images_per_s": 2.0}
        return self.event(cycle, "train", f"Epoch {epoch} of {epochs}", after_s, **said)

    def champion(self) -> str | None:
        with self.ledger.session(write=False) as session:
            champion = session.get_one(Project, self.project_id).champion
            return champion.name if champion else None

    def states(self) -> dict[str, str]:
        """Version -> state."""
        with self.ledger.session(write=False) as session:
            return {version.name: version.state.value for version in session.scalars(select(ModelVersion))}

    def cycle_state(self, cycle: int) -> CycleState:
        with self.ledger.session(write=False) as session:
            return session.get_one(Cycle, cycle).state


@pytest.fixture
def history(ledger: Ledger) -> History:
    return History(ledger)


@pytest.fixture
def make_history() -> type[History]:
    """Makes the same in a ledger of another kind."""
    return History
