"""Tokens of the API."""

from __future__ import annotations

from datetime import timedelta

import pytest

from active_learning.ledger import ApiToken, Role, User
from active_learning.ledger.types import utc_now
from backend import accounts, api_tokens
from backend.actions import Who

ADA = Who("ada")

pytestmark = pytest.mark.usefixtures("cheap_passwords")


@pytest.fixture
def lea(ledger) -> User:
    with ledger.session() as session:
        return accounts.add(session, "lea", Role.LEAD, ADA)[0]


def make(ledger, user, days=None) -> str:
    with ledger.session() as session:
        return api_tokens.make(session, user, "ci", days, ADA)[1]


def kept(ledger) -> ApiToken:
    with ledger.session(write=False) as session:
        return session.query(ApiToken).one()


def test_the_ledger_holds_nothing_that_opens(ledger, lea, tmp_path):
    token = make(ledger, lea)
    assert token.startswith("elnet_")
    assert token not in str(vars(kept(ledger)))
    assert api_tokens.owner(ledger, token).name == "lea"
    for other in (token[:-1], token.upper(), kept(ledger).sha256, ""):
        assert api_tokens.owner(ledger, other) is None


def test_it_may_what_its_user_may_today(ledger, lea):
    token = make(ledger, lea)
    with ledger.session() as session:
        accounts.set_role(session, session.get_one(User, lea.id), Role.VIEWER, ADA)
    assert api_tokens.owner(ledger, token).role is Role.VIEWER


def test_it_expires(ledger, lea, monkeypatch):
    token = make(ledger, lea, days=30)
    now = utc_now()
    monkeypatch.setattr(api_tokens, "utc_now", lambda: now + timedelta(days=29.9))
    assert api_tokens.owner(ledger, token) is not None
    monkeypatch.setattr(api_tokens, "utc_now", lambda: now + timedelta(days=30.1))
    assert api_tokens.owner(ledger, token) is None


def test_its_use_is_noted_once_a_minute(ledger, lea, monkeypatch):
    token, now = make(ledger, lea), utc_now()
    noted = []
    for seconds in (0, 59, 61):
        at = now + timedelta(seconds=seconds)
        monkeypatch.setattr(api_tokens, "utc_now", lambda at=at: at)
        api_tokens.owner(ledger, token)
        noted.append((kept(ledger).used_at - now).total_seconds())
    assert noted == [0, 0, 61]


def test_one_of_another_user_is_not_there(ledger, lea):
    token = make(ledger, lea)
    for of in (lea.id + 1, 0):
        with pytest.raises(api_tokens.TokenError, match="no token 1"), ledger.session() as session:
            api_tokens.revoke(session, kept(ledger).id, ADA, of=of)
    assert api_tokens.owner(ledger, token) is not None
    with ledger.session() as session:
        api_tokens.revoke(session, kept(ledger).id, ADA, of=lea.id)
    assert api_tokens.owner(ledger, token) is None


def test_revoking_twice_keeps_the_first_time(ledger, lea):
    token = make(ledger, lea)
    times = []
    for _ in range(2):
        with ledger.session() as session:
            times.append(api_tokens.revoke(session, kept(ledger).id, ADA).revoked_at)
    assert times[0] == times[1]
    assert api_tokens.owner(ledger, token) is None
