"""Commands about projects: make, fill, list, and look for silent failures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text
from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning import standing
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
from backend.running import running_settings
from model.errors import ELNetError

if TYPE_CHECKING:  # the command imports it when it is called: it takes a second
    from backend.doctor import Finding

project_app = typer.Typer(help="Projects in Label Studio and the ledger.", no_args_is_help=True)


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
