"""How the ledger's own work grows with the number of tasks: the queue's order, and what thresholds cost.

`python -m benchmarks.ledger --tasks 10000,100000,1000000` (SQLite in a folder of its own, 6 GB for a million
tasks, or `--database URL` of a PostgreSQL database for this alone, which is filled as far as it is not)

Every task holds a prediction by the champion: random signals, and an embedding of 768 numbers near one of
200 centres. A hundredth is labelled, a tenth of these as audits; what is accepted has a label by the machine.
From `MADE` tasks on they are copies of the first, with qualities, draws, routes and priorities of their own.
Each piece of work is measured in its own process, for the peak of its memory; the queries share one.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from datetime import UTC, datetime
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sqlalchemy import func, insert, select, text

from active_learning import judgements, queue, registry, risk, routing, standing, tallies
from active_learning.ledger import Label, LabelSource, Ledger, Prediction, Project, Task, TaskStatus
from active_learning.ledger.types import utc_now
from active_learning.signals import signals
from backend.ledger_metrics import LedgerCollector
from model.device import describe_machine

THRESHOLDS = [0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
DIMENSIONS = 768
CENTRES = 200
LABELLED = 100  # one task in so many
MADE = 10_000
_AT_ONCE = 5000


def main() -> None:
    """Fill, measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=main.__doc__)
    parser.add_argument("--tasks", default="10000,100000", help="sizes, ascending")
    parser.add_argument("--database", help="URL of a database for this alone; SQLite by default")
    parser.add_argument("--runs", type=int, default=3, help="of each piece of work")
    parser.add_argument("--queries", type=int, default=100, help="of each kind, for people who wait")
    parser.add_argument("--only-queries", action="store_true", help="leave the longer work out")
    given = parser.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {describe_machine()}, torch {torch.__version__}\n")
    print("| tasks | what | median (s) | 95th percentile (s) | peak memory (MB) |\n|---|---|---|---|---|")
    for count in sorted(map(int, given.tasks.split(","))):
        with tempfile.TemporaryDirectory() as folder:
            url = given.database or f"sqlite:///{Path(folder) / 'ledger.sqlite'}"
            with Ledger(url) as ledger:
                fill(ledger, count)
            for name in [] if given.only_queries else WORK:
                tell(count, *apart(measure, url, name, given.runs))
            for row in apart(ask, url, given.queries):
                tell(count, *row)


def fill(ledger: Ledger, count: int) -> None:
    """Let the only project have so many tasks, with a prediction each, routed; it is made if need be."""
    ledger.upgrade()
    with ledger.session(write=False) as session:
        there = session.scalar(select(func.count()).select_from(Task)) or 0
    made = max(there, min(count, MADE))
    if made > there:
        _make(ledger, made - there)
    for start in range(made, count, MADE):
        last = min(MADE, count - start)
        with ledger.session() as session:
            for statement in COPIES:
                session.execute(text(statement), {"shift": start, "last": last, "end": start + last})
    if ledger.engine.dialect.name == "postgresql":  # as it does by itself, but not at once
        with ledger.session() as session:
            session.execute(text("ANALYZE"))


def _make(ledger: Ledger, count: int) -> None:
    with ledger.session() as session:
        project = session.scalar(select(Project))
        if project is None:
            project = Project(
                name="scale", tool_url="http://tool", tool_project_id=1, classes=["oil"], accept_threshold=0.9
            )
            session.add(project)
            session.flush()
            version = registry.register(session, project, Path("nowhere"), "0" * 64, name="elnet-0001")
            registry.promote(session, version)
        project_id, version_id = project.id, project.champion_id
    draws = np.random.default_rng(count)
    centres = np.random.default_rng(0).normal(size=(CENTRES, DIMENSIONS)).astype(np.float32)
    told = [signals(draws.beta(0.5, 2, (1, 16, 16))).to_dict() for _ in range(64)]
    mask = np.zeros((1, 16, 16), np.bool_)
    for start in range(0, count, _AT_ONCE):
        size = min(_AT_ONCE, count - start)
        with ledger.session() as session:
            first = (session.scalar(select(Task.id).order_by(Task.id.desc()).limit(1)) or 0) + 1
            ids = range(first, first + size)
            session.execute(insert(Task), list(_tasks(project_id, ids)))
            near = centres[draws.integers(CENTRES, size=size)]
            embeddings = near + 0.3 * draws.normal(size=near.shape).astype(np.float32)
            qualities = draws.random(size)
            rows = [
                {
                    "task_id": task_id,
                    "model_version_id": version_id,
                    "score": quality,
                    "quality": quality,
                    "signals": told[task_id % len(told)],
                    "embedding": embedding,
                    "masks": mask,
                }
                for task_id, quality, embedding in zip(ids, qualities.tolist(), embeddings, strict=True)
            ]
            session.execute(insert(Prediction), rows)
            if labelled := [task_id for task_id in ids if task_id % LABELLED == 0]:
                made = select(Prediction.task_id, Prediction.id).where(Prediction.task_id.in_(labelled))
                session.execute(
                    insert(Label), [_label(project_id, *row, mask) for row in session.execute(made)]
                )
            tasks = session.scalars(select(Task).where(Task.id.in_(ids)))
            routing.route(session, session.get_one(Project, project_id), tasks)


def _tasks(project_id: int, ids: range) -> Iterator[dict[str, Any]]:
    for task_id in ids:
        yield {
            "project_id": project_id,
            "tool_task_id": task_id,
            "image_uri": f"s3://scenes/{task_id // 16}/{task_id}.tif",
            "scene": f"scene-{task_id // 16}",
            "status": TaskStatus.DONE if task_id % LABELLED == 0 else TaskStatus.WAITING,
        }


def _label(project_id: int, task_id: int, prediction_id: int, mask: NDArray[np.bool_]) -> dict[str, Any]:
    source = LabelSource.AUDIT if task_id % (10 * LABELLED) == 0 else LabelSource.HUMAN
    by_machine = task_id % LABELLED != 0
    return {
        "project_id": project_id,
        "task_id": task_id,
        "tool_annotation_id": task_id,
        "revision": str(task_id),
        "source": LabelSource.MACHINE if by_machine else source,
        "annotator": str(task_id % 7),
        "prediction_id": prediction_id,
        "prefill_iou": None if by_machine else task_id % 101 / 100,
        "lead_time_s": None if by_machine else float(task_id % 90 + 1),
        "updated_at": utc_now(),
        "masks": mask,
    }


_QUALITY = "CAST((t.id + :shift) * CAST(7919 AS BIGINT) % 1000003 AS DOUBLE PRECISION) / 1000003"
_ROUTE = (
    "CASE WHEN elnet_audit_draw(id, 'elnet-0001') < 0.1 THEN 'audit' "
    "WHEN quality >= 0.9 THEN 'accepted' ELSE 'review' END"
)
_NEW = "tasks WHERE id > :shift AND id <= :end"
_PREDICTION = "FROM predictions AS p WHERE p.task_id = tasks.id"
COPIES = (
    f"""
    INSERT INTO tasks
        (id, project_id, tool_task_id, image_uri, data, scene, created_at, quality, priority, status)
    SELECT id, project_id, id, image_uri, data, scene || '-' || id / 16, created_at, quality, quality,
        CASE WHEN id % {LABELLED} = 0 THEN 'done' ELSE {_ROUTE} END
    FROM (SELECT t.id + :shift AS id, project_id, image_uri, data, scene, created_at, {_QUALITY} AS quality
        FROM tasks AS t WHERE t.id <= :last) AS made
    """,
    """
    INSERT INTO predictions
        (task_id, model_version_id, score, quality, signals, created_at, embedding, masks)
    SELECT t.id, model_version_id, t.quality, t.quality, signals, p.created_at, embedding, masks
    FROM predictions AS p JOIN tasks AS t ON t.id = p.task_id + :shift WHERE p.task_id <= :last
    """,
    f"""
    INSERT INTO route_decisions (task_id, prediction_id, status, quality, threshold, reason, at)
    SELECT id, (SELECT p.id {_PREDICTION}), {_ROUTE}, quality, 0.9, 'copied', created_at
    FROM {_NEW} AND status <> 'done'
    """,
    f"""
    INSERT INTO labels
        (project_id, task_id, tool_annotation_id, revision, content, source, annotator, cancelled,
        soft_edges, prediction_id, prefill_iou, lead_time_s, updated_at, received_at, masks)
    SELECT project_id, id, id, 'copied', 'copied',
        CASE WHEN status <> 'done' THEN 'machine' WHEN id % {10 * LABELLED} = 0 THEN 'audit' ELSE 'human' END,
        '1', false, false, (SELECT p.id {_PREDICTION}),
        CASE status WHEN 'done' THEN id % 101 / 100.0 END, CASE status WHEN 'done' THEN id % 90 + 1.0 END,
        created_at, created_at, (SELECT p.masks {_PREDICTION})
    FROM {_NEW} AND status IN ('done', 'accepted')
    """,
)


def apart(do: Callable[..., Any], *given: Any) -> Any:
    """Do it in a process of its own, for the peak of its memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(do, *given).result()


def tell(count: int, name: str, seconds: list[float], megabytes: float) -> None:
    """A line of the table."""
    late = f"{np.percentile(seconds, 95):.3f}" if name in QUERIES else ""
    print(f"| {count:,} | {name} | {statistics.median(seconds):.3f} | {late} | {megabytes:.0f} |", flush=True)


def measure(url: str, name: str, runs: int) -> tuple[str, list[float], float]:
    """Do one piece of work several times over; the seconds of each, and this process's peak memory in MB."""
    with Ledger(url) as ledger:
        seconds = _timed(ledger, WORK[name], 1 if name == FIRST else runs)
    return name, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def ask(url: str, times: int) -> list[tuple[str, list[float], float]]:
    """`measure` of every query."""
    with Ledger(url) as ledger:
        seconds = {name: _timed(ledger, query, times) for name, query in QUERIES.items()}
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return [(name, found, megabytes) for name, found in seconds.items()]


def _timed(ledger: Ledger, work: Callable[[Ledger, int], None], times: int) -> list[float]:
    with ledger.session(write=False) as session:
        [project_id] = session.scalars(select(Project.id))
    seconds = []
    for _ in range(times):
        started = time.perf_counter()
        work(ledger, project_id)
        seconds.append(time.perf_counter() - started)
    return seconds


def _order(ledger: Ledger, project_id: int) -> None:
    queue.reorder(ledger, project_id)


def _what_ifs(ledger: Ledger, project_id: int) -> None:
    with ledger.session(write=False) as session:
        risk.what_ifs(session, session.get_one(Project, project_id), THRESHOLDS)


def _odd_what_if(ledger: Ledger, project_id: int) -> None:
    with ledger.session(write=False) as session:
        risk.what_if(session, session.get_one(Project, project_id), random.random())


def _distribution(ledger: Ledger, project_id: int) -> None:
    with ledger.session(write=False) as session:
        tallies.open_routes(session, session.get_one(Project, project_id))


def _nothing_new(ledger: Ledger, project_id: int) -> None:
    routing.settle(ledger, project_id)


def _upcoming(ledger: Ledger, project_id: int) -> None:
    with ledger.session(write=False) as session:
        queue.upcoming(session, session.get_one(Project, project_id), TaskStatus.REVIEW, 20)


def _audit_queue(ledger: Ledger, project_id: int) -> None:
    with ledger.session(write=False) as session:
        queue.upcoming(session, session.get_one(Project, project_id), TaskStatus.AUDIT, 20)


def _audits(ledger: Ledger, project_id: int) -> None:
    with ledger.session(write=False) as session:
        judgements.audits(session, session.get_one(Project, project_id))


def _counts(ledger: Ledger, project_id: int) -> None:
    with ledger.session(write=False) as session:
        standing.counts(session, session.get_one(Project, project_id))


def _metrics(ledger: Ledger, project_id: int) -> None:
    list(LedgerCollector(ledger).collect())


def _readiness(ledger: Ledger, project_id: int) -> None:
    ledger.check()


FIRST = "order the queue, every priority new"
WORK: dict[str, Callable[[Ledger, int], None]] = {
    FIRST: _order,
    "order the queue again, nothing new": _order,
    "look for what is to be routed anew, nothing is": _nothing_new,
    "everything that /metrics tells": _metrics,
}
QUERIES: dict[str, Callable[[Ledger, int], None]] = {
    "`elnet threshold`: eight thresholds": _what_ifs,
    "what-if of a random threshold": _odd_what_if,
    "the distribution of what waits": _distribution,
    "`elnet queue`: the next 20": _upcoming,
    "`elnet queue --audit`: the next 20": _audit_queue,
    "`elnet audit`": _audits,
    "where every image stands": _counts,
    "`/readyz`": _readiness,
}

if __name__ == "__main__":
    main()
