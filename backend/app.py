"""The web application: `create_app(settings)`, one blueprint a concern, errors as JSON without tracebacks."""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Sequence

from flask import Flask, Response, g, render_template, request
from flask.typing import ResponseReturnValue
from werkzeug.exceptions import HTTPException

from active_learning.ledger import Ledger
from active_learning.ledger.failures import LedgerError
from active_learning.ports import ImageSource
from backend import metrics, ml_api, readiness, webhooks
from backend.desk import pages, protection, signing_in
from backend.media import MediaStore
from backend.resident import Predictors, ResidentPredictors
from backend.services import EXTENSION, Services, services
from backend.serving import Serving
from backend.settings import Settings

log = logging.getLogger(__name__)

MAX_REQUEST_BYTES = 256 * 2**20  # "Retrieve predictions" sends every selected task at once


def create_app(
    settings: Settings,
    *,
    ledger: Ledger | None = None,
    images: ImageSource | None = None,
    predictors: Predictors | None = None,
) -> Flask:
    """Make the application. Nothing is connected to, loaded or started here.

    Args:
        settings: everything that can be set.
        ledger: default: the one that the settings name.
        images: where pixels come from; default: Label Studio, local files, named hosts, S3.
        predictors: model version -> its predictor; default: loaded from its checkpoint when first needed.
    """
    ledger = ledger or Ledger(settings.ledger_url)
    images = images or MediaStore.from_settings(settings)
    predictors = predictors or ResidentPredictors(settings, ledger)
    app = Flask("elnet", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_REQUEST_BYTES
    app.extensions[EXTENSION] = Services(
        settings, ledger, Serving(ledger, images, predictors, settings.label_studio.url), images
    )
    metrics.install(app, ledger)
    for module in (ml_api, webhooks, metrics, readiness):
        app.register_blueprint(module.blueprint)
    if settings.desk.enabled:
        protection.install(app, settings)
        signing_in.install(app, settings)
        pages.install(app)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(LedgerError, _ledger_error)
    app.register_error_handler(Exception, _defect)
    app.before_request(_begin)
    app.after_request(_measure)
    if settings.web.webhook_secret is None:
        log.warning("no web.webhook_secret is set: anybody who reaches /webhook can write into the inbox")
    return app


def _http_error(error: HTTPException) -> ResponseReturnValue:
    """What was wrong with the request."""
    headers = [(name, value) for name, value in error.get_headers() if name.lower() != "content-type"]
    return _say(error.description or error.name, error.code or 500, headers)


def _ledger_error(error: LedgerError) -> ResponseReturnValue:
    """The ledger is away: the same request may go through later."""
    log.error("%s %s: %s", request.method, request.path, error)
    return _say(str(error), 503)


def _defect(error: Exception) -> ResponseReturnValue:
    """Whatever nobody expected: told by a number that the log knows, never by its text."""
    number = uuid.uuid4().hex[:12]
    log.error("%s %s failed (%s)", request.method, request.path, number, exc_info=error)
    return _say(f"something went wrong here; the backend's log tells more under {number}", 500)


def _say(said: str, status: int, headers: Sequence[tuple[str, str]] = ()) -> ResponseReturnValue:
    """As a page of the desk to who asked for one, else as JSON."""
    if services().settings.desk.enabled and protection.is_page():
        return render_template("desk/error.html", said=said, status=status), status, list(headers)
    return {"error": said}, status, list(headers)


def _begin() -> None:
    g.begun = time.perf_counter()


def _measure(response: Response) -> Response:
    endpoint = request.endpoint or "unknown"
    seconds = time.perf_counter() - g.get("begun", time.perf_counter())
    metrics.metrics().requests.labels(endpoint, str(response.status_code)).observe(seconds)
    return response
