"""/metrics for Prometheus."""

from __future__ import annotations

from collections.abc import Iterable

from flask import Blueprint, Flask, Response, current_app
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select

from active_learning.ledger import InboxEvent, InboxState, Ledger, Project, Task, TaskStatus
from backend.auth import require_basic

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
        self.registry.register(_LedgerCollector(ledger))


class _LedgerCollector(Collector):
    """Depths of the queues, counted at the time of asking."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def describe(self) -> Iterable[Metric]:
        """Nothing: the ledger is not asked when the application starts."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Events of the inbox by state, tasks by project and status."""
        inbox = GaugeMetricFamily("elnet_inbox_events", "Events of the labeling tool", labels=["state"])
        tasks = GaugeMetricFamily("elnet_tasks", "Tasks", labels=["project", "status"])
        with self._ledger.session(write=False) as session:
            by_state = select(InboxEvent.state, func.count()).group_by(InboxEvent.state)
            states = {row[0]: row[1] for row in session.execute(by_state)}
            counts = {
                (name, status): count
                for name, status, count in session.execute(
                    select(Project.name, Task.status, func.count())
                    .join(Task, Task.project_id == Project.id)
                    .group_by(Project.name, Task.status)
                )
            }
            names = list(session.scalars(select(Project.name)))
        for state in InboxState:
            inbox.add_metric([state.value], states.get(state, 0))
        for name in names:
            for status in TaskStatus:
                tasks.add_metric([name, status.value], counts.get((name, status), 0))
        return [inbox, tasks]


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
