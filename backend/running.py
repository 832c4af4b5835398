"""The address book of a running stack: how `elnet project` and `doctor` find what `elnet up` started."""

from __future__ import annotations

import contextlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from backend.credentials import Credentials
from backend.settings import Settings, SettingsError, load_settings

ML_USERNAME = "label-studio"  # of the ML contract's Basic auth, where none is set
_FILE = "running.json"
_KEYS = {"pid", "label_studio", "web_host", "web_port"}


def with_secrets(settings: Settings) -> Settings:
    """The settings with the secrets of the state folder where none are set.

    Raises:
        CredentialsError: secrets.json cannot be read or written.
    """
    secrets = Credentials.load(settings.state)
    web = settings.web
    values = {
        "username": web.username or ML_USERNAME,
        "password": web.password or SecretStr(secrets.ml_password),
        "webhook_secret": web.webhook_secret or SecretStr(secrets.webhook_secret),
    }
    desk = settings.desk.model_copy(
        update={"secret_key": settings.desk.secret_key or SecretStr(secrets.desk_key)}
    )
    return settings.model_copy(update={"web": web.model_copy(update=values), "desk": desk})


def note_running(settings: Settings) -> None:
    """Write down which addresses a stack that has just started serves on; no secrets."""
    book = {
        "pid": os.getpid(),
        "label_studio": settings.label_studio.url,
        "web_host": settings.web.host,
        "web_port": settings.web.port,
    }
    with tempfile.NamedTemporaryFile("w", dir=settings.state, prefix=".part-", delete=False) as part:
        part.write(json.dumps(book, indent=2))
    Path(part.name).replace(settings.state / _FILE)


def forget_running(settings: Settings) -> None:
    """The stack of this process has stopped; what another process wrote down stays."""
    path = settings.state / _FILE
    with contextlib.suppress(SettingsError):  # a damaged one is left for a person to look at
        if path.is_file() and _read(path)["pid"] == os.getpid():
            path.unlink(missing_ok=True)


def running_settings() -> Settings:
    """The settings in force, with the addresses of the stack that runs on this state folder.

    A Label Studio that the settings name stays, and so does everything where no stack runs.

    Raises:
        SettingsError: the settings are not valid, or the address book is damaged.
        CredentialsError: secrets.json cannot be read.
    """
    settings = with_secrets(load_settings())
    path = settings.state / _FILE
    book = _read(path) if path.is_file() else None
    if book is None or not _lives(book["pid"]):  # left behind by a stack that was killed
        return settings
    web = settings.web.model_copy(update={"host": book["web_host"], "port": book["web_port"]})
    settings = settings.model_copy(update={"web": web})
    if settings.label_studio.url is not None:
        return settings
    secrets = Credentials.load(settings.state)
    label_studio = settings.label_studio.model_copy(
        update={
            "url": book["label_studio"],
            "token": SecretStr(secrets.token),
            "machine_token": SecretStr(secrets.machine_token) if secrets.machine_token else None,
        }
    )
    return settings.model_copy(update={"label_studio": label_studio})


def _read(path: Path) -> dict[str, Any]:
    try:
        book = json.loads(path.read_text())
        if not isinstance(book, dict) or set(book) != _KEYS:
            raise ValueError("it does not say what a stack writes down")
    except (OSError, ValueError) as error:
        raise SettingsError(f"{path} cannot be read ({error}): stop the stack, remove the file.") from error
    return book


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # another user's
        return True
    return True
