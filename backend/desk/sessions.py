"""Sessions of the desk: a signed cookie that names a user, for as long as the user's epoch stands.

Nothing is kept here but the key. A changed password or role, disabling and signing out give the user another
epoch, which ends every session of theirs.
"""

from __future__ import annotations

import secrets
import time
from datetime import timedelta

from flask import Flask, session

from active_learning.ledger import User
from backend.services import services
from backend.settings import Settings


def configure(app: Flask, settings: Settings) -> None:
    """Give an application its key and its cookie.

    Without a key, as in an application that no command of `elnet` started, sessions end with the process.
    """
    key = settings.desk.secret_key
    secure = settings.desk_url.startswith("https://")
    app.secret_key = key.get_secret_value() if key is not None else secrets.token_bytes(32)
    app.config.update(
        # __Host-: no other host of the domain, and nobody on the way who can only write http, may set it
        SESSION_COOKIE_NAME="__Host-elnet" if secure else "elnet",
        SESSION_COOKIE_SECURE=secure,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Lax",
        SESSION_COOKIE_PATH="/",
        PERMANENT_SESSION_LIFETIME=timedelta(hours=settings.desk.idle_hours),  # anew with each answer
    )


def begin(user: User) -> None:
    """Sign a user in; nothing of the session before stays, the CSRF token neither."""
    session.clear()
    session.permanent = True
    session.update(user=user.id, epoch=user.session_epoch, since=int(time.time()))


def end() -> None:
    """Forget who is signed in."""
    session.clear()


def signed_in() -> User | None:
    """Whose session this request carries, if it still holds.

    Raises:
        LedgerError: the ledger cannot be had.
    """
    if not isinstance(session.get("user"), int):
        return None
    if time.time() - session.get("since", 0) > services().settings.desk.longest_hours * 3600:
        return None
    with services().ledger.session(write=False) as ledger_session:
        user = ledger_session.get(User, session["user"])
    if user is None or user.disabled or not secrets.compare_digest(user.session_epoch, session["epoch"]):
        return None
    return user
