"""The users of the desk, for admins: who may sign in, in which role, and everybody's tokens."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import partial

from flask import Blueprint, flash, redirect, request, url_for
from flask.typing import ResponseReturnValue
from sqlalchemy.orm import Session
from werkzeug import Response
from werkzeug.exceptions import BadRequest, Forbidden

from active_learning.ledger import Role, User
from backend import accounts
from backend.accounts import UserError
from backend.api_tokens import TokenError
from backend.desk.access import check, person, who
from backend.desk.account import Token, revoke_token, tokens
from backend.desk.project_page import render
from backend.services import services

blueprint = Blueprint("desk_users", __name__, url_prefix="/desk")
blueprint.before_request(partial(check, Role.ADMIN))


@dataclass(frozen=True, slots=True)
class UserLine:
    """A user in the list.

    Attributes:
        name: to sign in with.
        role: what they may do.
        signs_in_by: as `backend.accounts.signs_in_by`.
        created_at: when they were made.
        signed_in_at: last, by password or provider; None: never, or by a proxy, which does so at each visit.
        state: as `backend.accounts.state`.
    """

    name: str
    role: Role
    signs_in_by: str
    created_at: datetime
    signed_in_at: datetime | None
    state: str


@dataclass(frozen=True, slots=True)
class Users:
    """All users by name, and the tokens that were not revoked."""

    users: list[UserLine]
    tokens: list[Token]


def facts(session: Session) -> Users:
    """Of everybody; only reads."""
    return Users([line(user) for user in accounts.users(session)], tokens(session))


def line(user: User) -> UserLine:
    """A user in the list."""
    return UserLine(
        user.name,
        user.role,
        accounts.signs_in_by(user),
        user.created_at,
        user.signed_in_at,
        accounts.state(user),
    )


def give_role(session: Session, name: str, role: Role) -> UserLine:
    """Give a user another role.

    Raises:
        UserError: there is none, nobody else is an admin, or they are who asks.
    """
    user = _changeable(session, name, role)
    accounts.set_role(session, user, role, who())
    return line(user)


def disable(session: Session, name: str) -> UserLine:
    """Let a user in no longer.

    Raises:
        UserError: there is none, nobody else is an admin, or they are who asks.
    """
    user = _changeable(session, name)
    accounts.set_disabled(session, user, True, who())
    return line(user)


def enable(session: Session, name: str) -> UserLine:
    """Let a user in again.

    Raises:
        UserError: there is none.
    """
    user = _changeable(session, name)
    accounts.set_disabled(session, user, False, who())
    return line(user)


def remove(session: Session, name: str) -> UserLine:
    """Delete a user and their tokens.

    Raises:
        UserError: there is none, nobody else is an admin, or they are who asks.
    """
    user = _changeable(session, name)
    gone = line(user)
    accounts.remove(session, user, who())
    return gone


@blueprint.get("/users")
def show() -> str:
    """The page; the query may choose a user to change."""
    return _page(request.args.get("user"))


@blueprint.post("/users")
def add() -> ResponseReturnValue:
    """Add a user, and show their one-time password this once; or say why not, with what was typed."""
    role = _role()
    try:
        with services().ledger.session() as session:
            user, password = accounts.add(session, _name(), role, who())
    except UserError as error:
        return _page(problem=str(error)), 422
    return _page(user.name, password)


@blueprint.route("/users/password", methods=["GET", "POST"])
def renew_password() -> ResponseReturnValue:
    """Give a user a one-time password, and show it this once. To ask for the page again gives none."""
    if request.method == "GET":
        return redirect(url_for("desk_users.show"))
    try:
        with services().ledger.session() as session:
            password = accounts.reset_password(session, accounts.find(session, _name()), who())
    except UserError as error:
        return _refused(error)
    return _page(accounts.normalize(_name()), password)


@blueprint.post("/users/role")
def change_role() -> Response:
    """Give a user another role."""
    role = _role()
    return _changed(lambda session: f"{give_role(session, _name(), role).name} is a {role} from now on.")


@blueprint.post("/users/disable")
def lock_out() -> Response:
    """Let a user in no longer."""
    return _changed(lambda session: f"{disable(session, _name()).name} may not sign in any more.")


@blueprint.post("/users/enable")
def let_in() -> Response:
    """Let a user in again."""
    return _changed(lambda session: f"{enable(session, _name()).name} may sign in again.")


@blueprint.post("/users/remove")
def delete() -> Response:
    """Delete a user."""
    return _changed(lambda session: f"{remove(session, _name()).name} is removed.")


@blueprint.post("/users/revoke")
def revoke() -> Response:
    """Revoke anybody's token."""

    def change(session: Session) -> str:
        token = revoke_token(session, request.form.get("token", type=int, default=0))
        return f"The token of {token.user} for {token.name} is worthless from now on."

    return _changed(change)


def _changeable(session: Session, name: str, role: Role | None = None) -> User:
    """The user of this name; what makes or concerns an admin takes somebody who has signed in.

    A token that leaked is revoked, and no way in of its making may remain: no admin, nor one whom it has let
    in again. So it makes no user, password or token either: the API has no address for these.
    """
    user = accounts.find(session, name)
    if person().by == "token" and Role.ADMIN in {user.role, role}:
        raise Forbidden("A token changes no admin and makes none: sign in at the desk.")
    return user


def _name() -> str:
    return request.form.get("name", "")


def _role() -> Role:
    try:
        return Role(request.form.get("role", ""))
    except ValueError:
        raise BadRequest(f"Choose a role: {', '.join(Role)}.") from None


def _changed(change: Callable[[Session], str]) -> Response:
    """Make a change, or say why not, and go back to the page."""
    try:
        with services().ledger.session() as session:
            said = change(session)
    except (UserError, TokenError) as error:
        return _refused(error)
    flash(said, "ok")
    return _back()


def _refused(error: UserError | TokenError) -> Response:
    flash(f"Nothing was changed. {error}", "error")
    return _back()


def _back() -> Response:
    return redirect(url_for("desk_users.show", user=_name() or None), 303)


def _page(chosen: str | None = None, password: str | None = None, problem: str | None = None) -> str:
    with services().ledger.session(write=False) as session:
        found = facts(session)
    ways = services().settings.desk
    return render(
        "users.html",
        None,
        facts=found,
        chosen=next((user for user in found.users if user.name == chosen), None),
        password=password,
        problem=problem,
        typed=request.form if problem else {},
        roles=list(Role),
        follows={"proxy": bool(ways.proxy.roles), "oidc": bool(ways.oidc.roles)},
        me=person(),
    )
