from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from rich.console import Console
from sqlalchemy import select

from active_learning import registry, triggers
from active_learning.ledger import (
    Cycle,
    CycleEvent,
    CycleState,
    HoldoutScene,
    Ledger,
    Prediction,
    Project,
    Snapshot,
    Task,
    TaskStatus,
)
from backend import demo as module
from backend import demo_comparison
from backend.child import StackError
from backend.demo import Demo, DemoError, DemoPlan, run_demo
from backend.demo_data import DemoImage
from backend.oracle import Touched
from backend.report import CycleReport, table_of
from backend.settings import Settings, SettingsError
from backend.tables import print_table
from model.raster import Raster

SIDE = 8
PLAN = DemoPlan(cycles=2, labels_per_cycle=2, wait_s=20.0)


def left_half(columns: int) -> np.ndarray:
    """(1, 8, 8) bool: so many columns from the left."""
    mask = np.zeros((1, SIDE, SIDE), np.bool_)
    mask[..., :columns] = True
    return mask


def images(count: int = 6) -> list[DemoImage]:
    """Images whose truth is the left half."""
    raster = Raster(np.full((SIDE, SIDE, 3), 90, np.uint8), np.ones((SIDE, SIDE), np.bool_))
    return [DemoImage(f"s{number}", raster, left_half(4)) for number in range(count)]


class World:
    """The oracle and the servers in one: it labels, and every look at the servers works off what is due.

    The n-th version sees `columns[n - 1]` columns of the 4 that are true, and accepts one image.
    """

    def __init__(self, ledger: Ledger, columns: Sequence[int] = (2, 4)) -> None:
        self.ledger = ledger
        self.columns = columns
        self.asked: list[tuple[tuple[str, ...], int]] = []
        self.supply = 99
        self.fails = False
        self.is_dead = False
        self.settings = Settings(device="cpu")
        with ledger.session() as session:
            project = Project(
                name="demo",
                tool_url="http://tool",
                tool_project_id=1,
                classes=["oil"],
                labels_per_cycle=2,
                cooldown_s=0,
            )
            session.add(project)
            session.flush()
            self.project_id = project.id
            for number, image in enumerate(images()):
                session.add(
                    Task(
                        project_id=project.id,
                        tool_task_id=number,
                        image_uri=f"{image.stem}.png",
                        scene=image.stem,
                        status=TaskStatus.REVIEW,
                        data={"source": f"/x/{image.stem}.png"},
                    )
                )

    def work(self, views: Sequence[str], limit: int) -> list[Touched]:
        self.asked.append((tuple(views), limit))
        if tuple(views) == ("Audit",):  # nothing is drawn in this world
            return []
        count = min(limit, self.supply)
        self.supply -= count
        with self.ledger.session() as session:
            open_ = select(Task).where(Task.status != TaskStatus.DONE).order_by(Task.id).limit(count)
            done = []
            for task in session.scalars(open_):
                task.status = TaskStatus.DONE
                done.append(Touched(Path(task.data["source"]).stem, views[0], 10, 5.0))
            if len(done) == 2:
                triggers.request(session, session.get_one(Project, self.project_id), "labels: 2 new")
        return done

    def check(self) -> None:
        if self.is_dead:
            raise StackError("The worker stopped")
        with self.ledger.session() as session:
            project = session.get_one(Project, self.project_id)
            cycle = triggers.active_cycle(session, project)
            if cycle is not None:
                cycle.step = "train"
                session.add(CycleEvent(cycle_id=cycle.id, step="train", message="in [/tmp/models]"))
                self._end(session, project, cycle)

    def _end(self, session: Any, project: Project, cycle: Cycle) -> None:
        if self.fails:
            cycle.state, cycle.reason = CycleState.FAILED, "the loss is not finite"
            return
        name = f"elnet-{cycle.id:04d}"
        labelled = session.query(Task).filter_by(status=TaskStatus.DONE).all()
        entries = [{"task_id": task.id} for task in labelled]
        snapshot = Snapshot(
            project_id=project.id,
            sha256=hashlib.sha256(name.encode()).hexdigest(),
            manifest={"classes": ["oil"], "train": entries[1:], "holdout": entries[:1]},
        )
        session.add(snapshot)
        if cycle.id == 1:
            session.add(HoldoutScene(project_id=project.id, scene=labelled[0].scene))
        session.flush()
        version = registry.register(
            session, project, Path(name), snapshot.sha256, snapshot, metrics={"fg_iou": 0.25}, name=name
        )
        registry.promote(session, version)
        cycle.state, cycle.snapshot_id, cycle.challenger_id = CycleState.PROMOTED, snapshot.id, version.id
        accepted = session.query(Task).order_by(Task.id.desc()).first()
        accepted.status, accepted.quality = TaskStatus.ACCEPTED, 0.9
        session.add(
            Prediction(
                task_id=accepted.id,
                model_version_id=version.id,
                score=0.9,
                quality=0.9,
                signals={},
                masks=left_half(self.columns[cycle.id - 1]),
            )
        )


@pytest.fixture
def world(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(module, "_POLL_S", 0.0)
    monkeypatch.setattr(module.standing, "is_settled", lambda session, project: True)
    in_place = SimpleNamespace(local=lambda version: Path(version.path))  # which holds nothing here
    monkeypatch.setattr(module, "checkpoints_of", lambda settings: in_place)
    return World(ledger)


def demo_of(world: World, plan: DemoPlan = PLAN) -> tuple[Demo, io.StringIO]:
    out = io.StringIO()
    console = Console(file=out, width=200, markup=False, highlight=False)
    return Demo(world, world.ledger, world.project_id, world, images(), plan, console), out


@dataclass
class Seeing:
    """The predictor of a version: elnet-0001 sees what the first of `columns` says, and so on."""

    checkpoint: Path
    device: str = "auto"

    def predict(self, rasters: Sequence[Raster]) -> list[Any]:
        columns = {"elnet-0001": 2, "elnet-0002": 4}[self.checkpoint.name]
        return [SimpleNamespace(probability=left_half(columns).astype(np.float32) * 0.9) for _ in rasters]


def test_two_cycles_from_labels_to_the_table(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    demo, out = demo_of(world)
    demo.run()
    turn = [(("Audit",), 0), (("Review queue", "Audit"), 2)]
    assert world.asked == [(("Audit",), 6), *turn, *turn]  # the holdout before all
    text = out.getvalue()
    assert text.count("train: in [/tmp/models]") == 2
    assert "cycle 1: 2 images labelled, 25% of the others accepted" in text

    versions = demo.versions()
    assert [(v.number, v.name, v.state, v.labels) for v in versions] == [
        (1, "elnet-0001", "promoted", 1),
        (2, "elnet-0002", "promoted", 3),
    ]
    monkeypatch.setattr(demo_comparison, "Predictor", Seeing)
    rows, sheets = demo_comparison.compare(versions, images(3), ["oil"], "cpu")
    first, second = rows
    assert (first.holdout_iou, second.holdout_iou) == (0.5, 1.0)
    assert (first.holdout_iou_per_image, second.holdout_iou_per_image) == (0.5, 1.0)
    assert (first.accepted_iou, second.accepted_iou) == (0.5, 1.0)
    assert (first.share_accepted, second.share_accepted) == (0.25, 0.5)
    assert (first.touched, first.corrected_pixels, first.human_s) == (2, 20, 10.0)
    assert (first.holdout_images, first.gate_iou) == (3, 0.25)
    assert {name: [p.name for p in sheet] for name, sheet in sheets.items()} == {
        "elnet-0001": ["s0", "s1", "s2"],
        "elnet-0002": ["s0", "s1", "s2"],
    }
    assert sheets["elnet-0001"][0].iou == 0.5

    print_table(Console(file=out, width=200), table_of(rows))
    line = [line.split() for line in out.getvalue().splitlines() if "elnet-0001" in line][-1]
    assert line[:10] == [
        "1",
        "elnet-0001",
        "promoted",
        "elnet-0001",
        "1",
        "0.500",
        "0.500",
        "25%",
        "0.500",
        "2",
    ]


def test_after_a_rejection_the_version_before_it_is_measured(world: World) -> None:
    demo, _ = demo_of(world)
    demo.run()
    with world.ledger.session() as session:
        for cycle in session.scalars(select(Cycle)):
            if cycle.id > 1:
                cycle.state = CycleState.REJECTED
    first, second = demo.versions()
    assert (second.name, second.state) == ("elnet-0002", "rejected")
    assert (second.serving, second.path) == (first.name, first.path)


def test_before_any_promotion_nothing_serves_and_nothing_is_measured(world: World) -> None:
    demo, out = demo_of(world)
    demo.run()
    with world.ledger.session() as session:
        for cycle in session.scalars(select(Cycle)):
            cycle.state = CycleState.REJECTED
    versions = demo.versions()
    assert [(v.serving, v.path) for v in versions] == [(None, None)] * 2
    rows, sheets = demo_comparison.compare(versions, images(3), ["oil"], "cpu")
    assert ([row.holdout_iou for row in rows], sheets) == ([None, None], {})
    assert [row.holdout_iou_per_image for row in rows] == [None, None]
    print_table(Console(file=out, width=200), table_of(rows))
    line = [line.split() for line in out.getvalue().splitlines() if "elnet-0001" in line][-1]
    assert line[:6] == ["1", "elnet-0001", "rejected", "-", "1", "-"]


def test_a_dry_queue_starts_its_cycle_by_hand_and_an_empty_one_ends_the_demo(world: World) -> None:
    world.supply = 3
    demo, out = demo_of(world, DemoPlan(cycles=5, labels_per_cycle=2, wait_s=20.0))
    demo.run()
    with world.ledger.session(write=False) as session:
        triggered = [cycle.trigger for cycle in session.query(Cycle).order_by(Cycle.id)]
    assert triggered == ["labels: 2 new", "demo: the review queue is empty"]
    assert len(demo.versions()) == 2
    assert "there is nothing left to learn from" in out.getvalue()


def test_a_failed_cycle_ends_the_demo(world: World) -> None:
    world.fails = True
    demo, _ = demo_of(world)
    with pytest.raises(DemoError, match="Cycle 1 failed in step train: the loss is not finite"):
        demo.run()


def test_a_dead_server_ends_the_demo(world: World) -> None:
    world.is_dead = True
    demo, _ = demo_of(world)
    with pytest.raises(StackError, match="The worker stopped"):
        demo.run()


def test_what_does_not_come_is_named(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.standing, "is_settled", lambda session, project: False)
    demo, _ = demo_of(world, DemoPlan(wait_s=0.05))
    with pytest.raises(DemoError, match="the first routing did not come within 0 s"):
        demo.run()


def test_nothing_is_settled_before_every_image_is_there(world: World) -> None:
    out = Console(file=io.StringIO())
    demo = Demo(world, world.ledger, world.project_id, world, images(7), DemoPlan(wait_s=0.05), out)
    with pytest.raises(DemoError, match="the first routing did not come"):
        demo.run()


@dataclass
class Stage:
    """`run_demo` with everything around it in memory."""

    stacks: list[Any]
    reports: list[tuple[Any, ...]]
    ends: Callable[[], None] = lambda: None
    drawn: list[int] = field(default_factory=list)


ROW = CycleReport(
    1, "promoted", "elnet-0001", "elnet-0001", 2, 1, 0.5, 0.5, 0.25, 0.25, None, 2, 20, 10.0, 3.0
)


@pytest.fixture
def stage(own_settings: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    stage = Stage([], [])

    class Servers:
        def __init__(self, settings: Settings) -> None:
            self.given = settings
            named = settings.label_studio.model_copy(update={"url": "http://tool", "token": SecretStr("t")})
            self.settings = settings.model_copy(update={"label_studio": named})
            stage.stacks.append(self)

        def __enter__(self) -> Servers:
            for log in ("logs/worker.log", "label-studio/server.log"):
                (self.given.state / log).parent.mkdir(parents=True)
                (self.given.state / log).write_text(f"end of {log}")
            Ledger(self.settings.ledger_url).upgrade()
            return self

        def __exit__(self, *_: object) -> None:
            pass

    class Run:
        def __init__(self, stack: Any, ledger: Ledger, *_: object) -> None:
            self.ledger = ledger

        def run(self) -> None:
            stage.ends()

        def versions(self) -> list[Any]:
            checkpoint = stage.stacks[0].given.state / "checkpoint"
            checkpoint.mkdir(parents=True)
            (checkpoint / "card.json").write_text("{}")
            return [SimpleNamespace(serving=None, path=None), SimpleNamespace(serving="v1", path=checkpoint)]

        def judges(self) -> list[DemoImage]:
            with self.ledger.session(write=False) as session:
                return [images(1)[0] for _ in session.scalars(select(Task).where(Task.holdout))]

    def compare(versions: list[Any], judges: list[DemoImage], classes: list[str], device: str) -> Any:
        assert (classes, device) == (["oil"], stage.stacks[0].given.device)
        stage.drawn.append(len(judges))
        return [ROW], {}

    def write_report(out: Path, *report: Any) -> Path:
        stage.reports.append((out, *report))
        return out / "report.html"

    def create(ledger: Ledger, *_: Any, **__: Any) -> Project:
        """With the images as tasks."""
        with ledger.session() as session:
            project = Project(name="demo-3", tool_url="http://tool", tool_project_id=7, classes=["oil"])
            session.add(project)
            session.flush()
            for number in range(40):
                session.add(
                    Task(project_id=project.id, tool_task_id=number, image_uri="i", scene=f"s{number}")
                )
        return project

    monkeypatch.setattr(module, "prepare", lambda *_: (images(40), ["oil"], "/data/[/x]"))
    monkeypatch.setattr(module, "Stack", Servers)
    monkeypatch.setattr(module, "Demo", Run)
    monkeypatch.setattr(module, "OracleAnnotator", lambda *_: None)
    monkeypatch.setattr(module, "create", create)
    monkeypatch.setattr(module, "compare", compare)
    monkeypatch.setattr(module, "write_report", write_report)
    return stage


def test_a_demo_is_alone_with_its_settings_and_leaves_a_report(
    stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    others = {
        "ELNET_STATE": "/precious",
        "ELNET_DATABASE_URL": "postgresql://precious/ledger",
        "ELNET_LABEL_STUDIO__URL": "http://precious",
        "ELNET_WEB__PORT": "9090",
        "ELNET_LOOP__LABELS_PER_CYCLE": "500",
        "ELNET_DEVICE": "cpu",
    }
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "report" / "logs").mkdir(parents=True)
    (tmp_path / "report" / "logs" / "old.log").touch()
    rows = run_demo(None, tmp_path / "report", DemoPlan(seed=3, training={"epochs": 1}))
    assert rows == [ROW]
    (stack,) = stage.stacks
    given = stack.given
    assert given.ledger_url.startswith("sqlite:///")
    assert "elnet-demo-" in str(given.state)
    assert not given.state.exists()  # nothing is left but the report
    assert (given.label_studio.url, given.label_studio.port, given.web.port) == (None, 0, 0)
    assert (given.loop.labels_per_cycle, given.loop.cooldown_s) == (8, 0)  # a tenth of 40 would be too few
    assert given.loop.training == {"seed": 3, "epochs": 1}
    assert given.device == "cpu"

    ((out, reported, _, about),) = stage.reports
    assert (out, reported) == (tmp_path / "report", [ROW])
    assert (about["images"], about["labels_per_cycle"], about["data"]) == (40, 8, "/data/[/x]")
    assert [str(path.relative_to(out)) for path in (out / "models").rglob("*.json")] == [
        "models/v1/card.json"
    ]
    logs = {path.name: path.read_text() for path in (out / "logs").iterdir()}
    assert logs == {"worker.log": "end of logs/worker.log", "server.log": "end of label-studio/server.log"}
    text = capsys.readouterr().out
    assert "40 images of /data/[/x]. 12 of them are drawn at random, labelled first, and only judge" in text
    assert stage.drawn == [12]
    assert "elnet-0001" in text
    assert "report.html" in text


def test_after_an_error_the_logs_are_there_and_named(stage: Stage, tmp_path: Path) -> None:
    def die() -> None:
        raise StackError("The worker stopped")

    stage.ends = die
    with pytest.raises(DemoError) as error:
        run_demo(None, tmp_path / "report", DemoPlan())
    assert str(error.value) == f"The worker stopped\nThe servers' logs are in {tmp_path / 'report' / 'logs'}."
    assert (tmp_path / "report" / "logs" / "worker.log").read_text() == "end of logs/worker.log"
    assert stage.reports == []


def test_after_ctrl_c_the_logs_are_there(stage: Stage, tmp_path: Path) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    stage.ends = interrupt
    with pytest.raises(KeyboardInterrupt):
        run_demo(None, tmp_path / "report", DemoPlan())
    assert len(list((tmp_path / "report" / "logs").iterdir())) == 2


def test_a_report_that_cannot_be_written_is_told_before_anything_starts(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DemoError, match=r"file/report cannot be written .* --out"):
        run_demo(None, tmp_path / "file" / "report", DemoPlan())
    assert stage.stacks == []


def test_wrong_settings_are_named(stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELNET_DEVICE", "npu")
    with pytest.raises(SettingsError, match="ELNET_DEVICE"):
        run_demo(None, tmp_path / "report", DemoPlan())
    assert stage.stacks == []


@pytest.mark.parametrize(("count", "labels"), [(10, 8), (120, 12), (500, 24)])
def test_a_cycle_begins_after_a_tenth_of_the_images(
    count: int, labels: int, stage: Stage, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module.holdout, "draw", lambda *_: 0)
    monkeypatch.setattr(module, "prepare", lambda *_: (images(count), ["oil"], "x"))
    run_demo(None, tmp_path / "a", DemoPlan())
    run_demo(None, tmp_path / "b", DemoPlan(labels_per_cycle=5))
    assert [stack.given.loop.labels_per_cycle for stack in stage.stacks] == [labels, 5]


def test_the_judges_are_what_was_drawn_for_the_holdout(world: World) -> None:
    demo, _ = demo_of(world)
    assert demo.judges() == []
    with world.ledger.session() as session:
        for task in session.scalars(select(Task).where(Task.tool_task_id.in_((1, 4)))):
            task.holdout = True
    assert [image.stem for image in demo.judges()] == ["s1", "s4"]
