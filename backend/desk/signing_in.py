"""Signing in and out, and choosing a password."""

from __future__ import annotations

import logging

from flask import Blueprint, Flask, current_app, flash, redirect, render_template, request, session, url_for
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import Forbidden, TooManyRequests

from active_learning.ledger import Role, User
from backend import accounts
from backend.actions import record
from backend.desk import access, oidc, sessions
from backend.desk.access import Person, current_user, safe_next
from backend.desk.client import client_address, client_network
from backend.desk.limits import SignInLimits
from backend.passwords import SHORTEST, PasswordError, matches
from backend.services import services
from backend.settings import Settings

log = logging.getLogger(__name__)

blueprint = Blueprint("desk_sign_in", __name__, url_prefix="/desk", template_folder="templates")

_LIMITS = "elnet-sign-in-limits"
_WRONG = "The name or the password is wrong."


def install(app: Flask, settings: Settings) -> None:
    """Give an application its ways in.

    Raises:
        OidcError: an identity provider is set, and Authlib is not installed.
    """
    app.extensions[_LIMITS] = SignInLimits()
    oidc.install(app, settings)
    app.register_blueprint(blueprint)


@blueprint.get("/sign-in")
def sign_in() -> ResponseReturnValue:
    """The page; whoever is signed in goes on."""
    wanted = safe_next(request.args.get("next"))
    return redirect(wanted) if current_user() else _sign_in_page(wanted)


@blueprint.post("/sign-in")
def prove() -> ResponseReturnValue:
    """Take a name and a password."""
    wanted, name = safe_next(request.form.get("next")), request.form.get("name", "")
    _count_try(name)
    user = accounts.sign_in(services().ledger, name, request.form.get("password", ""), client_address())
    if user is None:
        log.warning(
            "a sign-in from %s was refused", client_address()
        )  # the name may be a password typed there
        return _sign_in_page(wanted, _WRONG), 403
    _limits().forget(name)
    sessions.begin(user)
    return redirect(url_for("desk_sign_in.password", next=wanted) if user.must_change_password else wanted)


@blueprint.get("/oidc")
def oidc_start() -> ResponseReturnValue:
    """Go to the identity provider. Nothing is posted: its address would break the policy for forms."""
    wanted = safe_next(request.args.get("next"))
    sessions.end()
    session["next"] = wanted
    return oidc.leave()


@blueprint.get("/oidc/callback")
def oidc_callback() -> ResponseReturnValue:
    """Come back from there."""
    wanted = safe_next(session.get("next"))
    user = oidc.arrived()
    with services().ledger.session() as ledger_session:
        accounts.note_sign_in(ledger_session, ledger_session.get_one(User, user.id), client_address())
    sessions.begin(user)
    return redirect(wanted)


@blueprint.post("/sign-out")
def sign_out() -> ResponseReturnValue:
    """End every session of the user: a cookie that was copied is worth nothing from then on."""
    person = current_user()
    if person is not None and person.by == "session":
        with services().ledger.session() as ledger_session:
            user = ledger_session.get_one(User, person.id)
            accounts.end_sessions(user)
            record(ledger_session, access.who(), "user.sign_out", user.name)
    sessions.end()
    return redirect(url_for("desk_sign_in.sign_in"))


@blueprint.route("/password", methods=["GET", "POST"])
def password() -> ResponseReturnValue:
    """Choose a password; whoever came in by a one-time password does nothing before."""
    person = current_user()
    if person is None or not _has_password(person):
        access.check(Role.VIEWER)
        raise Forbidden("You have no password here: change it where you sign in.")
    if request.method == "GET":
        return _password_page(person)
    problem = _change_password(person)
    if problem:
        return _password_page(person, problem), 422
    flash("Your password is changed. Other sessions of yours have ended.")
    return redirect(safe_next(request.form.get("next")))


def _change_password(person: Person) -> str | None:
    """Change it, and go on in a new session; or what is wrong."""
    new, again = request.form.get("new", ""), request.form.get("again", "")
    if new != again:
        return "The two new passwords are not the same."
    with services().ledger.session(write=False) as ledger_session:
        user = ledger_session.get_one(User, person.id)
    if not user.must_change_password:  # a one-time password was used up when it proved who this is
        _count_try(user.name)
        if not matches(user.password_hash, request.form.get("current", "")):
            return "The password that you have now is another one."
        _limits().forget(user.name)
    try:
        with services().ledger.session() as ledger_session:
            user = ledger_session.get_one(User, person.id)
            accounts.set_password(ledger_session, user, new, access.who())
    except (PasswordError, accounts.UserError) as error:
        return str(error)
    sessions.begin(user)
    return None


def _has_password(person: Person) -> bool:
    """Whether theirs is kept here, and not where somebody vouches for them."""
    with services().ledger.session(write=False) as ledger_session:
        return person.by == "session" and ledger_session.get_one(User, person.id).subject is None


def _limits() -> SignInLimits:
    limits: SignInLimits = current_app.extensions[_LIMITS]
    return limits


def _count_try(name: str) -> None:
    if not _limits().take(client_network(), name):
        log.warning("too many tries to sign in from %s", client_address())
        raise TooManyRequests("Too many tries: wait a quarter of an hour.", retry_after=900)


def _sign_in_page(wanted: str, problem: str | None = None) -> str:
    provider = services().settings.desk.oidc
    return render_template(
        "desk/sign_in.html",
        next=wanted,
        problem=problem,
        provider=provider.label if provider.issuer else None,
    )


def _password_page(person: Person, problem: str | None = None) -> str:
    return render_template(
        "desk/password.html",
        person=person,
        next=safe_next(request.values.get("next")),
        problem=problem,
        shortest=SHORTEST,
    )
