"""The desk's pages in the application."""

from __future__ import annotations

import secrets

from flask import Flask

from backend.desk import (
    charts,
    cycle_page,
    cycles,
    index,
    model_page,
    models,
    overview,
    pictures,
    quality,
    queue,
    threshold,
)
from backend.desk.words import MEANINGS, duration, sentence, span

PAGES = (
    index,
    overview,
    threshold,
    queue,
    quality,
    models,
    model_page,
    cycles,
    cycle_page,
    charts,
    pictures,
)


def install(app: Flask) -> None:
    """Add them."""
    for blueprint in dict.fromkeys(page.blueprint for page in PAGES):  # two pages may share one
        app.register_blueprint(blueprint)
    app.jinja_env.globals.update(
        statuses=list(MEANINGS), meanings=MEANINGS, duration=duration, sentence=sentence, span=span
    )
    app.secret_key = app.secret_key or secrets.token_bytes(32)
    app.jinja_env.globals.setdefault("csrf", lambda: "")
