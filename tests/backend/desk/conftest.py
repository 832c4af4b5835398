"""What tests of the desk share: users, and a browser that keeps its cookies."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Blueprint
from flask.testing import FlaskClient
from flask_wtf.csrf import generate_csrf
from werkzeug.test import TestResponse

from active_learning.ledger import Ledger, Role, User
from backend import accounts
from backend.actions import Who
from backend.desk.access import check, current_user, note, requires
from backend.services import services

PASSWORD = "a few words will do"


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
        return self.get("/desk/trial/form").text

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
def browser(desk: Any, browse: Callable[..., Browser]) -> Browser:
    """A browser that nobody has signed in with."""
    return browse(desk)
