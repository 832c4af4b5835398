"""What stands between the desk and a browser that other sites may command: sessions, CSRF tokens, headers."""

from __future__ import annotations

import secrets
from typing import Final

from flask import Flask, Response, g, request
from flask_wtf.csrf import CSRFError, CSRFProtect
from werkzeug.exceptions import BadRequest

from backend.desk import access, sessions
from backend.settings import Settings

_csrf: Final = CSRFProtect()
_POLICY: Final = (
    "default-src 'self'; img-src 'self' data:; script-src 'self'{nonce}; object-src 'none'; base-uri 'none'; "
    "form-action 'self'; frame-ancestors 'none'"
)


def install(app: Flask, settings: Settings) -> None:
    """Protect every page under /desk and every address under /api."""
    sessions.configure(app, settings)
    app.config.update(
        WTF_CSRF_CHECK_DEFAULT=False,  # the ML contract and the webhook have credentials of their own
        WTF_CSRF_TIME_LIMIT=None,  # a token holds as long as its session: pages stay open for hours
        WTF_CSRF_SSL_STRICT=False,  # it asks for the host that browsers see, which a proxy may not hand on
    )
    _csrf.init_app(app)
    app.before_request(_refuse_forged)
    app.after_request(_add_headers)
    app.jinja_env.globals.update(current_user=access.current_user, csp_nonce=csp_nonce)


def is_page() -> bool:
    """Whether the current request is for the desk."""
    return request.path == "/desk" or request.path.startswith("/desk/")


def csp_nonce() -> str:
    """The `nonce` of an inline script, without which it does not run."""
    if "csp_nonce" not in g:
        g.csp_nonce = secrets.token_urlsafe(16)
    nonce: str = g.csp_nonce
    return nonce


def _refuse_forged() -> None:
    """A change that is asked for with a browser's cookies needs the token that only our pages know."""
    if is_page() or (access.is_api() and not access.has_bearer() and access.current_user() is not None):
        try:
            _csrf.protect()  # passes over GET, HEAD, OPTIONS
        except CSRFError as error:
            raise BadRequest("This page is too old, or the request is not its own: load it anew.") from error


def _add_headers(response: Response) -> Response:
    if is_page() or access.is_api():
        response.headers.setdefault("X-Content-Type-Options", "nosniff")
        response.headers.setdefault("Cache-Control", "no-store")
    if is_page():
        nonce = f" 'nonce-{g.csp_nonce}'" if "csp_nonce" in g else ""
        response.headers.setdefault("Content-Security-Policy", _POLICY.format(nonce=nonce))
        response.headers.setdefault("Referrer-Policy", "same-origin")
    return response
