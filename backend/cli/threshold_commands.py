"""`elnet threshold`: what a threshold costs, setting it, and the promise that sets it."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated, Any

import typer

from active_learning import risk, thresholds
from active_learning.guarantee import Promise
from active_learning.ledger import Project, ThresholdChange
from backend.cli.common import JsonOption, ProjectOption, find_project, hand_down, ledger_session, show, who
from backend.promise_words import in_words
from model.errors import ELNetError

threshold_app = typer.Typer(help="The accept threshold of a project.", no_args_is_help=False)


class ThresholdCommandError(ELNetError):
    """A threshold or promise that cannot be read."""


@threshold_app.callback(invoke_without_command=True)
def threshold(context: typer.Context, project: ProjectOption = None, json_: JsonOption = False) -> None:
    """What each accept threshold would accept, and what audits say of it."""
    if hand_down(context, project, json_):
        return
    with ledger_session(write=False) as session:
        found = find_project(session, project)
        ladder = _ladder(found.accept_threshold)
        rows = [_row(tried, found) for tried in risk.what_ifs(session, found, ladder)]
        off, promised = thresholds.switched_off(session, found), thresholds.standing(found)
    if off is not None:
        typer.echo(f"Nothing is accepted: {off}.", err=True)
    elif promised is not None:
        waits = (
            " It waits for more audits: elnet threshold promise." if found.accept_threshold is None else ""
        )
        typer.echo(f"A promise sets the threshold: {promised}.{waits}", err=True)
    show(rows, as_json=json_, empty="")


@threshold_app.command("set")
def set_threshold(
    value: Annotated[
        str, typer.Argument(help="Predicted IoU from 0 to 1, or `none`: nothing without a human.")
    ],
    why: Annotated[str, typer.Option(help="The reason, for the record.")],
    project: ProjectOption = None,
) -> None:
    """Move the accept threshold; every image is routed again."""
    number = _parse_threshold(value)
    with ledger_session(write=True) as session:
        found = find_project(session, project)
        change = thresholds.set_threshold(session, found, number, who(), why)
    _tell_move(found, change)


@threshold_app.command("undo")
def undo_threshold(project: ProjectOption = None) -> None:
    """Take back the last move of the accept threshold; a second undo brings it back."""
    with ledger_session(write=True) as session:
        found = find_project(session, project)
        change = thresholds.undo(session, found, who())
    _tell_move(found, change)


@threshold_app.command("history")
def threshold_history(project: ProjectOption = None, json_: JsonOption = False) -> None:
    """Who moved the threshold, when, from what to what, and why."""
    with ledger_session(write=False) as session:
        found = find_project(session, project)
        rows = [
            {"at": c.at, "who": c.who, "from": c.from_value, "to": c.to_value, "why": c.why}
            for c in thresholds.history(session, found)
        ]
    show(rows, as_json=json_, empty=f"The threshold of {found.name!r} was never moved.")


@threshold_app.command("promise")
def promise(
    at_most: Annotated[
        float | None,
        typer.Option("--risk", help="Of the accepted masks at most this share may be bad: 0.1 is a tenth."),
    ] = None,
    iou: Annotated[
        float | None, typer.Option("--iou", help="A mask is bad when its IoU with the truth is below this.")
    ] = None,
    class_iou: Annotated[
        list[str] | None,
        typer.Option(
            metavar="CLASS=IOU",
            help="A mask is bad too when this class's own IoU is below this; once for each class.",
        ),
    ] = None,
    confidence: Annotated[
        float, typer.Option(help="How sure to be, over the chance of which masks were audited.")
    ] = 0.9,
    set_: Annotated[
        bool, typer.Option("--set", help="Let the promise set the threshold, now and after each cycle.")
    ] = False,
    why: Annotated[str, typer.Option(help="The reason, for the record; needed with --set.")] = "",
    project: ProjectOption = None,
    json_: JsonOption = False,
) -> None:
    """What can be promised about the accepted masks, and from which threshold on.

    Without --risk and --iou: the promise that stands.
    """
    if (at_most is None) != (iou is None) or (class_iou and iou is None):
        raise ThresholdCommandError("a promise needs both --risk and --iou, such as --risk 0.1 --iou 0.6")
    if set_ and (iou is None or not why.strip()):
        raise ThresholdCommandError('--set needs --risk, --iou and --why "the reason"')
    with ledger_session(write=True) as session:
        found = find_project(session, project)
        if iou is not None and at_most is not None:
            asked = Promise(iou, at_most, confidence, dict(map(_parse_bar, class_iou or ())))
        else:
            stands = thresholds.standing(found)
            if stands is None:
                raise ThresholdCommandError(
                    f"No promise stands in {found.name!r}. Try one: "
                    "elnet threshold promise --risk 0.1 --iou 0.6"
                )
            asked = stands
        if set_:
            _, answer = thresholds.promise(session, found, asked, who(), why)
        else:
            answer = thresholds.assess(session, found, asked)
        what_if = risk.what_if(session, found, answer.threshold, asked.iou, asked.confidence)
        watch = thresholds.watched(session, found) if thresholds.standing(found) == asked else None
        version, name = found.champion.name if found.champion else None, found.name
        if not set_:
            session.rollback()  # only tried
    if json_:
        facts = {"project": name, "version": version, "promise": asdict(asked), **asdict(answer)}
        facts |= {"would_accept": what_if.accepted, "set": set_}
        typer.echo(json.dumps(facts | {"watch": asdict(watch) if watch else None}, indent=2))
        return
    typer.echo(f"Promise: {asked}.")
    for line in in_words(answer, asked, version, what_if):
        typer.echo(line)
    if watch is not None:
        typer.echo(
            f"Since it was set, {watch.audited} accepted masks were audited, {watch.failures} of them bad; "
            f"evidence against the promise {watch.evidence:.2g}, and at {1 / thresholds.FALSE_ALARM:.0f} "
            "auto-accept switches itself off."
        )
    if set_:
        typer.echo(f"It stands now in {name!r}; the threshold follows it after each cycle.")


def _parse_bar(text: str) -> tuple[str, float]:
    """`road=0.5` -> its name and number."""
    name, _, number = text.rpartition("=")
    try:
        return name.strip(), float(number)
    except ValueError as error:
        raise ThresholdCommandError(f"--class-iou takes CLASS=IOU such as road=0.5, not {text!r}") from error


def _tell_move(project: Project, change: ThresholdChange) -> None:
    before, after = ("none" if value is None else value for value in (change.from_value, change.to_value))
    typer.echo(f"The accept threshold of {project.name!r} moved from {before} to {after}.")


def _ladder(current: float | None) -> list[float]:
    steps = {0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95}
    return sorted(steps | ({current} if current is not None else set()))


def _parse_threshold(text: str) -> float | None:
    if text.lower() == "none":
        return None
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise ThresholdCommandError(f"{text!r} is not a threshold: give a number from 0 to 1, or `none`.")
    return value


def _row(tried: risk.WhatIf, project: Project) -> dict[str, Any]:
    return {
        "threshold": tried.threshold,
        "now": "*" if tried.threshold == project.accept_threshold else "",
        "accepted": tried.accepted,
        "audit": tried.audit,
        "review": tried.review,
        "audited": tried.audited,
        "failures": tried.failures,
        "risk": tried.realised_risk,
        "risk_bound": tried.risk_bound,
        "hours": tried.hours,
        "saved_hours": tried.saved_hours,
        "note": tried.warning,
    }
