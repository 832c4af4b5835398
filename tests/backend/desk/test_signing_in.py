"""Signing in by password, out again, and choosing one."""

from __future__ import annotations

import pytest

from active_learning.ledger import Role
from backend import accounts
from backend.actions import Who, latest

ADA = Who("ada")


@pytest.fixture
def one_time(ledger):
    """Makes a user; returns their one-time password."""

    def add(name: str, role: Role = Role.LEAD) -> str:
        with ledger.session() as session:
            return accounts.add(session, name, role, ADA)[1]

    return add


def signs_in(ledger) -> list[tuple[str, str | None]]:
    with ledger.session(write=False) as session:
        return [(a.who, a.address) for a in latest(session, 100) if a.action == "user.sign_in"]


def test_the_right_password_opens_the_desk(browser, add_user, ledger):
    add_user("lea")
    answer = browser.sign_in("Lea", next="/desk/trial/viewer")
    assert (answer.status_code, answer.location) == (302, "/desk/trial/viewer")
    assert browser.get("/desk/trial/viewer").text == "lea viewer session"
    assert signs_in(ledger) == [("lea", "127.0.0.1")]
    assert browser.get("/desk/sign-in?next=/desk/trial/lead").location == "/desk/trial/lead"


def test_a_stranger_and_a_wrong_password_are_told_the_same(browser, add_user, ledger, caplog):
    add_user("lea")
    said = [browser.sign_in(name, password) for name, password in (("lea", "wrong"), ("nobody", "wrong"))]
    assert [answer.status_code for answer in said] == [403, 403]
    assert said[0].text == said[1].text
    assert "The name or the password is wrong." in said[0].text
    assert "a sign-in from 127.0.0.1 was refused" in caplog.text
    assert "nobody" not in caplog.text
    assert browser.get("/desk/trial/viewer").status_code == 302
    assert signs_in(ledger) == []


def test_nothing_of_the_session_before_stays(browser, add_user):
    """Session fixation: whoever planted a cookie, and knows its CSRF token, has nothing of the new one."""
    add_user("lea", Role.LEAD)
    planted = browser.token()
    before = browser.cookie().value
    browser.sign_in("lea")
    assert browser.cookie().value != before
    assert browser.post("/desk/trial/lead", token=planted).status_code == 400
    browser.client.set_cookie("elnet", before)
    assert browser.get("/desk/trial/viewer").status_code == 302


def test_the_cookie_is_for_this_server_alone(browser, add_user):
    add_user("lea")
    cookie = browser.sign_in("lea").headers["Set-Cookie"]
    assert cookie.startswith("elnet=")
    assert "HttpOnly" in cookie
    assert "SameSite=Lax" in cookie
    assert "Domain" not in cookie
    assert "Secure" not in cookie


@pytest.mark.parametrize(
    ("web", "desk", "secure"),
    [
        ({"public_url": "https://e.example"}, {}, True),
        ({"public_url": "http://backend:9090"}, {"url": "https://e.example"}, True),
        ({"public_url": "https://e.example"}, {"url": "http://e.example"}, False),
    ],
)
def test_behind_tls_the_cookie_goes_nowhere_else(make_desk, web, desk, secure):
    cookie = make_desk(web=web, **desk).client.get("/desk/sign-in").headers["Set-Cookie"]
    assert ("Secure" in cookie) is secure
    assert cookie.startswith("__Host-elnet=") is secure
    assert "Path=/" in cookie


def test_a_one_time_password_opens_nothing_but_the_choice_of_another(browser, browse, desk, one_time, ledger):
    password = one_time("lea")
    answer = browser.sign_in("lea", password, next="/desk/trial/lead")
    assert answer.location == "/desk/password?next=/desk/trial/lead"
    for path in ("/desk/trial/viewer", "/desk/trial/lead"):
        assert browser.get(path).location == "/desk/password"
    assert browser.get("/api/v1/trial/viewer").status_code == 403
    assert browse(desk).sign_in("lea", password).status_code == 403  # used up
    page = browser.get("/desk/password").text
    assert "used up now" in page
    assert 'name="current"' not in page
    new = {"new": "other words will do", "again": "other words will do", "next": "/desk/trial/lead"}
    assert browser.post("/desk/password", new).location == "/desk/trial/lead"
    assert browser.get("/desk/trial/lead").status_code == 200
    assert browse(desk).sign_in("lea", "other words will do").status_code == 302


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"current": "wrong"}, "The password that you have now is another one."),
        ({}, "The password that you have now is another one."),
        ({"again": "different"}, "The two new passwords are not the same."),
        ({"new": "short", "again": "short"}, "12 characters or more"),
        ({"new": "LEA-LOVELACE", "again": "LEA-LOVELACE"}, "The name does not serve"),
    ],
)
def test_a_password_that_is_not_changed(browser, browse, desk, add_user, form, said):
    add_user("lea-lovelace")
    browser.sign_in("lea-lovelace")
    given = {"new": "other words will do", "again": "other words will do"}
    if form.get("current") is None and (form.get("new") or form.get("again")):
        given["current"] = browser.PASSWORD
    answer = browser.post("/desk/password", {**given, **form})
    assert answer.status_code == 422
    assert said in answer.text
    assert browse(desk).sign_in("lea-lovelace").status_code == 302


def test_a_changed_password_ends_the_other_sessions_and_not_this(browser, browse, desk, add_user, ledger):
    add_user("lea")
    other = browse(desk)
    browser.sign_in("lea")
    other.sign_in("lea")
    given = {"current": browser.PASSWORD, "new": "other words will do", "again": "other words will do"}
    assert browser.post("/desk/password", given).status_code == 302
    assert browser.get("/desk/trial/viewer").status_code == 200
    assert other.get("/desk/trial/viewer").status_code == 302
    with ledger.session(write=False) as session:
        assert [(a.who, a.action) for a in latest(session, 1)] == [("lea", "user.password")]


def test_signing_out_makes_a_copied_cookie_worthless(browser, browse, desk, add_user, ledger):
    add_user("lea")
    browser.sign_in("lea")
    thief = browse(desk)
    thief.client.set_cookie("elnet", browser.cookie().value)
    assert thief.get("/desk/trial/viewer").status_code == 200
    assert browser.get("/desk/sign-out").status_code == 405
    assert browser.post("/desk/sign-out").location == "/desk/sign-in"
    assert browser.get("/desk/trial/viewer").status_code == 302
    assert thief.get("/desk/trial/viewer").status_code == 302


def test_tries_of_a_name_are_limited_whoever_makes_them(browser, browse, desk, add_user):
    add_user("lea")
    tries = [browse(desk, f"10.0.0.{n}").sign_in("Lea" if n % 2 else "lea", "wrong") for n in range(11)]
    assert [answer.status_code for answer in tries] == [403] * 10 + [429]
    assert "wait a quarter of an hour" in tries[-1].text
    assert tries[-1].headers["Retry-After"] == "900"
    assert browse(desk, "10.0.0.99").sign_in("lea").status_code == 429  # the right one, too
    add_user("eve")
    assert browser.sign_in("eve").status_code == 302


def test_the_right_password_makes_the_failures_before_forgotten(desk, browse, add_user):
    add_user("lea")
    for _ in range(3):
        browser = browse(desk)
        assert [browser.sign_in("lea", "wrong").status_code for _ in range(6)] == [403] * 6
        assert browser.sign_in("lea").status_code == 302


@pytest.mark.parametrize(
    ("addresses", "refused"),
    [
        (["10.0.0.1"] * 61, True),
        ([f"2001:db8:0:1::{n:x}" for n in range(61)], True),  # one household's
        ([f"2001:db8:0:{n:x}::1" for n in range(61)], False),
        ([f"10.0.0.{n}" for n in range(61)], False),
    ],
)
def test_tries_of_an_address_are_limited_whatever_the_names(desk, browser, addresses, refused):
    token = browser.token()
    for number, browser.address in enumerate(addresses):
        answer = browser.post("/desk/sign-in", {"name": f"n{number}", "password": "x"}, token=token)
    assert answer.status_code == (429 if refused else 403)


def test_guessing_the_password_in_a_stolen_session_is_limited(browser, add_user):
    add_user("lea")
    browser.sign_in("lea")
    form = {"current": "wrong", "new": "other words will do", "again": "other words will do"}
    tried = [browser.post("/desk/password", form).status_code for _ in range(11)]
    assert tried == [422] * 10 + [429]
