"""Bearer tokens of the API. Only a sha256 is kept: 256 random bits need no slow hash."""

from __future__ import annotations

import hashlib
import secrets
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.orm import Session, joinedload

from active_learning.ledger import ApiToken, Ledger, User
from active_learning.ledger.types import utc_now
from backend.actions import Who, record
from model.errors import ELNetError

PREFIX = "elnet_"  # so that those who look for leaked secrets know it
_NOTED_EVERY = timedelta(minutes=1)  # a write for each request would hold up the others


class TokenError(ELNetError):
    """A token that is not there, or cannot be made."""


def make(session: Session, user: User, name: str, days: int | None, who: Who) -> tuple[ApiToken, str]:
    """Make a token for a user.

    Args:
        session: a writing session; the caller commits.
        user: whose role it has.
        name: what it is for.
        days: until it expires; None: never.
        who: makes it.

    Returns:
        What is kept, and the token, which is kept nowhere.

    Raises:
        TokenError: it has no name.
    """
    if not name.strip():
        raise TokenError("A token needs a name that tells what it is for.")
    token = PREFIX + secrets.token_urlsafe(32)
    expires = None if days is None else utc_now() + timedelta(days=days)
    made = ApiToken(user_id=user.id, name=name.strip()[:200], sha256=_sha256(token), expires_at=expires)
    session.add(made)
    session.flush()
    record(session, who, "token.add", user.name, token=made.id, name=made.name, days=days)
    return made, token


def tokens(session: Session, user: User | None = None) -> list[ApiToken]:
    """A user's, or everybody's, with their users."""
    wanted = select(ApiToken).options(joinedload(ApiToken.user)).order_by(ApiToken.id)
    return list(session.scalars(wanted if user is None else wanted.where(ApiToken.user_id == user.id)))


def revoke(session: Session, token_id: int, who: Who, *, of: int | None = None) -> ApiToken:
    """Make a token worthless. Safe to repeat.

    Args:
        session: a writing session; the caller commits.
        token_id: which.
        who: revokes it.
        of: id of the only user whose it may be; None: anybody's.

    Raises:
        TokenError: there is none of this id, or it is another user's.
    """
    token = session.get(ApiToken, token_id, options=[joinedload(ApiToken.user)])
    if token is None or of not in {None, token.user_id}:
        raise TokenError(f"There is no token {token_id}: the desk and `elnet users token list` list them.")
    if token.revoked_at is None:
        token.revoked_at = utc_now()
        record(session, who, "token.revoke", token.user.name, token=token.id, name=token.name)
    return token


def owner(ledger: Ledger, token: str) -> User | None:
    """The user whose token this is, if it is valid and they may sign in; notes that it was used.

    Raises:
        LedgerError: the ledger cannot be had.
    """
    now = utc_now()
    with ledger.session(write=False) as session:
        wanted = select(ApiToken).options(joinedload(ApiToken.user))
        found = session.scalar(wanted.where(ApiToken.sha256 == _sha256(token)))
    if found is None or found.revoked_at is not None or found.user.disabled:
        return None
    if found.expires_at is not None and found.expires_at <= now:
        return None
    if found.used_at is None or now - found.used_at >= _NOTED_EVERY:
        with ledger.session() as session:
            if (kept := session.get(ApiToken, found.id)) is not None:
                kept.used_at = now
    return found.user


def _sha256(token: str) -> str:
    return hashlib.sha256(token.encode()).hexdigest()
