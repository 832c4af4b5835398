"""The record of who did what."""

from __future__ import annotations

import pytest

from active_learning.ledger import ActionRecord, Project
from backend.actions import Who, latest, record


def test_an_action_stays_with_what_it_did_or_not_at_all(ledger, project):
    def undone() -> None:
        with ledger.session() as session:
            record(session, Who("ada"), "threshold.set")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        undone()
    with ledger.session() as session:
        record(session, Who("ada", "::1"), "threshold.set", "x" * 999, project=project, to=0.9)
    with ledger.session(write=False) as session:
        (action,) = session.query(ActionRecord)
    assert (action.who, action.action, action.address) == ("ada", "threshold.set", "::1")
    assert (action.project_id, action.detail, len(action.thing)) == (project.id, {"to": 0.9}, 300)


def test_pages_of_actions_the_newest_first(ledger, project):
    with ledger.session() as session:
        for number in range(6):
            record(session, Who("ab"[number % 2]), f"a{number}", project=project if number > 3 else None)
    with ledger.session(write=False) as session:
        first = latest(session, 2)
        assert [a.action for a in first] == ["a5", "a4"]
        assert [a.action for a in latest(session, 3, before=first[-1].id)] == ["a3", "a2", "a1"]
        assert [a.action for a in latest(session, 9, who="a")] == ["a4", "a2", "a0"]
        found = session.get_one(Project, project.id)
        assert [a.action for a in latest(session, 9, project=found)] == ["a5", "a4"]
