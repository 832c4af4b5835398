"""What a database error means to the person who reads it, without the secrets of the URL."""

from __future__ import annotations

from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, OperationalError

from model.errors import ELNetError

UPGRADE = "`elnet ledger upgrade`"

# (part of the driver's message in lower case, what to do), the first that is found counts
_CURES = (
    ("file is not a database", "move that file away, or point ELNET_DATABASE_URL at another file"),
    ("file is encrypted", "move that file away, or point ELNET_DATABASE_URL at another file"),
    ("malformed", "the file is damaged: put a backup in its place"),
    ("unable to open database file", "check that its folder exists and that you may write to it"),
    ("readonly database", "make the file and its folder writable for this user"),
    ("read-only", "that was a reading session: write in `Ledger.session()`"),
    ("disk is full", "free some space and try again"),
    ("no space left", "free some space and try again"),
    ("database is locked", "another process has been writing for too long: wait or stop it, and try again"),
    ("no such table", f"run {UPGRADE}"),
    ("no such column", f"run {UPGRADE}"),
    ("already exists", "give the ledger a database of its own: this one holds other tables"),
    ("password authentication failed", "check the user and the password in ELNET_DATABASE_URL"),
    ("no password supplied", "put the password into ELNET_DATABASE_URL, or into ~/.pgpass"),
    ("pg_hba.conf", "let this user and host in by the server's pg_hba.conf, or connect as another"),
    ("role ", "make that user on the server, or name another in ELNET_DATABASE_URL"),
    ("does not exist", "make it with `createdb`, or correct ELNET_DATABASE_URL"),
    ("permission denied", "grant this user the right to create and write tables there"),
    ("deadlock", "try again"),
    ("could not serialize", "try again"),
    ("connection", "start the server, or correct the host and port in ELNET_DATABASE_URL"),
    ("resolve", "correct the host in ELNET_DATABASE_URL"),
    ("timeout", "check that the server answers, and try again"),
)


class LedgerError(ELNetError):
    """The ledger cannot be opened, read or written. The text says which one, why, and what to do."""


def shown(url: URL) -> str:
    """The URL as it may be printed: no password, and no query, which may carry one."""
    return url.set(query={}).render_as_string(hide_password=True)


def explain(error: DBAPIError, url: URL) -> LedgerError:
    """Turn a driver's error into one that names the ledger, the reason and the cure."""
    lines = str(error.orig).strip().splitlines()
    reason = _without_secrets(lines[0] if lines else type(error.orig).__name__, url)
    cure = next((cure for part, cure in _CURES if part in reason.lower()), "see the server's log")
    return LedgerError(f"the ledger {shown(url)} failed: {reason.rstrip('.')}; {cure}")


def is_surrounding(error: DBAPIError) -> bool:
    """Whether the fault lies with the database or its schema, not with what was asked of it.

    A broken constraint belongs to the caller, who may expect it, and is never translated.
    """
    state = getattr(error.orig, "sqlstate", None) or ""
    missing = state in {
        "42P01",
        "42703",
        "42P07",
        "42501",
        "25006",
    }  # table, column, exists, rights, read-only
    unreadable = any(part in str(error.orig) for part in ("not a database", "malformed", "encrypted"))
    return isinstance(error, OperationalError) or missing or unreadable


def _without_secrets(text: str, url: URL) -> str:
    secrets = [url.password, *(v for k, v in url.query.items() if "password" in k)]
    for secret in secrets:
        if isinstance(secret, str) and secret:
            text = text.replace(secret, "***")
    return text
