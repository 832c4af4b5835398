"""Tables of the desk: its users, their tokens, and what was done.

`ActionRecord` is append-only.
"""

from __future__ import annotations

import secrets
from datetime import datetime
from typing import Any

from sqlalchemy import ForeignKey, String
from sqlalchemy.orm import Mapped, mapped_column, relationship

from active_learning.ledger.base import Base, named
from active_learning.ledger.states import Role
from active_learning.ledger.tables import Project
from active_learning.ledger.types import utc_now


class User(Base):
    """Who may sign in to the desk."""

    __tablename__ = "users"

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)  # as `accounts.normalize` gives it
    role: Mapped[Role] = mapped_column(named(Role, "role"))
    subject: Mapped[str | None] = mapped_column(
        String(500), unique=True
    )  # to whoever vouches for them instead
    password_hash: Mapped[str | None] = mapped_column(String(500))  # None: no password opens anything
    must_change_password: Mapped[bool] = mapped_column(default=False)  # the one there is, or was, is one-time
    disabled: Mapped[bool] = mapped_column(default=False)
    session_epoch: Mapped[str] = mapped_column(
        String(32), default=lambda: secrets.token_hex(8)
    )  # another one ends every session; random, for SQLite gives a deleted user's id away again
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    signed_in_at: Mapped[datetime | None]


class ApiToken(Base):
    """A bearer token of the API: it may do what its user may."""

    __tablename__ = "api_tokens"

    id: Mapped[int] = mapped_column(primary_key=True)
    user_id: Mapped[int] = mapped_column(ForeignKey("users.id"), index=True)
    name: Mapped[str] = mapped_column(String(200))  # what it is for
    sha256: Mapped[str] = mapped_column(String(64), unique=True)  # the token itself is kept nowhere
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    used_at: Mapped[datetime | None]
    expires_at: Mapped[datetime | None]
    revoked_at: Mapped[datetime | None]

    user: Mapped[User] = relationship()


class ActionRecord(Base):
    """Who did what, to what, from where: append-only."""

    __tablename__ = "actions"

    id: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime] = mapped_column(default=utc_now)
    who: Mapped[str] = mapped_column(String(200))  # a name, for users may be deleted
    action: Mapped[str] = mapped_column(String(50))  # "user.role", "threshold.set"
    thing: Mapped[str | None] = mapped_column(String(300))  # that it was done to: a user's name, a version's
    project_id: Mapped[int | None] = mapped_column(ForeignKey("projects.id"), index=True)
    address: Mapped[str | None] = mapped_column(String(50))  # of the browser; None: at a terminal
    detail: Mapped[dict[str, Any]] = mapped_column(default=dict)

    project: Mapped[Project | None] = relationship()
