"""`elnet labels`: which of them deserve a second look, how far two people agree, and all of them as files."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import median
from typing import Annotated

import typer

from active_learning.judgements import SHORTFALL, agreements, suspects
from active_learning.snapshot import export
from backend.addresses import task_url
from backend.cli.common import JsonOption, ProjectOption, find_project, ledger_session, show

labels_app = typer.Typer(help="What people drew.", no_args_is_help=True)


@labels_app.command("suspects")
def labels_suspects(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="So many labels.")] = 20,
    least: Annotated[
        float,
        typer.Option(min=0, max=1, help="By how much the IoU falls short of the predicted one, at least."),
    ] = SHORTFALL,
    project: ProjectOption = None,
    json_: JsonOption = False,
) -> None:
    """Labels worth a second look: the model was sure of its mask, and the human drew another."""
    with ledger_session(write=False) as session:
        found = find_project(session, project)
        listed = suspects(session, found, least)
        rows = [
            {
                "task": one.task,
                "predicted": one.predicted,
                "iou": one.iou,
                "annotator": one.annotator,
                "version": one.version,
                "at": one.at,
                "open": task_url(found, one.task),
            }
            for one in listed[:limit]
        ]
    if not json_ and len(listed) > limit:
        typer.echo(f"The first {limit} of {len(listed)} labels.", err=True)
    empty = f"No label of {found.name!r} falls {least:g} short of what was predicted of its mask."
    show(rows, as_json=json_, empty=empty)


@labels_app.command("agreement")
def labels_agreement(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="So many images.")] = 20,
    project: ProjectOption = None,
    json_: JsonOption = False,
) -> None:
    """How far two people agree on the images that both labelled, least first."""
    with ledger_session(write=False) as session:
        found = find_project(session, project)
        pairs = agreements(session, found)
        rows = [
            {
                "task": pair.task,
                "annotators": list(pair.annotators),
                "iou": pair.iou,
                "open": task_url(found, pair.task),
            }
            for pair in pairs[:limit]
        ]
    if not json_ and pairs:
        middle = median(pair.iou for pair in pairs)
        typer.echo(f"{len(pairs)} pairs of labels, median IoU {middle:.3f}.", err=True)
    show(rows, as_json=json_, empty=f"No image of {found.name!r} was labelled by two people.")


@labels_app.command("export")
def labels_export(
    out: Annotated[Path, typer.Option(help="The new folder: gets images/ and masks/.")],
    project: ProjectOption = None,
    json_: JsonOption = False,
) -> None:
    """Write the labelled images and their masks as PNG, for `elnet simulate`, `train`, or other tools.

    An image that cannot be read, or that its label does not fit, is named and left out.
    """
    from backend.media import MediaStore
    from backend.settings import load_settings

    with ledger_session(write=False) as session:
        found = find_project(session, project)
        images = MediaStore.from_settings(load_settings())
        written = export(session, found, images, out)
    if json_:
        typer.echo(json.dumps({"out": str(out), **written._asdict()}, indent=2))
        return
    typer.echo(f"{written.images} images with their masks: {out}")
    for uri, reason in written.left_out.items():
        typer.echo(f"left out: {uri}: {reason}", err=True)
