"""Workers that die at a chosen point: python fault_process.py, then a line of JSON for each on stdin.

`{"state": FOLDER, "point": N}` lets a worker go on with what it finds in the folder until nothing is left to
do, or SIGKILL at its Nth point: before each commit that writes to the ledger or to the jobs, before a file
gets its final name, before each call that changes the tool, and after it, when the answer is lost. Without
`point` it is never killed. The answer is a line with the exit status and, if it was not killed, how many
points there were.

Each worker is a fork of this process, so that none has to load PyTorch; training runs in the worker itself.
"""

from __future__ import annotations

import functools
import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from sqlalchemy import Connection, Engine, event, select

from active_learning import fine_tuning
from active_learning.journal import ACTIVE
from active_learning.ledger import Cycle, Ledger
from active_learning.ports import Acceptance, Placement, Prefill
from backend.worker import Worker
from model import resumption, training, training_child
from model.raster import write_png
from tests.backend.worker_process import SIDE, TRAINING, FolderImages, MirrorTool, settings_of

WITHIN_S = 120.0
IDLE = 3  # rounds in which the worker has found nothing to do


class Points:
    """Counts, and kills this process at the one that was chosen."""

    def __init__(self, last: int | None) -> None:
        self.count = 0
        self._last = last
        self._lock = threading.Lock()

    def watch_commits(self) -> None:
        """Make a point of each commit that changes something."""
        event.listen(Engine, "after_cursor_execute", self._after_statement)
        event.listen(Engine, "commit", self._before_commit)

    def _after_statement(self, connection: Connection, cursor: Any, statement: str, *_: Any) -> None:
        if statement.lstrip().startswith(("INSERT", "UPDATE", "DELETE")) and cursor.rowcount:
            connection.info["writes"] = True

    def _before_commit(self, connection: Connection) -> None:
        if connection.info.pop("writes", False):
            self.reach()

    def reach(self) -> None:
        with self._lock:
            self.count += 1
            if self.count == self._last:
                os.kill(os.getpid(), signal.SIGKILL)

    def before(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*given: Any, **named: Any) -> Any:
            self.reach()
            return function(*given, **named)

        return wrapped

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def wrapped(*given: Any, **named: Any) -> Any:
            self.reach()
            answer = function(*given, **named)
            self.reach()
            return answer

        return wrapped


class LastingTool(MirrorTool):
    """A tool that remembers in a file what it was told, whoever dies meanwhile."""

    def __init__(self, ledger: Ledger, path: Path, points: Points) -> None:
        super().__init__(ledger)
        self._path = path
        for name in ("push_prefills", "push_placements", "accept", "withdraw", "serve_version"):
            setattr(self, name, points.around(getattr(self, name)))

    def _change(self, kind: str, changes: Mapping[int, Any]) -> dict[int, int]:
        held = json.loads(self._path.read_text()) if self._path.exists() else {"next": 5000}
        ids = {}
        for number, value in changes.items():
            ids[number] = held["next"] = held["next"] + 1
            held.setdefault(kind, {})[str(number)] = value
        scratch = self._path.with_suffix(".new")
        scratch.write_text(json.dumps(held))
        os.rename(scratch, self._path)  # noqa: PTH104 - not a point of the worker's
        return ids

    def push_prefills(
        self, tool_project_id: int, classes: Sequence[str], prefills: Sequence[Prefill]
    ) -> dict[int, int]:
        return self._change("prefills", {p.tool_task_id: p.model_version for p in prefills})

    def push_placements(self, tool_project_id: int, placements: Iterable[Placement]) -> list[int]:
        return list(self._change("placements", {p.tool_task_id: p.route for p in placements}))

    def accept(
        self, tool_project_id: int, classes: Sequence[str], acceptances: Sequence[Acceptance]
    ) -> dict[int, int]:
        return self._change("accepted", {a.tool_task_id: True for a in acceptances})

    def withdraw(self, tool_project_id: int, tool_task_ids: Sequence[int]) -> None:
        self._change("accepted", dict.fromkeys(tool_task_ids, False))

    def serve_version(self, tool_project_id: int, version: str) -> None:
        self._change("serves", {0: version})


def train_here(
    arguments: list[str],
    *,
    progress: Callable[[Mapping[str, Any]], None],
    check: Callable[[], None],
    **_: Any,
) -> None:
    def say(line: dict[str, Any]) -> None:
        check()
        progress(line)

    training_child._say = say
    assert training_child.main(arguments) == 0


def work(state: Path, point: int | None) -> int:
    """Be a worker until nothing is left to do; how many points that took."""
    points = Points(point)
    points.watch_commits()
    Path.replace = points.before(Path.replace)  # type: ignore[method-assign]
    fine_tuning.run_training = train_here
    training_child.signal = SimpleNamespace(signal=lambda *_: None, SIGTERM=signal.SIGTERM)  # type: ignore[assignment]
    resumption.KEEP_S = 0.0  # type: ignore[misc]
    settings = settings_of(state)
    with Ledger(settings.ledger_url) as ledger:
        tool = LastingTool(ledger, state / "tool.json", points)
        until, idle = time.monotonic() + WITHIN_S, 0
        with Worker(settings, ledger, tool, FolderImages(state)) as worker:
            while idle < IDLE:
                assert time.monotonic() < until, "the worker is never done"
                if worker.run_once() or _active(ledger):
                    idle = 0
                    time.sleep(0.01)
                else:
                    idle += 1
    return points.count


def _active(ledger: Ledger) -> bool:
    with ledger.session(write=False) as session:
        return session.scalars(select(Cycle).where(Cycle.state.in_(ACTIVE))).first() is not None


def warm_up() -> None:
    """Train once, for PyTorch loads much of itself at the first step."""
    with tempfile.TemporaryDirectory() as folder:
        data = Path(folder, "data")
        for kind in ("images", "masks"):
            (data / kind).mkdir(parents=True)
            write_png(data / kind / "one.png", np.full((SIDE, SIDE), 255, np.uint8))
        training.train(data, Path(folder, "out"), training.TrainConfig.from_mapping(TRAINING | {"epochs": 1}))


def main() -> None:
    torch.set_num_threads(1)
    warm_up()
    for line in sys.stdin:
        given = json.loads(line)
        reading, writing = os.pipe()
        child = os.fork()
        if not child:
            try:
                log = Path(given["state"], "worker.log")
                logging.basicConfig(
                    filename=log, level=logging.INFO, format="%(levelname)s %(name)s: %(message)s"
                )
                os.write(writing, str(work(Path(given["state"]), given.get("point"))).encode())
            except BaseException:
                logging.exception("the worker failed")
                os._exit(1)
            os._exit(0)
        os.close(writing)
        _, status = os.waitpid(child, 0)
        with os.fdopen(reading) as said:
            points = said.read()
        answer = {"status": os.waitstatus_to_exitcode(status), "points": int(points) if points else None}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
