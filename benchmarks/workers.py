"""Several workers on one ledger, and what ledger, queue and pushing cost beside the network.

`python -m benchmarks.workers --database postgresql://... [--only team|tile|takeover]` (an empty database; it
is filled)

*Team*: tiles a second of one worker and of four, each with a model that sleeps as long as a GPU computes.
*Tile*: seconds for tiles from disk by the real network alone, and by the worker's own way: looked up in the
queue, predicted, measured, stored, routed, ordered, encoded and handed to a labeling tool that only takes it.
*Takeover*: seconds from the SIGKILL of the worker until one that stands by, on another machine as far as it
can tell, has predicted its first image.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sqlalchemy import func, select, update

from active_learning import prefill, registry
from active_learning.ledger import Ledger, ModelVersion, Prediction, Project, Task, WorkerLease
from active_learning.ports import Acceptance, Placement, Prefill, ToolTask
from active_learning.predictors import PredictorPool
from active_learning.push import push
from backend.label_config import parse_label_config
from backend.prefill_worker import PrefillWorker
from backend.regions import masks_to_regions
from backend.settings import Settings
from backend.worker import Worker
from benchmarks.network import INTERFACE, make_checkpoint
from model.device import describe_machine
from model.predictor import ImagePrediction, Predictor
from model.raster import Raster, open_raster, write_png

SIDE = 256
BATCH = 32
VERSION = "elnet-0001"  # of every project
_CONTROL = parse_label_config(INTERFACE).control


class SleepingPredictor:
    """Sleeps for each image and answers a square."""

    def __init__(self, version: str, seconds: float) -> None:
        self.version = version
        self._seconds = seconds
        probability = np.full((1, SIDE, SIDE), 0.02, np.float32)
        probability[:, 60:160, 40:200] = 0.9
        self._answer = ImagePrediction(probability, np.zeros_like(probability), np.ones(768, np.float32))

    def predict(self, images: Sequence[Raster]) -> list[ImagePrediction]:
        time.sleep(self._seconds * len(images))
        return [self._answer] * len(images)


class SleepingPool(PredictorPool):
    """Every version sleeps."""

    def __init__(self, seconds: float, batch: int) -> None:
        super().__init__("cpu", batch)
        self._seconds = seconds

    def get(self, version: ModelVersion) -> Any:
        return SleepingPredictor(version.name, self._seconds)


class OneImage:
    """Every task has the same image, in memory."""

    def __init__(self) -> None:
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        self._image = Raster(pixels, np.ones((SIDE, SIDE), np.bool_))

    def open(self, image_uri: str) -> Raster:
        return self._image


class Files:
    """A task's image is a file."""

    def open(self, image_uri: str) -> Raster:
        return open_raster(Path(image_uri))


class TakingTool:
    """A labeling tool that takes what it is told; masks are encoded as for Label Studio."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    def tasks(self, tool_project_id: int) -> Iterator[ToolTask]:
        mine = Project.tool_project_id == tool_project_id
        with self._ledger.session(write=False) as session:
            for task in session.scalars(
                select(Task).join(Project, Project.id == Task.project_id).where(mine)
            ):
                yield ToolTask(task.tool_task_id, task.image_uri, task.data)

    def annotations(self, _project: int, _classes: Sequence[str]) -> Iterator[Any]:
        return iter(())

    def push_prefills(self, _project: int, classes: Sequence[str], said: Sequence[Prefill]) -> dict[int, int]:
        for one in said:
            masks_to_regions(one.masks, classes, _CONTROL, one.quality)
        return {one.tool_task_id: one.tool_task_id for one in said}

    def push_placements(self, _project: int, placements: Iterable[Placement]) -> list[int]:
        return [one.tool_task_id for one in placements]

    def accept(self, _project: int, classes: Sequence[str], said: Sequence[Acceptance]) -> dict[int, int]:
        for one in said:
            masks_to_regions(one.masks, classes, _CONTROL, one.quality)
        return {one.tool_task_id: one.tool_task_id for one in said}

    def withdraw(self, _project: int, _tasks: Sequence[int]) -> None:
        pass

    def machine_annotator(self) -> str:
        return "machine"

    def serve_version(self, _project: int, _version: str) -> None:
        pass


def main() -> None:
    """Run the parts and print their tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.workers", description=main.__doc__)
    parser.add_argument("--database", required=True, help="URL of an empty database")
    parser.add_argument("--only", choices=("team", "tile", "takeover"))
    parser.add_argument("--workers", default="1,4", help="sizes of the team")
    parser.add_argument(
        "--seconds", type=float, default=0.02, help="that the sleeping model takes for a tile"
    )
    parser.add_argument("--tiles", type=int, default=2000, help="of a team's run")
    parser.add_argument("--rounds", type=int, default=5, help="of the real network")
    parser.add_argument("--play", choices=("all", "prefill", "standby"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.play:
        play(given.database, given.play, given.seconds)
        return
    print(f"{datetime.now(UTC):%Y-%m-%d}, {describe_machine()}, torch {torch.__version__}\n")
    with Ledger(given.database) as ledger:
        ledger.upgrade()
        if given.only in (None, "team"):
            sizes = [int(size) for size in given.workers.split(",")]
            team(ledger, given.database, sizes, given.seconds, given.tiles)
        if given.only in (None, "tile"):
            with tempfile.TemporaryDirectory() as folder:
                tile(ledger, Path(folder), given.rounds)
        if given.only in (None, "takeover"):
            print(f"\ntakeover: {takeover(ledger, given.database):.1f} s")


def play(url: str, kind: str, seconds: float) -> None:
    """Be a worker, with a model that sleeps, until killed."""
    settings = Settings(state=Path(tempfile.mkdtemp()), database_url=url, device="cpu", poll_s=0.05)
    with Ledger(url) as ledger:
        if kind == "prefill":
            PrefillWorker(settings, ledger, OneImage(), SleepingPool(seconds, settings.batch_size)).run()
        else:
            pool = SleepingPool(seconds, settings.batch_size)
            worker = Worker(settings, ledger, TakingTool(ledger), OneImage(), pool)
            worker.run(standby=kind == "standby")


@contextmanager
def players(url: str, kinds: Sequence[str], seconds: float = 0.02) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Processes that play these workers; killed at the end."""
    command = [sys.executable, "-m", "benchmarks.workers", "--database", url, "--seconds", str(seconds)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    started = [subprocess.Popen([*command, "--play", k], env=environment, **quiet) for k in kinds]  # type: ignore[call-overload]
    try:
        yield started
    finally:
        for process in started:
            process.kill()
            process.wait()


def furnish(ledger: Ledger, uris: Sequence[str]) -> int:
    """A project of these images, with a champion; its id."""
    with ledger.session() as session:
        number = (session.scalar(select(func.count(Project.id))) or 0) + 1
        project = Project(
            name=f"project {number}",
            tool_url="http://tool",
            tool_project_id=number,
            classes=["foreground"],
            accept_threshold=0.5,
        )
        session.add(project)
        session.flush()
        version = registry.register(session, project, Path("nowhere"), "0" * 64, name=VERSION)
        registry.promote(session, version)
        first = (session.scalar(select(func.max(Task.tool_task_id))) or 0) + 1
        session.add_all(
            Task(project_id=project.id, tool_task_id=first + i, image_uri=uri, scene=str(i))
            for i, uri in enumerate(uris)
        )
        return project.id


def predicted(ledger: Ledger, project_id: int) -> int:
    """How many of its tasks are predicted."""
    with ledger.session(write=False) as session:
        query = select(func.count(Prediction.id)).join(Task, Task.id == Prediction.task_id)
        return session.scalar(query.where(Task.project_id == project_id)) or 0


def team(ledger: Ledger, url: str, sizes: Sequence[int], seconds: float, tiles: int) -> None:
    """Tiles a second between the first tenth of the tiles and the last."""
    print(f"| workers, {seconds * 1000:g} ms a tile | tiles/s | against one |\n|---|---|---|")
    one = 0.0
    for size in sizes:
        with players(url, ["all", *["prefill"] * (size - 1)], seconds):
            wait_for(lambda size=size: alive(ledger) == size)
            project_id = furnish(ledger, [f"{i}.png" for i in range(tiles)])
            wait_for(lambda p=project_id: predicted(ledger, p) >= tiles / 10)
            began, before = time.perf_counter(), predicted(ledger, project_id)
            wait_for(lambda p=project_id: predicted(ledger, p) >= tiles * 0.9)
            rate = (predicted(ledger, project_id) - before) / (time.perf_counter() - began)
        forget(ledger)
        one = one or rate
        print(f"| {size} | {rate:.1f} | {rate / one:.2f} |", flush=True)


def tile(ledger: Ledger, folder: Path, rounds: int) -> None:
    """The network alone and the worker's way, in turn on the same tiles."""
    checkpoint = make_checkpoint(folder, "cached")
    random = np.random.default_rng(0)
    files = [folder / f"{i}.png" for i in range(2 * BATCH)]
    for file in files:
        write_png(file, random.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8))
    predictor = Predictor(checkpoint, device="cpu", batch_size=BATCH)
    served = Named(predictor)
    ratios, bare_seconds = [], []
    for number in range(rounds + 1):
        began = time.perf_counter()
        for start in range(0, len(files), BATCH):
            predictor.predict([open_raster(file) for file in files[start : start + BATCH]])
        bare = time.perf_counter() - began
        project_id = furnish(ledger, [str(file) for file in files])
        began = time.perf_counter()
        stored = prefill.predict_waiting(ledger, project_id, served, Files(), batch=BATCH)
        push(ledger, project_id, TakingTool(ledger))
        whole = time.perf_counter() - began
        if stored != len(files):
            raise RuntimeError(f"{stored} of {len(files)} tiles were predicted")
        if number:
            ratios.append(whole / bare)
            bare_seconds.append(bare)
    ratio = statistics.median(ratios)
    alone = statistics.median(bare_seconds) / len(files) * 1000
    print(f"\n| {len(files)} tiles, batch {BATCH}, median of {rounds} | ms a tile | of the network alone |")
    print("|---|---|---|")
    print(f"| network alone, from files | {alone:.1f} | 1.00 |")
    print(f"| with queue, ledger and push | {alone * ratio:.1f} | {ratio:.3f} |")


class Named:
    """A predictor under the champion's name."""

    version = VERSION

    def __init__(self, predictor: Predictor) -> None:
        self.predict = predictor.predict


def takeover(ledger: Ledger, url: str) -> float:
    """Seconds until a worker that stands by works."""
    with players(url, ["all"]) as [worker]:
        wait_for(lambda: alive(ledger) == 1)
        with ledger.session() as session:  # as of another machine: its process cannot be looked for
            session.execute(update(WorkerLease).values(host="elsewhere"))
        with players(url, ["standby"]):
            time.sleep(15)
            worker.send_signal(signal.SIGKILL)
            worker.wait()
            began = time.perf_counter()
            project_id = furnish(ledger, ["0.png"])
            wait_for(lambda: predicted(ledger, project_id) == 1)
            return time.perf_counter() - began


def alive(ledger: Ledger) -> int:
    """How many workers there are."""
    with ledger.session(write=False) as session:
        return session.scalar(select(func.count()).select_from(WorkerLease)) or 0


def forget(ledger: Ledger) -> None:
    """Workers that were killed."""
    with ledger.session() as session:
        for row in session.scalars(select(WorkerLease)):
            session.delete(row)


def wait_for(what: Any, within_s: float = 600) -> None:
    """Until it is so."""
    deadline = time.monotonic() + within_s
    while not what():
        if time.monotonic() > deadline:
            raise TimeoutError("it did not happen")
        time.sleep(0.02)


if __name__ == "__main__":
    main()
