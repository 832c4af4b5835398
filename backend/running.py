"""The address book of a running stack: how `elnet project` and `doctor` find what `elnet up` started."""

from __future__ import annotations

import json
import os
from pathlib import Path

from pydantic import SecretStr

from backend.credentials import Credentials
from backend.settings import Settings, load_settings

ML_USERNAME = "label-studio"  # of the ML contract's Basic auth, where none is set
_FILE = "running.json"


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
    return settings.model_copy(update={"web": web.model_copy(update=values)})


def note_running(settings: Settings) -> None:
    """Write down which addresses a stack that has just started serves on; no secrets."""
    book = {
        "pid": os.getpid(),
        "label_studio": settings.label_studio.url,
        "web_host": settings.web.host,
        "web_port": settings.web.port,
    }
    (settings.state / _FILE).write_text(json.dumps(book, indent=2))


def forget_running(settings: Settings) -> None:
    """The stack has stopped."""
    (settings.state / _FILE).unlink(missing_ok=True)


def running_settings() -> Settings:
    """The settings in force; where they name no Label Studio, those of the stack on this state folder.

    Raises:
        SettingsError: the settings are not valid.
        CredentialsError: secrets.json cannot be read.
    """
    settings = with_secrets(load_settings())
    path = settings.state / _FILE
    if settings.label_studio.url is not None or not path.is_file():
        return settings
    book = json.loads(path.read_text())
    if not Path(f"/proc/{book['pid']}").is_dir() and Path("/proc").is_dir():
        return settings  # left behind by a stack that was killed
    secrets = Credentials.load(settings.state)
    label_studio = settings.label_studio.model_copy(
        update={
            "url": book["label_studio"],
            "token": SecretStr(secrets.token),
            "machine_token": SecretStr(secrets.machine_token) if secrets.machine_token else None,
        }
    )
    web = settings.web.model_copy(update={"host": book["web_host"], "port": book["web_port"]})
    return settings.model_copy(update={"label_studio": label_studio, "web": web})
