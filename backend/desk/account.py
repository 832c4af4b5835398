"""The account of whoever is signed in: how they sign in, and their tokens for programs."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Final

from flask import Blueprint, flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from sqlalchemy.orm import Session

from active_learning.ledger import ApiToken, Role, User
from active_learning.ledger.types import utc_now
from backend import accounts, api_tokens
from backend.api_tokens import TokenError
from backend.desk.access import check, person, who
from backend.desk.project_page import render
from backend.passwords import SHORTEST
from backend.services import services

blueprint = Blueprint("desk_account", __name__, url_prefix="/desk")
blueprint.before_request(partial(check, Role.VIEWER))  # what is changed here is one's own

LONGEST_DAYS: Final = 366  # whoever vouched for its user may do so no longer, and a token does not hear of it
USUAL_DAYS: Final = 90


@dataclass(frozen=True, slots=True)
class Token:
    """A token that was not revoked, without what proves it; `used_at`: last, `expires_at`: None: never."""

    id: int
    user: str
    name: str
    created_at: datetime
    used_at: datetime | None
    expires_at: datetime | None
    expired: bool


@dataclass(frozen=True, slots=True)
class Account:
    """Who asks; `signs_in_by`: as `backend.accounts.signs_in_by`."""

    name: str
    role: Role
    signs_in_by: str
    tokens: list[Token]


def facts(session: Session) -> Account:
    """Of whoever asks."""
    user = session.get_one(User, person().id)
    return Account(user.name, user.role, accounts.signs_in_by(user), tokens(session, user))


def tokens(session: Session, user: User | None = None) -> list[Token]:
    """A user's, or everybody's. Those that were revoked are in the record of actions."""
    return [token_line(one) for one in api_tokens.tokens(session, user) if one.revoked_at is None]


def token_line(token: ApiToken) -> Token:
    """A token in the list."""
    expired = token.expires_at is not None and token.expires_at <= utc_now()
    return Token(
        token.id, token.user.name, token.name, token.created_at, token.used_at, token.expires_at, expired
    )


def make_token(session: Session, name: str, days: int) -> str:
    """A token for whoever asks, which is kept nowhere.

    Raises:
        TokenError: it has no name, or would hold for too long or not at all.
    """
    if not 1 <= days <= LONGEST_DAYS:
        raise TokenError(f"A token holds for 1 to {LONGEST_DAYS} days.")
    return api_tokens.make(session, session.get_one(User, person().id), name, days, who())[1]


def revoke_token(session: Session, token_id: int) -> Token:
    """Make a token worthless: one's own; an admin anybody's.

    Raises:
        TokenError: there is none, or it is another user's.
    """
    of = None if person().role.includes(Role.ADMIN) else person().id
    return token_line(api_tokens.revoke(session, token_id, who(), of=of))


@blueprint.get("/account")
def show() -> str:
    """The page."""
    return _page()


@blueprint.post("/account")
def make() -> ResponseReturnValue:
    """Make a token, and show it this once; or say why not, with what was typed."""
    name, days = request.form.get("name", ""), request.form.get("days", type=int, default=0)
    try:
        with services().ledger.session() as session:
            token = make_token(session, name, days)
    except TokenError as error:
        return _page(problem=str(error)), 422
    return _page(made=token)


@blueprint.post("/account/revoke")
def revoke() -> ResponseReturnValue:
    """Revoke a token of one's own."""
    try:
        with services().ledger.session() as session:
            token = revoke_token(session, request.form.get("token", type=int, default=0))
        flash(f"The token for {token.name} is worthless from now on.", "ok")
    except TokenError as error:
        flash(f"Nothing was changed. {error}", "error")
    return redirect(url_for("desk_account.show"), 303)


def _page(made: str | None = None, problem: str | None = None) -> str:
    with services().ledger.session(write=False) as session:
        found = facts(session)
    return render(
        "account.html",
        None,
        facts=found,
        made=made,
        problem=problem,
        typed=request.form if problem else {},
        person=person(),
        next=url_for("desk_account.show"),
        shortest=SHORTEST,
        usual_days=USUAL_DAYS,
        longest_days=LONGEST_DAYS,
    )
