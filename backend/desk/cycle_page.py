"""One retraining cycle: its steps, its log, its losses, and what the gate said."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, Any, Final

from flask import request
from sqlalchemy import func, select
from sqlalchemy.orm import Session
from werkzeug.exceptions import NotFound

from active_learning.journal import RESUMED
from active_learning.ledger import Cycle, CycleEvent, CycleState, ModelVersion, Project, Snapshot
from backend.desk.charts import Chart, chart
from backend.desk.cycles import STEPS, CycleFacts, blueprint, cycle_facts, find_cycle
from backend.desk.project_page import open_project, render

if TYPE_CHECKING:
    import altair as alt

LOG: Final = 100  # lines of the log on a page
_PACE: Final = 6  # epochs that tell how fast it goes
_HERE: Final = {CycleState.REQUESTED: "to come", CycleState.RUNNING: "now"}  # of the step that is not done
_DECISIONS: Final = ("promote", "challenge", "reject")  # a cycle takes one of these steps


@dataclass(frozen=True, slots=True)
class Step:
    """A step of a cycle.

    Attributes:
        name: as the ledger has it.
        state: "done", "now", "stopped" where the cycle ended in it, or "to come".
        seconds: wall time; None: it is not done.
        said: what came of it, or what it said last.
    """

    name: str
    state: str
    seconds: float | None
    said: str | None


@dataclass(frozen=True, slots=True)
class Line:
    """A line of the log."""

    id: int
    at: datetime
    step: str
    message: str


@dataclass(frozen=True, slots=True)
class Frozen:
    """What the cycle trains on and is judged by: the snapshot's sha256, and its images."""

    sha256: str
    train: int
    holdout: int
    left_out: int


@dataclass(frozen=True, slots=True)
class CyclePage:
    """A cycle.

    Attributes:
        cycle: what the list says of it.
        steps: in their order.
        frozen: None: it has no snapshot yet.
        left_s: that the training still takes, at the pace of its epochs so far; None: nothing trains.
        gate: the decision that is kept with its version: promote, reason, delta, interval; None: none yet.
        log: newest first, a page of it.
        earlier: id of the last line here, where more follow: the next page's `before`.
    """

    cycle: CycleFacts
    steps: list[Step]
    frozen: Frozen | None
    left_s: float | None
    gate: dict[str, Any] | None
    log: list[Line]
    earlier: int | None


def facts(session: Session, project: Project, cycle_id: int, before: int | None = None) -> CyclePage:
    """Of one cycle, with the lines of its log whose id is below `before`, or the newest.

    Raises:
        NotFound: the project has no such cycle.
    """
    cycle = find_cycle(session, project, cycle_id)
    lines = select(CycleEvent.id, CycleEvent.at, CycleEvent.step, CycleEvent.message)
    lines = lines.where(CycleEvent.cycle_id == cycle.id)
    if before is not None:
        lines = lines.where(CycleEvent.id < before)
    log = [Line(*row) for row in session.execute(lines.order_by(CycleEvent.id.desc()).limit(LOG + 1))]
    decided = select(ModelVersion.metrics["gate"]).where(ModelVersion.id == cycle.challenger_id)
    return CyclePage(
        cycle_facts(session, cycle),
        _steps(session, cycle),
        _frozen(session, cycle),
        _left_s(session, cycle),
        session.scalar(decided),
        log[:LOG],
        log[LOG - 1].id if len(log) > LOG else None,
    )


def _steps(session: Session, cycle: Cycle) -> list[Step]:
    told = select(CycleEvent.step, CycleEvent.message).where(CycleEvent.cycle_id == cycle.id)
    done = told.where(CycleEvent.data["finished"].as_boolean().is_(True)).order_by(CycleEvent.id)
    last = told.where(CycleEvent.step == cycle.step).order_by(CycleEvent.id.desc()).limit(1)
    said = {step: message for query in (last, done) for step, message in session.execute(query)}
    taken = next((step for step in _DECISIONS if step in cycle.seconds or step == cycle.step), None)
    here = _HERE.get(cycle.state, "stopped")
    return [
        Step(
            name,
            "done" if name in cycle.seconds else here if name == cycle.step else "to come",
            cycle.seconds.get(name),
            said.get(name),
        )
        for name in STEPS
        if name not in _DECISIONS or name == (taken or _DECISIONS[0])
    ]


def _frozen(session: Session, cycle: Cycle) -> Frozen | None:
    counts = [func.json_array_length(Snapshot.manifest[part]) for part in ("train", "holdout", "left_out")]
    row = session.execute(select(Snapshot.sha256, *counts).where(Snapshot.id == cycle.snapshot_id)).first()
    return None if row is None else Frozen(row[0], row[1], row[2], row[3] or 0)


def _left_s(session: Session, cycle: Cycle) -> float | None:
    if cycle.state is not CycleState.RUNNING or cycle.step != "train":
        return None
    events = select(CycleEvent.at, CycleEvent.data).where(
        CycleEvent.cycle_id == cycle.id, CycleEvent.data["epochs"].as_integer().is_not(None)
    )
    told = session.execute(events.order_by(CycleEvent.id.desc()).limit(_PACE)).all()
    if len(told) < 2:
        return None
    (now, last), (then, first) = told[0], told[-1]
    epochs = last["epoch"] - first["epoch"]  # below 1 where a resumed training began anew in between
    return (now - then).total_seconds() / epochs * (last["epochs"] - last["epoch"]) if epochs > 0 else None


@chart("cycle-losses")
def losses(session: Session, project: Project, query: Mapping[str, str]) -> Chart:
    """The mean loss of each epoch of the training of a `cycle`; a resumed one has several attempts."""
    number = query.get("cycle", "")
    if not number.isdecimal():
        raise NotFound("Name a cycle: ?cycle=ID.")
    cycle = find_cycle(session, project, int(number))
    events = select(CycleEvent.step, CycleEvent.data).where(
        CycleEvent.cycle_id == cycle.id, CycleEvent.step.in_(["train", RESUMED])
    )
    rows, attempt = [], 1
    for step, said in session.execute(events.order_by(CycleEvent.id)):
        if step == RESUMED:
            attempt += 1
        elif "epochs" in said:
            speed = said.get("images_per_s")
            rows.append(
                {"attempt": attempt, "epoch": said["epoch"], "loss": said["loss"], "images per s": speed}
            )
    return Chart(rows, _draw_losses)


def _draw_losses(rows: Sequence[dict[str, Any]]) -> alt.TopLevelMixin:
    import altair as alt

    several = len({row["attempt"] for row in rows}) > 1
    return (
        alt.Chart(alt.Data(values=list(rows)))
        .mark_line(point=True)
        .encode(
            x=alt.X("epoch:Q", axis=alt.Axis(tickMinStep=1, format="d"), scale=alt.Scale(zero=False)),
            y=alt.Y("loss:Q", title="loss, mean of the epoch", scale=alt.Scale(zero=False)),
            color=alt.Color("attempt:N", legend=alt.Legend(title="attempt") if several else None),
            tooltip=[
                alt.Tooltip("epoch:Q"),
                alt.Tooltip("loss:Q", format=".4f"),
                alt.Tooltip("images per s:Q", format=".1f"),
            ],
        )
        .properties(width="container", height=240)
    )


@blueprint.get("/<int:project_id>/cycles/<int:cycle_id>", endpoint="cycle")
def show(project_id: int, cycle_id: int) -> str:
    """The page."""
    before = request.args.get("before", type=int)
    with open_project(project_id) as (session, project):
        return render("cycle.html", project, facts=facts(session, project, cycle_id, before), words=STEPS)
