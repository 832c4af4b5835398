"""The users of the desk: who may sign in, in which role, with which password. No HTTP here.

Every change is written down (`backend.actions`). Whoever has a terminal of this machine may do all of it:
they could change the ledger as well. At the desk nobody takes away their own way in, by a slip or because
somebody sits at their screen: for that it takes another admin, or the terminal.
"""

from __future__ import annotations

import secrets
import unicodedata

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from active_learning.ledger import ApiToken, Ledger, Role, User
from active_learning.ledger.types import utc_now
from backend.actions import Who, record
from backend.passwords import hash_password, is_outdated, matches, one_time_password
from model.errors import ELNetError

FIRST_ADMIN = "admin"
_LONGEST_NAME = 200


class UserError(ELNetError):
    """A user who is not there, is there already, or cannot be changed so."""


def normalize(name: str) -> str:
    """A name as it is kept, so that no two look alike: NFKC, lower case.

    Raises:
        UserError: it is empty, too long, or holds what cannot be seen.
    """
    kept = unicodedata.normalize("NFKC", name).strip().casefold()
    if not kept or len(kept) > _LONGEST_NAME or not kept.isprintable():
        raise UserError(f"{name[:50]!r} cannot be a name: 1 to {_LONGEST_NAME} visible characters.")
    return kept


def users(session: Session) -> list[User]:
    """All of them, by name."""
    return list(session.scalars(select(User).order_by(User.name)))


def find(session: Session, name: str) -> User:
    """The user of this name.

    Raises:
        UserError: there is none.
    """
    user = session.scalar(select(User).where(User.name == normalize(name)))
    if user is None:
        raise UserError(f"There is no user {name!r}: the desk's page of users and `elnet users` list them.")
    return user


def find_subject(session: Session, subject: str) -> User | None:
    """The user whom a reverse proxy or an identity provider knows by this."""
    return session.scalar(select(User).where(User.subject == subject))


def signs_in_by(user: User) -> str:
    """What proves who they are: "password", "proxy" or "oidc"."""
    return "password" if user.subject is None else user.subject.partition(":")[0]


def state(user: User) -> str:
    """One of "active", "disabled", "one-time password" and, after its use, "used one-time password"."""
    if user.disabled:
        return "disabled"
    if user.must_change_password:
        return "one-time password" if user.password_hash else "used one-time password"
    return "active"


def add(session: Session, name: str, role: Role, who: Who) -> tuple[User, str]:
    """Make a user.

    Args:
        session: a writing session; the caller commits.
        name: to sign in with.
        role: what they may do.
        who: adds them.

    Returns:
        The user, and a one-time password, which is kept nowhere.

    Raises:
        UserError: the name is taken, or cannot be one.
    """
    kept = normalize(name)
    taken = UserError(f"There is a user {kept!r} already.")
    if session.scalar(select(User.id).where(User.name == kept)) is not None:
        raise taken
    password = one_time_password()
    user = User(name=kept, role=role, password_hash=hash_password(password), must_change_password=True)
    session.add(user)
    try:
        session.flush()
    except IntegrityError as error:  # on PostgreSQL: another process was faster
        raise taken from error
    record(session, who, "user.add", user.name, role=role)
    return user, password


def add_first_admin(ledger: Ledger) -> str | None:
    """Make the first user, an admin, where there is none yet.

    Returns:
        Their one-time password, which is kept nowhere; None where there are users.

    Raises:
        LedgerError: the ledger cannot be had.
    """
    with ledger.session(write=False) as session:
        if session.scalar(select(func.count()).select_from(User)):
            return None
    try:
        with ledger.session() as session:
            return add(session, FIRST_ADMIN, Role.ADMIN, Who("first start"))[1]
    except UserError:  # another process was faster, and tells its password
        return None


def sign_in(ledger: Ledger, name: str, password: str, address: str | None) -> User | None:
    """The user whom this name and password prove. A one-time password is used up by it.

    Args:
        ledger: the ledger.
        name: as it was typed.
        password: as it was typed.
        address: where it was typed.

    Returns:
        None for a wrong name or password, and for a user who is disabled or has no password; all of them
        take as long.

    Raises:
        LedgerError: the ledger cannot be had.
    """
    with ledger.session(write=False) as session:
        try:
            found = find(session, name)
        except UserError:
            found = None
    known = found.password_hash if found is not None and not found.disabled else None
    if not matches(known, password) or found is None or known is None:
        return None
    better = hash_password(password) if is_outdated(known) and not found.must_change_password else known
    with ledger.session() as session:
        user = session.get(User, found.id, with_for_update=True)
        if user is None or user.disabled or user.password_hash != known:  # changed, or used up, meanwhile
            return None
        user.password_hash = None if user.must_change_password else better
        note_sign_in(session, user, address)
    return user


def note_sign_in(session: Session, user: User, address: str | None) -> None:
    """Write down that a user has signed in."""
    user.signed_in_at = utc_now()
    record(session, Who(user.name, address), "user.sign_in", user.name)


def vouched_for(
    session: Session, subject: str, name: str, role: Role | None, new: Role, address: str | None
) -> User:
    """The user for whom a reverse proxy or an identity provider vouches; made at the first time.

    A user who exists with a password is never handed over because of an equal name: whoever can choose names
    there would choose the admin's.

    Args:
        session: a writing session; the caller commits.
        subject: what they are known by over there, for good.
        name: that they have over there today.
        role: that they are to have from now on; None: the one they have.
        new: the role of one who is made.
        address: of their browser.

    Raises:
        UserError: the name belongs to somebody else, or the user is disabled.
    """
    kept = normalize(name)
    user = find_subject(session, subject) or session.scalar(select(User).where(User.name == kept))
    if user is None:
        user = User(name=kept, role=role or new, subject=subject)
        session.add(user)
        session.flush()
        record(session, Who(kept, address), "user.add", kept, role=user.role, subject=subject)
    if user.subject != subject:
        raise UserError(f"Another user {kept!r} signs in otherwise: an admin can remove that one.")
    if user.disabled:
        raise UserError(f"The user {user.name!r} is disabled: ask an admin.")
    if role is not None and role is not user.role:
        _assign(session, user, role, Who(user.name, address))
    return user


def set_password(session: Session, user: User, password: str, who: Who) -> None:
    """Give a user the password that they chose; their sessions end.

    Raises:
        PasswordError: it is too short.
        UserError: it is their name.
    """
    if password.strip().casefold() == user.name:
        raise UserError("The name does not serve as password: everybody knows it.")
    user.password_hash, user.must_change_password = hash_password(password), False
    end_sessions(user)
    record(session, who, "user.password", user.name)


def reset_password(session: Session, user: User, who: Who) -> str:
    """Give a user a one-time password, which is kept nowhere; their sessions end.

    Raises:
        UserError: somebody else vouches for them, or they are who asks, at the desk.
    """
    _not_oneself(user, who)
    if user.subject is not None:
        raise UserError(f"{user.name!r} has no password here: {signs_in_by(user)} vouches for them.")
    password = one_time_password()
    user.password_hash, user.must_change_password = hash_password(password), True
    end_sessions(user)
    record(session, who, "user.reset_password", user.name)
    return password


def set_role(session: Session, user: User, role: Role, who: Who) -> None:
    """Give a user another role; their sessions end.

    Raises:
        UserError: nobody else is an admin, or they are who asks, at the desk.
    """
    if role is user.role:
        return
    _not_oneself(user, who)
    if role is not Role.ADMIN:
        _keep_an_admin(session, user)
    _assign(session, user, role, who)


def set_disabled(session: Session, user: User, disabled: bool, who: Who) -> None:
    """Let a user in no longer, by password, token or session; or again.

    Raises:
        UserError: nobody else is an admin, or they are who asks, at the desk.
    """
    if disabled:
        _not_oneself(user, who)
        _keep_an_admin(session, user)
    if user.disabled is not disabled:
        user.disabled = disabled
        end_sessions(user)
        record(session, who, "user.disable" if disabled else "user.enable", user.name)


def remove(session: Session, user: User, who: Who) -> None:
    """Delete a user and their tokens; what they did stays written down.

    Raises:
        UserError: nobody else is an admin, or they are who asks, at the desk.
    """
    _not_oneself(user, who)
    _keep_an_admin(session, user)
    session.execute(delete(ApiToken).where(ApiToken.user_id == user.id))
    session.delete(user)
    session.flush()
    record(session, who, "user.remove", user.name)


def end_sessions(user: User) -> None:
    """Whoever is signed in as this user is so no longer."""
    user.session_epoch = secrets.token_hex(8)


def _assign(session: Session, user: User, role: Role, who: Who) -> None:
    record(session, who, "user.role", user.name, before=user.role, after=role)
    user.role = role
    end_sessions(user)


def _not_oneself(user: User, who: Who) -> None:
    if who.address is not None and who.name == user.name:
        raise UserError(
            f"{user.name!r} is yourself: it takes another admin, or `elnet users` at the server's terminal."
        )


def _keep_an_admin(session: Session, user: User) -> None:
    """Two who demote each other at once would leave none: the admins' rows are held until the commit."""
    admins = select(User).where(User.role == Role.ADMIN, User.disabled.is_(False)).order_by(User.id)
    found = session.scalars(admins.with_for_update()).all()
    if [admin.id for admin in found] == [user.id]:
        raise UserError(f"{user.name!r} is the only admin: make another one first.")
