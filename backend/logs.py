"""How the servers log: one line an event, on standard error."""

from __future__ import annotations

import logging
import sys

from backend.settings import Settings

_CHATTY = ("httpx", "httpcore", "alembic", "dbos")  # a line for each request says nothing to a lead


def start_logging(settings: Settings) -> None:
    """Log from the level that the settings name; libraries only what is wrong, unless it is `debug`."""
    logging.basicConfig(
        level=settings.log_level.upper(),
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        stream=sys.stderr,
    )
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    for name in _CHATTY:
        chatty = logging.NOTSET if level == logging.DEBUG else max(level, logging.WARNING)
        logging.getLogger(name).setLevel(chatty)
