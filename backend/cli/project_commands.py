"""Commands about projects: make, fill, list, enhance their labels, and look for silent failures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning import holdout, standing
from active_learning.ledger import Ledger, Project
from backend.cli.common import (
    JsonOption,
    ProjectOption,
    find_project,
    ledger_session,
    open_ledger,
    show,
    split_names,
)
from backend.cli.model_commands import ReachOption, SmallestOption
from backend.cli.progress import progress_bar
from backend.running import running_settings
from model.errors import ELNetError

if TYPE_CHECKING:  # the command imports it when it is called: it takes a second
    from backend.doctor import Finding

project_app = typer.Typer(help="Projects in Label Studio and the ledger.", no_args_is_help=True)


class ProjectCommandError(ELNetError):
    """What was asked for cannot be done to this project."""


class DoctorFoundError(ELNetError):
    """The doctor found something that fails silently."""


@project_app.command("create")
def create(
    name: Annotated[str, typer.Argument(help="Its title in Label Studio and its name here.")],
    classes: Annotated[str, typer.Option(help="Class names, separated by commas: oil or road,building.")],
    images: Annotated[Path | None, typer.Option(help="Folder of images to import.")] = None,
    masks: Annotated[
        Path | None, typer.Option(help="Folder of masks with the images' stems, imported as labels.")
    ] = None,
    labelled_share: Annotated[
        float, typer.Option(min=0, max=1, help="Share of the scenes whose masks are imported.")
    ] = 1.0,
    tile: Annotated[int | None, typer.Option(min=64, help="Cut images to tiles of so many pixels.")] = None,
    holdout_images: Annotated[
        int,
        typer.Option(
            "--holdout", min=0, help="Draw so many images at random to judge models: label them first."
        ),
    ] = 0,
    upload: Annotated[
        bool, typer.Option(help="Send the images to a server that does not see this machine's disk.")
    ] = False,
    json_: JsonOption = False,
) -> None:
    """Make a project, or mend it: interface, storage, ML backend, webhook, views. Safe to repeat."""
    from backend import given_labels, projects
    from backend.label_studio import LabelStudio

    settings = running_settings()
    tool = LabelStudio.from_settings(settings)
    with Ledger(settings.ledger_url) as ledger:
        ledger.upgrade()
        names = split_names(classes)
        project = projects.create(ledger, settings, tool, name, names, images, tile, upload=upload)
        if holdout_images:
            with ledger.session() as session:
                count = holdout.draw(session, session.get_one(Project, project.id), holdout_images)
            typer.echo(f"{count} images were drawn for the holdout; they wait in the view Audit.", err=True)
        if masks is not None:
            count = given_labels.import_labels(ledger, tool, project, masks, share=labelled_share)
            typer.echo(f"{count} masks were imported as labels.", err=True)
        with ledger.session(write=False) as session:
            rows = [_row(session, session.get_one(Project, project.id))]
    show(rows, as_json=json_, empty="")


@project_app.command("list")
def list_projects(json_: JsonOption = False) -> None:
    """Every project, and where its images stand."""
    with ledger_session(write=False) as session:
        found = session.scalars(select(Project).order_by(Project.name)).all()
        rows = [_row(session, project) for project in found]
    show(rows, as_json=json_, empty="There is no project yet: make one with `elnet project create`.")


@project_app.command("enhance")
def enhance_labels(
    tasks: Annotated[
        str | None, typer.Option(help="Ids in Label Studio, separated by commas; not needed with --all.")
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Every task that a person has labelled.")] = False,
    checkpoint: Annotated[
        str | None,
        typer.Option(
            metavar="FOLDER|ADDRESS",
            help="A network trained with coarse masks; default: the version that serves.",
        ),
    ] = None,
    reach: ReachOption = 12.0,
    smallest: SmallestOption = 24,
    take_back: Annotated[
        bool, typer.Option("--take-back", help="Remove the suggestions; labels and copies of them stay.")
    ] = False,
    project: ProjectOption = None,
    json_: JsonOption = False,
) -> None:
    """Suggest better versions of labels that people drew, as predictions beside them in Label Studio.

    The labels stay as they are. The tasks stand in the view "Enhanced labels"; who opens one sees the label
    and the suggestion, and copies it or not.
    """
    if all_ == (tasks is not None):
        raise ProjectCommandError("say which labels: --tasks 12,17 or --all")
    chosen = None if tasks is None else _ids(tasks)
    from backend.label_enhancement import suggest
    from backend.label_studio import LabelStudio
    from backend.media import MediaStore
    from backend.model_files import checkpoint_folder, checkpoints_of
    from model.predictor import Predictor

    settings = running_settings()
    tool = LabelStudio.from_settings(settings)
    with open_ledger(settings) as ledger:
        with ledger.session(write=False) as session:
            found = find_project(session, project)
            champion = found.champion
        if take_back:
            ids = chosen if chosen is not None else [t["id"] for t in tool.listed(found.tool_project_id)]
            count = tool.take_back_suggestions(found.tool_project_id, ids)
            typer.echo(
                json.dumps({"taken_back": count}) if json_ else f"{count} suggestions were taken back."
            )
            return
        if checkpoint is not None:
            folder = checkpoint_folder(checkpoint)
        else:
            if champion is None:
                raise ProjectCommandError(
                    f"no version serves {found.name!r} yet: name a checkpoint of `elnet train --prompted 0.5`"
                )
            folder = checkpoints_of(settings).local(champion)
        predictor = Predictor(folder, settings.device, settings.batch_size, flips=settings.flips)
        images = MediaStore.from_settings(settings)
        with progress_bar(hidden=json_) as report:
            rows = suggest(
                ledger, tool, images, found, predictor, chosen, reach=reach, smallest=smallest,
                report=lambda done, total: report("enhancing", done, total),
            )  # fmt: skip
    show([asdict(row) for row in rows], as_json=json_, empty="")
    if failed := sum(row.failed for row in rows):
        raise ProjectCommandError(f"{failed} of {len(rows)} labels could not be enhanced, as the list says")


def doctor(project: ProjectOption = None, json_: JsonOption = False) -> None:
    """Look for what fails silently between Label Studio, backend and ledger, and say how to mend it."""
    from backend import doctor as checks
    from backend.label_studio import LabelStudio

    settings = running_settings()
    with open_ledger(settings) as ledger:
        with ledger.session(write=False) as session:
            found = find_project(session, project)
        findings = checks.examine(ledger, settings, LabelStudio.from_settings(settings), found)
    if json_:
        rows = [{"name": f.name, "ok": f.ok, "detail": f.detail, "cure": f.cure} for f in findings]
        typer.echo(json.dumps(rows, indent=2))
    else:
        _print_findings(findings)
    wrong = sum(not finding.ok for finding in findings)
    if wrong:
        raise DoctorFoundError(f"{wrong} of {len(findings)} checks failed.")


def _ids(text: str) -> list[int]:
    names = split_names(text)
    if not names or not all(name.isascii() and name.isdigit() for name in names):
        raise ProjectCommandError(f"{text!r} are no task ids: give numbers, separated by commas")
    return [int(name) for name in names]


def _print_findings(findings: Sequence[Finding]) -> None:
    console = Console(markup=False, emoji=False, highlight=False)
    for finding in findings:
        mark = Text("ok  ", "green") if finding.ok else Text("FAIL", "red")
        console.print(mark, f"{finding.name}: {finding.detail}", soft_wrap=True)
        if not finding.ok:
            console.print(f"     cure: {finding.cure}", soft_wrap=True)


def _row(session: Session, project: Project) -> dict[str, Any]:
    counts = standing.counts(session, project)
    return {
        "project": project.name,
        "label_studio": f"{project.tool_url}/projects/{project.tool_project_id}",
        "classes": project.classes,
        "champion": project.champion.name if project.champion else None,
        "threshold": project.accept_threshold,
        "images": sum(counts.values()),
        **{status.value: count for status, count in counts.items()},
    }
