"""Who asks, and what they may: for every page of the desk and every address of the API.

`blueprint.before_request(partial(check, Role.VIEWER))` guards a blueprint, `@requires(Role.LEAD)` one view.
What changes something writes it down by `note`, in the transaction that does it.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any, Literal, ParamSpec, TypeVar

from flask import abort, g, redirect, request, url_for
from sqlalchemy.orm import Session
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Forbidden, Unauthorized

from active_learning.ledger import Project, Role, User
from backend import api_tokens
from backend.actions import Who, record
from backend.desk import proxy, sessions
from backend.desk.client import client_address
from backend.services import services

P = ParamSpec("P")
T = TypeVar("T")

HOME = "/desk/"
_MEANS = {
    Role.VIEWER: "users",
    Role.LEAD: "leads and admins",
    Role.ADMIN: "admins",
}


@dataclass(frozen=True, slots=True)
class Person:
    """Who asks.

    Attributes:
        id: of the user.
        name: of the user.
        role: of the user.
        has_password: it, not somebody who vouches for them, lets them in.
        must_change_password: they came in by a one-time password, and must choose their own first.
        by: what tells it.
    """

    id: int
    name: str
    role: Role
    has_password: bool
    must_change_password: bool
    by: Literal["session", "token", "proxy"]


def current_user() -> Person | None:
    """Who asks; None where nobody is signed in.

    A bearer token counts at the API alone, and then nothing else does. A trusted proxy's header goes before a
    session, which may be another's.

    Raises:
        Forbidden: a proxy names somebody who is not let in.
        LedgerError: the ledger cannot be had.
    """
    if "person" not in g:
        g.person = _identify()
    person: Person | None = g.person
    return person


def check(role: Role) -> None:
    """Refuse the current request unless a user of this role, or a higher one, asks.

    A page leads whoever is not signed in to the sign-in page; the API answers 401.
    """
    person = current_user()
    if person is None:
        _refuse_stranger()
    elif person.must_change_password and person.by == "session":
        if is_api():
            raise Forbidden("Choose a password of your own first: sign in at the desk.")
        abort(redirect(url_for("desk_sign_in.password")))
    elif not person.role.includes(role):
        raise Forbidden(
            f"Only {_MEANS[role]} may do this, and {person.name} is a {person.role}: ask an admin."
        )


def requires(role: Role) -> Callable[[Callable[P, T]], Callable[P, T]]:
    """`check` for one view."""

    def decorate(view: Callable[P, T]) -> Callable[P, T]:
        @wraps(view)
        def checked(*args: P.args, **kwargs: P.kwargs) -> T:
            check(role)
            return view(*args, **kwargs)

        return checked

    return decorate


def person() -> Person:
    """Who asks, in a view that is guarded."""
    found = current_user()
    if found is None:
        raise RuntimeError("a view that is about who asks needs `requires`")
    return found


def who() -> Who:
    """Who acts, for records; somebody must be signed in."""
    return Who(person().name, client_address())


def note(
    session: Session, action: str, thing: str | None = None, *, project: Project | None = None, **detail: Any
) -> None:
    """`actions.record` of whoever asks."""
    record(session, who(), action, thing, project=project, **detail)


def is_api() -> bool:
    """Whether a program asks, not a browser for a page."""
    return request.path.startswith("/api/")


def has_bearer() -> bool:
    """Whether the request proves itself by a token, which no other site can make a browser send."""
    return is_api() and request.authorization is not None and request.authorization.type == "bearer"


def safe_next(wanted: str | None) -> str:
    """Where to go after signing in: a page of the desk, whatever the address says; else its first page."""
    if wanted is not None and wanted.isprintable() and re.fullmatch(r"/desk([/?#][^\\]*)?", wanted):
        return wanted
    return HOME


def _identify() -> Person | None:
    if has_bearer():
        token = request.authorization.token if request.authorization is not None else None
        return _person(api_tokens.owner(services().ledger, token or ""), "token")
    if proxy.is_named():
        return _person(proxy.named(), "proxy")
    return _person(sessions.signed_in(), "session")


def _person(user: User | None, by: Literal["session", "token", "proxy"]) -> Person | None:
    if user is None:
        return None
    return Person(user.id, user.name, user.role, user.subject is None, user.must_change_password, by)


def _refuse_stranger() -> None:
    if is_api():
        raise Unauthorized(
            "Sign in, or send a valid token: Authorization: Bearer elnet_... (`elnet users token add`).",
            www_authenticate=WWWAuthenticate("bearer"),
        )
    wanted = request.full_path.rstrip("?") if request.method == "GET" else HOME
    abort(redirect(url_for("desk_sign_in.sign_in", next=wanted)))
