"""What the commands of the loop share: settings, the ledger, the project that is meant, tables."""

from __future__ import annotations

import getpass
import json
import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning.ledger import Ledger, Project
from backend.settings import Settings, load_settings
from backend.tables import print_table
from model.errors import ELNetError

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
ProjectOption = Annotated[
    str | None,
    typer.Option("--project", "-p", help="The project's name. Not needed while there is only one."),
]


class UnknownProjectError(ELNetError):
    """No such project, or more than one and none named."""


def open_ledger(settings: Settings | None = None) -> Ledger:
    """The ledger of the settings in force, checked.

    Raises:
        LedgerError: it is absent, unreachable or of another version.
    """
    ledger = Ledger((settings or load_settings()).ledger_url)
    ledger.check()
    return ledger


@contextmanager
def ledger_session(*, write: bool) -> Iterator[Session]:
    """One transaction on the ledger of the settings in force, and nothing stays open after it.

    Raises:
        LedgerError: as `open_ledger`.
    """
    with open_ledger() as ledger, ledger.session(write=write) as session:
        yield session


def hand_down(context: typer.Context, project: str | None, as_json: bool) -> bool:
    """Let a subcommand take over what was given before its name: `elnet models -p oil promote VERSION`.

    Returns:
        Whether there is a subcommand.
    """
    if context.invoked_subcommand is None:
        return False
    context.default_map = {context.invoked_subcommand: {"project": project, "json_": as_json}}
    return True


def find_project(session: Session, name: str | None) -> Project:
    """The project of this name, or the only one.

    Raises:
        UnknownProjectError: there is none of that name, or the name is needed.
    """
    projects = session.scalars(select(Project).order_by(Project.name)).all()
    if not projects:
        raise UnknownProjectError("There is no project yet: make one with `elnet project create`.")
    names = ", ".join(repr(project.name) for project in projects)
    if name is None:
        if len(projects) > 1:
            raise UnknownProjectError(f"Say which project with --project NAME. There are: {names}.")
        return projects[0]
    for project in projects:
        if project.name == name:
            return project
    raise UnknownProjectError(f"There is no project {name!r}. There are: {names}.")


def split_names(text: str) -> list[str]:
    """`oil, ship` -> its names."""
    return [name.strip() for name in text.split(",") if name.strip()]


def who() -> str:
    """The user at this terminal, for records of who changed what."""
    user = os.environ.get("ELNET_USER")  # where the operating system's name says nothing, as in a container
    if user:
        return user
    try:
        return f"{getpass.getuser()}@{socket.gethostname()}"
    except (KeyError, OSError):  # no name for this user id
        return f"uid {os.getuid()}@{socket.gethostname()}"


def show(rows: Sequence[dict[str, Any]], *, as_json: bool, empty: str) -> None:
    """Print rows as a table, or as one JSON list."""
    if as_json:
        typer.echo(json.dumps(rows, default=_plain, indent=2))
        return
    if not rows:
        typer.echo(empty)
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in rows[0]:
        table.add_column(name.replace("_", " "), overflow="fold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row.values()))
    print_table(Console(markup=False, emoji=False), table)  # reasons and names may hold brackets


def _plain(value: Any) -> str:
    return value.isoformat() if isinstance(value, datetime) else str(value)


def _cell(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.astimezone().strftime("%Y-%m-%d %H:%M:%S")
    if isinstance(value, list):
        return ", ".join(map(str, value))
    if isinstance(value, float):
        return f"{value:.3f}"
    return str(value)
