"""The role of somebody whom a reverse proxy or an identity provider vouches for."""

from __future__ import annotations

from collections.abc import Iterable

from werkzeug.exceptions import Forbidden

from active_learning.ledger import Ledger, Role, User
from backend import accounts
from backend.settings import RoleRules


def admit(
    ledger: Ledger, rules: RoleRules, subject: str, name: str, groups: Iterable[str], address: str
) -> User:
    """The user, made or with their role changed where that is needed.

    Where groups have roles, these decide at every sign-in, so that who leaves a group loses its role. Where
    none has, the default is for who is new, and admins change it here.

    Args:
        ledger: the ledger.
        rules: which group has which role.
        subject: what they are known by over there, such as `proxy:ada`.
        name: their name.
        groups: theirs.
        address: of the browser.

    Raises:
        Forbidden: they are not let in; the text says why.
        LedgerError: the ledger cannot be had.
    """
    given = [Role(rules.roles[group]) for group in groups if group in rules.roles]
    default = Role(rules.default_role) if rules.default_role else None
    role = max(given, key=list(Role).index, default=default) if rules.roles else None
    new = role or default
    if new is None:
        raise Forbidden(f"{name} is in no group that may use the desk. Ask whoever runs it.")
    try:
        with ledger.session(write=False) as session:
            user = accounts.find_subject(session, subject)
        if user is not None and not user.disabled and role in {None, user.role}:
            return user
        with ledger.session() as session:
            return accounts.vouched_for(session, subject, name, role, new, address)
    except accounts.UserError as error:
        raise Forbidden(str(error)) from error
