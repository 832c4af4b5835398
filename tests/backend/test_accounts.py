"""Who may sign in, and that every change is written down."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from active_learning.ledger import ApiToken, Ledger, Role, User
from backend import accounts, api_tokens, passwords
from backend.accounts import UserError
from backend.actions import Who, latest
from backend.passwords import PasswordError

ADA = Who("ada", "10.0.0.7")
PASSWORD = "a few words will do"

pytestmark = pytest.mark.usefixtures("cheap_passwords")


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Ledger]:
    is_file = request.param == "sqlite"
    url = f"sqlite:///{tmp_path / 'l.sqlite'}" if is_file else request.getfixturevalue("postgresql_url")
    with Ledger(url) as ledger:
        ledger.upgrade()
        yield ledger


def add(ledger: Ledger, name: str, role: Role = Role.VIEWER) -> str:
    """Returns the one-time password."""
    with ledger.session() as session:
        return accounts.add(session, name, role, ADA)[1]


def give_password(ledger: Ledger, name: str) -> None:
    with ledger.session() as session:
        accounts.set_password(session, accounts.find(session, name), PASSWORD, ADA)


def user(ledger: Ledger, name: str) -> User:
    with ledger.session(write=False) as session:
        return accounts.find(session, name)


def actions(ledger: Ledger) -> list[tuple[str, str, str | None]]:
    with ledger.session(write=False) as session:
        return [(a.who, a.action, a.thing) for a in latest(session, 100)]


def test_a_one_time_password_opens_once(ledger):
    password = add(ledger, "Lea", Role.LEAD)
    assert accounts.sign_in(ledger, "lea", password + "x", "10.0.0.9") is None
    found = accounts.sign_in(ledger, " LEA ", password, "10.0.0.9")
    assert found is not None
    assert (found.name, found.role, found.must_change_password) == ("lea", Role.LEAD, True)
    assert accounts.sign_in(ledger, "lea", password, "10.0.0.9") is None
    assert actions(ledger) == [("lea", "user.sign_in", "lea"), ("ada", "user.add", "lea")]


def test_of_two_who_use_it_at_once_one_comes_in(ledger, monkeypatch):
    password = add(ledger, "lea")
    user(ledger, "lea")  # opens what is opened once
    with ThreadPoolExecutor(8) as pool:
        tried = list(pool.map(lambda _: accounts.sign_in(ledger, "lea", password, None), range(8)))
    assert sum(found is not None for found in tried) == 1


def test_a_chosen_password_stays(ledger):
    password = add(ledger, "lea")
    before = user(ledger, "lea").session_epoch
    give_password(ledger, "lea")
    assert accounts.sign_in(ledger, "lea", password, None) is None
    for _ in range(2):
        found = accounts.sign_in(ledger, "lea", PASSWORD, None)
        assert found is not None
        assert not found.must_change_password
        assert found.signed_in_at is not None
    assert user(ledger, "lea").session_epoch != before


def test_a_new_one_time_password_ends_the_old_password(ledger):
    add(ledger, "lea")
    give_password(ledger, "lea")
    with ledger.session() as session:
        fresh = accounts.reset_password(session, accounts.find(session, "lea"), ADA)
    assert accounts.sign_in(ledger, "lea", PASSWORD, None) is None
    assert accounts.sign_in(ledger, "lea", fresh, None) is not None


@pytest.mark.parametrize("password", ["short", "Lea-Lovelace", "x" * 2000])
def test_passwords_that_cannot_be_taken(ledger, password):
    add(ledger, "lea-lovelace")
    with pytest.raises((PasswordError, UserError)), ledger.session() as session:
        accounts.set_password(session, accounts.find(session, "lea-lovelace"), password, ADA)


def test_strangers_the_disabled_and_those_without_a_password_cost_as_much(ledger, monkeypatch):
    add(ledger, "lea")
    give_password(ledger, "lea")
    add(ledger, "off")
    give_password(ledger, "off")
    with ledger.session() as session:
        accounts.set_disabled(session, accounts.find(session, "off"), True, ADA)
        accounts.vouched_for(session, "proxy:eve", "eve", None, Role.VIEWER, None)
    costs = []
    matches = accounts.matches
    monkeypatch.setattr(accounts, "matches", lambda *given: costs.append(given) or matches(*given))
    for name in ("lea", "nobody", "off", "eve", "", "x" * 5000, "\0"):
        assert accounts.sign_in(ledger, name, "wrong", None) is None
    assert accounts.sign_in(ledger, "off", PASSWORD, None) is None
    assert len(costs) == 8


def test_a_dearer_cost_is_taken_over_at_the_next_sign_in(ledger, monkeypatch):
    add(ledger, "lea")
    give_password(ledger, "lea")
    dearer = passwords.PasswordHasher(time_cost=2, memory_cost=16, parallelism=1)
    monkeypatch.setattr(passwords, "_hasher", dearer)
    assert accounts.sign_in(ledger, "lea", PASSWORD, None) is not None
    kept = user(ledger, "lea").password_hash
    assert kept is not None
    assert not dearer.check_needs_rehash(kept)
    assert accounts.sign_in(ledger, "lea", PASSWORD, None) is not None


@pytest.mark.parametrize("name", ["", "  ", "x" * 201, "a\nb", "a\u200bb"])
def test_names_that_cannot_be(ledger, name):
    with pytest.raises(UserError, match="cannot be a name"):
        add(ledger, name)


def test_no_two_names_look_alike(ledger):
    add(ledger, "Ada")
    for twin in ("ada", "ADA ", "\uff41da"):
        with pytest.raises(UserError, match="already"):
            add(ledger, twin)


def test_roles_include_those_below():
    assert Role.ADMIN.includes(Role.VIEWER)
    assert Role.LEAD.includes(Role.LEAD)
    assert not Role.VIEWER.includes(Role.LEAD)


def test_another_role_ends_the_sessions_and_is_written_down(ledger):
    add(ledger, "lea")
    before = user(ledger, "lea").session_epoch
    with ledger.session() as session:
        lea = accounts.find(session, "lea")
        accounts.set_role(session, lea, Role.LEAD, ADA)
        accounts.set_role(session, lea, Role.LEAD, ADA)
    assert user(ledger, "lea").session_epoch != before
    with ledger.session(write=False) as session:
        (change,) = (a for a in latest(session, 100) if a.action == "user.role")
    assert (change.who, change.address, change.thing) == ("ada", "10.0.0.7", "lea")
    assert change.detail == {"before": "viewer", "after": "lead"}


@pytest.mark.parametrize(
    "change",
    [
        lambda session, user: accounts.set_role(session, user, Role.LEAD, ADA),
        lambda session, user: accounts.set_disabled(session, user, True, ADA),
        lambda session, user: accounts.remove(session, user, ADA),
    ],
)
def test_the_last_admin_stays(ledger, change):
    add(ledger, "root", Role.ADMIN)
    add(ledger, "off", Role.ADMIN)
    with ledger.session() as session:
        accounts.set_disabled(session, accounts.find(session, "off"), True, ADA)
    with pytest.raises(UserError, match="only admin"), ledger.session() as session:
        change(session, accounts.find(session, "root"))
    add(ledger, "other", Role.ADMIN)
    with ledger.session() as session:
        change(session, accounts.find(session, "root"))


@pytest.mark.parametrize(
    "change",
    [
        lambda session, user, who: accounts.set_role(session, user, Role.LEAD, who),
        lambda session, user, who: accounts.set_disabled(session, user, True, who),
        lambda session, user, who: accounts.remove(session, user, who),
        lambda session, user, who: accounts.reset_password(session, user, who),
    ],
)
def test_at_the_desk_nobody_takes_away_their_own_way_in(ledger, change):
    add(ledger, "Ada", Role.ADMIN)
    add(ledger, "root", Role.ADMIN)
    before = actions(ledger)
    with pytest.raises(UserError, match="'ada' is yourself"), ledger.session() as session:
        change(session, accounts.find(session, "ada"), ADA)
    assert actions(ledger) == before
    with ledger.session() as session:
        change(session, accounts.find(session, "ada"), Who("ada"))  # at a terminal, whatever its user's name
    assert actions(ledger) != before


def test_the_disabled_may_come_back(ledger):
    add(ledger, "lea")
    give_password(ledger, "lea")
    for disabled in (True, True, False):
        with ledger.session() as session:
            accounts.set_disabled(session, accounts.find(session, "lea"), disabled, ADA)
        assert (accounts.sign_in(ledger, "lea", PASSWORD, None) is None) is disabled
    assert [action for _, action, _ in actions(ledger)].count("user.disable") == 1


def test_who_is_deleted_leaves_their_actions_and_no_token(ledger):
    add(ledger, "lea")
    with ledger.session() as session:
        lea = accounts.find(session, "lea")
        _, token = api_tokens.make(session, lea, "ci", None, Who("lea"))
    with ledger.session() as session:
        accounts.remove(session, accounts.find(session, "lea"), ADA)
    assert api_tokens.owner(ledger, token) is None
    with ledger.session(write=False) as session:
        assert session.query(ApiToken).all() == []
    assert ("lea", "token.add", "lea") in actions(ledger)
    assert actions(ledger)[0] == ("ada", "user.remove", "lea")
    with pytest.raises(UserError, match="no user 'lea'"):
        user(ledger, "lea")


def test_the_first_admin_is_made_once(ledger):
    password = accounts.add_first_admin(ledger)
    assert password is not None
    assert accounts.add_first_admin(ledger) is None
    found = accounts.sign_in(ledger, "admin", password, None)
    assert found is not None
    assert (found.role, found.must_change_password) == (Role.ADMIN, True)


def test_of_those_who_start_at_once_one_makes_the_admin(ledger):
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda _: accounts.add_first_admin(ledger), range(4)))
    assert sum(password is not None for password in made) == 1


def test_who_is_vouched_for_is_known_again_whatever_their_name(ledger):
    with ledger.session() as session:
        accounts.vouched_for(session, "oidc:1", "Eve", None, Role.VIEWER, None)
    with ledger.session() as session:
        again = accounts.vouched_for(session, "oidc:1", "Eva", Role.LEAD, Role.VIEWER, None)
    assert (again.name, again.role, again.password_hash) == ("eve", Role.LEAD, None)
    with pytest.raises(UserError, match="has no password here: oidc"), ledger.session() as session:
        accounts.reset_password(session, accounts.find(session, "eve"), ADA)


def test_nobody_is_vouched_into_anothers_name(ledger):
    add(ledger, "admin", Role.ADMIN)
    with pytest.raises(UserError, match="Another user 'admin'"), ledger.session() as session:
        accounts.vouched_for(session, "oidc:2", "Admin", None, Role.VIEWER, None)
    with ledger.session() as session:
        eve = accounts.vouched_for(session, "oidc:3", "eve", None, Role.VIEWER, None)
        accounts.set_disabled(session, eve, True, ADA)
    with pytest.raises(UserError, match="disabled"), ledger.session() as session:
        accounts.vouched_for(session, "oidc:3", "eve", None, Role.VIEWER, None)
