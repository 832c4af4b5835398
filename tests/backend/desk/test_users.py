"""Users are managed at the desk: by admins alone, with refusals that say why, and secrets shown once."""

from __future__ import annotations

import re
from typing import Any

import pytest

from active_learning.ledger import Role
from backend import accounts, api_tokens
from backend.actions import Who, latest

PATH = "/desk/users"
API = "/api/v1/users"


@pytest.fixture
def admin(desk, browser, add_user):
    """The browser of ada, an admin; there is lea, a lead, besides."""
    add_user("ada", Role.ADMIN)
    add_user("lea", Role.LEAD)
    browser.sign_in("ada")
    return browser


@pytest.fixture
def known(ledger):
    """Name -> role and whether they are disabled."""

    def read() -> dict[str, tuple[str, bool]]:
        with ledger.session(write=False) as session:
            return {user.name: (user.role.value, user.disabled) for user in accounts.users(session)}

    return read


def done(ledger) -> tuple[str, str, str | None, str | None]:
    """The last action."""
    with ledger.session(write=False) as session:
        last = latest(session, 1)[0]
        return last.who, last.action, last.thing, last.address


def secret(page: str) -> str:
    found = re.search(r'class="panel secret".*?<code>([^<]+)</code>', page)
    assert found, page
    return found[1]


def change(browser, what: str, **form: str) -> str:
    answer = browser.post(f"{PATH}/{what}", form)
    assert answer.status_code == 303
    page = browser.get(answer.location)
    assert page.status_code == 200
    return page.text


def test_a_user_is_added_and_their_password_shown_once(admin, browse, desk, known, ledger, caplog):
    answer = admin.post(PATH, {"name": "Vera", "role": "viewer"})
    assert answer.status_code == 200
    assert answer.headers["Cache-Control"] == "no-store"
    password = secret(answer.text)
    assert known()["vera"] == ("viewer", False)
    assert done(ledger) == ("ada", "user.add", "vera", "127.0.0.1")
    other = browse(desk)
    assert other.sign_in("vera", password).location.startswith("/desk/password")
    for page in (PATH, f"{PATH}?user=vera", "/desk/log"):
        assert password not in admin.get(page).text
    assert password not in caplog.text
    assert password not in str(answer.headers)


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"name": "LEA", "role": "admin"}, "There is a user &#39;lea&#39; already"),
        ({"name": "  ", "role": "admin"}, "cannot be a name"),
        ({"name": "a\nb", "role": "admin"}, "cannot be a name"),
    ],
)
def test_a_name_that_cannot_be_is_told_with_what_was_typed(admin, known, form, said):
    before = known()
    answer = admin.post(PATH, form)
    assert answer.status_code == 422
    assert said in answer.text
    assert "<option selected>admin</option>" in answer.text
    assert f'value="{form["name"]}"' in answer.text
    assert "panel secret" not in answer.text
    assert known() == before


@pytest.mark.parametrize("path", [PATH, f"{PATH}/role"])
def test_a_role_that_does_not_exist(admin, known, path):
    before = known()
    assert admin.post(path, {"name": "lea", "role": "king"}).status_code == 400
    assert known() == before


def test_a_user_is_given_another_role_disabled_enabled_and_removed(admin, browse, desk, known, ledger):
    lea = browse(desk)
    lea.sign_in("lea")
    steps = (
        ("role", {"role": "viewer"}, "lea is a viewer from now on.", ("viewer", False)),
        ("disable", {}, "lea may not sign in any more.", ("viewer", True)),
        ("enable", {}, "lea may sign in again.", ("viewer", False)),
        ("remove", {}, "lea is removed.", None),
    )
    for what, form, said, now in steps:
        assert said in change(admin, what, name="lea", **form)
        assert known().get("lea") == now
        assert done(ledger) == ("ada", f"user.{what}", "lea", "127.0.0.1")
    assert lea.get("/desk/trial/viewer").status_code == 302


def test_a_new_one_time_password_ends_the_old_one(admin, browse, desk, ledger):
    lea = browse(desk)
    lea.sign_in("lea")
    answer = admin.post(f"{PATH}/password", {"name": "lea"})
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    assert "must choose a password" in answer.text
    assert done(ledger) == ("ada", "user.reset_password", "lea", "127.0.0.1")
    assert lea.get("/desk/trial/viewer").status_code == 302
    assert lea.sign_in("lea").status_code == 403
    assert lea.sign_in("lea", secret(answer.text)).status_code == 302
    assert "one-time password used up" in admin.get(PATH).text
    again = admin.get(f"{PATH}/password")  # whoever loads that address anew makes none
    assert (again.status_code, again.location) == (302, PATH)


@pytest.mark.parametrize("what", ["role", "disable", "remove", "password"])
def test_nobody_takes_away_their_own_way_in(admin, add_user, known, what):
    add_user("root", Role.ADMIN)
    before = known()
    page = change(admin, what, name="ada", role="viewer")
    assert "&#39;ada&#39; is yourself" in page
    assert "<code>elnet users</code>" in page
    assert known() == before
    assert admin.get(PATH).status_code == 200


@pytest.mark.parametrize("what", ["role", "disable", "enable", "remove", "password"])
def test_who_is_gone_meanwhile(admin, what):
    assert "There is no user &#39;eve&#39;" in change(admin, what, name="eve", role="viewer")


def test_who_is_vouched_for_has_no_one_time_password(admin, ledger):
    with ledger.session() as session:
        accounts.vouched_for(session, "proxy:eve", "eve", None, Role.VIEWER, None)
    page = admin.get(f"{PATH}?user=eve").text
    assert "New one-time password" not in page
    assert "they come back at the next visit" in page
    assert "decide their role" not in page
    assert "has no password here" in change(admin, "password", name="eve")


def test_groups_that_decide_roles_are_told_of(make_desk, browse, add_user, ledger):
    browser = browse(
        make_desk(proxy={"header": "Remote-User", "roles": {"gis": "lead"}}, trusted_proxies=["10.0.0.1"])
    )
    add_user("ada", Role.ADMIN)
    browser.sign_in("ada")
    with ledger.session() as session:
        accounts.vouched_for(session, "proxy:eve", "eve", None, Role.VIEWER, None)
    assert "decide their role again" in browser.get(f"{PATH}?user=eve").text


def test_the_page_lists_everybody_and_escapes_them(admin, add_user):
    add_user("<b>eve", Role.VIEWER)
    page = admin.get(PATH).text
    assert "&lt;b&gt;eve" in page
    assert "<b>eve" not in page
    assert "Choose a name in the table" in page
    assert "Nobody has made a token yet" in page
    assert "eve, you" not in admin.get(f"{PATH}?user=<b>eve").text
    assert "ada, you" in admin.get(f"{PATH}?user=ada").text


def test_an_admin_sees_and_revokes_everybodys_tokens(admin, ledger):
    with ledger.session() as session:
        made, token = api_tokens.make(
            session, accounts.find(session, "lea"), "nightly export", 30, Who("lea")
        )
    page = admin.get(PATH).text
    assert "nightly export" in page
    assert token not in page
    assert "The token of lea for nightly export is worthless" in change(admin, "revoke", token=str(made.id))
    assert api_tokens.owner(ledger, token) is None
    assert done(ledger) == ("ada", "token.revoke", "lea", "127.0.0.1")
    assert "There is no token 99" in change(admin, "revoke", token="99")


@pytest.mark.parametrize("role", [Role.VIEWER, Role.LEAD])
def test_only_admins_have_these_pages(desk, browse, add_user, known, role):
    add_user("ada", Role.ADMIN)
    add_user("max", role)
    browser = browse(desk)
    browser.sign_in("max")
    before = known()
    assert f'href="{PATH}"' not in browser.get("/desk/account").text
    answers = [browser.get(PATH), browser.post(PATH, {"name": "eve", "role": "admin"})]
    form = {"name": "ada", "role": "admin", "token": "1"}
    changes = ("role", "password", "disable", "enable", "remove", "revoke")
    answers += [browser.post(f"{PATH}/{what}", form) for what in changes]
    for answer in answers:
        assert answer.status_code == 403
        assert "Only admins may do this" in answer.text
    csrf = {"X-CSRFToken": browser.token()}
    for what in ("role", "disable", "enable", "remove"):
        body = {"name": "ada", "role": "viewer"}
        assert browser.client.post(f"{API}/{what}", json=body, headers=csrf).status_code == 403
    assert browser.get(API).status_code == 403
    assert known() == before


class Program:
    """A client with a token of a user."""

    def __init__(self, site: Any, ledger: Any, name: str) -> None:
        self.client = site.app.test_client()
        with ledger.session() as session:
            user = accounts.find(session, name)
            _, token = api_tokens.make(session, user, "test", 1, Who("tester"))
        self.headers = {"Authorization": f"Bearer {token}"}

    def get(self, path: str = "") -> Any:
        return self.client.get(API + path, headers=self.headers)

    def post(self, path: str, **body: str) -> Any:
        return self.client.post(API + path, json=body, headers=self.headers)


@pytest.fixture
def program(desk, ledger, admin):
    """One with a token of ada, the admin."""
    return Program(desk, ledger, "ada")


def test_a_program_lists_and_changes_viewers_and_leads(program, known, ledger):
    listed = program.get()
    assert listed.headers["Cache-Control"] == "no-store"
    assert [(one["name"], one["role"], one["state"]) for one in listed.json["users"]] == [
        ("ada", "admin", "active"),
        ("lea", "lead", "active"),
    ]
    assert [one["user"] for one in listed.json["tokens"]] == ["ada"]
    assert "hash" not in listed.text
    assert program.post("/role", name="lea", role="viewer").json["role"] == "viewer"
    assert program.post("/disable", name="lea").json["state"] == "disabled"
    assert program.post("/enable", name="lea").json["state"] == "active"
    assert done(ledger)[:3] == ("ada", "user.enable", "lea")
    assert program.post("/remove", name="lea").json["name"] == "lea"
    assert list(known()) == ["ada"]
    gone = program.post("/disable", name="lea")
    assert (gone.status_code, "no user 'lea'" in gone.json["error"]) == (409, True)


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("/role", {"name": "lea", "role": "admin"}),
        ("/role", {"name": "root", "role": "viewer"}),
        ("/disable", {"name": "root"}),
        ("/remove", {"name": "root"}),
        ("/enable", {"name": "old"}),
        ("/role", {"name": "ada", "role": "viewer"}),
    ],
)
def test_a_program_makes_no_admin_and_changes_none(program, add_user, known, ledger, path, body):
    for name in ("root", "old"):
        add_user(name, Role.ADMIN)
    with ledger.session() as session:
        accounts.set_disabled(session, accounts.find(session, "old"), True, Who("tester"))
    before = known()
    answer = program.post(path, **body)
    assert (answer.status_code, "changes no admin" in answer.json["error"]) == (403, True)
    assert known() == before


@pytest.mark.parametrize("path", ["", "/password", "/add"])
def test_a_program_makes_no_credentials(program, known, path):
    before = known()
    assert program.post(path, name="eve", role="viewer").status_code in {404, 405}
    assert known() == before


def test_an_admin_who_signed_in_changes_admins_by_the_api_too(admin, add_user, known):
    csrf = {"X-CSRFToken": admin.token()}
    answer = admin.client.post(f"{API}/role", json={"name": "lea", "role": "admin"}, headers=csrf)
    assert answer.status_code == 200
    assert known()["lea"] == ("admin", False)
    own = admin.client.post(f"{API}/disable", json={"name": "ada"}, headers=csrf)
    assert (own.status_code, "yourself" in own.json["error"]) == (409, True)
