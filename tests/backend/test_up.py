from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from pydantic import SecretStr
from rich.console import Console

from active_learning import registry, triggers
from active_learning.ledger import (
    Cycle,
    CycleState,
    InboxEvent,
    InboxState,
    Ledger,
    Project,
    Task,
    TaskStatus,
)
from backend import up
from backend.accounts import add_first_admin
from backend.credentials import Credentials
from backend.settings import DeskSettings, LabelStudioSettings, Settings
from backend.up import run_up
from model.errors import ELNetError
from model.raster import write_mask, write_png

URL = "http://127.0.0.1:8099"


class Servers:
    """Stands for the stack: it runs, and something may die."""

    def __init__(self, settings: Settings) -> None:
        self.given = settings
        section = settings.label_studio
        if section.url is None:
            section = section.model_copy(update={"url": URL, "token": SecretStr("t")})
        self.settings = settings.model_copy(update={"label_studio": section})
        self.dead: list[str] = []
        self.is_up = False
        self.admin_password: str | None = None

    def __enter__(self) -> Servers:
        with Ledger(self.settings.ledger_url) as ledger:
            ledger.upgrade()
            self.admin_password = add_first_admin(ledger)
        self.is_up = True
        return self

    def __exit__(self, *_: object) -> None:
        self.is_up = False

    def mend(self) -> list[str]:
        return [self.dead.pop() for _ in range(len(self.dead))]


class Scene:
    """`run_up` with everything around it in memory; Ctrl-C comes after so many looks."""

    def __init__(self, state: Path) -> None:
        self.settings = Settings(state=state)
        self.ledger = Ledger(self.settings.ledger_url)
        self.stacks: list[Servers] = []
        self.created: list[tuple[Any, ...]] = []
        self.repaired: list[str] = []
        self.imported: list[tuple[Any, ...]] = []
        self.labels = 0
        self.looks: list[Callable[[], None]] = []
        self.out = io.StringIO()

    def stack(self, settings: Settings) -> Servers:
        self.stacks.append(Servers(settings))
        return self.stacks[-1]

    def create(
        self, ledger: Ledger, settings: Settings, tool: Any, name: str, classes: list[str], images: Path
    ) -> Project:
        assert self.stacks[-1].is_up
        self.created.append((tool.url, name, classes, images))
        with ledger.session() as session:
            project = session.query(Project).filter_by(name=name).one_or_none()
            if project is None:
                number = len(self.created)
                project = Project(name=name, tool_url=URL, tool_project_id=number, classes=classes)
                session.add(project)
        return project

    def repair(self, ledger: Ledger, settings: Settings, tool: Any, project: Project) -> None:
        self.repaired.append(project.name)

    def import_labels(self, ledger: Ledger, tool: Any, project: Project, masks: Path, *, share: float) -> int:
        self.imported.append((project.name, masks, share))
        return self.labels

    def sleep(self, _: float) -> None:
        if not self.looks:
            raise KeyboardInterrupt
        self.looks.pop(0)()

    def run(
        self,
        data: Path | None = None,
        name: str | None = None,
        classes: list[str] | None = None,
        share: float = 0.4,
    ) -> str:
        self.out.seek(0)
        self.out.truncate()
        with pytest.raises(KeyboardInterrupt):
            run_up(self.settings, data, name, classes, share)
        assert not self.stacks[-1].is_up
        return self.out.getvalue()

    def cycles(self) -> list[str]:
        with self.ledger.session(write=False) as session:
            return [cycle.trigger for cycle in session.query(Cycle)]


@pytest.fixture
def scene(own_settings: Path, monkeypatch: pytest.MonkeyPatch) -> Scene:
    scene = Scene(own_settings / "state")
    monkeypatch.setattr(up, "Stack", scene.stack)
    monkeypatch.setattr(up.projects, "create", scene.create)
    monkeypatch.setattr(up.projects, "repair", scene.repair)
    monkeypatch.setattr(up.given_labels, "import_labels", scene.import_labels)
    monkeypatch.setattr(
        up,
        "time",
        SimpleNamespace(sleep=scene.sleep, strftime=lambda _: "03:04:05", monotonic=time.monotonic),
    )
    monkeypatch.setattr(up, "Console", lambda **options: Console(file=scene.out, width=60, **options))
    monkeypatch.setattr(
        up.LabelStudio, "from_settings", lambda settings: SimpleNamespace(url=settings.label_studio.url)
    )
    return scene


def folder(root: Path, *classes: str) -> Path:
    """images/ and masks/ of one pair."""
    (root / "images").mkdir(parents=True)
    write_png(root / "images" / "a.png", np.zeros((8, 8, 3), np.uint8))
    for name in classes or [""]:
        (root / "masks" / name).mkdir(parents=True)
        write_mask(root / "masks" / name / "a.png", np.eye(8, dtype=np.bool_))
    return root


def test_a_folder_becomes_a_project_and_its_masks_the_first_cycle(scene: Scene, tmp_path: Path) -> None:
    data = folder(tmp_path / "spills", "oil", "ship")
    scene.labels = 12
    text = scene.run(data)
    assert scene.created == [(URL, "spills", ["oil", "ship"], data / "images")]
    assert scene.imported == [("spills", data / "masks", 0.4)]
    assert scene.cycles() == ["first model, from the given masks"]
    assert "12 of the given masks were imported as labels." in text
    assert f"spills  {URL}/projects/1\n" in text
    password = Credentials.load(scene.settings.state).password
    assert f"sign in as lead@elnet.local with the password {password}" in text
    assert f"state, logs and secrets: {scene.settings.state}\n" in text  # in one line, to be copied
    assert "03:04:05 spills: no model version serves yet; no images; cycle 1: waiting for the worker" in text
    assert text.endswith("\nStopping. Nothing is lost: the same command goes on from here.\n")


def test_the_second_time_what_is_there_is_connected_again(scene: Scene, tmp_path: Path) -> None:
    scene.labels = 1
    scene.run(folder(tmp_path / "spills", "oil"))
    with scene.ledger.session() as session:
        triggers.cancel(session, session.query(Cycle).one(), "cancelled by ada")
    scene.labels = 0
    text = scene.run()
    assert scene.repaired == ["spills"]
    assert len(scene.created) == 1  # nor the sample scene
    assert "cycle 1 ended cancelled: cancelled by ada" in text
    scene.run(tmp_path / "spills")
    assert len(scene.created) == 2
    assert scene.cycles() == ["first model, from the given masks"]


def test_a_name_and_classes_may_be_given(scene: Scene, tmp_path: Path) -> None:
    scene.run(folder(tmp_path / "x"), "My [/spills]", ["oil"], 1.0)
    assert scene.created[0][1:3] == ("My [/spills]", ["oil"])
    assert "My [/spills]  http" in scene.out.getvalue()
    assert scene.imported[0][2] == 1.0
    assert scene.cycles() == []  # no mask was new


def test_no_masks_are_imported_where_none_are_wanted(scene: Scene, tmp_path: Path) -> None:
    scene.run(folder(tmp_path / "one"), share=0.0)
    data = folder(tmp_path / "two")
    for path in (data / "masks").iterdir():
        path.unlink()
    (data / "masks").rmdir()
    scene.run(data, classes=["oil"])
    assert [call[1] for call in scene.created] == ["one", "two"]
    assert scene.imported == []


def test_a_champion_is_not_trained_anew(scene: Scene, tmp_path: Path) -> None:
    data = folder(tmp_path / "spills")
    scene.run(data, share=0.0)
    promote(scene.ledger)
    scene.labels = 5
    scene.run(data)
    assert scene.cycles() == []


def promote(ledger: Ledger) -> None:
    with ledger.session() as session:
        project = session.query(Project).one()
        sha256 = hashlib.sha256(b"1").hexdigest()
        version = registry.register(session, project, Path("models/1"), sha256, name="elnet-0001")
        registry.promote(session, version)


def test_the_sample_comes_when_there_is_nothing(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = folder(tmp_path / "sample")
    asked: list[Path] = []
    monkeypatch.setattr(up, "sample_folder", lambda cache: asked.append(cache) or sample)
    scene.run()
    assert asked == [tmp_path / "cache" / "samples"]
    assert scene.created == [(URL, "SpaceNet Vegas roads", ["road"], sample / "images")]


@pytest.mark.parametrize(
    ("parts", "said"),
    [((), "has no images/ folder"), (("images",), "add --classes oil,ship")],
)
def test_a_folder_that_does_not_serve(
    parts: tuple[str, ...], said: str, scene: Scene, tmp_path: Path
) -> None:
    (tmp_path / "x").mkdir()
    for part in parts:
        (tmp_path / "x" / part).mkdir()
    with pytest.raises(ELNetError, match=said):
        run_up(scene.settings, tmp_path / "x", None, None, 0.4)
    assert not scene.stacks[-1].is_up
    assert scene.created == []


def test_the_first_cycle_waits_until_the_labels_are_read(scene: Scene, tmp_path: Path) -> None:
    data = folder(tmp_path / "spills")
    Ledger(scene.settings.ledger_url).upgrade()
    with scene.ledger.session() as session:
        session.add(InboxEvent(key="k", action="ANNOTATION_CREATED", payload={}))
    scene.labels = 1
    seen: list[list[str]] = []

    def read() -> None:
        seen.append(scene.cycles())
        with scene.ledger.session() as session:
            session.query(InboxEvent).one().state = InboxState.DONE

    scene.looks = [lambda: seen.append(scene.cycles()), read]
    scene.run(data)
    assert seen == [[], []]
    assert scene.cycles() == ["first model, from the given masks"]


def test_labels_that_nobody_reads_do_not_hold_it_up_for_ever(
    scene: Scene, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(up, "_INBOX_S", 0.0)
    Ledger(scene.settings.ledger_url).upgrade()
    with scene.ledger.session() as session:
        session.add(InboxEvent(key="k", action="ANNOTATION_CREATED", payload={}))
    scene.labels = 1
    scene.run(folder(tmp_path / "spills"))
    assert len(scene.cycles()) == 1


def test_a_server_of_ones_own_has_its_own_passwords(scene: Scene, tmp_path: Path) -> None:
    scene.settings = scene.settings.model_copy(
        update={"label_studio": LabelStudioSettings(url="http://tool.example", token=SecretStr("t"))}
    )
    text = scene.run(folder(tmp_path / "spills"), share=0.0)
    assert "http://tool.example/projects/1" in text
    assert "sign in as" not in text
    assert "the password" not in text


def test_the_first_admin_of_the_desk_is_told_once(scene: Scene, tmp_path: Path) -> None:
    text = scene.run(folder(tmp_path / "spills"), share=0.0)
    password = scene.stacks[-1].admin_password
    assert "the leads' desk: http://127.0.0.1:9090/desk/\n" in text
    assert f"sign in there as admin with the one-time password {password}\n" in text
    again = scene.run()
    assert "/desk/" in again
    assert "one-time" not in again
    scene.settings = scene.settings.model_copy(update={"desk": DeskSettings(enabled=False)})
    assert "desk" not in scene.run()


def test_what_changes_is_told_once_and_what_died_is_told(scene: Scene, tmp_path: Path) -> None:
    def add_images() -> None:
        with scene.ledger.session() as session:
            project = session.query(Project).one()
            stands = (TaskStatus.REVIEW, TaskStatus.REVIEW, TaskStatus.FAILED, TaskStatus.WAITING)
            for number, status in enumerate(stands):
                session.add(
                    Task(project_id=project.id, tool_task_id=number, image_uri="i", scene="s", status=status)
                )
        scene.stacks[-1].dead.append("worker (exit status -9): [/tmp/x] killed")

    def begin() -> None:
        promote(scene.ledger)
        with scene.ledger.session() as session:
            cycle = triggers.request(session, session.query(Project).one(), "by hand")
            cycle.step = "train"

    def fail() -> None:
        with scene.ledger.session() as session:
            cycle = session.query(Cycle).one()
            cycle.state, cycle.reason = CycleState.FAILED, "no room on [/dev/x]"

    scene.looks = [lambda: None, add_images, begin, lambda: None, fail]
    text = scene.run(folder(tmp_path / "spills"), share=0.0)
    told = [line for line in text.splitlines() if line.startswith(("03:04:05", "started"))]
    assert told == [
        "03:04:05 spills: no model version serves yet; no images",
        "started again: worker (exit status -9): [/tmp/x] killed",
        "03:04:05 spills: no model version serves yet; 2 review, 1 failed",
        "03:04:05 spills: elnet-0001 serves; 2 review, 1 failed; cycle 1: train",
        "03:04:05 spills: elnet-0001 serves; 2 review, 1 failed; cycle 1 ended failed: no room on [/dev/x]",
    ]
