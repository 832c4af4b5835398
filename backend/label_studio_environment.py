"""What the embedded Label Studio is told at its start.

It differs from the defaults in three ways. The server may call the backend at a local address, which is
refused by default. Legacy tokens work, for it hands one to the backend. It connects to nothing outside.
"""

from __future__ import annotations

import os
from pathlib import Path

from backend.credentials import Credentials
from backend.settings import Settings

DATABASE = "label_studio.sqlite3"
_INHERITED = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
# Local and private addresses are allowed, for there the backend is. These stay forbidden: addresses that mean
# "this host" without saying so, the metadata services of clouds, multicast and what is reserved.
_BANNED = "0.0.0.0/8,169.254.0.0/16,224.0.0.0/4,240.0.0.0/4,fe80::/10,ff00::/8"


def server_environment(settings: Settings, credentials: Credentials, data: Path) -> dict[str, str]:
    """The whole environment of the server's process.

    Nothing is inherited but what any program needs: Label Studio also listens to names without a prefix, such
    as HOST and DEBUG, and a proxy would stand between it and the backend.

    Args:
        settings: the lead's name and the media root.
        credentials: the lead's password and token, which the server takes over when it makes the user.
        data: folder of its database and uploads.
    """
    options = {
        "HOST": "",
        "DEBUG": "false",
        "DJANGO_DB": "sqlite",
        "BASE_DATA_DIR": str(data.resolve()),
        "DATABASE_NAME": str(data.resolve() / DATABASE),
        "USERNAME": settings.label_studio.username,
        "PASSWORD": credentials.password,
        "USER_TOKEN": credentials.token,
        "ENABLE_LEGACY_API_TOKEN": "true",
        "DISABLE_SIGNUP_WITHOUT_LINK": "true",
        "LOCAL_FILES_SERVING_ENABLED": "true",
        "LOCAL_FILES_DOCUMENT_ROOT": str(settings.media_root.resolve()),
        "USE_DEFAULT_BANNED_SUBNETS": "false",
        "USER_ADDITIONAL_BANNED_SUBNETS": _BANNED,
        "COLLECT_ANALYTICS": "false",
        "LATEST_VERSION_CHECK": "false",
        "SENTRY_DSN": "",
        "FRONTEND_SENTRY_DSN": "",
    }
    inherited = {name: os.environ[name] for name in _INHERITED if name in os.environ}
    told = {f"LABEL_STUDIO_{name}": value for name, value in options.items()}
    return {**inherited, **told, "PYTHONUNBUFFERED": "1", "PYTHONWARNINGS": "ignore"}
