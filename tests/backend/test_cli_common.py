from __future__ import annotations

import getpass
import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.exc import DBAPIError

from active_learning.ledger import Ledger, LedgerError, Project
from backend.cli import common
from backend.cli.common import UnknownProjectError, find_project, ledger_session, show, split_names, who


def add(ledger: Ledger, *names: str) -> None:
    with ledger.session() as session:
        for number, name in enumerate(names):
            session.add(Project(name=name, tool_url="http://tool", tool_project_id=number, classes=["oil"]))


def found(ledger: Ledger, name: str | None) -> str:
    with ledger.session(write=False) as session:
        return find_project(session, name).name


def test_the_only_project_needs_no_name(ledger: Ledger) -> None:
    add(ledger, "spills")
    assert found(ledger, None) == "spills"
    assert found(ledger, "spills") == "spills"


def test_of_several_one_is_named(ledger: Ledger) -> None:
    add(ledger, "spills", "roads")
    assert found(ledger, "roads") == "roads"
    with pytest.raises(UnknownProjectError, match=r"--project NAME. There are: 'roads', 'spills'\."):
        found(ledger, None)
    with pytest.raises(UnknownProjectError, match=r"no project 'Roads'. There are: 'roads', 'spills'\."):
        found(ledger, "Roads")


def test_without_a_project_the_cure_is_named(ledger: Ledger) -> None:
    for name in (None, "spills"):
        with pytest.raises(UnknownProjectError, match="elnet project create"):
            found(ledger, name)


def test_the_ledger_of_the_settings_is_checked(own_settings: Path) -> None:
    with pytest.raises(LedgerError, match=r"there is no ledger at .*elnet ledger upgrade"):
        ledger_session(write=False).__enter__()


def test_a_session_reads_or_writes(own_settings: Path, ledger: Ledger) -> None:
    with ledger_session(write=True) as session:
        session.add(Project(name="spills", tool_url="u", tool_project_id=1, classes=["oil"]))
    assert found(ledger, None) == "spills"
    with ledger_session(write=False) as session:
        session.add(Project(name="roads", tool_url="u", tool_project_id=2, classes=["road"]))
        with pytest.raises(DBAPIError, match="readonly"):
            session.flush()
        session.rollback()
    assert found(ledger, None) == "spills"


def test_who_sits_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELNET_USER", "ada")
    assert who() == "ada"
    monkeypatch.delenv("ELNET_USER")
    monkeypatch.setattr(common.socket, "gethostname", lambda: "box")
    monkeypatch.setattr(getpass, "getuser", lambda: "bob")
    assert who() == "bob@box"

    def nameless() -> str:
        raise KeyError("uid not found")

    monkeypatch.setattr(getpass, "getuser", nameless)
    monkeypatch.setattr(common.os, "getuid", lambda: 4711)
    assert who() == "uid 4711@box"


def test_names_are_split_at_commas() -> None:
    assert split_names(" oil, ship ,,") == ["oil", "ship"]
    assert split_names(" , ") == []


ROW: dict[str, Any] = {
    "project": "[/oil] [bold]b[/bold] :boom:",
    "fg_iou": 0.12345,
    "champion": None,
    "at": datetime(2026, 11, 20, 3, 4, 5, tzinfo=UTC),
    "classes": ["oil", "ship"],
    "n": 3,
}


def test_a_table_for_people(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    show([ROW], as_json=False, empty="nothing")
    head, line = capsys.readouterr().out.splitlines()
    assert head.split() == ["project", "fg", "iou", "champion", "at", "classes", "n"]
    assert ROW["project"] in line
    local = ROW["at"].astimezone().strftime("%Y-%m-%d %H:%M:%S")
    assert line.split()[-7:] == ["0.123", "-", *local.split(), "oil,", "ship", "3"]


def test_json_for_machines(capsys: pytest.CaptureFixture[str]) -> None:
    show([ROW], as_json=True, empty="nothing")
    (row,) = json.loads(capsys.readouterr().out)
    assert row == {**ROW, "at": "2026-11-20T03:04:05+00:00"}


def test_no_rows(capsys: pytest.CaptureFixture[str]) -> None:
    show([], as_json=False, empty="nothing yet")
    assert capsys.readouterr().out == "nothing yet\n"
    show([], as_json=True, empty="nothing yet")
    assert json.loads(capsys.readouterr().out) == []
