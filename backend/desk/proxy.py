"""Sign-in by a reverse proxy that names its users in a header."""

from __future__ import annotations

from flask import request
from werkzeug.exceptions import Forbidden

from active_learning.ledger import User
from backend.desk.client import client_address, is_from_proxy
from backend.desk.roles import admit
from backend.services import services


def is_named() -> bool:
    """Whether a trusted proxy names the user of this request. From anybody else the header means nothing."""
    header = services().settings.desk.proxy.header
    return header is not None and is_from_proxy() and bool(request.headers.get(header, "").strip())


def named() -> User:
    """The user whom the proxy names.

    Raises:
        Forbidden: they are not let in.
        LedgerError: the ledger cannot be had.
    """
    rules = services().settings.desk.proxy
    name = request.headers.get(rules.header or "", "").strip()
    if "," in name:  # two headers come as one, and the first may be the browser's own
        raise Forbidden(f"The proxy names more than one user in {rules.header}: it must replace the header.")
    listed = request.headers.get(rules.groups_header, "") if rules.groups_header else ""
    groups = [group.strip() for group in listed.split(",")]
    return admit(services().ledger, rules, f"proxy:{name.casefold()}", name, groups, client_address())
