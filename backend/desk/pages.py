"""The desk's pages and its API in the application, and who may use them."""

from __future__ import annotations

from typing import Final

from flask import Flask, request
from flask_wtf.csrf import generate_csrf
from markupsafe import Markup

from active_learning.ledger import Role
from backend.addresses import task_url
from backend.desk import (
    account,
    api,
    charts,
    cycle_page,
    cycles,
    index,
    log,
    model_page,
    models,
    openapi,
    overview,
    pictures,
    policy,
    quality,
    quality_charts,  # noqa: F401 - registers the charts of its page
    queue,
    threshold,
    users,
)
from backend.desk.access import check
from backend.desk.words import MEANINGS, duration, marked, sentence, span

PAGES: Final = (
    overview,
    threshold,
    queue,
    quality,
    models,
    model_page,
    cycles,
    cycle_page,
    policy,
    log,
    charts,
    pictures,
    openapi,
)
GUARDED: Final = tuple(dict.fromkeys(page.blueprint for page in PAGES))  # two pages may share one
GUARDED_OTHERWISE: Final = (index, account, users, api)  # they say themselves whom they let in


def install(app: Flask) -> None:
    """Add them."""
    for blueprint in (*GUARDED, *(page.blueprint for page in GUARDED_OTHERWISE)):
        app.register_blueprint(blueprint)
    app.jinja_env.globals.update(
        statuses=list(MEANINGS),
        meanings=MEANINGS,
        duration=duration,
        csrf=_csrf,
        layers=pictures.layers,
        task_url=task_url,
        sentence=sentence,
        span=span,
    )
    app.jinja_env.filters.update(marked=marked)


def _guard() -> None:
    """Viewers look, leads change."""
    check(Role.VIEWER if request.method in {"GET", "HEAD", "OPTIONS"} else Role.LEAD)


def _csrf() -> Markup:
    """The hidden field of every form that changes something."""
    return Markup('<input type="hidden" name="csrf_token" value="{}">').format(generate_csrf())


for _blueprint in GUARDED:
    _blueprint.before_request(_guard)
