"""What each step of a retraining cycle does. Nothing here knows how the steps are made durable.

Every step may be repeated: what an earlier run of it left, finished or half, is found and used or cleared.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from active_learning import (
    evaluation,
    fine_tuning,
    gate,
    holdout_masks,
    quality,
    registry,
    routing,
    thresholds,
)
from active_learning.context import CycleContext
from active_learning.journal import Journal
from active_learning.ledger import (
    Cycle,
    CycleState,
    ModelState,
    ModelVersion,
    Prediction,
    Project,
    Snapshot,
    Task,
)
from active_learning.ledger.locking import lock_project
from active_learning.ports import ToolUnavailableError
from active_learning.push import push
from active_learning.snapshot import restore, take
from active_learning.split import HOLDOUT
from model.checkpoint import read_card

PROMOTE, CHALLENGE, REJECT = "promote", "challenge", "reject"
_TELL_S = 10.0  # between two pushes: each chunk moves the whole queue


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of a step: a sentence for people, and its numbers."""

    message: str
    data: dict[str, Any] = field(default_factory=dict)


def snapshot(context: CycleContext, journal: Journal) -> Outcome:
    """Freeze what people have labelled up to now."""
    with context.ledger.session() as session:
        project = _project(session, journal.cycle_id)
        frozen = take(session, project, context.images, context.folder / "snapshots")
        session.get_one(Cycle, journal.cycle_id).snapshot_id = frozen.id
        train, holdout, left_out = (len(frozen.manifest[key]) for key in ("train", "holdout", "left_out"))
    message = f"Froze {_images(train)} to train on and {holdout} to judge by."
    if left_out:
        message += f" {_images(left_out, 'labelled')} could not be used; the snapshot's manifest says why."
    return Outcome(
        message, {"train": train, "holdout": holdout, "left_out": left_out, "sha256": frozen.sha256}
    )


def train(context: CycleContext, journal: Journal) -> Outcome:
    """Fine-tune in a child process and register the result as the challenger.

    What was registered first stays, also where a worker that was taken for dead goes on for a moment.
    """
    with context.ledger.session(write=False) as session:
        trained = session.get_one(Cycle, journal.cycle_id).challenger_id is not None
    if trained:
        return _registered(context, journal, reused=True)
    context.checkpoints.check()  # rather than after hours of training
    _frozen(context, journal)
    plan = fine_tuning.plan(context, journal.cycle_id)
    reused = fine_tuning.fine_tune(context, journal, plan)
    out = Path(plan.out)
    sha256 = read_card(out).weights_sha256
    address = context.checkpoints.keep(out)  # registered only when every machine can have it
    with context.ledger.session() as session:
        cycle = session.get_one(Cycle, journal.cycle_id)
        lock_project(session, cycle.project_id)
        session.refresh(cycle)
        if cycle.challenger_id is None:
            version = registry.register(
                session,
                cycle.project,
                address,
                sha256,
                snapshot=session.get_one(Snapshot, cycle.snapshot_id),
                parent=session.get(ModelVersion, plan.parent_id) if plan.parent_id else None,
                name=plan.version,
            )
            cycle.challenger_id = version.id
    return _registered(context, journal, reused=reused)


def _registered(context: CycleContext, journal: Journal, *, reused: bool) -> Outcome:
    with context.ledger.session(write=False) as session:
        version = _challenger(session, journal.cycle_id)
        parent = session.get_one(ModelVersion, version.parent_id).name if version.parent_id else None
    start = f"from {parent}" if parent else "from the trunk alone"
    again = " The checkpoint was finished before the worker was interrupted." if reused else ""
    return Outcome(f"Trained {version.name} {start}.{again}", {"version": version.name, "parent": parent})


def evaluate(context: CycleContext, journal: Journal) -> Outcome:
    """Judge challenger and champion on the same holdout: the snapshot's.

    The challenger's `ModelVersion.metrics` get its scores, the hash of the snapshot, and, under "champion",
    the scores of the model that it has to beat. The champion's own metrics stay as they were. The masks of
    both are kept, for people to look at.
    """
    with context.ledger.session(write=False) as session:
        cycle = session.get_one(Cycle, journal.cycle_id)
        classes = list(cycle.project.classes)
        challenger = session.get_one(ModelVersion, cycle.challenger_id)
        champion = cycle.project.champion
        holdout = session.get_one(Snapshot, cycle.snapshot_id).manifest[HOLDOUT]
    tasks = {entry["stem"]: entry["task_id"] for entry in holdout}
    if champion is not None and champion.id == challenger.id:
        raise evaluation.EvaluationError(
            f"{champion.name} has been promoted by hand; nothing is left to judge"
        )
    frozen = _frozen(context, journal)

    def judge(version: ModelVersion) -> dict[str, Any]:
        predictor = context.predictors.get(version)
        with holdout_masks.keeping(context.ledger, version.id, tasks) as keep:
            scores = evaluation.evaluate(
                predictor, frozen / HOLDOUT, classes, each=lambda: _check(context, journal), keep=keep
            )
        journal.note(
            "evaluate",
            f"{version.name} reaches IoU {scores['fg_iou']:.3f} over all pixels of {_images(scores['n'])}.",
            version=version.name,
            fg_iou=scores["fg_iou"],
        )
        return scores

    metrics = {**judge(challenger), "snapshot": frozen.name, "champion": None}
    metrics["fault"] = evaluation.fault_on_foreign(context.predictors.get(challenger))
    if champion is not None:
        metrics["champion"] = {"name": champion.name, **judge(champion)}
    with context.ledger.session() as session:
        session.get_one(ModelVersion, challenger.id).metrics = metrics
    holdout_masks.forget_older(context.ledger, challenger.project_id)
    against = f" against {metrics['champion']['fg_iou']:.3f} of {champion.name}" if champion else ""
    numbers = {key: metrics[key] for key in evaluation.HEADLINE}
    return Outcome(f"{challenger.name} reaches holdout IoU {metrics['fg_iou']:.3f}{against}.", numbers)


def decide(context: CycleContext, journal: Journal) -> Outcome:
    """Let the gate decide; its decision is kept with the challenger's metrics."""
    with context.ledger.session() as session:
        challenger = _challenger(session, journal.cycle_id)
        metrics = challenger.metrics
        champion = metrics["champion"]
        project = _project(session, journal.cycle_id)
        decided = gate.decide(
            gate.image_scores(metrics["per_image"]),
            gate.image_scores(champion["per_image"]) if champion is not None else None,
            classes=project.classes,
            passed="fit to serve" if project.approval else "promoted",
            fault=metrics.get("fault") or gate.too_slow(metrics.get("seconds", 0), project.latency_s),
        )
        said = {
            "promote": decided.promote,
            "approval": decided.promote and project.approval,
            "reason": decided.reason,
            "delta": decided.delta,
            "interval": list(decided.interval) if decided.interval else None,
        }
        challenger.metrics = {**metrics, "gate": said}
    return Outcome(f"{challenger.name} is {said['reason']}.", said)


def promote(context: CycleContext, journal: Journal) -> Outcome:
    """Make the challenger the champion."""
    with context.ledger.session() as session:
        challenger = _challenger(session, journal.cycle_id)
        registry.promote(session, challenger)
    return Outcome(f"{challenger.name} serves from now on.", {"version": challenger.name})


def challenge(context: CycleContext, journal: Journal) -> Outcome:
    """Leave the challenger to a lead's word."""
    with context.ledger.session() as session:
        challenger = _challenger(session, journal.cycle_id)
        registry.challenge(session, challenger)
    return Outcome(
        f"{challenger.name} waits for a lead's word: `elnet models promote {challenger.name}`, or reject.",
        {"version": challenger.name},
    )


def reject(context: CycleContext, journal: Journal) -> Outcome:
    """Leave the champion where it is."""
    with context.ledger.session() as session:
        challenger = _challenger(session, journal.cycle_id)
        registry.reject(session, challenger)
        champion = _project(session, journal.cycle_id).champion
        serving = f"{champion.name} goes on serving" if champion else "no model serves yet"
    return Outcome(f"{challenger.name} is put aside; {serving}.", {"version": challenger.name})


def recalibrate(context: CycleContext, journal: Journal) -> Outcome:
    """Fit the champion's map from score to predicted IoU on the audits so far."""
    with context.ledger.session() as session:
        project = _project(session, journal.cycle_id)
        if project.champion is None:
            return Outcome("There is no model to calibrate yet.")
        calibration = quality.recalibrate(session, project, project.champion)
        kind, samples, name = calibration.kind, calibration.samples, project.champion.name
        moved, found = thresholds.keep(session, project)
    if kind == "identity":
        message = f"{samples} audits are too few to calibrate {name} on; its scores count as they are."
    else:
        message = f"Calibrated {name} on {samples} audits."
    if moved is not None:
        to = "none" if moved.to_value is None else f"{moved.to_value:.3f}"
        message += f" The threshold is {to} now: {moved.why}."
    elif found is not None:
        message += " The promise leaves the threshold where it is."
    return Outcome(message, {"kind": kind, "samples": samples})


def predict_again(context: CycleContext, journal: Journal) -> Outcome:
    """Predict, route and push what is unlabelled, chunk by chunk.

    What cannot be done now is no reason to fail: it is plain from the ledger, and the worker goes on with it
    as soon as the tool answers.
    """
    with context.ledger.session(write=False) as session:
        project_id = _project(session, journal.cycle_id).id
    if context.tool is None:
        return Outcome("What is unlabelled is left to the workers that predict.")
    pushed, later, told = 0, "", 0.0
    try:
        stored = True
        while stored:
            _check(context, journal)
            with context.alone("predict", project_id):
                stored = context.predict_waiting(project_id) > 0
            if not stored or time.monotonic() - told > _TELL_S:
                with context.alone("push", project_id):
                    pushed += push(context.ledger, project_id, context.tool).prefills
                told = time.monotonic()
            if stored:
                done = _predicted(context, project_id)
                journal.note("prefill", f"{_images(done, 'unlabelled')} predicted so far.", predicted=done)
    except ToolUnavailableError as error:
        later = f" {error}; the worker goes on when it answers."
    done = _predicted(context, project_id)
    message = f"{_images(done, 'unlabelled')} predicted and routed by the model that serves.{later}"
    return Outcome(message, {"predicted": done, "pushed": pushed})


STEPS: Mapping[str, Callable[[CycleContext, Journal], Outcome]] = {
    "snapshot": snapshot,
    "train": train,
    "evaluate": evaluate,
    "gate": decide,
    PROMOTE: promote,
    CHALLENGE: challenge,
    REJECT: reject,
    "recalibrate": recalibrate,
    "prefill": predict_again,
}

BEGINNINGS: Mapping[str, str] = {
    "snapshot": "Freezing the labels into a training set and a holdout.",
    "train": "Fine-tuning adapter and decoder.",
    "evaluate": "Judging challenger and champion on the holdout.",
    "gate": "Deciding whether the challenger is better.",
    PROMOTE: "Promoting the challenger.",
    CHALLENGE: "Leaving the challenger to a lead.",
    REJECT: "Putting the challenger aside.",
    "recalibrate": "Calibrating the quality score on the audits.",
    "prefill": "Predicting what is still unlabelled.",
}


def decision(context: CycleContext, cycle_id: int) -> str:
    """What the gate has decided: `PROMOTE`, `CHALLENGE`, `REJECT`, or "" as long as it has not."""
    with context.ledger.session(write=False) as session:
        cycle = session.get_one(Cycle, cycle_id)
        challenger = session.get(ModelVersion, cycle.challenger_id) if cycle.challenger_id else None
        said = challenger.metrics.get("gate") if challenger else None
    if said is None:
        return ""
    if not said["promote"]:
        return REJECT
    return CHALLENGE if said.get("approval") else PROMOTE


def ending(context: CycleContext, cycle_id: int) -> tuple[CycleState, str]:
    """The end state of a cycle whose steps are all done, and why."""
    with context.ledger.session(write=False) as session:
        challenger = _challenger(session, cycle_id)
    said = f"{challenger.name}, {challenger.metrics['gate']['reason']}"
    if challenger.state is ModelState.CHALLENGER:
        return CycleState.PASSED, f"{said}; it waits for a lead: `elnet models promote {challenger.name}`"
    rejected = challenger.state is ModelState.REJECTED
    return CycleState.REJECTED if rejected else CycleState.PROMOTED, said


def _images(count: int, kind: str = "") -> str:
    """E.g. "3 unlabelled images"."""
    return " ".join(filter(None, [str(count), kind, "image" if count == 1 else "images"]))


def _check(context: CycleContext, journal: Journal) -> None:
    """Raise if the worker is to stop or the cycle was cancelled."""
    context.check()
    journal.check()


def _project(session: Session, cycle_id: int) -> Project:
    return session.get_one(Cycle, cycle_id).project


def _frozen(context: CycleContext, journal: Journal) -> Path:
    """The folder of the cycle's snapshot, which another machine may have taken."""
    with context.ledger.session(write=False) as session:
        taken = session.get_one(Snapshot, session.get_one(Cycle, journal.cycle_id).snapshot_id)
    return restore(context.ledger, taken, context.images, context.folder / "snapshots")


def _challenger(session: Session, cycle_id: int) -> ModelVersion:
    return session.get_one(ModelVersion, session.get_one(Cycle, cycle_id).challenger_id)


def _predicted(context: CycleContext, project_id: int) -> int:
    """How many tasks without a human label carry a prediction of the champion, whoever made it."""
    with context.ledger.session(write=False) as session:
        query = (
            select(func.count())
            .select_from(Task)
            .join(Project, Project.id == Task.project_id)
            .join(
                Prediction,
                (Prediction.task_id == Task.id) & (Prediction.model_version_id == Project.champion_id),
            )
            .where(Project.id == project_id, Task.status.in_(routing.OPEN))
        )
        return session.scalar(query) or 0
