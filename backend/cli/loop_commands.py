"""Commands for leads: cycles, model versions, the ledger."""

from __future__ import annotations

import json
import math
import sys
import time
from dataclasses import asdict
from typing import Annotated, Any

import typer
from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning import lineage, registry, triggers
from active_learning.journal import ACTIVE
from active_learning.ledger import (
    Cycle,
    CycleEvent,
    CycleState,
    Ledger,
    ModelVersion,
)
from active_learning.ledger.types import utc_now
from backend.cli.common import (
    JsonOption,
    ProjectOption,
    find_project,
    hand_down,
    ledger_session,
    open_ledger,
    show,
    who,
)
from backend.cli.progress import Report, progress_bar
from backend.settings import load_settings
from model.errors import ELNetError

_POLL_S = 1.0
_HINT_S = 10.0  # a worker that runs takes a cycle sooner

cycles_app = typer.Typer(help="The retraining cycles.", no_args_is_help=False)
models_app = typer.Typer(help="The model versions of a project.", no_args_is_help=False)
ledger_app = typer.Typer(help="The ledger's tables.", no_args_is_help=True)


class LoopCommandError(ELNetError):
    """What was asked for cannot be done to this cycle or version."""


def retrain(
    project: ProjectOption = None,
    wait: Annotated[bool, typer.Option(help="Stay until the cycle has ended.")] = False,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Only tell whether one would begin by itself, and why.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Ask for a retraining cycle; the worker runs it."""
    if dry_run:
        _show_outlook(project, json_)
        return
    with open_ledger() as ledger:
        with ledger.session() as session:
            found = find_project(session, project)
            cycle = triggers.request(session, found, f"command by {who()}")
            cycle_id, row = cycle.id, _cycle_row(session, cycle)
        if wait:
            row = _wait(ledger, cycle_id, quiet=json_)
    show([row], as_json=json_, empty="")
    if row["state"] == CycleState.FAILED:
        raise LoopCommandError(f"Cycle {cycle_id} failed in step {row['step']}: {row['reason']}")
    if row["state"] == CycleState.CANCELLED:
        raise LoopCommandError(f"Cycle {cycle_id} did not come to its end: {row['reason']}")


def _show_outlook(project: str | None, as_json: bool) -> None:
    with ledger_session(write=False) as session:
        found = triggers.outlook(session, find_project(session, project), utc_now())
    if as_json:
        typer.echo(json.dumps({**asdict(found), "starts": found.starts}, indent=2))
        return
    if found.starts is not None:
        typer.echo(f"A cycle begins as soon as the worker looks: {found.starts}.")
    else:
        typer.echo(f"No cycle begins by itself{'' if found.held_back is None else f': {found.held_back}'}.")
    if found.conditions:
        show([asdict(condition) for condition in found.conditions], as_json=False, empty="")


@cycles_app.callback(invoke_without_command=True)
def cycles(context: typer.Context, project: ProjectOption = None, json_: JsonOption = False) -> None:
    """The cycles of a project, newest first."""
    if hand_down(context, project, json_):
        return
    with ledger_session(write=False) as session:
        found = find_project(session, project)
        query = select(Cycle).where(Cycle.project_id == found.id).order_by(Cycle.id.desc())
        rows = [_cycle_row(session, cycle) for cycle in session.scalars(query)]
    show(rows, as_json=json_, empty=f"No cycle has run in {found.name!r} yet.")


@cycles_app.command("log")
def cycle_log(cycle_id: Annotated[int, typer.Argument(metavar="ID")], json_: JsonOption = False) -> None:
    """What happened in a cycle, step by step."""
    with ledger_session(write=False) as session:
        _get_cycle(session, cycle_id)
        query = select(CycleEvent).where(CycleEvent.cycle_id == cycle_id).order_by(CycleEvent.id)
        rows = [
            {"at": event.at, "step": event.step, "message": event.message} for event in session.scalars(query)
        ]
    show(rows, as_json=json_, empty=f"Cycle {cycle_id} has not begun yet; is a worker running?")


@cycles_app.command("cancel")
def cancel(cycle_id: Annotated[int, typer.Argument(metavar="ID")]) -> None:
    """Stop a cycle; what serves now goes on serving."""
    with ledger_session(write=True) as session:
        cycle = _get_cycle(session, cycle_id)
        if not triggers.cancel(session, cycle, f"cancelled by {who()}"):
            raise LoopCommandError(f"Cycle {cycle_id} has already ended: {cycle.state}.")
    typer.echo(f"Cycle {cycle_id} is cancelled.")


@cycles_app.command("resume")
def resume(cycle_id: Annotated[int, typer.Argument(metavar="ID")]) -> None:
    """Let a cycle that failed or was cancelled go on, with the step that it did not finish."""
    with ledger_session(write=True) as session:
        cycle = _get_cycle(session, cycle_id)
        triggers.resume(session, cycle, who())
        step = cycle.step or "its first step"
    typer.echo(f"Cycle {cycle_id} goes on with {step}.")


@models_app.callback(invoke_without_command=True)
def models(context: typer.Context, project: ProjectOption = None, json_: JsonOption = False) -> None:
    """The model versions of a project, newest first."""
    if hand_down(context, project, json_):
        return
    with ledger_session(write=False) as session:
        found = find_project(session, project)
        query = select(ModelVersion).where(ModelVersion.project_id == found.id)
        rows = [_model_row(version) for version in session.scalars(query.order_by(ModelVersion.id.desc()))]
    if not json_:
        for row in rows:
            del row["checkpoint"]  # too long for a table
    show(rows, as_json=json_, empty=f"{found.name!r} has no model version yet: `elnet retrain` trains one.")


@models_app.command("promote")
def promote(name: Annotated[str, typer.Argument(metavar="VERSION")], project: ProjectOption = None) -> None:
    """Make a version the champion; the worker then prefills with it."""
    with ledger_session(write=True) as session:
        found = find_project(session, project)
        registry.promote(session, registry.find(session, found, name), who())
    typer.echo(f"{name} serves {found.name!r} now.")


@models_app.command("reject")
def reject(name: Annotated[str, typer.Argument(metavar="VERSION")], project: ProjectOption = None) -> None:
    """Put a version aside that waits for a lead's word."""
    with ledger_session(write=True) as session:
        found = find_project(session, project)
        registry.reject(session, registry.find(session, found, name))
    typer.echo(f"{name} is put aside.")


@models_app.command("rollback")
def rollback(project: ProjectOption = None) -> None:
    """Go back to the champion before this one."""
    with ledger_session(write=True) as session:
        found = find_project(session, project)
        version = registry.rollback(session, found, who())
        name = version.name
    typer.echo(f"{name} serves {found.name!r} again.")


def show_lineage(
    version: Annotated[str | None, typer.Argument(metavar="[VERSION]")] = None,
    task: Annotated[int | None, typer.Option(help="An image, by its id in Label Studio.")] = None,
    project: ProjectOption = None,
    json_: JsonOption = False,
) -> None:
    """Which labels of which images a model version has learned from; with --task, which versions from one."""
    if (version is None) == (task is None):
        raise LoopCommandError("name a version, or an image with --task")
    with ledger_session(write=False) as session:
        found = find_project(session, project)
        if version is not None:
            uses, empty = (
                lineage.of_version(session, found, version),
                f"{version} was trained outside of the loop.",
            )
        else:
            uses = lineage.of_task(session, found, task or 0)
            empty = f"No version has learned from task {task} or was judged by it."
    rows = [asdict(use) for use in uses]
    if not json_:
        rows = [row | {"snapshot": row["snapshot"][:12], "content": row["content"][:12]} for row in rows]
        count = sum(use.use == "train" for use in uses)
        if version is not None and uses:
            typer.echo(
                f"{version} has learned from {count} labels and was judged by {len(uses) - count}.", err=True
            )
    show(rows, as_json=json_, empty=empty)


@ledger_app.command("upgrade")
def upgrade() -> None:
    """Make the tables, or bring them to this version."""
    with Ledger(load_settings().ledger_url) as ledger:
        ledger.upgrade()
        typer.echo(f"{ledger!r} is up to date.")


def _wait(ledger: Ledger, cycle_id: int, *, quiet: bool) -> dict[str, Any]:
    """Tell the cycle's events on standard error until it has ended; on a terminal training is a bar."""
    seen = 0
    hint_at = time.monotonic() + _HINT_S
    with progress_bar(hidden=quiet or not sys.stderr.isatty()) as report:
        while True:
            with ledger.session(write=False) as session:
                query = select(CycleEvent).where(CycleEvent.cycle_id == cycle_id, CycleEvent.id > seen)
                events = session.scalars(query.order_by(CycleEvent.id)).all()
                row = _cycle_row(session, _get_cycle(session, cycle_id))
            seen = events[-1].id if events else seen
            for event in () if quiet else events:
                _tell(event, report)
            if row["state"] not in ACTIVE:
                return row
            if row["state"] == CycleState.REQUESTED and time.monotonic() >= hint_at:
                hint = f"No worker has begun cycle {cycle_id} yet: is one running? (elnet worker)"
                typer.echo(hint, err=True)
                hint_at = math.inf
            time.sleep(_POLL_S)


def _tell(event: CycleEvent, report: Report) -> None:
    said = event.data
    if "epochs" in said and sys.stderr.isatty():
        report(f"training: loss {said['loss']:.3f}", said["epoch"], said["epochs"])
    else:
        typer.echo(f"{event.step}: {event.message}", err=True)


def _get_cycle(session: Session, cycle_id: int) -> Cycle:
    cycle = session.get(Cycle, cycle_id)
    if cycle is None:
        raise LoopCommandError(f"There is no cycle {cycle_id}: see `elnet cycles`.")
    return cycle


def _cycle_row(session: Session, cycle: Cycle) -> dict[str, Any]:
    challenger = session.get(ModelVersion, cycle.challenger_id) if cycle.challenger_id else None
    return {
        "id": cycle.id,
        "state": cycle.state,
        "step": cycle.step,
        "trigger": cycle.trigger,
        "model_version": challenger.name if challenger else None,
        "fg_iou": challenger.metrics.get("fg_iou") if challenger else None,
        "requested": cycle.requested_at,
        "seconds": round(sum(cycle.seconds.values()), 1),
        "reason": cycle.reason,
    }


def _model_row(version: ModelVersion) -> dict[str, Any]:
    return {
        "version": version.name,
        "state": version.state,
        "fg_iou": version.metrics.get("fg_iou"),
        "fg_iou_per_image": version.metrics.get("fg_iou_per_image"),
        "boundary_f1": version.metrics.get("boundary_f1"),
        "holdout": version.metrics.get("n"),
        "created": version.created_at,
        "promoted": version.promoted_at,
        "sha256": version.sha256[:12],
        "checkpoint": version.path,
    }
