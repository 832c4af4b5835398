"""`elnet queue`: what people get next, and why. `elnet audit`: what audits said of the masks."""

from __future__ import annotations

import json
from dataclasses import asdict
from statistics import fmean
from typing import Annotated

import typer

from active_learning import queue as queues
from active_learning import standing
from active_learning.judgements import Judgement, anchoring, audits
from active_learning.ledger import TaskStatus
from active_learning.reliability import Reliability, reliability
from backend.addresses import task_url
from backend.cli.common import JsonOption, ProjectOption, find_project, ledger_session, show


def queue(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="So many images.")] = 20,
    audit: Annotated[
        bool, typer.Option("--audit", help="Of the Audit view, not of the review queue.")
    ] = False,
    project: ProjectOption = None,
    json_: JsonOption = False,
) -> None:
    """The next images of the review queue (or of the audit), in their order, and why each stands there."""
    view = TaskStatus.AUDIT if audit else TaskStatus.REVIEW
    with ledger_session(write=False) as session:
        found = find_project(session, project)
        rows = [
            {
                "task": place.task,
                "priority": place.priority,
                "predicted_iou": place.quality,
                "scene": place.scene,
                "why": place.why,
                "open": task_url(found, place.task),
            }
            for place in queues.upcoming(session, found, view, limit)
        ]
    empty = f"Nothing of {found.name!r} waits in the {'audit' if audit else 'review queue'}."
    show(rows, as_json=json_, empty=empty)


def audit(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="So many audits.")] = 20,
    worst: Annotated[
        bool, typer.Option("--worst", help="Those that fell shortest of what was predicted first.")
    ] = False,
    told: Annotated[
        bool,
        typer.Option("--reliability", help="Whether masks are as good as predicted, from low to high."),
    ] = False,
    project: ProjectOption = None,
    json_: JsonOption = False,
) -> None:
    """What audits said: the IoU that was predicted of each mask, and the one that a human's label gave it."""
    if told:
        _show_reliability(project, json_)
        return
    with ledger_session(write=False) as session:
        found = find_project(session, project)
        done = audits(session, found)
        waiting = standing.counts(session, found)[TaskStatus.AUDIT]
        champion = found.champion.name if found.champion else None
    if worst:
        done.sort(key=lambda one: -one.shortfall)
    if not json_:
        typer.echo(_summary(done, waiting, champion), err=True)
    if done or json_:
        show([asdict(one) for one in done[:limit]], as_json=json_, empty="")


def _show_reliability(project: str | None, as_json: bool) -> None:
    with ledger_session(write=False) as session:
        found = find_project(session, project)
        diagram = reliability(session, found)
    rows = [asdict(one) for one in diagram.bins] if diagram else []
    if as_json:
        typer.echo(json.dumps(asdict(diagram) if diagram else None, indent=2))
        return
    if diagram:
        typer.echo(_in_words(diagram), err=True)
    show(rows, as_json=False, empty=f"No audit tells of the version that serves {found.name!r} yet.")


def _in_words(diagram: Reliability) -> str:
    maps = {
        "identity": "the score as it is, for there are too few audits to fit a map on",
        "isotonic": "a map of the score (isotonic regression)",
        "ridge": "a map of all signals (ridge regression)",
    }
    return (
        f"Predicted IoU is {maps[diagram.kind]}. On {diagram.audits} audits, each graded without its own "
        f"scene, one mask is off by {diagram.absolute_error:.3f} on the average, and a bin of masks by "
        f"{diagram.calibration_error:.3f}; rank correlation of predicted and true IoU "
        f"{'unknown' if diagram.rank_correlation is None else f'{diagram.rank_correlation:.2f}'}."
    )


def _summary(done: list[Judgement], waiting: int, champion: str | None) -> str:
    told = (
        f"{waiting} image{'' if waiting == 1 else 's'} wait{'s' if waiting == 1 else ''} in the Audit view."
    )
    if not done:
        return f"No mask was audited yet; {told}"
    error = fmean(abs(one.iou - one.predicted) for one in done)
    own = sum(one.version == champion for one in done)
    return (
        f"{len(done)} masks were audited, {own} of them of {champion or 'the version that serves'}: mean IoU "
        f"{fmean(one.iou for one in done):.3f}, predicted {fmean(one.predicted for one in done):.3f}, off by "
        f"{error:.3f} on the average. {_anchoring(done)}{told}"
    )


def _anchoring(done: list[Judgement]) -> str:
    found = anchoring(done)
    if found is None:
        return ""
    doubt = "" if abs(found.difference) > 2 * found.error else ", which may be chance"
    return (
        f"{found.blind} of them were blind: where people saw the mask, its IoU with their label is "
        f"{found.difference:+.3f} higher (standard error {found.error:.3f}){doubt}. "
    )
