"""How the ledger's own work grows with the number of tasks: the queue's order, and what thresholds cost.

`python -m benchmarks.ledger --tasks 10000,100000,1000000` (SQLite in a folder of its own, 4 GB for a million
tasks, or `--database URL` of an empty PostgreSQL database, which is filled)

Every task holds a prediction by the champion: random signals, and an embedding of 768 numbers near one of 200
centres. A hundredth is labelled. Each size is measured in a process of its own, for the peak of its memory.
"""

from __future__ import annotations

import argparse
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
from sqlalchemy import insert, select

from active_learning import queue, registry, risk, standing
from active_learning.ledger import Ledger, Prediction, Project, Task, TaskStatus
from active_learning.routing import settle
from active_learning.signals import signals
from backend.ledger_metrics import LedgerCollector
from model.device import describe_machine

THRESHOLDS = [0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
DIMENSIONS = 768
CENTRES = 200
LABELLED = 100  # one task in so many
_AT_ONCE = 5000


def main() -> None:
    """Fill, measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.ledger", description=main.__doc__)
    parser.add_argument("--tasks", default="10000,100000", help="sizes, ascending")
    parser.add_argument("--database", help="URL of an empty database; SQLite by default")
    parser.add_argument("--runs", type=int, default=3, help="medians are over so many")
    given = parser.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {describe_machine()}, torch {torch.__version__}\n")
    print("| tasks | what | seconds | peak memory (MB) |\n|---|---|---|---|")
    before = 0
    for count in sorted(map(int, given.tasks.split(","))):
        with tempfile.TemporaryDirectory() as folder:
            url = given.database or f"sqlite:///{Path(folder) / 'ledger.sqlite'}"
            with Ledger(url) as ledger:
                fill(ledger, count - before)
            for name in WORK:
                with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                    seconds, megabytes = pool.submit(measure, url, name, given.runs).result()
                print(f"| {count:,} | {name} | {seconds:.2f} | {megabytes:.0f} |", flush=True)
        before = count if given.database else 0


def fill(ledger: Ledger, count: int) -> None:
    """Add tasks, with a prediction each, to the only project; it is made if need be, and routed."""
    ledger.upgrade()
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
    random = np.random.default_rng(count)
    centres = np.random.default_rng(0).normal(size=(CENTRES, DIMENSIONS)).astype(np.float32)
    told = [signals(random.beta(0.5, 2, (1, 16, 16))).to_dict() for _ in range(64)]
    mask = np.zeros((1, 16, 16), np.bool_)
    for start in range(0, count, _AT_ONCE):
        size = min(_AT_ONCE, count - start)
        with ledger.session() as session:
            first = (session.scalar(select(Task.id).order_by(Task.id.desc()).limit(1)) or 0) + 1
            ids = range(first, first + size)
            session.execute(insert(Task), list(_tasks(project_id, ids)))
            near = centres[random.integers(CENTRES, size=size)]
            embeddings = near + 0.3 * random.normal(size=near.shape).astype(np.float32)
            predictions = [
                {
                    "task_id": task_id,
                    "model_version_id": version_id,
                    "score": quality,
                    "quality": quality,
                    "signals": told[task_id % len(told)],
                    "embedding": embedding,
                    "masks": mask,
                }
                for task_id, quality, embedding in zip(
                    ids, random.random(size).tolist(), embeddings, strict=True
                )
            ]
            session.execute(insert(Prediction), predictions)
    settle(ledger, project_id)


def _tasks(project_id: int, ids: range) -> Iterator[dict[str, Any]]:
    for task_id in ids:
        yield {
            "project_id": project_id,
            "tool_task_id": task_id,
            "image_uri": f"s3://scenes/{task_id // 16}/{task_id}.tif",
            "scene": f"scene-{task_id // 16}",
            "status": TaskStatus.DONE if task_id % LABELLED == 0 else TaskStatus.REVIEW,
        }


def measure(url: str, name: str, runs: int) -> tuple[float, float]:
    """Do one piece of work several times over; its median seconds, and this process's peak memory in MB."""
    with Ledger(url) as ledger:
        with ledger.session(write=False) as session:
            [project_id] = session.scalars(select(Project.id))
        seconds = []
        for _ in range(1 if name == FIRST else runs):
            started = time.perf_counter()
            WORK[name](ledger, project_id)
            seconds.append(time.perf_counter() - started)
    return statistics.median(seconds), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _order(ledger: Ledger, project_id: int) -> None:
    queue.reorder(ledger, project_id)


def _what_ifs(ledger: Ledger, project_id: int) -> None:
    with ledger.session(write=False) as session:
        risk.what_ifs(session, session.get_one(Project, project_id), THRESHOLDS)


def _nothing_new(ledger: Ledger, project_id: int) -> None:
    settle(ledger, project_id)


def _upcoming(ledger: Ledger, project_id: int) -> None:
    with ledger.session(write=False) as session:
        queue.upcoming(session, session.get_one(Project, project_id), TaskStatus.REVIEW, 20)


def _counts(ledger: Ledger, project_id: int) -> None:
    with ledger.session(write=False) as session:
        standing.counts(session, session.get_one(Project, project_id))


def _metrics(ledger: Ledger, project_id: int) -> None:
    list(LedgerCollector(ledger).collect())


FIRST = "order the queue, every priority new"
WORK: dict[str, Callable[[Ledger, int], None]] = {
    FIRST: _order,
    "order the queue again, nothing new": _order,
    "elnet threshold: eight thresholds": _what_ifs,
    "elnet queue: the next 20": _upcoming,
    "look for what is to be routed anew, nothing is": _nothing_new,
    "where every image stands": _counts,
    "everything that /metrics tells": _metrics,
}

if __name__ == "__main__":
    main()
