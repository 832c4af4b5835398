"""How the web application is run: gunicorn, `backend.wsgi:application()`."""

from __future__ import annotations

import sys

from flask import Flask

from backend.app import create_app
from backend.logs import start_logging
from backend.settings import Settings, load_settings


def application() -> Flask:
    """The application; settings come from the environment and ELNET_CONFIG."""
    settings = load_settings()
    start_logging(settings)
    return create_app(settings)


def gunicorn_command(settings: Settings) -> list[str]:
    """The command line that serves the application.

    One worker process, for a model is resident in it; threads, for most requests wait; never `--preload`, for
    CUDA does not survive a fork. More GPUs or machines: more of these behind a load balancer, one ledger.

    Args:
        settings: address and number of threads; the process itself reads its settings from the environment.
    """
    host = f"[{settings.web.host}]" if ":" in settings.web.host else settings.web.host
    return [
        *(sys.executable, "-m", "gunicorn", "backend.wsgi:application()"),
        *("--config", "python:backend.gunicorn_conf"),
        *("--bind", f"{host}:{settings.web.port}"),
        *("--workers", "1", "--worker-class", "gthread", "--threads", str(settings.web.threads)),
        *("--timeout", "120", "--graceful-timeout", "20"),
        *("--log-level", settings.log_level),
    ]
