"""What each role may do, and how the others are told."""

from __future__ import annotations

import time

import pytest

from active_learning.ledger import Role
from backend import accounts, api_tokens
from backend.actions import Who, latest
from backend.desk.access import safe_next

ADA = Who("ada")
PAGES = ["viewer", "lead", "admin"]


@pytest.mark.parametrize("page", PAGES)
def test_strangers_are_led_to_the_sign_in_page_and_programs_told(browser, page):
    answer = browser.get(f"/desk/trial/{page}?a=1&b=2")
    assert answer.status_code == 302
    assert answer.location == f"/desk/sign-in?next=/desk/trial/{page}?a%3D1%26b%3D2"
    answer = browser.get(f"/api/v1/trial/{page}")
    assert (answer.status_code, answer.headers["WWW-Authenticate"]) == (401, "Bearer")
    assert "Bearer elnet_" in answer.json["error"]


@pytest.mark.parametrize("role", list(Role))
@pytest.mark.parametrize("page", PAGES)
def test_a_role_may_do_what_those_below_may(desk, browser, add_user, role, page):
    add_user("lea", role)
    browser.sign_in("lea")
    may = role.includes(Role(page))
    answer = browser.get(f"/desk/trial/{page}")
    assert answer.status_code == (200 if may else 403)
    if not may:
        wanted = "leads and admins" if page == "lead" else "admins"
        assert f"Only {wanted} may do this, and lea is a {role}: ask an admin." in answer.text
        assert answer.mimetype == "text/html"
    answer = browser.get(f"/api/v1/trial/{page}")
    assert answer.status_code == (200 if may else 403)
    assert may or answer.json["error"].startswith("Only")


def test_what_changes_something_is_written_down_with_who_and_where(desk, browser, add_user, ledger):
    add_user("lea", Role.LEAD)
    browser.sign_in("lea")
    assert browser.post("/desk/trial/lead").text == "done"
    with ledger.session(write=False) as session:
        action = latest(session, 1)[0]
    assert (action.who, action.action, action.thing, action.address) == ("lea", "trial", "thing", "127.0.0.1")
    assert action.detail == {"to": 1}


def bearer(ledger, user, days=None):
    with ledger.session() as session:
        return api_tokens.make(session, user, "ci", days, ADA)[1]


def test_a_token_opens_the_api_without_csrf_and_no_page(desk, browser, add_user, ledger):
    token = bearer(ledger, add_user("lea", Role.LEAD))
    headers = {"Authorization": f"Bearer {token}"}
    assert browser.get("/api/v1/trial/viewer", headers=headers).text == "lea lead token"
    assert desk.client.post("/api/v1/trial/lead", headers=headers).status_code == 200
    assert browser.get("/api/v1/trial/admin", headers=headers).status_code == 403
    assert browser.get("/desk/trial/viewer", headers=headers).status_code == 302


def test_a_token_that_no_longer_holds(desk, browser, add_user, ledger):
    lea, eve = add_user("lea", Role.LEAD), add_user("eve")
    tokens = {
        "expired": bearer(ledger, lea, 0),
        "revoked": bearer(ledger, lea),
        "disabled": bearer(ledger, eve),
    }
    with ledger.session() as session:
        api_tokens.revoke(session, api_tokens.tokens(session, lea)[1].id, ADA)
        accounts.set_disabled(session, accounts.find(session, "eve"), True, ADA)
    browser.sign_in("lea")  # a session does not stand in for a token that does not hold
    for token in (*tokens.values(), "elnet_guess", "", "wörd"):
        answer = browser.get("/api/v1/trial/viewer", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 401, token


def test_the_api_by_cookie_needs_the_csrf_token(desk, browser, add_user):
    add_user("lea", Role.LEAD)
    assert desk.client.post("/api/v1/trial/lead").status_code == 401
    browser.sign_in("lea")
    token = browser.token()
    answer = browser.client.post("/api/v1/trial/lead")
    assert answer.status_code == 400
    assert "load it anew" in answer.json["error"]
    assert browser.client.post("/api/v1/trial/lead", headers={"X-CSRFToken": token + "x"}).status_code == 400
    basic = {
        "Authorization": "Basic eDp5"
    }  # of a proxy on the way; no other site's doing, but no token of ours
    assert browser.client.post("/api/v1/trial/lead", headers=basic).status_code == 400
    assert browser.client.post("/api/v1/trial/lead", headers={"X-CSRFToken": token}).status_code == 200


@pytest.mark.parametrize("path", ["/desk/trial/lead", "/desk/sign-in", "/desk/sign-out", "/desk/password"])
def test_every_form_needs_the_csrf_token(desk, browser, add_user, ledger, path):
    add_user("lea", Role.LEAD)
    browser.sign_in("lea")
    for data in ({}, {"csrf_token": "guess"}):
        answer = browser.client.post(path, data=data)
        assert answer.status_code == 400
        assert "load it anew" in answer.text
    with ledger.session(write=False) as session:
        assert [a.action for a in latest(session, 1)] == ["user.sign_in"]


def test_another_sessions_csrf_token_does_not_serve(desk, browser, browse, add_user):
    add_user("lea", Role.LEAD)
    browser.sign_in("lea")
    assert browser.post("/desk/trial/lead", token=browse(desk).token()).status_code == 400


def test_the_ml_contract_asks_for_no_csrf_token(desk):
    assert desk.client.post("/predict", json={"tasks": []}).status_code == 200
    assert desk.client.post("/webhook", json={"action": "TASKS_CREATED", "tasks": []}).status_code == 200


@pytest.mark.parametrize(
    "change",
    [
        lambda session, user: accounts.set_role(session, user, Role.VIEWER, ADA),
        lambda session, user: accounts.set_disabled(session, user, True, ADA),
        lambda session, user: accounts.set_password(session, user, "other words will do", ADA),
        lambda session, user: accounts.reset_password(session, user, ADA),
        lambda session, user: accounts.remove(session, user, ADA),
    ],
)
def test_a_changed_user_ends_the_session(desk, browser, add_user, ledger, change):
    add_user("lea", Role.LEAD)
    browser.sign_in("lea")
    assert browser.get("/desk/trial/viewer").status_code == 200
    with ledger.session() as session:
        change(session, accounts.find(session, "lea"))
    assert browser.get("/desk/trial/viewer").status_code == 302


def test_whoever_gets_a_deleted_users_number_is_not_signed_in(desk, browser, add_user, ledger):
    first = add_user("lea", Role.ADMIN)
    browser.sign_in("lea")
    with ledger.session() as session:
        session.delete(accounts.find(session, "lea"))
    second = add_user("eve", Role.ADMIN)
    assert first.id == second.id  # SQLite gives it away again
    assert browser.get("/desk/trial/viewer").status_code == 302


def test_a_session_ends_when_it_is_idle_and_after_the_longest_time(make_desk, browse, add_user, monkeypatch):
    site = make_desk(idle_hours=2, longest_hours=5)
    add_user("lea")
    browser, now, later = browse(site), time.time(), [0.0]
    monkeypatch.setattr(time, "time", lambda: now + later[0] * 3600)
    browser.sign_in("lea")
    status = {}
    for later[0] in (1.9, 3.8, 4.9, 5.1):  # never idle for two hours
        status[later[0]] = browser.get("/desk/trial/viewer").status_code
    assert status == {1.9: 200, 3.8: 200, 4.9: 200, 5.1: 302}
    browser.sign_in("lea")
    later[0] += 2.1
    assert browser.get("/desk/trial/viewer").status_code == 302


def test_a_cookie_of_another_key_or_a_changed_one_is_worth_nothing(
    desk, make_desk, browser, browse, add_user
):
    add_user("lea", Role.ADMIN)
    browser.sign_in("lea")
    cookie = browser.cookie().value
    other = browse(make_desk(secret_key="another key"))
    for value in (cookie, cookie[:-2], "x" + cookie):
        other.client.set_cookie("elnet", value)
        assert other.get("/desk/trial/viewer").status_code == 302


def test_processes_with_one_key_share_sessions(make_desk, browse, add_user):
    one, two = (browse(make_desk(secret_key="the key in the state folder")) for _ in range(2))
    add_user("lea")
    one.sign_in("lea")
    two.client.set_cookie("elnet", one.cookie().value)
    assert two.get("/desk/trial/viewer").status_code == 200


@pytest.mark.parametrize(
    ("wanted", "gone"),
    [
        ("/desk/1/queue?page=2", "/desk/1/queue?page=2"),
        ("/desk", "/desk"),
        (None, "/desk/"),
        ("", "/desk/"),
        ("https://evil.example/desk/", "/desk/"),
        ("//evil.example/desk/", "/desk/"),
        ("/\\evil.example/desk/", "/desk/"),
        ("\\\\evil.example", "/desk/"),
        ("/desk/\\evil.example", "/desk/"),
        ("/deskevil", "/desk/"),
        ("/webhook", "/desk/"),
        ("desk/x", "/desk/"),
        ("javascript:alert(1)", "/desk/"),
        ("/desk/\r\nSet-Cookie: a=b", "/desk/"),
        ("/\t/evil.example/desk/", "/desk/"),
        ("http:/desk/", "/desk/"),
        ("//[", "/desk/"),
    ],
)
def test_after_signing_in_one_stays_on_this_server(browser, add_user, wanted, gone):
    assert safe_next(wanted) == gone
    add_user("lea")
    answer = browser.sign_in("lea", **({} if wanted is None else {"next": wanted}))
    assert (answer.status_code, answer.location) == (302, gone)


def test_headers_of_pages(desk, browser, add_user):
    for path in ("/desk/sign-in", "/desk/nowhere"):
        headers = browser.get(path).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'self';" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "same-origin"
        assert headers["Cache-Control"] == "no-store"
    assert "Content-Security-Policy" not in browser.get("/health").headers


def test_an_inline_script_runs_by_its_nonce(desk, browser):
    with desk.app.test_request_context("/desk/x"):
        nonce = desk.app.jinja_env.from_string("{{ csp_nonce() }} {{ csp_nonce() }}").render().split()
        policy = desk.app.process_response(desk.app.make_response("")).headers["Content-Security-Policy"]
    assert nonce[0] == nonce[1]
    assert f"script-src 'self' 'nonce-{nonce[0]}';" in policy


def test_a_ledger_that_is_away_is_a_page_too(desk, browser, add_user, monkeypatch):
    add_user("lea")
    browser.sign_in("lea")
    with desk.ledger.engine.begin() as connection:
        connection.exec_driver_sql("ALTER TABLE users RENAME TO gone")
    answer = browser.get("/desk/trial/viewer")
    assert (answer.status_code, answer.mimetype) == (503, "text/html")
    assert "elnet ledger upgrade" in answer.text
    assert browser.get("/api/v1/trial/viewer").json["error"]


def test_a_desk_that_is_switched_off(make_site):
    site = make_site(desk={"enabled": False})
    answer = site.client.get("/desk/sign-in")
    assert answer.status_code == 404
    assert answer.is_json
