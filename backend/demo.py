"""The loop from end to end, unattended: real servers, real imagery, an oracle in the annotator's chair."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from active_learning import holdout, standing, triggers
from active_learning.journal import ACTIVE
from active_learning.ledger import (
    Cycle,
    CycleEvent,
    CycleState,
    Ledger,
    ModelVersion,
    Prediction,
    Project,
    Snapshot,
    Task,
    TaskStatus,
)
from backend.demo_comparison import DemoTurn, DemoVersion, compare
from backend.demo_data import DemoImage, prepare
from backend.label_studio import LabelStudio
from backend.model_files import checkpoints_of
from backend.oracle import OracleAnnotator, Touched
from backend.projects import create
from backend.report import CycleReport, table_of, write_report
from backend.settings import LabelStudioSettings, LoopSettings, WebSettings, load_settings
from backend.stack import Stack
from backend.tables import print_table
from model.device import describe_machine
from model.errors import ELNetError
from model.metrics import iou

_POLL_S = 0.5
_AUDIT, _REVIEW = "Audit", "Review queue"  # views


class DemoError(ELNetError):
    """The demo did not come to its end."""


@dataclass(frozen=True, slots=True)
class DemoPlan:
    """How the demo goes.

    Attributes:
        cycles: retraining cycles.
        limit: images at most; which, and which are labelled first, hangs on `seed`.
        labels_per_cycle: labels besides the holdout's that start the first cycle; None: a tenth of the
            images, from 8 to 24.
        label_growth: each later cycle waits for so many times the labels that were trained on: 1.5 is 2.5
            times as many in all, a step that is mostly larger than the chance of which images were drawn.
        accept_threshold: predicted IoU from which a mask is accepted.
        holdout_share: of the images; drawn at random and labelled first, they judge every version.
        audit_share: of all masks; the annotator takes a quarter of a cycle's labels from there, if there are.
        tolerance_px: boundary errors that the oracle lets pass.
        training: overrides of `model.training.TrainConfig`.
        wait_s: a cycle that takes longer ends the demo.
    """

    cycles: int = 3
    limit: int = 120
    seed: int = 0
    labels_per_cycle: int | None = None
    label_growth: float = 1.5
    holdout_share: float = 0.3
    accept_threshold: float = 0.8
    audit_share: float = 0.15
    tolerance_px: int = 1
    training: dict[str, Any] = field(default_factory=dict)
    wait_s: float = 900.0


def run_demo(data: Path | None, out: Path, plan: DemoPlan) -> list[CycleReport]:
    """Run the demo and write its report.

    Args:
        data: folder with `images/` and `masks/` of equal stems; None: the sample scene.
        out: folder of the report; the servers' logs stay in `out/logs`, the versions that served in
            `out/models`.
        plan: how it goes.

    Returns:
        A row for each cycle.

    Raises:
        ELNetError: something did not start, or a cycle failed; the text says what and where its log is.
    """
    console = Console(markup=False, emoji=False, highlight=False)  # paths and reasons may hold brackets
    started = time.monotonic()
    logs = _empty_logs(out)  # first of all, for a report that cannot be written is no use after ten minutes
    with tempfile.TemporaryDirectory(prefix="elnet-demo-", ignore_cleanup_errors=True) as scratch:
        images_folder = Path(scratch) / "images"
        images, classes, origin = prepare(data, images_folder, plan.limit, plan.seed)
        per_cycle = plan.labels_per_cycle or min(24, max(8, len(images) // 10))
        judging = round(plan.holdout_share * len(images))
        settings = load_settings(
            state=Path(scratch) / "state",
            database_url=None,
            poll_s=0.2,
            label_studio=LabelStudioSettings(port=0),
            web=WebSettings(port=0),
            loop=LoopSettings(
                accept_threshold=plan.accept_threshold,
                audit_share=plan.audit_share,
                blind_share=0.0,  # an oracle is not drawn towards what it sees
                labels_per_cycle=per_cycle,
                label_growth=plan.label_growth,
                cooldown_s=0,
                training={"seed": plan.seed, **plan.training},
            ),
        )
        console.print(
            f"{len(images)} images of {origin}. {judging} of them are drawn at random, labelled first, and "
            f"only judge; the first cycle comes after {per_cycle} other labels. Starting servers.",
            soft_wrap=True,
        )
        with (
            _keeping_logs(settings.state, logs),
            Stack(settings) as stack,
            Ledger(stack.settings.ledger_url) as ledger,
        ):
            tool = LabelStudio.from_settings(stack.settings)
            project = create(ledger, stack.settings, tool, f"demo-{plan.seed}", classes, images=images_folder)
            console.print(f"Label Studio: {tool.url}/projects/{project.tool_project_id}")
            with ledger.session() as session:
                holdout.draw(session, session.get_one(Project, project.id), judging)
            truths = {image.stem: image.truth for image in images}
            oracle = OracleAnnotator(tool, project.tool_project_id, classes, truths, plan.tolerance_px)
            demo = Demo(stack, ledger, project.id, oracle, images, plan, console)
            demo.run()
            versions = demo.versions()
            judges = demo.judges()
            keep_models(versions, out / "models")
        rows, sheets = compare(versions, judges, classes, settings.device)
        about = {
            "data": origin,
            "images": len(images),
            "judges": len(judges),
            "classes": classes,
            "accept_threshold": plan.accept_threshold,
            "labels_per_cycle": per_cycle,
            "plan": asdict(plan),
            "machine": describe_machine(),
            "seconds": time.monotonic() - started,
        }
        page = write_report(out, rows, sheets, about)
    print_table(console, table_of(rows))
    console.print(f"{about['seconds']:.0f} s in all. Report: {page}", soft_wrap=True)
    return rows


def _empty_logs(out: Path) -> Path:
    """`out/logs`, without what an earlier demo left there."""
    logs = out / "logs"
    try:
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DemoError(
            f"{out} cannot be written ({error.strerror}): name another folder with --out."
        ) from error
    return logs


def keep_models(versions: Sequence[DemoVersion], folder: Path) -> None:
    """Copy the checkpoints that served to folder/NAME, without what an earlier demo left there."""
    shutil.rmtree(folder, ignore_errors=True)
    for name, path in {version.serving: version.path for version in versions}.items():
        if name is not None and path is not None:
            shutil.copytree(path, folder / name)


@contextlib.contextmanager
def _keeping_logs(state: Path, logs: Path) -> Iterator[None]:
    """Copy the servers' logs out of the scratch folder at the end, most of all when it ended in an error."""
    try:
        yield
    except ELNetError as error:
        raise DemoError(f"{error}\nThe servers' logs are in {logs}.") from error
    finally:
        for log in (*state.glob("logs/*.log"), *state.glob("label-studio/*.log")):
            shutil.copy(log, logs)


class Demo:
    """One run on one project of a running stack."""

    def __init__(
        self,
        stack: Stack,
        ledger: Ledger,
        project_id: int,
        oracle: OracleAnnotator,
        images: Sequence[DemoImage],
        plan: DemoPlan,
        console: Console,
    ) -> None:
        self._stack = stack
        self._ledger = ledger
        self._project_id = project_id
        self._oracle = oracle
        self._images = {image.stem: image for image in images}
        self._plan = plan
        self._console = console
        self._turns: list[DemoTurn] = []

    def run(self) -> None:
        """Label until a cycle starts, wait for its end and its prefills; again for each cycle."""
        self._wait("the first routing", self._is_settled)
        # Before the first model nothing but the holdout is there.
        judging = self._oracle.work([_AUDIT], len(self._images))
        self._console.print(f"{len(judging)} images of the holdout are labelled.")
        for number in range(1, self._plan.cycles + 1):
            touched = self._label_until_cycle(number)
            if not touched:
                self._console.print(
                    "Every image is labelled or accepted: there is nothing left to learn from."
                )
                return
            if number == 1:
                touched = judging + touched
            started = time.monotonic()
            cycle_id = self._follow(number)
            self._wait("the new prefills", self._is_settled)
            share, accepted_iou = self._accepted()
            self._turns.append(DemoTurn(cycle_id, touched, share, accepted_iou, time.monotonic() - started))
            self._console.print(
                f"cycle {number}: {len(touched)} images labelled, {share:.0%} of the others accepted"
            )

    def versions(self) -> list[DemoVersion]:
        """What each cycle trained, and what served after it; read before the servers stop."""
        found: list[DemoVersion] = []
        with self._ledger.session(write=False) as session:
            for number, turn in enumerate(self._turns, start=1):
                found.append(self._version(session, turn, number, found[-1] if found else None))
        return found

    def judges(self) -> list[DemoImage]:
        """The images of the holdout."""
        with self._ledger.session(write=False) as session:
            drawn = select(Task).where(Task.project_id == self._project_id, Task.holdout)
            return [self._images[_stem(task)] for task in session.scalars(drawn.order_by(Task.id))]

    def _label_until_cycle(self, number: int) -> list[Touched]:
        """Work off what is asked for until a cycle is due; ask for it when the queue runs dry before."""
        with self._ledger.session(write=False) as session:
            wanted = triggers.wanted(session, session.get_one(Project, self._project_id))
        touched = self._oracle.work([_AUDIT], wanted // 4)
        touched += self._oracle.work([_REVIEW, _AUDIT], wanted - len(touched))
        if 0 < len(touched) < wanted:
            self._wait("the labels", self._is_settled)
            with self._ledger.session() as session:
                project = session.get_one(Project, self._project_id)
                if len(self._cycles(session)) < number:
                    triggers.request(session, project, "demo: the review queue is empty")
        return touched

    def _follow(self, number: int) -> int:
        """Wait for the `number`-th cycle to start and to end; tell its steps."""
        self._wait("the cycle's trigger", lambda session: len(self._cycles(session)) >= number)
        told = 0
        while True:
            self._stack.check()
            with self._ledger.session(write=False) as session:
                cycle = self._cycles(session)[number - 1]
                events = select(CycleEvent).where(CycleEvent.cycle_id == cycle.id, CycleEvent.id > told)
                for event in session.scalars(events.order_by(CycleEvent.id)):
                    told = event.id
                    self._console.print(f"  {event.step}: {event.message}", soft_wrap=True)
                if cycle.state is CycleState.FAILED:
                    raise DemoError(f"Cycle {number} failed in step {cycle.step}: {cycle.reason}")
                if cycle.state not in ACTIVE:
                    return cycle.id
            time.sleep(_POLL_S)

    def _cycles(self, session: Session) -> Sequence[Cycle]:
        query = select(Cycle).where(Cycle.project_id == self._project_id).order_by(Cycle.id)
        return session.scalars(query).all()

    def _wait(self, what: str, done: Callable[[Session], bool]) -> None:
        give_up = time.monotonic() + self._plan.wait_s
        while time.monotonic() < give_up:
            self._stack.check()
            with self._ledger.session(write=False) as session:
                if done(session):
                    return
            time.sleep(_POLL_S)
        raise DemoError(f"{what} did not come within {self._plan.wait_s:.0f} s")

    def _is_settled(self, session: Session) -> bool:
        project = session.get_one(Project, self._project_id)
        known = select(func.count()).select_from(Task).where(Task.project_id == project.id)
        return session.scalar(known) == len(self._images) and standing.is_settled(session, project)

    def _accepted(self) -> tuple[float, float | None]:
        """Share accepted among the images without a human label, and the true mean IoU of these masks."""
        with self._ledger.session(write=False) as session:
            tasks = session.scalars(select(Task).where(Task.project_id == self._project_id)).all()
            project = session.get_one(Project, self._project_id)
            ious = []
            unlabelled = [task for task in tasks if task.status is not TaskStatus.DONE]
            for task in unlabelled:
                if task.status is TaskStatus.ACCEPTED:
                    masks = session.scalars(
                        select(Prediction.masks).where(
                            Prediction.task_id == task.id,
                            Prediction.model_version_id == project.champion_id,
                        )
                    ).one()
                    ious.append(iou(masks, self._images[_stem(task)].truth))
        share = len(ious) / len(unlabelled) if unlabelled else 0.0
        return share, float(np.mean(ious)) if ious else None

    def _version(
        self, session: Session, turn: DemoTurn, number: int, before: DemoVersion | None
    ) -> DemoVersion:
        cycle = session.get_one(Cycle, turn.cycle_id)
        challenger = session.get_one(ModelVersion, cycle.challenger_id)
        snapshot = session.get_one(Snapshot, cycle.snapshot_id)
        labels = len(snapshot.manifest["train"])
        serving: str | None = None
        path: Path | None = None
        if cycle.state is CycleState.PROMOTED:
            checkpoints = checkpoints_of(self._stack.settings)
            serving, path = challenger.name, checkpoints.local(challenger)
        elif before is not None:
            serving, path = before.serving, before.path
        gate_iou = float(challenger.metrics["fg_iou"])
        return DemoVersion(turn, number, challenger.name, cycle.state, serving, path, gate_iou, labels)


def _stem(task: Task) -> str:
    """The stem of the file that the task was imported from."""
    return Path(str(task.data["source"])).stem
