"""Passwords of the desk: argon2id, and the same cost whether there is one to compare with or not."""

from __future__ import annotations

import secrets
import threading
from functools import cache

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from model.errors import ELNetError

SHORTEST = 12  # characters
LONGEST = 1000

_hasher = PasswordHasher()  # the second choice of RFC 9106, section 4: 64 MiB, three passes
_few = threading.BoundedSemaphore(2)  # so that many who sign in at once do not take 64 MiB each


class PasswordError(ELNetError):
    """A password that cannot be taken."""


def hash_password(password: str) -> str:
    """What is kept of a password.

    Raises:
        PasswordError: it is too short or too long.
    """
    if len(password) < SHORTEST:
        raise PasswordError(f"A password needs {SHORTEST} characters or more: a few words will do.")
    if len(password) > LONGEST:
        raise PasswordError(f"A password may have {LONGEST} characters.")
    with _few:
        return _hasher.hash(password)


def matches(password_hash: str | None, password: str) -> bool:
    """Whether this is the password that was hashed. None takes as long as a wrong password."""
    try:
        with _few:
            right = _hasher.verify(password_hash or _nobodys(), password[:LONGEST])
    except (VerificationError, InvalidHashError):
        return False
    return right and password_hash is not None


def is_outdated(password_hash: str) -> bool:
    """Whether it was made at another cost than is asked for today."""
    return _hasher.check_needs_rehash(password_hash)


def one_time_password() -> str:
    """96 random bits, in letters that can be typed."""
    return secrets.token_urlsafe(12)


@cache
def _nobodys() -> str:
    return _hasher.hash(secrets.token_urlsafe())
