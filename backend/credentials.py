"""The secrets of an embedded installation, made once and kept in `<state>/secrets.json`."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import tempfile
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from filelock import FileLock

from model.errors import ELNetError


class CredentialsError(ELNetError):
    """The secrets cannot be read or written."""


@dataclass(frozen=True, slots=True)
class Credentials:
    """What the parts of one installation know each other by.

    Attributes:
        password: of the lead's user of the embedded Label Studio.
        token: legacy token of that user.
        machine_password: of the user under whom masks are accepted.
        machine_token: legacy token of that user; None until Label Studio has made it.
        webhook_secret: what Label Studio sends in X-ELNet-Secret.
        ml_password: of the ML contract's Basic auth.
        desk_key: signs the desk's sessions.
    """

    password: str = field(default_factory=lambda: secrets.token_urlsafe(12), repr=False)
    token: str = field(default_factory=lambda: secrets.token_hex(20), repr=False)
    machine_password: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    machine_token: str | None = field(default=None, repr=False)
    webhook_secret: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    ml_password: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    desk_key: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)

    @staticmethod
    def path(state: Path) -> Path:
        """The file."""
        return state / "secrets.json"

    @classmethod
    def load(cls, state: Path) -> Credentials:
        """Read the secrets of a state folder; what is not there yet is made and kept.

        Raises:
            CredentialsError: the file cannot be read or written, or is not what this writes.
        """
        known = cls._read(state)
        if known.keys() != {f.name for f in fields(cls)}:
            try:
                state.mkdir(parents=True, exist_ok=True)
                # Two that start at once agree on what one of them makes.
                with FileLock(state / "secrets.lock"):
                    known = cls._read(state)
                    credentials = cls(**known)
                    if asdict(credentials) != known:
                        credentials.save(state)
                    return credentials
            except OSError as error:
                raise _unwritable(state, error) from error
        return cls(**known)

    @classmethod
    def _read(cls, state: Path) -> dict[str, Any]:
        """What the file holds; nothing where there is none."""
        path = cls.path(state)
        try:
            found = json.loads(path.read_text())
            if not isinstance(found, dict) or not all(isinstance(v, str | None) for v in found.values()):
                raise ValueError("it holds no names with texts")
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise CredentialsError(
                f"{path} cannot be read: {error.strerror}; take the right to, or let ELNET_STATE name a "
                "folder of yours"
            ) from error
        except ValueError as error:
            raise CredentialsError(
                f"{path} is not a file of secrets: {error}; restore it, or remove it to have new ones made"
            ) from error
        return {f.name: found[f.name] for f in fields(cls) if f.name in found}

    def with_tokens(self, *, token: str | None = None, machine_token: str | None = None) -> Credentials:
        """The same with other tokens."""
        return replace(self, token=token or self.token, machine_token=machine_token or self.machine_token)

    def save(self, state: Path) -> None:
        """Write the file, whole or not at all, readable by its owner alone.

        Raises:
            CredentialsError: the folder cannot be written.
        """
        path = self.path(state)
        try:
            state.mkdir(parents=True, exist_ok=True)
            descriptor, name = tempfile.mkstemp(dir=state, prefix=".secrets-")  # 0600
        except OSError as error:
            raise _unwritable(state, error) from error
        try:
            with os.fdopen(descriptor, "w") as file:
                json.dump(asdict(self), file, indent=2)
                file.flush()
                os.fsync(file.fileno())
            Path(name).replace(path)
        except OSError as error:
            with contextlib.suppress(FileNotFoundError):
                Path(name).unlink()
            raise CredentialsError(f"{path} cannot be written: {error.strerror}; make room there") from error


def _unwritable(state: Path, error: OSError) -> CredentialsError:
    return CredentialsError(
        f"{state} cannot be written: {error.strerror}; let ELNET_STATE name a folder of yours"
    )
