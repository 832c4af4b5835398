"""What Prometheus is told of the loop, read from the ledger when it asks.

Everything is counted there, so any process answers alike, and nothing is forgotten at a restart.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime

from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from active_learning import standing, thresholds
from active_learning.journal import ACTIVE, last_epoch
from active_learning.ledger import (
    Cycle,
    CycleState,
    InboxEvent,
    InboxState,
    Label,
    Ledger,
    ModelVersion,
    Prediction,
    Project,
    WorkerLease,
)
from active_learning.ledger.types import utc_now
from backend.lease import silence_s


class LedgerCollector(Collector):
    """The metrics of one ledger."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def describe(self) -> Iterable[Metric]:
        """Nothing: the ledger is not asked when the application starts."""
        return []

    def collect(self) -> Iterable[Metric]:
        """Inbox and worker, then each project's tasks, predictions, labels, cycles, model and promise."""
        now = utc_now()
        with self._ledger.session(write=False) as session:
            projects = session.scalars(select(Project).order_by(Project.id)).all()
            yield from _inbox(session, now)
            yield from _worker(session)
            yield _tasks(session, projects)
            yield _predictions(session)
            yield _labels(session)
            yield from _cycles(session, now)
            yield from _quality(session, projects)


def _inbox(session: Session, now: datetime) -> Iterator[Metric]:
    events = GaugeMetricFamily("elnet_inbox_events", "Events of the labeling tool", labels=["state"])
    by_state = session.execute(select(InboxEvent.state, func.count()).group_by(InboxEvent.state))
    counts = {row[0]: row[1] for row in by_state}
    for state in InboxState:
        events.add_metric([state.value], counts.get(state, 0))
    yield events
    oldest = session.scalar(
        select(InboxEvent.received_at)
        .where(InboxEvent.state == InboxState.WAITING)
        .order_by(InboxEvent.id)
        .limit(1)
    )
    lag = 0.0 if oldest is None else (now - oldest).total_seconds()
    yield GaugeMetricFamily("elnet_inbox_lag_seconds", "Age of the oldest event that waits", value=lag)


def _worker(session: Session) -> Iterator[Metric]:
    ages = GaugeMetricFamily(
        "elnet_worker_silence_seconds", "Since a worker's heartbeat", labels=["worker", "host"]
    )
    for worker in session.scalars(select(WorkerLease)):
        ages.add_metric([worker.name, worker.host], silence_s(worker))
    yield ages


def _tasks(session: Session, projects: Iterable[Project]) -> Metric:
    tasks = GaugeMetricFamily("elnet_tasks", "Tasks", labels=["project", "status"])
    for project in projects:
        for status, count in standing.counts(session, project).items():
            tasks.add_metric([project.name, status.value], count)
    return tasks


def _predictions(session: Session) -> Metric:
    made = CounterMetricFamily("elnet_predictions", "Predictions", labels=["project", "version"])
    query = (
        select(Project.name, ModelVersion.name, func.count(Prediction.id))
        .join(ModelVersion, ModelVersion.project_id == Project.id)
        .outerjoin(Prediction, Prediction.model_version_id == ModelVersion.id)
        .group_by(Project.name, ModelVersion.name)
    )
    for project, version, count in session.execute(query):
        made.add_metric([project, version], count)
    return made


def _labels(session: Session) -> Metric:
    received = CounterMetricFamily("elnet_labels", "Revisions of labels", labels=["project", "source"])
    query = (
        select(Project.name, Label.source, func.count())
        .join(Label, Label.project_id == Project.id)
        .group_by(Project.name, Label.source)
    )
    for project, source, count in session.execute(query):
        received.add_metric([project, source.value], count)
    return received


def _cycles(session: Session, now: datetime) -> Iterator[Metric]:
    ended = GaugeMetricFamily("elnet_cycles", "Cycles", labels=["project", "state"])
    query = (
        select(Project.name, Cycle.state, func.count())
        .join(Cycle, Cycle.project_id == Project.id)
        .group_by(Project.name, Cycle.state)
    )
    counts = {(project, state): count for project, state, count in session.execute(query)}
    for project in sorted({project for project, _ in counts}):
        for state in CycleState:
            ended.add_metric([project, state.value], counts.get((project, state), 0))
    yield ended
    last = GaugeMetricFamily(
        "elnet_cycle_last_state", "1 for the state of the last cycle", labels=["project", "state"]
    )
    newest = select(func.max(Cycle.id)).group_by(Cycle.project_id)
    for cycle in session.scalars(select(Cycle).where(Cycle.id.in_(newest)).order_by(Cycle.id)):
        for state in CycleState:
            last.add_metric([cycle.project.name, state.value], float(cycle.state is state))
    yield last
    age = GaugeMetricFamily(
        "elnet_cycle_seconds", "Since the cycle under way was asked for", labels=["project", "step"]
    )
    share = GaugeMetricFamily(
        "elnet_training_progress", "Share of the epochs that are done", labels=["project"]
    )
    loss = GaugeMetricFamily("elnet_training_loss", "Mean loss of the last epoch", labels=["project"])
    for cycle in session.scalars(select(Cycle).where(Cycle.state.in_(ACTIVE)).order_by(Cycle.id)):
        name = cycle.project.name
        age.add_metric([name, cycle.step or "requested"], (now - cycle.requested_at).total_seconds())
        said = last_epoch(session, cycle.id)
        if said is not None:
            share.add_metric([name], said["epoch"] / said["epochs"])
            loss.add_metric([name], said["loss"])
    yield from (age, share, loss)


def _quality(session: Session, projects: Iterable[Project]) -> Iterator[Metric]:
    iou = GaugeMetricFamily(
        "elnet_champion_iou", "Foreground IoU on the holdout, pooled", labels=["project", "version"]
    )
    threshold = GaugeMetricFamily(
        "elnet_accept_threshold", "Predicted IoU from which masks are accepted", labels=["project"]
    )
    off = GaugeMetricFamily(
        "elnet_auto_accept_stopped", "1: auto-accept has switched itself off", labels=["project"]
    )
    promised = GaugeMetricFamily("elnet_promised_risk", "Share of bad masks at most", labels=["project"])
    audited = GaugeMetricFamily(
        "elnet_promise_audits", "Audits of accepted masks since the threshold moved", labels=["project"]
    )
    failed = GaugeMetricFamily("elnet_promise_failures", "Of these, the bad ones", labels=["project"])
    against = GaugeMetricFamily(
        "elnet_promise_evidence", "Against the promise; 20 breaks it", labels=["project"]
    )
    for project in projects:
        if project.champion is not None and "fg_iou" in project.champion.metrics:
            iou.add_metric([project.name, project.champion.name], project.champion.metrics["fg_iou"])
        if project.accept_threshold is not None:
            threshold.add_metric([project.name], project.accept_threshold)
        off.add_metric([project.name], float(thresholds.switched_off(session, project) is not None))
        if (promise := thresholds.standing(project)) is not None:
            promised.add_metric([project.name], promise.risk)
        if (seen := thresholds.watched(session, project)) is not None:
            audited.add_metric([project.name], seen.audited)
            failed.add_metric([project.name], seen.failures)
            against.add_metric([project.name], seen.evidence)
    yield from (iou, threshold, off, promised, audited, failed, against)
