"""A worker in a process of its own, for tests that kill it: python worker_process.py STATE [STEP].

It dies by SIGKILL when the ledger has heard that STEP is finished, and DBOS has not.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sqlalchemy import select

from active_learning import labels, triggers
from active_learning.journal import Journal
from active_learning.ledger import Label, Ledger, Project, Task, Tombstone
from active_learning.ledger.types import utc_now
from active_learning.ports import (
    Acceptance,
    ImageUnavailableError,
    Placement,
    Prefill,
    ToolAnnotation,
    ToolTask,
    ToolUnavailableError,
)
from backend.settings import Settings
from backend.worker import Worker
from model.raster import Raster, RasterError, open_raster, write_png

SIDE = 32
TRAINING = {
    "trunk": "random-nano",
    "size": SIDE,
    "epochs": 30,
    "batch_size": 4,
    "width": 8,
    "adapter_dim": 4,
    "cache_gb": 0.0,
}


class MirrorTool:
    """A labeling tool that shows what the ledger holds, and remembers what it is told."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger
        self._ids = iter(range(5000, 10**9))
        self.down = False
        self.asked: list[str] = []
        self.prefilled: dict[int, str] = {}
        self.placed: dict[int, str] = {}

    def _answer(self, what: str) -> None:
        self.asked.append(what)
        if self.down:
            raise ToolUnavailableError("Label Studio does not answer")

    def tasks(self, tool_project_id: int) -> Iterator[ToolTask]:
        self._answer("tasks")
        with self._ledger.session(write=False) as session:
            for task in session.scalars(select(Task)):
                yield ToolTask(task.tool_task_id, task.image_uri, task.data)

    def annotations(self, tool_project_id: int, classes: Sequence[str]) -> Iterator[ToolAnnotation]:
        self._answer("annotations")
        with self._ledger.session(write=False) as session:
            buried = set(session.scalars(select(Tombstone.tool_annotation_id)))
            rows = session.scalars(select(Label).order_by(Label.id)).all()
            found = {row.tool_annotation_id: row for row in rows if row.tool_annotation_id not in buried}
            for number, row in found.items():
                task, machine = row.task.tool_task_id, row.source.value == "machine"
                yield ToolAnnotation(
                    number, task, row.masks, row.annotator, machine, row.cancelled, row.updated_at
                )

    def push_prefills(
        self, tool_project_id: int, classes: Sequence[str], prefills: Sequence[Prefill]
    ) -> dict[int, int]:
        self._answer("push_prefills")
        self.prefilled |= {p.tool_task_id: p.model_version for p in prefills}
        return {p.tool_task_id: next(self._ids) for p in prefills}

    def push_placements(self, tool_project_id: int, placements: Iterable[Placement]) -> list[int]:
        self._answer("push_placements")
        placed = {p.tool_task_id: p.route for p in placements}
        self.placed |= placed
        return list(placed)

    def accept(
        self, tool_project_id: int, classes: Sequence[str], acceptances: Sequence[Acceptance]
    ) -> dict[int, int]:
        self._answer("accept")
        return {a.tool_task_id: next(self._ids) for a in acceptances}

    def withdraw(self, tool_project_id: int, tool_task_ids: Sequence[int]) -> None:
        self._answer("withdraw")

    def machine_annotator(self) -> str:
        return "machine"

    def serve_version(self, tool_project_id: int, version: str) -> None:
        self._answer("serve_version")


class FolderImages:
    """The image of a task is a file in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def open(self, image_uri: str) -> Raster:
        try:
            return open_raster(self._folder / image_uri)
        except RasterError as error:
            raise ImageUnavailableError(str(error)) from error


def settings_of(state: Path, **values: Any) -> Settings:
    """Of a worker on a state folder; its file `database`, if any, holds the URL of a ledger elsewhere."""
    if (elsewhere := state / "database").exists():
        values["database_url"] = elsewhere.read_text()
    return Settings(state=state, device="cpu", trunk="random-nano", poll_s=0.05, **values)


def furnish(
    state: Path, *, labelled: int = 10, unlabelled: int = 4, number: int = 0, **project: Any
) -> Settings:
    """Make a ledger with a project, its images, and labels of some; `number` makes another project."""
    settings = settings_of(state)
    random = np.random.default_rng(0)
    folder = Path("images", str(number)) if number else Path("images")
    (state / folder).mkdir(parents=True)
    first = 100 + 1000 * number
    with Ledger(settings.ledger_url) as ledger:
        ledger.upgrade()
        with ledger.session() as session:
            values = {"accept_threshold": 0.5, "audit_share": 0.0, "labels_per_cycle": 1000} | project
            row = Project(
                name=f"spills-{number}" if number else "spills",
                tool_url="http://tool",
                tool_project_id=7 + number,
                classes=["oil"],
                training=TRAINING,
                **values,
            )
            session.add(row)
            session.flush()
            for i in range(labelled + unlabelled):
                top, left = random.integers(2, 14, 2)
                mask = np.zeros((1, SIDE, SIDE), np.bool_)
                mask[0, top : top + 16, left : left + 16] = True
                pixels = random.integers(0, 60, (SIDE, SIDE, 3)).astype(np.uint8)
                pixels[mask[0]] += 150
                uri = str(folder / f"{i}.png")
                write_png(state / uri, pixels)
                session.add(
                    Task(
                        project_id=row.id,
                        tool_task_id=first + i,
                        image_uri=uri,
                        data={"image": uri},
                        scene=f"scene-{i}",
                    )
                )
                session.flush()
                if i < labelled:
                    said = ToolAnnotation(first - 100 + i, first + i, mask, "ada", False, False, utc_now())
                    labels.record(session, row, said)
    return settings


def request(ledger: Ledger) -> int:
    with ledger.session() as session:
        return triggers.request(session, session.scalars(select(Project)).one(), "a test").id


def die_after(step: str) -> None:
    """Let the process be killed between the ledger's record of a finished step and that of DBOS."""
    finish = Journal.finish

    def and_die(journal: Journal, this: str, *arguments: Any) -> None:
        finish(journal, this, *arguments)
        if this == step:
            os.kill(os.getpid(), signal.SIGKILL)

    Journal.finish = and_die  # type: ignore[method-assign]


def main(state: Path, *death: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    if death:
        die_after(*death)
    settings = settings_of(state)
    with Ledger(settings.ledger_url) as ledger:
        Worker(settings, ledger, MirrorTool(ledger), FolderImages(state)).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), *sys.argv[2:])
