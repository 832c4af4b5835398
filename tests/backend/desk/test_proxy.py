"""Sign-in by a reverse proxy's header: from the proxy alone."""

from __future__ import annotations

import pytest

from active_learning.ledger import Role
from backend import accounts
from backend.actions import Who, latest

PROXY = "10.0.0.2"
HEADER = {"header": "Remote-User", "groups_header": "Remote-Groups"}


@pytest.fixture
def behind_proxy(make_desk, browse):
    """Makes a browser behind the proxy; keyword arguments are those of `ProxySettings`."""

    def make(address: str = PROXY, **proxy: object):
        return browse(make_desk(trusted_proxies=["10.0.0.0/29"], proxy={**HEADER, **proxy}), address)

    return make


def visit(browser, name: str, groups: str = "", page: str = "/desk/trial/viewer", **headers: str):
    given = {"Remote-User": name, "Remote-Groups": groups, "X-Forwarded-For": "192.0.2.7", **headers}
    return browser.get(page, headers=given)


def test_the_proxys_user_is_made_at_the_first_visit(behind_proxy, ledger):
    browser = behind_proxy()
    for name in ("Eve", "eve", "EVE "):
        assert visit(browser, name).text == "eve viewer proxy"
    with ledger.session(write=False) as session:
        (made,) = latest(session, 9)
        assert (made.who, made.action, made.thing, made.address) == ("eve", "user.add", "eve", "192.0.2.7")
        assert accounts.find(session, "eve").subject == "proxy:eve"
    assert "Remote-User" not in browser.get("/desk/trial/viewer").headers
    assert browser.get("/desk/trial/viewer").status_code == 302  # nothing of it stays in a cookie
    assert browser.get("/desk/sign-in", headers={"Remote-User": "Eve"}).location == "/desk/"


@pytest.mark.parametrize("address", ["10.0.0.8", "127.0.0.1", "192.0.2.7", "::1", ""])
def test_from_anybody_else_the_header_means_nothing(behind_proxy, address, ledger):
    browser = behind_proxy(address)
    spoofed = {"X-Forwarded-For": PROXY, "X-Real-Ip": PROXY, "Forwarded": f"for={PROXY}"}
    assert visit(browser, "admin", **spoofed).status_code == 302
    assert browser.get("/api/v1/trial/viewer", headers={"Remote-User": "admin"}).status_code == 401
    with ledger.session(write=False) as session:
        assert accounts.users(session) == []


def test_without_a_setting_no_header_means_anything(desk, browse):
    assert visit(browse(desk, PROXY), "admin").status_code == 302


def test_two_headers_in_one_are_refused(behind_proxy):
    answer = visit(behind_proxy(), "admin,eve")
    assert answer.status_code == 403
    assert "must replace the header" in answer.text


def test_the_proxys_word_goes_before_a_session(behind_proxy, add_user):
    browser = behind_proxy("127.0.0.1")
    add_user("root", Role.ADMIN)
    browser.sign_in("root")
    browser.address = PROXY
    assert visit(browser, "eve").text == "eve viewer proxy"
    assert visit(browser, "eve", page="/desk/trial/admin").status_code == 403


def test_a_users_name_with_a_password_is_not_handed_over(behind_proxy, add_user):
    add_user("admin", Role.ADMIN)
    answer = visit(behind_proxy(), "Admin")
    assert answer.status_code == 403
    assert "Another user &#39;admin&#39; signs in otherwise" in answer.text


ROLES = {"roles": {"staff": "viewer", "geo-leads": "lead", "ops": "admin"}, "default_role": None}


def test_groups_decide_the_role_at_every_visit(behind_proxy, ledger):
    browser = behind_proxy(**ROLES)
    assert visit(browser, "eve", "staff, geo-leads").text == "eve lead proxy"
    with ledger.session() as session:
        accounts.set_role(session, accounts.find(session, "eve"), Role.ADMIN, Who("somebody"))
    assert visit(browser, "eve", "geo-leads").text == "eve lead proxy"
    assert visit(browser, "eve", "ops").text == "eve admin proxy"
    assert visit(browser, "eve", "staff").text == "eve viewer proxy"  # the only admin, and the proxy says so
    answer = visit(browser, "eve", "others")
    assert answer.status_code == 403
    assert "eve is in no group that may use the desk" in answer.text


def test_without_groups_the_role_is_changed_here(behind_proxy, ledger):
    browser = behind_proxy(default_role="lead")
    assert visit(browser, "eve", "ops").text == "eve lead proxy"
    with ledger.session() as session:
        accounts.set_role(session, accounts.find(session, "eve"), Role.VIEWER, Who("root"))
    assert visit(browser, "eve", "ops").text == "eve viewer proxy"


def test_the_disabled_stay_out(behind_proxy, ledger):
    browser = behind_proxy()
    visit(browser, "eve")
    with ledger.session() as session:
        accounts.set_disabled(session, accounts.find(session, "eve"), True, Who("root"))
    answer = visit(browser, "eve")
    assert answer.status_code == 403
    assert "disabled" in answer.text


def test_another_site_cannot_use_the_proxys_sign_in(behind_proxy, ledger):
    """The browser proves itself to the proxy by whatever it always sends: forms need the token here too."""
    browser = behind_proxy(default_role="lead")
    named = {"Remote-User": "eve"}
    for path in ("/desk/trial/lead", "/api/v1/trial/lead"):
        answer = browser.client.post(path, headers=named, environ_overrides={"REMOTE_ADDR": PROXY})
        assert answer.status_code == 400
    assert browser.post("/desk/trial/lead", headers=named).status_code == 200


def test_who_comes_by_proxy_has_no_password_here(behind_proxy):
    answer = visit(behind_proxy(), "eve", page="/desk/password")
    assert answer.status_code == 403
    assert "You have no password here" in answer.text
