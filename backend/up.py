"""`elnet up`: everything on this machine, for people, until Ctrl-C."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.text import Text
from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning import standing, triggers
from active_learning.ledger import InboxEvent, InboxState, Ledger, Project, TaskStatus
from backend import given_labels, projects
from backend.accounts import FIRST_ADMIN
from backend.credentials import Credentials
from backend.label_studio import LabelStudio
from backend.sample import CLASS, sample_folder
from backend.settings import Settings
from backend.stack import Stack
from model.cache_root import cache_root
from model.errors import ELNetError
from model.pairs import find_pairs

_WATCH_S = 2.0
_POLL_S = 0.2
_INBOX_S = 60.0


def run_up(
    settings: Settings,
    data: Path | None,
    name: str | None,
    classes: Sequence[str] | None,
    labelled_share: float,
) -> None:
    """Start the stack, make or mend the project, and stay until Ctrl-C.

    Args:
        settings: where the state lies and on which ports.
        data: folder with `images/` and perhaps `masks/`; None: the sample scene, unless there is a project.
        name: of the project; None: the folder's.
        classes: None: the folder's.
        labelled_share: share of the scenes whose masks are imported as labels.

    Raises:
        ELNetError: something did not start.
        KeyboardInterrupt: Ctrl-C, when everything has stopped.
    """
    console = Console(markup=False, emoji=False, highlight=False)  # names and reasons may hold brackets
    is_embedded = settings.label_studio.url is None
    with Stack(settings) as stack, Ledger(stack.settings.ledger_url) as ledger:
        tool = LabelStudio.from_settings(stack.settings)
        known = _projects(ledger)
        for project in known:
            projects.repair(ledger, stack.settings, tool, project)  # ports may have changed
        if data is not None or not known:
            _fill(stack.settings, ledger, tool, data, name, classes, labelled_share, console)
        _tell(stack, ledger, console, is_embedded=is_embedded)
        try:
            _watch(stack, ledger, console)
        except KeyboardInterrupt:
            console.print("\nStopping. Nothing is lost: the same command goes on from here.", soft_wrap=True)
            raise


def _projects(ledger: Ledger) -> Sequence[Project]:
    with ledger.session(write=False) as session:
        return session.scalars(select(Project).order_by(Project.name)).all()


def _fill(
    settings: Settings,
    ledger: Ledger,
    tool: LabelStudio,
    data: Path | None,
    name: str | None,
    classes: Sequence[str] | None,
    labelled_share: float,
    console: Console,
) -> None:
    if data is None:
        data, name = sample_folder(cache_root() / "samples"), name or "SpaceNet Vegas roads"
        classes = classes or [CLASS]
    if not (data / "images").is_dir():
        raise ELNetError(f"{data} has no images/ folder: put the images there, and known masks into masks/.")
    masks = data / "masks"
    names = list(classes or _class_names(data))
    project = projects.create(
        ledger, settings, tool, name or data.resolve().name, names, images=data / "images"
    )
    if not masks.is_dir() or labelled_share == 0:
        return
    count = given_labels.import_labels(ledger, tool, project, masks, share=labelled_share)
    if count:
        console.print(f"{count} of the given masks were imported as labels.")
        _wait_for_inbox(ledger)
        with ledger.session() as session:
            found = session.get_one(Project, project.id)
            if found.champion_id is None and triggers.active_cycle(session, found) is None:
                triggers.request(session, found, "first model, from the given masks")


def _wait_for_inbox(ledger: Ledger) -> None:
    """Until the worker has read what was just submitted, so that the first cycle trains on all of it."""
    give_up = time.monotonic() + _INBOX_S  # the cycle is asked for all the same: it takes what is there
    while time.monotonic() < give_up:
        with ledger.session(write=False) as session:
            waiting = select(InboxEvent.id).where(InboxEvent.state == InboxState.WAITING).limit(1)
            if session.scalar(waiting) is None:
                return
        time.sleep(_POLL_S)


def _class_names(data: Path) -> list[str]:
    if not (data / "masks").is_dir():
        raise ELNetError(f"{data} has no masks/ folder that would name the classes: add --classes oil,ship")
    return find_pairs(data)[1]


def _tell(stack: Stack, ledger: Ledger, console: Console, *, is_embedded: bool) -> None:
    settings = stack.settings
    console.print()
    with ledger.session(write=False) as session:
        for project in session.scalars(select(Project).order_by(Project.name)):
            address = f"{settings.label_studio.url}/projects/{project.tool_project_id}"
            console.print(Text(project.name, "bold").append(f"  {address}", "not bold"), soft_wrap=True)
    if is_embedded:  # another server has users and passwords of its own
        password = Credentials.load(settings.state).password
        console.print(
            f"sign in as {settings.label_studio.username} with the password {password}", soft_wrap=True
        )
    if settings.desk.enabled:
        console.print(f"the leads' desk: {settings.desk_url}/desk/", soft_wrap=True)
    if stack.admin_password is not None:
        console.print(
            f"sign in there as {FIRST_ADMIN} with the one-time password {stack.admin_password}",
            soft_wrap=True,
        )
    console.print(f"state, logs and secrets: {settings.state}", soft_wrap=True)
    console.print("Ctrl-C stops everything; starting again loses nothing.\n")


def _watch(stack: Stack, ledger: Ledger, console: Console) -> None:
    """Start again what dies, and say when cycles end and prefills are ready."""
    told: dict[int, str] = {}
    while True:
        for line in stack.mend():
            console.print(f"started again: {line}", soft_wrap=True)
        with ledger.session(write=False) as session:
            for project in session.scalars(select(Project)):
                line = _summary_line(session, project)
                if told.get(project.id) != line:
                    told[project.id] = line
                    console.print(f"{time.strftime('%H:%M:%S')} {project.name}: {line}", soft_wrap=True)
        time.sleep(_WATCH_S)


def _summary_line(session: Session, project: Project) -> str:
    """One line: who serves, where the images stand, what the active cycle does."""
    counts = standing.counts(session, project)
    shown = (TaskStatus.REVIEW, TaskStatus.AUDIT, TaskStatus.ACCEPTED, TaskStatus.DONE, TaskStatus.FAILED)
    parts = [f"{counts[status]} {status}" for status in shown if counts[status]]
    champion = f"{project.champion.name} serves" if project.champion else "no model version serves yet"
    line = f"{champion}; {', '.join(parts) or 'no images'}"
    cycle = triggers.active_cycle(session, project)
    if cycle is not None:
        return f"{line}; cycle {cycle.id}: {cycle.step or 'waiting for the worker'}"
    last = triggers.last_cycle(session, project)
    return f"{line}; cycle {last.id} ended {last.state}: {last.reason}" if last else line
