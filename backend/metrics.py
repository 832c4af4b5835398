"""/metrics for Prometheus."""

from __future__ import annotations

from flask import Blueprint, Flask, Response, current_app
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from active_learning.ledger import Ledger
from backend.auth import require_basic
from backend.ledger_metrics import LedgerCollector

blueprint = Blueprint("metrics", __name__)
blueprint.before_request(require_basic)

_EXTENSION = "elnet-metrics"


class Metrics:
    """The counters of one application, and what is read from its ledger when it is asked."""

    def __init__(self, ledger: Ledger) -> None:
        self.registry = CollectorRegistry()
        self.requests = Histogram(
            "elnet_request_seconds",
            "Time to answer a request",
            ["endpoint", "status"],
            buckets=(0.01, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 100),
            registry=self.registry,
        )
        self.results = Counter(
            "elnet_predict_results", "Results of /predict", ["outcome"], registry=self.registry
        )
        self.registry.register(LedgerCollector(ledger))


def install(app: Flask, ledger: Ledger) -> Metrics:
    """Give an application its metrics."""
    app.extensions[_EXTENSION] = found = Metrics(ledger)
    return found


def metrics() -> Metrics:
    """Those of the current application."""
    found: Metrics = current_app.extensions[_EXTENSION]
    return found


@blueprint.get("/metrics")
def show() -> Response:
    """All metrics in Prometheus' text format."""
    return Response(generate_latest(metrics().registry), content_type=CONTENT_TYPE_LATEST)
