"""Telling the labeling tool what the ledger has decided: prefills, acceptances, withdrawals, placements.

`Task.pushed` is what the tool last confirmed. Whatever differs from it is told, in small chunks: read the
ledger, tell the tool, write down what it confirmed. A crash in between repeats the chunk, and every call
of the tool may be repeated. An acceptance is announced in the ledger before the tool hears of it
(`accepting`), so that it can be withdrawn even if the answer is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning import pending, routing
from active_learning.ledger import Ledger, Prediction, Project, Task
from active_learning.ledger.locking import lock_project
from active_learning.pending import Row
from active_learning.ports import Acceptance, LabelingTool, Placement, Prefill

CHUNK = 32  # tasks whose masks are in memory, and which are told again after a crash
PLACEMENTS = 100


@dataclass(frozen=True, slots=True)
class PushReport:
    """How many tasks the tool confirmed, by what it was told; and how many of these it did not."""

    prefills: int = 0
    withdrawn: int = 0
    accepted: int = 0
    placements: int = 0
    unconfirmed: int = 0


def push(ledger: Ledger, project_id: int, tool: LabelingTool) -> PushReport:
    """Tell the tool everything that it does not know yet. Safe to repeat.

    A task that a human labelled is never given a machine annotation; the one that it had before is taken
    back, unless the human went on from it and made it theirs.

    Args:
        ledger: the ledger.
        project_id: the project.
        tool: the tool behind it.

    Returns:
        What was confirmed. What was not is told again the next time.

    Raises:
        ToolUnavailableError: it does not answer. What it confirmed before is written down.
    """
    routing.settle(ledger, project_id)  # never accept by a decision that no longer holds
    with ledger.session(write=False) as session:
        project = session.get_one(Project, project_id)
        version = project.champion.name if project.champion else None
        rows = pending.plan(session, project)
    pushing = _Pushing(ledger, project, tool)
    told = {
        "prefills": pushing.prefills(rows, version) if version else (0, 0),
        "withdrawn": pushing.withdrawals(rows),
        "accepted": pushing.acceptances(rows),
        "placements": pushing.placements(rows),
    }
    confirmed = {name: count for name, (count, _) in told.items()}
    return PushReport(**confirmed, unconfirmed=sum(sent - count for count, sent in told.values()))


class _Pushing:
    """One run of `push`.

    Each method looks at its tasks again right before it tells the tool, since a person may have labelled one
    in the meantime. It returns how many tasks were confirmed, and how many were told.
    """

    def __init__(self, ledger: Ledger, project: Project, tool: LabelingTool) -> None:
        self._ledger = ledger
        self._project = project
        self._tool = tool
        self._tool_project = project.tool_project_id

    def prefills(self, rows: Sequence[Row], version: str) -> tuple[int, int]:
        """Predictions of the champion that the tool does not hold."""

        def lacks(row: Row) -> bool:
            return pending.lacks_prefill(row, self._project, version)

        if any(map(lacks, rows)):
            # First, so that a crash in between does it again.
            self._tool.serve_version(self._tool_project, version)
        confirmed = told = 0
        for chunk in self._chunks(rows, lacks, CHUNK):
            found = self._predictions(chunk.values())
            blind = {i for i, row in chunk.items() if pending.hides_mask(row, self._project, version)}
            sent = [
                Prefill(i, np.zeros_like(p.masks) if i in blind else p.masks, p.quality, version)
                for i, p in found.items()
            ]
            held = self._tool.push_prefills(self._tool_project, self._project.classes, sent)
            with self._writing() as session:
                for tool_id in held.keys() & chunk.keys():
                    prediction = session.get_one(Prediction, chunk[tool_id].prediction_id)
                    prediction.tool_prediction_id = held[tool_id]
                    _remember(session, chunk[tool_id], model_version=version, blind=tool_id in blind or None)
                    confirmed += 1
            told += len(sent)
        return confirmed, told

    def withdrawals(self, rows: Sequence[Row]) -> tuple[int, int]:
        """Machine annotations of tasks that are no longer accepted."""
        told = 0
        for chunk in self._chunks(rows, pending.to_withdraw, CHUNK):
            with self._ledger.session(write=False) as session:
                machines = [
                    tool_id
                    for tool_id, row in chunk.items()
                    if not pending.became_human(session, self._project, row)
                ]
            if machines:
                self._tool.withdraw(self._tool_project, machines)
            with self._writing() as session:
                for row in chunk.values():
                    _remember(session, row, accepting=None, accepted=None, annotation=None)
            told += len(machines)
        return told, told

    def acceptances(self, rows: Sequence[Row]) -> tuple[int, int]:
        """Accepted predictions that are no annotation yet, or that replace an earlier one."""
        confirmed = told = 0
        for chunk in self._chunks(rows, pending.to_accept, CHUNK):
            with self._writing() as session:
                labelled = [i for i, row in chunk.items() if pending.has_human_label(session, row)]
                for tool_id in labelled:
                    del chunk[tool_id]
                for row in chunk.values():
                    _remember(session, row, accepting=row.prediction_id)
            if not chunk:
                continue
            found = self._predictions(chunk.values())
            sent = [Acceptance(i, p.masks, p.quality, p.tool_prediction_id) for i, p in found.items()]
            made = self._tool.accept(self._tool_project, self._project.classes, sent)
            with self._writing() as session:
                for tool_id in made.keys() & chunk.keys():
                    row = chunk[tool_id]
                    _remember(session, row, accepted=row.prediction_id, annotation=made[tool_id])
                    confirmed += 1
            told += len(sent)
        return confirmed, told

    def placements(self, rows: Sequence[Row]) -> tuple[int, int]:
        """Routes, qualities and priorities that the tool has not heard."""
        confirmed = told = 0
        for chunk in self._chunks(rows, pending.moved, PLACEMENTS):
            with self._ledger.session(write=False) as session:
                ids = [row.task_id for row in chunk.values()]
                tasks = {t.tool_task_id: t for t in session.scalars(select(Task).where(Task.id.in_(ids)))}
            sent = [
                Placement(tool_id, row.status.value, row.quality, row.priority, tasks[tool_id].data)
                for tool_id, row in chunk.items()
            ]
            written = self._tool.push_placements(self._tool_project, sent)
            with self._writing() as session:
                for tool_id in chunk.keys() & set(written):
                    row = chunk[tool_id]
                    place = {"status": row.status.value, "quality": row.quality, "priority": row.priority}
                    _remember(session, row, **place)
                    confirmed += 1
            told += len(sent)
        return confirmed, told

    @contextmanager
    def _writing(self) -> Iterator[Session]:
        with self._ledger.session() as session:
            lock_project(session, self._project.id)
            yield session

    def _chunks(
        self, rows: Iterable[Row], wanted: Callable[[Row], bool], size: int
    ) -> Iterator[dict[int, Row]]:
        """The tool's task id -> row, as it is now, of those that are still wanted."""
        ids = [row.task_id for row in rows if wanted(row)]
        for start in range(0, len(ids), size):
            with self._ledger.session(write=False) as session:
                now = pending.plan(session, self._project, ids[start : start + size])
            chunk = {row.tool_task_id: row for row in now if wanted(row)}
            if chunk:
                yield chunk

    def _predictions(self, rows: Iterable[Row]) -> dict[int, Prediction]:
        """The tool's task id -> the prediction, with its masks."""
        tool_ids = {row.prediction_id: row.tool_task_id for row in rows}
        with self._ledger.session(write=False) as session:
            found = session.scalars(select(Prediction).where(Prediction.id.in_(tool_ids)))
            return {tool_ids[prediction.id]: prediction for prediction in found}


def _remember(session: Session, row: Row, **told: Any) -> None:
    """Merge into `Task.pushed`; a None takes the key away."""
    task = session.get_one(Task, row.task_id)
    kept = {**(task.pushed or {}), **told}
    task.pushed = {key: value for key, value in kept.items() if value is not None}
