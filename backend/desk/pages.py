"""The desk's pages in the application."""

from __future__ import annotations

import secrets

from flask import Flask

from backend.desk import charts, cycles, index, models, overview, pictures, quality, queue, threshold
from backend.desk import quality_charts as quality_charts  # registers charts
from backend.desk.words import MEANINGS, duration

PAGES = (index, overview, threshold, queue, quality, models, cycles, charts, pictures)


def install(app: Flask) -> None:
    """Add them."""
    for page in PAGES:
        app.register_blueprint(page.blueprint)
    app.jinja_env.globals.update(statuses=list(MEANINGS), meanings=MEANINGS, duration=duration)
    app.jinja_env.globals.update(csrf=lambda: "")
    app.secret_key = secrets.token_bytes(32)
