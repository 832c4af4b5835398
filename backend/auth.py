"""Who may ask: Basic auth for the ML contract, a shared secret for webhooks. Off where nothing is set."""

from __future__ import annotations

import hmac

from flask import request
from werkzeug.datastructures import WWWAuthenticate
from werkzeug.exceptions import Unauthorized

from backend.services import services

SECRET_HEADER = "X-ELNet-Secret"  # noqa: S105 - the header's name


def require_basic() -> None:
    """Refuse the current request unless it carries the Basic auth that the settings ask for."""
    if services().settings.web.password is not None and not _has_basic():
        raise Unauthorized(
            "user and password are needed: set Basic auth on the ML backend in Label Studio",
            www_authenticate=WWWAuthenticate("basic", {"realm": "elnet"}),
        )


def require_secret() -> None:
    """Refuse the current request unless it carries the webhook's secret, or valid Basic auth.

    "Start training" comes through the ML backend's channel, which cannot carry our header.
    """
    web = services().settings.web
    if web.webhook_secret is None and web.password is None:
        return
    secret = web.webhook_secret.get_secret_value() if web.webhook_secret else None
    if secret is not None and _same(request.headers.get(SECRET_HEADER, ""), secret):
        return
    if web.password is None or not _has_basic():
        raise Unauthorized(f"the webhook needs the header {SECRET_HEADER}: `elnet project create` sets it")


def _has_basic() -> bool:
    web, given = services().settings.web, request.authorization
    if web.password is None or given is None or given.type != "basic":
        return False
    user_is_right = _same(given.username or "", web.username or "")
    return _same(given.password or "", web.password.get_secret_value()) and user_is_right


def _same(given: str, wanted: str) -> bool:
    """Equality in a time that tells nothing of the wanted text."""
    return hmac.compare_digest(given.encode(), wanted.encode())
