"""`elnet threshold promise`; the other subcommands are tested with the loop's commands."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import select

from active_learning import labels, registry, routing
from active_learning.ledger import Ledger, Prediction, Project, Task
from active_learning.ledger.types import utc_now
from active_learning.ports import ToolAnnotation

Elnet = Callable[..., Any]
PROMISE = ("threshold", "promise", "--risk", "0.1", "--iou", "0.6")
SQUARE = np.zeros((1, 8, 8), np.bool_)
SQUARE[:, 2:6, 2:6] = True


@pytest.fixture(autouse=True)
def surroundings(own_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")


@pytest.fixture
def spills(ledger: Ledger) -> Ledger:
    """A project with a champion and three images that wait, with qualities 0.9, 0.7 and 0.5."""
    with ledger.session() as session:
        project = Project(
            name="spills", tool_url="http://tool", tool_project_id=1, classes=["oil"], audit_share=0.0
        )
        session.add(project)
        session.flush()
        registry.promote(
            session, registry.register(session, project, Path("models") / "1", "0" * 64, name="elnet-0001")
        )
    add(ledger, [0.9, 0.7, 0.5])
    return ledger


def add(ledger: Ledger, qualities: list[float], audit_share: float = 0.0) -> list[Task]:
    with ledger.session() as session:
        project = session.scalars(select(Project)).one()
        before, project.audit_share = project.audit_share, audit_share
        first = len(session.scalars(select(Task.id)).all())
        tasks = []
        for number, quality in enumerate(qualities, start=first):
            task = Task(
                project_id=project.id, tool_task_id=number, image_uri=f"{number}.png", scene=str(number)
            )
            session.add(task)
            session.flush()
            session.add(
                Prediction(
                    task_id=task.id,
                    model_version_id=project.champion_id,
                    score=quality,
                    quality=quality,
                    signals={"usable": True, "classes": []},
                    masks=SQUARE,
                )
            )
            tasks.append(task)
        session.flush()
        routing.route(session, project, tasks)
        project.audit_share = before
        return tasks


def audit(ledger: Ledger, good: int, bad: int, quality: float = 0.8) -> None:
    tasks = add(ledger, [quality] * (good + bad), audit_share=1.0)
    with ledger.session() as session:
        project = session.scalars(select(Project)).one()
        for number, task in enumerate(tasks):
            said = ToolAnnotation(
                id=1000 + task.id,
                task_id=task.tool_task_id,
                masks=SQUARE if number < good else ~SQUARE,
                annotator="ada",
                machine=False,
                cancelled=False,
                updated_at=utc_now() + timedelta(seconds=1),
            )
            labels.record(session, project, said)


def test_from_a_promise_to_a_threshold_in_two_commands(elnet: Elnet, spills: Ledger) -> None:
    audit(spills, good=39, bad=1)
    tried = elnet(*PROMISE)
    assert tried.out == (
        "Promise: of the accepted masks at most 0.1 have an IoU below 0.6, with confidence 0.9.\n"
        "40 audited scenes tell of elnet-0001. It can be kept from predicted IoU 0.969 on: 40 audited masks "
        "reach that, 1 of them bad, so of all accepted ones at most 9.4% are likely to be.\n"
        "That would accept 1 of the images that wait now.\n"
    )
    with spills.session(write=False) as session:
        assert session.scalars(select(Project.accept_threshold)).one() is None  # only tried
    done = elnet(*PROMISE, "--set", "--why", "the customer asks for it")
    assert done.out.startswith(tried.out)
    assert done.out.endswith("It stands now in 'spills'; the threshold follows it after each cycle.\n")
    with spills.session(write=False) as session:
        assert session.scalars(select(Project.accept_threshold)).one() == pytest.approx(0.969, abs=0.001)
    [change] = elnet("threshold", "history", "--json").json()
    assert (change["who"], change["to"]) == ("ada", pytest.approx(0.969, abs=0.001))
    assert change["why"].startswith("the customer asks for it (of the accepted masks")

    audit(spills, good=3, bad=0)
    standing = elnet("threshold", "promise")
    assert standing.out.startswith(tried.out.splitlines()[0])
    assert "Since it was set, 3 accepted masks were audited, 0 of them bad" in standing.out
    facts = elnet("threshold", "promise", "--json").json()
    assert facts["threshold"] > 0.9
    assert (facts["would_accept"], facts["watch"]["audited"]) == (1, 3)


def test_a_class_may_have_a_bar_of_its_own(elnet: Elnet, spills: Ledger) -> None:
    audit(spills, good=39, bad=1)
    done = elnet(*PROMISE, "--class-iou", "oil=0.7", "--set", "--why", "strict")
    assert "have an IoU below 0.6, or of oil below 0.7, with confidence 0.9" in done.out
    assert "of oil below 0.7" in elnet("threshold", "promise").out


def test_what_is_missing_is_said(elnet: Elnet, spills: Ledger) -> None:
    audit(spills, good=10, bad=0)
    said = elnet(*PROMISE).out
    assert "It cannot be kept yet, so nothing would be accepted." in said
    assert "About 34 more audits would do, if they turn out as those so far; 0 images wait in the" in said
    assert "What can be promised today at IoU 0.6 and confidence 0.9 is a risk of 0.21." in said
    audit(spills, good=0, bad=40)
    assert "More audits of this version would not help" in elnet(*PROMISE).out


def test_no_model_no_promise(elnet: Elnet, ledger: Ledger) -> None:
    with ledger.session() as session:
        session.add(Project(name="new", tool_url="http://tool", tool_project_id=1, classes=["oil"]))
    assert "No model version serves yet" in elnet(*PROMISE).out


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("--risk", "0.1"), "needs both --risk and --iou"),
        (("--set",), "--set needs --risk, --iou and --why"),
        (("--risk", "0.1", "--iou", "0.6", "--set"), "--set needs --risk, --iou and --why"),
        (("--risk", "0", "--iou", "0.6"), "no number of audits can show a risk of 0"),
        (("--risk", "0.1", "--iou", "1.5"), "must lie in (0, 1], not 1.5"),
        (("--class-iou", "oil=0.5"), "needs both --risk and --iou"),
        (("--risk", "0.1", "--iou", "0.6", "--class-iou", "oil"), "--class-iou takes CLASS=IOU"),
        (("--risk", "0.1", "--iou", "0.6", "--class-iou", "oil=2"), "must lie in (0, 1], not 2.0"),
        (("--risk", "0.1", "--iou", "0.6", "--class-iou", "road=0.5"), "has no class road; it has oil"),
        ((), "No promise stands in 'spills'. Try one"),
    ],
)
def test_what_is_no_promise_is_refused(elnet: Elnet, spills: Ledger, arguments: Any, said: str) -> None:
    answer = elnet("threshold", "promise", *arguments)
    assert (answer.code, answer.out) == (1, "")
    assert said in answer.err
    assert json.dumps(elnet("threshold", "history", "--json").json()) == "[]"
