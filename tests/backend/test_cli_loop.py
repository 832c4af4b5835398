from __future__ import annotations

import contextlib
import hashlib
import os
import pty
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from active_learning import registry, triggers
from active_learning.ledger import (
    Cycle,
    CycleEvent,
    CycleState,
    Ledger,
    ModelState,
    ModelVersion,
    Prediction,
    Project,
    Promotion,
    Snapshot,
    Task,
    TaskStatus,
)
from active_learning.ledger.types import utc_now
from backend.cli import loop_commands

Elnet = Callable[..., Any]

READING = [
    ("cycles",),
    ("models",),
    ("threshold",),
    ("threshold", "history"),
]
WRITING = [
    ("retrain",),
    ("models", "promote", "elnet-0001"),
    ("models", "rollback"),
    ("threshold", "set", "0.5", "--why", "a try"),
    ("threshold", "undo"),
]


@pytest.fixture(autouse=True)
def surroundings(own_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setattr(loop_commands, "_POLL_S", 0.01)


@pytest.fixture
def spills(ledger: Ledger) -> Ledger:
    """A ledger with the project "spills", threshold 0.9."""
    with ledger.session() as session:
        session.add(
            Project(
                name="spills",
                tool_url="http://tool",
                tool_project_id=7,
                classes=["oil"],
                accept_threshold=0.9,
                audit_share=0.0,
            )
        )
    return ledger


def project_of(session: Any, name: str = "spills") -> Project:
    return session.scalars(select(Project).where(Project.name == name)).one()


def add_version(ledger: Ledger, name: str, *, promote: bool = False, **metrics: Any) -> None:
    with ledger.session() as session:
        sha256 = hashlib.sha256(name.encode()).hexdigest()
        version = registry.register(
            session, project_of(session), Path("models") / name, sha256, metrics=metrics, name=name
        )
        if promote:
            registry.promote(session, version)


def add_predictions(ledger: Ledger, *qualities: float) -> None:
    """Tasks that the champion has predicted with these qualities, not routed yet."""
    with ledger.session() as session:
        project = project_of(session)
        for number, quality in enumerate(qualities):
            uri = f"{number}.png"
            task = Task(project_id=project.id, tool_task_id=number, image_uri=uri, scene=uri)
            task.status, task.quality = TaskStatus.REVIEW, quality
            session.add(task)
            session.flush()
            session.add(
                Prediction(
                    task_id=task.id,
                    model_version_id=project.champion_id,
                    score=quality,
                    quality=quality,
                    signals={},
                    masks=np.ones((1, 4, 4), np.bool_),
                )
            )


def statuses(ledger: Ledger) -> list[str]:
    with ledger.session(write=False) as session:
        return [task.status.value for task in session.scalars(select(Task).order_by(Task.id))]


def champion(ledger: Ledger) -> str | None:
    with ledger.session(write=False) as session:
        found = project_of(session).champion
        return found.name if found else None


def threshold(ledger: Ledger) -> float | None:
    with ledger.session(write=False) as session:
        return project_of(session).accept_threshold


def play(
    ledger: Ledger, state: CycleState, reason: str, message: str = "3 labels", epochs: int = 0
) -> threading.Thread:
    """A worker that takes the next cycle through one step to this end."""

    def work() -> None:
        end = time.monotonic() + 20
        while time.monotonic() < end:
            with ledger.session() as session:
                cycle = session.scalar(select(Cycle).where(Cycle.state == CycleState.REQUESTED))
                if cycle is not None:
                    cycle.state, cycle.step = CycleState.RUNNING, "snapshot"
                    session.add(CycleEvent(cycle_id=cycle.id, step="snapshot", message=message))
                    number = cycle.id
                    for epoch in range(1, epochs + 1):
                        said = {"epoch": epoch, "epochs": epochs, "loss": 1 / epoch}
                        text = f"Epoch {epoch} of {epochs}."
                        session.add(CycleEvent(cycle_id=number, step="train", message=text, data=said))
                    break
            time.sleep(0.01)
        with ledger.session() as session:
            cycle = session.get_one(Cycle, number)
            cycle.state, cycle.reason, cycle.finished_at = state, reason, utc_now()
            cycle.seconds = {"snapshot": 1.25, "train": 2.0}

    thread = threading.Thread(target=work)
    thread.start()
    return thread


@pytest.mark.parametrize(
    "command",
    [*READING, *WRITING, ("cycles", "log", "1"), ("cycles", "cancel", "1"), ("cycles", "resume", "1")],
)
def test_without_a_ledger_the_cure_is_named(command: tuple[str, ...], elnet: Elnet) -> None:
    answer = elnet(*command)
    assert (answer.code, answer.out) == (1, "")
    assert "elnet: error: there is no ledger at" in answer.err
    assert "elnet ledger upgrade" in answer.err


@pytest.mark.parametrize("command", [*READING, *WRITING])
def test_which_project_is_meant(
    command: tuple[str, ...], elnet: Elnet, ledger: Ledger, spills: Ledger
) -> None:
    unknown = elnet(*command, "-p", "roads")
    assert (unknown.code, unknown.out) == (1, "")
    assert "no project 'roads'. There are: 'spills'." in unknown.err
    with spills.session() as session:
        session.add(Project(name="roads", tool_url="http://tool", tool_project_id=8, classes=["road"]))
    unclear = elnet(*command)
    assert (unclear.code, unclear.out) == (1, "")
    assert "--project NAME. There are: 'roads', 'spills'." in unclear.err


@pytest.mark.parametrize("command", [*READING, *WRITING])
def test_without_a_project_the_cure_is_named(command: tuple[str, ...], elnet: Elnet, ledger: Ledger) -> None:
    answer = elnet(*command)
    assert (answer.code, answer.out) == (1, "")
    assert "elnet project create" in answer.err


def test_empty_states_say_so(elnet: Elnet, spills: Ledger) -> None:
    assert elnet("cycles").out == "No cycle has run in 'spills' yet.\n"
    assert elnet("models").out == "'spills' has no model version yet: `elnet retrain` trains one.\n"
    assert elnet("threshold", "history").out == "The threshold of 'spills' was never moved.\n"
    for command in (("cycles",), ("models",), ("threshold", "history")):
        answer = elnet(*command, "--json")
        assert (answer.code, answer.json(), answer.err) == (0, [], "")


def test_a_project_that_is_named_before_the_subcommand_counts(elnet: Elnet, spills: Ledger) -> None:
    with spills.session() as session:
        roads = Project(name="roads", tool_url="http://tool", tool_project_id=8, classes=["road"])
        session.add(roads)
    assert elnet("threshold", "-p", "spills", "set", "0.5", "--why", "a try").code == 0
    assert threshold(spills) == 0.5
    assert elnet("threshold", "-p", "roads", "--json", "history").json() == []
    assert elnet("threshold", "-p", "roads", "history", "-p", "spills", "--json").json() != []
    assert "no project 'nowhere'" in elnet("models", "-p", "nowhere", "rollback").err


def test_a_dry_run_tells_what_would_begin_and_begins_nothing(elnet: Elnet, spills: Ledger) -> None:
    answer = elnet("retrain", "--dry-run")
    assert answer.out.startswith("No cycle begins by itself.\n")
    assert "new labels in all" in answer.out
    told = elnet("retrain", "--dry-run", "--json").json()
    assert (told["starts"], told["held_back"]) == (None, None)
    assert [condition["name"] for condition in told["conditions"]] == ["labels", "schedule", "alarm"]
    assert elnet("cycles", "--json").json() == []
    elnet("retrain")
    assert elnet("retrain", "--dry-run").out == "No cycle begins by itself: cycle 1 is requested.\n"


def test_retrain_asks_for_a_cycle(elnet: Elnet, spills: Ledger) -> None:
    answer = elnet("retrain", "--json")
    assert (answer.code, answer.err) == (0, "")
    (row,) = answer.json()
    assert (row["state"], row["trigger"], row["step"]) == ("requested", "command by ada", None)
    with spills.session(write=False) as session:
        assert session.get_one(Cycle, row["id"]).state is CycleState.REQUESTED
    again = elnet("retrain", "--json")
    assert (again.code, again.out) == (1, "")
    assert f"cycle {row['id']} of project 'spills' is requested already (command by ada)" in again.err
    with spills.session(write=False) as session:
        assert len(session.scalars(select(Cycle)).all()) == 1


def test_retrain_for_people(elnet: Elnet, spills: Ledger) -> None:
    answer = elnet("retrain")
    assert answer.code == 0
    assert "command by ada" in answer.out


def test_retrain_waits_for_the_end(elnet: Elnet, spills: Ledger) -> None:
    worker = play(spills, CycleState.PROMOTED, "better by 0.1")
    answer = elnet("retrain", "--wait")
    worker.join()
    assert answer.code == 0
    assert answer.err == "snapshot: 3 labels\n"
    assert "better by 0.1" in answer.out
    assert "3.2" in answer.out  # seconds of its steps together


def test_on_a_terminal_training_is_a_bar(spills: Ledger) -> None:
    worker = play(spills, CycleState.PROMOTED, "better by 0.1", epochs=4)
    ours, its = pty.openpty()
    command = [sys.executable, "-m", "backend.cli", "retrain", "--wait"]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=its, cwd=root)
    os.close(its)
    shown = b""
    with contextlib.suppress(OSError):  # how Linux says that the other end is closed
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    worker.join()
    assert process.wait() == 0
    assert b"snapshot: 3 labels" in shown
    assert b"training: loss 0.250" in shown
    assert b"4/4" in shown
    assert b"Epoch 4 of 4" not in shown


def test_retrain_waits_silently_for_json(elnet: Elnet, spills: Ledger) -> None:
    worker = play(spills, CycleState.REJECTED, "no better")
    answer = elnet("retrain", "--wait", "--json")
    worker.join()
    assert (answer.code, answer.err) == (0, "")
    (row,) = answer.json()
    assert (row["state"], row["reason"]) == ("rejected", "no better")


@pytest.mark.parametrize(
    ("state", "said"),
    [
        (CycleState.FAILED, "Cycle 1 failed in step snapshot: 4 labels are missing"),
        (CycleState.CANCELLED, "Cycle 1 did not come to its end: 4 labels are missing"),
    ],
)
def test_a_cycle_that_came_to_nothing_is_an_error(
    state: CycleState, said: str, elnet: Elnet, spills: Ledger
) -> None:
    worker = play(spills, state, "4 labels are missing")
    answer = elnet("retrain", "--wait", "--json")
    worker.join()
    assert answer.code == 1
    assert answer.json()[0]["state"] == state.value
    assert answer.err == f"elnet: error: {said}\n"


def test_waiting_without_a_worker_is_said_once(
    elnet: Elnet, spills: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loop_commands, "_HINT_S", 0.0)
    naps: list[float] = []

    def sleep(seconds: float) -> None:
        naps.append(seconds)
        if len(naps) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(loop_commands.time, "sleep", sleep)
    answer = elnet("retrain", "--wait")
    assert answer.code == 130
    assert answer.out == ""
    assert answer.err.count("No worker has begun cycle 1 yet") == 1
    assert answer.err.endswith("elnet: stopped by Ctrl-C\n")
    with spills.session(write=False) as session:
        assert session.get_one(Cycle, 1).state is CycleState.REQUESTED  # it goes on without us


def test_cycles_are_listed_newest_first(elnet: Elnet, spills: Ledger) -> None:
    add_version(spills, "elnet-0001", fg_iou=0.71)
    with spills.session() as session:
        project = project_of(session)
        first = triggers.request(session, project, "labels: 50 new in all")
        first.state, first.step, first.reason = CycleState.PROMOTED, "prefill", "first"
        first.challenger_id = session.scalars(select(ModelVersion.id)).one()
        first.seconds = {"train": 10.04}
        session.flush()
        triggers.request(session, project, "command by bob")
    newest, oldest = elnet("cycles", "--json").json()
    assert (newest["id"], newest["state"], newest["model_version"]) == (2, "requested", None)
    assert (oldest["id"], oldest["state"], oldest["model_version"]) == (1, "promoted", "elnet-0001")
    assert (oldest["fg_iou"], oldest["seconds"], oldest["step"]) == (0.71, 10.0, "prefill")
    lines = elnet("cycles").out.splitlines()
    assert [line.split()[0] for line in lines] == ["id", "2", "1"]


def test_the_log_of_a_cycle(elnet: Elnet, spills: Ledger) -> None:
    elnet("retrain")
    assert elnet("cycles", "log", 1).out == "Cycle 1 has not begun yet; is a worker running?\n"
    assert elnet("cycles", "log", 1, "--json").json() == []
    with spills.session() as session:
        for step, message in (("snapshot", "[/tmp/x] 3 labels"), ("train", "epoch 1 of 2")):
            session.add(CycleEvent(cycle_id=1, step=step, message=message))
    rows = elnet("cycles", "log", 1, "--json").json()
    assert [(row["step"], row["message"]) for row in rows] == [
        ("snapshot", "[/tmp/x] 3 labels"),
        ("train", "epoch 1 of 2"),
    ]
    answer = elnet("cycles", "log", 1)
    assert answer.code == 0
    assert "[/tmp/x] 3 labels" in answer.out


@pytest.mark.parametrize("command", ["log", "cancel", "resume"])
def test_a_cycle_that_is_not_there(command: str, elnet: Elnet, spills: Ledger) -> None:
    answer = elnet("cycles", command, 99)
    assert (answer.code, answer.out) == (1, "")
    assert answer.err == "elnet: error: There is no cycle 99: see `elnet cycles`.\n"


def test_a_cycle_is_cancelled_once(elnet: Elnet, spills: Ledger) -> None:
    elnet("retrain")
    assert elnet("cycles", "cancel", 1).out == "Cycle 1 is cancelled.\n"
    with spills.session(write=False) as session:
        cycle = session.get_one(Cycle, 1)
        assert (cycle.state, cycle.reason) == (CycleState.CANCELLED, "cancelled by ada")
    again = elnet("cycles", "cancel", 1)
    assert (again.code, again.out) == (1, "")
    assert again.err == "elnet: error: Cycle 1 has already ended: cancelled.\n"
    assert elnet("retrain").code == 0  # the way is free


def test_a_cancelled_cycle_is_resumed(elnet: Elnet, spills: Ledger) -> None:
    elnet("retrain")
    elnet("cycles", "cancel", 1)
    assert elnet("cycles", "resume", 1).out == "Cycle 1 goes on with its first step.\n"
    [row] = elnet("cycles", "--json").json()
    assert (row["state"], row["reason"]) == ("requested", None)
    again = elnet("cycles", "resume", 1)
    assert (again.code, again.out) == (1, "")
    assert again.err == "elnet: error: cycle 1 cannot be resumed: it is requested\n"
    assert "Resumed by ada; it had ended cancelled" in elnet("cycles", "log", 1).out


def test_models_are_listed_promoted_and_rolled_back(elnet: Elnet, spills: Ledger) -> None:
    add_version(spills, "elnet-0001", promote=True, fg_iou=0.5, n=4)
    add_version(spills, "elnet-0002", fg_iou=0.6, boundary_f1=float("nan"))
    newest, oldest = elnet("models", "--json").json()
    assert (newest["version"], newest["state"], newest["promoted"]) == ("elnet-0002", "trained", None)
    assert (newest["fg_iou"], newest["boundary_f1"]) == (0.6, None)
    assert (oldest["version"], oldest["state"], oldest["holdout"]) == ("elnet-0001", "champion", 4)
    assert "elnet-0002" in elnet("models").out

    assert elnet("models", "promote", "elnet-0002").out == "elnet-0002 serves 'spills' now.\n"
    assert champion(spills) == "elnet-0002"
    assert elnet("models", "rollback").out == "elnet-0001 serves 'spills' again.\n"
    assert champion(spills) == "elnet-0001"
    states = {row["version"]: row["state"] for row in elnet("models", "--json").json()}
    assert states == {"elnet-0001": ModelState.CHAMPION.value, "elnet-0002": ModelState.RETIRED.value}


def test_a_lead_approves_or_puts_aside(elnet: Elnet, spills: Ledger) -> None:
    for name in ("elnet-0001", "elnet-0002"):
        add_version(spills, name)
        with spills.session() as session:
            registry.challenge(session, session.scalars(select(ModelVersion).filter_by(name=name)).one())
    assert elnet("models", "reject", "elnet-0001").out == "elnet-0001 is put aside.\n"
    assert elnet("models", "promote", "elnet-0002").out == "elnet-0002 serves 'spills' now.\n"
    states = {row["version"]: row["state"] for row in elnet("models", "--json").json()}
    assert states == {"elnet-0001": "rejected", "elnet-0002": "champion"}
    with spills.session(write=False) as session:
        assert session.scalars(select(Promotion.who)).one() == "ada"
    refused = elnet("models", "reject", "elnet-0002")
    assert (refused.code, refused.out) == (1, "")
    assert "elnet-0002 is champion and cannot be rejected" in refused.err


def test_what_cannot_be_promoted_or_rolled_back(elnet: Elnet, spills: Ledger) -> None:
    answer = elnet("models", "promote", "elnet-0009")
    assert (answer.code, answer.out) == (1, "")
    assert "'spills' has no model version 'elnet-0009': see `elnet models`." in answer.err
    add_version(spills, "elnet-0001", promote=True)
    answer = elnet("models", "rollback")
    assert (answer.code, answer.out) == (1, "")
    assert "had no champion before this one" in answer.err
    assert champion(spills) == "elnet-0001"


def test_what_if_tells_what_each_threshold_accepts(elnet: Elnet, spills: Ledger) -> None:
    add_version(spills, "elnet-0001", promote=True)
    add_predictions(spills, 0.97, 0.92, 0.72, 0.4)
    rows = {row["threshold"]: row for row in elnet("threshold", "--json").json()}
    assert list(rows) == sorted(rows)
    assert {t: rows[t]["accepted"] for t in (0.5, 0.7, 0.75, 0.9, 0.95)} == {
        0.5: 3,
        0.7: 3,
        0.75: 2,
        0.9: 2,
        0.95: 1,
    }
    assert all(row["accepted"] + row["audit"] + row["review"] == 4 for row in rows.values())
    assert [t for t, row in rows.items() if row["now"]] == [0.9]
    assert (rows[0.9]["risk"], rows[0.9]["risk_bound"]) == (None, 1.0)  # no audit yet
    assert rows[0.9]["note"]
    assert "*" in elnet("threshold").out
    assert statuses(spills) == ["review"] * 4  # only asked


def test_the_threshold_in_force_is_always_in_the_table(elnet: Elnet, spills: Ledger) -> None:
    elnet("threshold", "set", "0.8125", "--why", "odd")
    rows = elnet("threshold", "--json").json()
    assert [row["threshold"] for row in rows if row["now"] == "*"] == [0.8125]
    elnet("threshold", "set", "none", "--why", "stop")
    assert not any(row["now"] for row in elnet("threshold", "--json").json())


def test_the_threshold_is_moved_taken_back_and_remembered(elnet: Elnet, spills: Ledger) -> None:
    add_version(spills, "elnet-0001", promote=True)
    add_predictions(spills, 0.97, 0.72, 0.4)
    answer = elnet("threshold", "set", "0.7", "--why", "[/audits] look good")
    assert (answer.code, answer.err) == (0, "")
    assert answer.out == "The accept threshold of 'spills' moved from 0.9 to 0.7.\n"
    assert statuses(spills) == ["accepted", "accepted", "review"]
    answer = elnet("threshold", "set", "None", "--why", "a bad batch")
    assert answer.out == "The accept threshold of 'spills' moved from 0.7 to none.\n"
    assert threshold(spills) is None
    assert statuses(spills) == ["review"] * 3
    answer = elnet("threshold", "undo")
    assert (answer.code, answer.out) == (0, "The accept threshold of 'spills' moved from none to 0.7.\n")
    assert statuses(spills) == ["accepted", "accepted", "review"]

    rows = elnet("threshold", "history", "--json").json()
    assert [(row["who"], row["from"], row["to"]) for row in rows] == [
        ("ada", None, 0.7),
        ("ada", 0.7, None),
        ("ada", 0.9, 0.7),
    ]
    assert rows[0]["why"].startswith("undoes the change to none by ada")
    assert rows[2]["why"] == "[/audits] look good"
    assert "[/audits] look good" in elnet("threshold", "history").out


def test_nothing_to_take_back(elnet: Elnet, spills: Ledger) -> None:
    answer = elnet("threshold", "undo")
    assert (answer.code, answer.out) == (1, "")
    assert "the threshold of project 'spills' was never changed" in answer.err


@pytest.mark.parametrize("value", ["1.1", "nan", "inf", "much", ""])
def test_what_is_no_threshold_is_refused(value: str, elnet: Elnet, spills: Ledger) -> None:
    answer = elnet("threshold", "set", value, "--why", "a try")
    assert (answer.code, answer.out) == (1, "")
    assert f"{value!r} is not a threshold: give a number from 0 to 1, or `none`." in answer.err
    assert threshold(spills) == 0.9


@pytest.mark.parametrize("why", ["", "   "])
def test_a_move_needs_a_reason(why: str, elnet: Elnet, spills: Ledger) -> None:
    assert elnet("threshold", "set", "0.5").code == 2
    answer = elnet("threshold", "set", "0.5", "--why", why)
    assert (answer.code, answer.out) == (1, "")
    assert "needs who made it and why" in answer.err
    assert threshold(spills) == 0.9


def test_a_ledger_is_made_once_and_again(elnet: Elnet, own_settings: Path) -> None:
    for _ in range(2):
        answer = elnet("ledger", "upgrade")
        assert (answer.code, answer.err) == (0, "")
        assert "ledger.sqlite" in answer.out
        assert "is up to date" in answer.out
    Ledger(f"sqlite:///{own_settings / 'ledger.sqlite'}").check()
    assert elnet("cycles").err.startswith("elnet: error: There is no project yet")


def test_a_ledger_that_cannot_be_made(
    elnet: Elnet, own_settings: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (own_settings / "file").touch()
    monkeypatch.setenv("ELNET_STATE", str(own_settings / "file" / "state"))
    answer = elnet("ledger", "upgrade")
    assert (answer.code, answer.out) == (1, "")
    assert "cannot be made" in answer.err
    assert "Traceback" not in answer.err


def test_lineage_needs_a_version_or_an_image(elnet: Elnet, spills: Ledger) -> None:
    for arguments in ((), ("elnet-0001", "--task", "3")):
        answer = elnet("lineage", *arguments)
        assert answer.code == 1
        assert "name a version, or an image with --task" in answer.err
    assert elnet("lineage", "--task", "3").out == "No version has learned from task 3 or was judged by it.\n"
    assert "no model version 'nobody'" in elnet("lineage", "nobody").err


def test_the_lineage_of_a_version_is_shown(
    elnet: Elnet, spills: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    entry = {"tool_task_id": 12, "scene": "s", "label_id": 4, "content": "c" * 64, "source": "human"}
    with spills.session() as session:
        project = session.scalars(select(Project)).one()
        manifest = {"classes": ["oil"], "train": [{**entry, "weight": 1.0}], "holdout": []}
        snapshot = Snapshot(project_id=project.id, sha256="5" * 64, manifest=manifest)
        session.add(snapshot)
        session.flush()
        registry.register(session, project, Path("m"), "6" * 64, snapshot, name="elnet-0042")
    answer = elnet("lineage", "elnet-0042")
    assert "elnet-0042 has learned from 1 labels and was judged by 0." in answer.err
    assert "555555555555" in answer.out
    [row] = elnet("lineage", "--task", "12", "--json").json()
    assert (row["version"], row["use"], row["label"], row["snapshot"]) == ("elnet-0042", "train", 4, "5" * 64)
