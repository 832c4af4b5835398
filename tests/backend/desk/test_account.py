"""One's own account: the password, and tokens for programs that end by themselves."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest

from active_learning.ledger import Role, User
from active_learning.ledger.types import utc_now
from backend import accounts, api_tokens
from backend.actions import Who, latest
from backend.desk import account

PATH = "/desk/account"
PROXY = "10.0.0.1"


@pytest.fixture(params=list(Role))
def someone(request, desk, browser, add_user):
    """The browser of lea, in each role."""
    add_user("lea", request.param)
    browser.sign_in("lea")
    return browser


@pytest.fixture
def viewer(desk, browser, add_user):
    """The browser of lea, a viewer."""
    add_user("lea")
    browser.sign_in("lea")
    return browser


def make(browser, name: str = "nightly export", days: str = "30") -> str:
    """Make a token at the page; returns it."""
    answer = browser.post(PATH, {"name": name, "days": days})
    assert (answer.status_code, answer.headers["Cache-Control"]) == (200, "no-store")
    found = re.search(r"<code>(elnet_[^<]+)</code>", answer.text)
    assert found, answer.text
    assert found[1] not in str(answer.headers)
    return found[1]


def kept(ledger, name: str):
    with ledger.session(write=False) as session:
        return api_tokens.tokens(session, accounts.find(session, name))


def test_everybody_makes_and_revokes_tokens_of_their_own(desk, someone, ledger, caplog):
    token = make(someone)
    bearer = {"Authorization": f"Bearer {token}"}
    assert desk.client.get("/api/v1/projects", headers=bearer).status_code == 200
    page = someone.get(PATH).text
    assert "nightly export" in page
    assert token not in page + someone.get("/desk/log").text + caplog.text
    (made,) = kept(ledger, "lea")
    assert made.expires_at - made.created_at == pytest.approx(timedelta(days=30), abs=timedelta(minutes=1))
    answer = someone.post(f"{PATH}/revoke", {"token": str(made.id)})
    assert answer.location == PATH
    page = someone.get(PATH).text
    assert "The token for nightly export is worthless" in page
    assert "No token yet" in page
    assert desk.client.get("/api/v1/projects", headers=bearer).status_code == 401
    with ledger.session(write=False) as session:
        last = latest(session, 2)
    assert [(one.who, one.action, one.thing, one.address) for one in last] == [
        ("lea", "token.revoke", "lea", "127.0.0.1"),
        ("lea", "token.add", "lea", "127.0.0.1"),
    ]


@pytest.mark.parametrize("days", ["0", "-1", "367", "99999999999999", "", "soon"])
def test_a_token_of_ones_own_ends_within_a_year(viewer, ledger, days):
    answer = viewer.post(PATH, {"name": "<export>", "days": days})
    assert answer.status_code == 422
    assert "1 to 366 days" in answer.text
    assert 'value="&lt;export&gt;"' in answer.text
    assert kept(ledger, "lea") == []


def test_a_token_needs_a_name(viewer, ledger):
    answer = viewer.post(PATH, {"name": " ", "days": "7"})
    assert (answer.status_code, "needs a name" in answer.text, 'value="7"' in answer.text) == (
        422,
        True,
        True,
    )
    assert kept(ledger, "lea") == []


def test_a_token_that_has_expired_is_told_as_such(viewer, ledger, monkeypatch):
    make(viewer)
    assert "expired " not in viewer.get(PATH).text
    now = utc_now()
    monkeypatch.setattr(account, "utc_now", lambda: now + timedelta(days=31))
    assert "expired " in viewer.get(PATH).text


@pytest.mark.parametrize("role", list(Role))
def test_anothers_token_is_revoked_by_admins_alone(desk, browser, add_user, ledger, role):
    eve = add_user("eve")
    add_user("lea", role)
    with ledger.session() as session:
        made, token = api_tokens.make(session, session.get_one(User, eve.id), "ci", 9, Who("eve"))
    browser.sign_in("lea")
    assert ">ci<" not in browser.get(PATH).text
    api = f"/api/v1/tokens/{made.id}/revoke"
    may = role is Role.ADMIN
    answer = browser.client.post(api, headers={"X-CSRFToken": browser.token()})
    assert answer.status_code == (200 if may else 409)
    assert may or answer.json["error"].startswith(f"There is no token {made.id}")
    browser.post(f"{PATH}/revoke", {"token": str(made.id)})
    assert ("Nothing was changed. There is no token" in browser.get(PATH).text) is not may
    assert (api_tokens.owner(ledger, token) is None) is may


def test_a_program_sees_and_revokes_its_users_tokens_and_makes_none(desk, viewer, ledger):
    bearer = {"Authorization": f"Bearer {make(viewer)}"}
    make(viewer, "other")
    told = desk.client.get("/api/v1/account", headers=bearer)
    assert (told.json["name"], told.json["role"], told.json["signs_in_by"]) == ("lea", "viewer", "password")
    assert [one["name"] for one in told.json["tokens"]] == ["nightly export", "other"]
    other = told.json["tokens"][1]["id"]
    answer = desk.client.post(f"/api/v1/tokens/{other}/revoke", headers=bearer)
    assert (answer.status_code, answer.json["name"]) == (200, "other")
    assert [one.revoked_at is None for one in kept(ledger, "lea")] == [True, False]
    for path in ("/api/v1/account", "/api/v1/tokens"):
        assert desk.client.post(path, json={"name": "x", "days": 9}, headers=bearer).status_code in {404, 405}
    assert desk.client.get(PATH, headers=bearer).status_code == 302


def test_the_password_is_changed_from_here(viewer):
    page = viewer.get(PATH).text
    assert 'action="/desk/password"' in page
    assert 'name="next" value="/desk/account"' in page
    new = {"current": viewer.PASSWORD, "new": "other words will do", "again": "other words will do"}
    answer = viewer.post("/desk/password", {**new, "next": PATH})
    assert (answer.status_code, answer.location) == (302, PATH)
    assert "Your password is changed" in viewer.get(PATH).text


def test_who_is_vouched_for_is_told_that_there_is_no_password(make_desk, browse):
    proxied = browse(make_desk(proxy={"header": "Remote-User"}, trusted_proxies=[PROXY]), PROXY)
    page = proxied.get(PATH, headers={"Remote-User": "eve"}).text
    assert "a proxy in front of this server signs you in" in page
    assert 'type="password"' not in page


def test_who_has_a_one_time_password_chooses_first(desk, browser, ledger):
    with ledger.session() as session:
        _, password = accounts.add(session, "lea", Role.ADMIN, Who("ada"))
    browser.sign_in("lea", password)
    for path in (PATH, "/desk/users"):
        assert browser.get(path).location == "/desk/password"
        assert browser.post(path, {"name": "x", "days": "9", "role": "admin"}).location == "/desk/password"
    assert kept(ledger, "lea") == []
