"""What tests of the desk share: users, a browser that keeps its cookies, a project with something in it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask import Blueprint
from flask.testing import FlaskClient
from sqlalchemy import select
from sqlalchemy.orm import Session
from werkzeug.test import TestResponse

from active_learning import labels, registry, routing
from active_learning.ledger import Ledger, Prediction, Project, Role, Task, User
from active_learning.ledger.types import utc_now
from active_learning.ports import ToolAnnotation
from active_learning.signals import signals
from backend import accounts
from backend.actions import Who
from backend.desk.access import check, current_user, note, requires
from backend.services import services

PASSWORD = "a few words will do"
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
        return self.client.post(
            path,
            data={"csrf_token": token, **(form or {})},
            environ_overrides={"REMOTE_ADDR": self.address},
            **options,
        )

    def token(self) -> str:
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
