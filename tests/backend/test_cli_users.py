from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from active_learning.ledger import Ledger, Project
from backend import accounts, api_tokens
from backend.actions import Who, record

Elnet = Callable[..., Any]


@pytest.fixture(autouse=True)
def _surroundings(
    own_settings: Path, cheap_passwords: None, monkeypatch: pytest.MonkeyPatch, ledger: Ledger
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ELNET_USER", "root@here")


def test_a_user_is_made_and_their_password_told_once(elnet: Elnet, ledger: Ledger) -> None:
    assert "There is no user yet" in elnet("users").out
    answer = elnet("users", "add", "Ada", "--role", "admin")
    assert answer.code == 0, answer.err
    assert "opens the desk once, as ada" in answer.err
    user = accounts.sign_in(ledger, "ada", answer.out.strip(), None)
    assert user is not None
    made = elnet("users", "add", "lea", "--role", "lead", "--json").json()
    assert (made["name"], made["role"]) == ("lea", "lead")
    rows = elnet("users", "--json").json()
    assert [(row["name"], row["role"], row["signs_in_by"]) for row in rows] == [
        ("ada", "admin", "used one-time password"),
        ("lea", "lead", "one-time password"),
    ]
    assert made["one_time_password"] not in elnet("users").out + elnet("users", "log", "--json").out


def test_a_new_one_time_password(elnet: Elnet, ledger: Ledger) -> None:
    first = elnet("users", "add", "lea", "--role", "lead").out.strip()
    second = elnet("users", "password", "lea").out.strip()
    assert accounts.sign_in(ledger, "lea", first, None) is None
    assert accounts.sign_in(ledger, "lea", second, None) is not None


def test_a_user_is_changed_disabled_and_removed(elnet: Elnet) -> None:
    elnet("users", "add", "root", "--role", "admin")
    elnet("users", "add", "lea", "--role", "lead")
    assert elnet("users", "role", "lea", "viewer").out == "lea is a viewer.\n"
    assert elnet("users", "disable", "lea").out == "lea may not sign in any more.\n"
    assert [row["signs_in_by"] for row in elnet("users", "--json").json()] == [
        "disabled",
        "one-time password",
    ]
    assert elnet("users", "enable", "lea").out == "lea may sign in.\n"
    assert elnet("users", "remove", "lea").out == "lea is deleted.\n"
    log = elnet("users", "log", "--json").json()
    assert [(row["who"], row["action"], row["thing"], row["from"]) for row in log[:4]] == [
        ("root@here", action, "lea", "terminal")
        for action in ("user.remove", "user.enable", "user.disable", "user.role")
    ]
    assert log[3]["detail"] == {"before": "lead", "after": "viewer"}
    assert "before=lead, after=viewer" in elnet("users", "log").out


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (("role", "nobody", "lead"), "There is no user 'nobody'"),
        (("role", "root", "viewer"), "'root' is the only admin"),
        (("disable", "root"), "'root' is the only admin"),
        (("remove", "root"), "'root' is the only admin"),
        (("add", "ROOT", "--role", "lead"), "There is a user 'root' already"),
        (("add", " ", "--role", "lead"), "cannot be a name"),
        (("token", "revoke", "7"), "There is no token 7"),
        (("token", "add", "nobody", "ci"), "There is no user 'nobody'"),
        (("token", "add", "root", " "), "needs a name"),
        (("log", "--project", "x"), "no project yet"),
    ],
)
def test_what_cannot_be_done_is_explained(elnet: Elnet, command: tuple[str, ...], said: str) -> None:
    elnet("users", "add", "root", "--role", "admin")
    answer = elnet("users", *command)
    assert answer.code == 1
    assert said in answer.err
    assert answer.out == ""


def test_a_role_that_does_not_exist(elnet: Elnet) -> None:
    assert elnet("users", "add", "lea", "--role", "king").code == 2


def test_tokens_are_made_listed_and_revoked(elnet: Elnet, ledger: Ledger) -> None:
    elnet("users", "add", "lea", "--role", "lead")
    answer = elnet("users", "token", "add", "lea", "nightly export", "--days", "30")
    token = answer.out.strip()
    assert "Token 1 of lea, a lead" in answer.err
    user = api_tokens.owner(ledger, token)
    assert user is not None
    assert user.name == "lea"
    other = elnet("users", "token", "add", "lea", "ci", "--json").json()
    assert other["id"] == 2
    assert elnet("users", "token", "revoke", "1").out == (
        "Token 1 (nightly export) of lea is worthless from now on.\n"
    )
    assert api_tokens.owner(ledger, token) is None
    rows = elnet("users", "token", "list", "lea", "--json").json()
    assert [(row["purpose"], row["revoked"] is None, row["expires"] is None) for row in rows] == [
        ("nightly export", False, False),
        ("ci", True, True),
    ]
    assert rows[0]["last_used"] is not None
    for secret in (token, other["token"]):
        assert secret not in elnet("users", "token", "list").out
        assert secret not in elnet("users", "log", "--json").out


def test_the_log_of_one_person_or_project(elnet: Elnet, ledger: Ledger) -> None:
    with ledger.session() as session:
        project = Project(name="spills", tool_url="http://tool", tool_project_id=7, classes=["oil"])
        session.add(project)
        session.flush()
        record(session, Who("lea", "10.0.0.7"), "threshold.set", project=project, to=0.8)
        record(session, Who("ada"), "user.add", "lea")
    (row,) = elnet("users", "log", "--by", "lea", "--json").json()
    assert (row["project"], row["from"], row["detail"]) == ("spills", "10.0.0.7", {"to": 0.8})
    assert elnet("users", "log", "-p", "spills", "--json").json() == [row]
    assert len(elnet("users", "log", "--limit", 1, "--json").json()) == 1
    assert elnet("users", "log", "--by", "eve").out == "Nothing was done yet.\n"
