from __future__ import annotations

from typing import Any

import pytest

from active_learning.ledger import ModelVersion, Project, Task, TaskStatus
from backend.desk import shifts
from backend.desk.shifts import Shifts


@pytest.fixture
def two(history: Any) -> Any:
    """elnet-0002 after elnet-0001: task 1 rose, 2 fell, 3 stayed; of 4 and 5 only one has a mask."""
    first, second = history.version("elnet-0001"), history.version("elnet-0002", promote=True)
    history.predict(first, 1, 2, 3, 4)
    history.predict(second, 1, quality=0.9)
    history.predict(second, 2, quality=0.4)
    history.predict(second, 3, 5)
    return history


def ask(history: Any, version: int = 2, other: int = 1) -> Shifts | None:
    with history.ledger.session(write=False) as session:
        pair = [session.get_one(ModelVersion, number) for number in (version, other)]
        return shifts.shifts(session, *pair)


def moved(found: Shifts | None) -> tuple[list[tuple[int, float]], list[tuple[int, float]]]:
    assert found is not None
    risen, fallen = ([(s.task, round(s.delta, 3)) for s in side] for side in (found.risen, found.fallen))
    return risen, fallen


def test_what_rose_and_what_fell(two: Any) -> None:
    found = ask(two)
    assert found is not None
    assert found.images == 3
    assert found.delta == pytest.approx(0.1)
    assert moved(found) == ([(101, 0.4)], [(102, -0.1)])
    assert moved(ask(two, 1, 2)) == ([(102, 0.1)], [(101, -0.4)])


def test_what_people_labelled_does_not_count(two: Any) -> None:
    with two.ledger.session() as session:
        session.get_one(Task, 1).status = TaskStatus.DONE
    assert moved(ask(two)) == ([], [(102, -0.1)])


def test_nothing_is_told_of_an_open_blind_audit(two: Any) -> None:
    with two.ledger.session() as session:
        project = session.get_one(Project, 1)
        project.audit_share = 1.0
        session.get_one(Task, 1).status = TaskStatus.AUDIT
    assert moved(ask(two)) == ([(101, 0.4)], [(102, -0.1)])
    with two.ledger.session() as session:
        session.get_one(Project, 1).blind_share = 1.0
    assert moved(ask(two)) == ([], [(102, -0.1)])


def test_only_the_newest_are_looked_at(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shifts, "SAMPLE", 3)  # tasks 2, 3 and 5
    found = ask(two)
    assert found is not None
    assert found.images == 2


def test_without_a_common_image_there_is_nothing_to_tell(two: Any) -> None:
    two.version("elnet-0003")
    assert ask(two, 2, 3) is None


def test_the_page_shows_both_masks(two: Any, site: Any) -> None:
    page = site.client.get("/desk/1/models/elnet-0002?with=elnet-0001").text
    assert "Where nobody has labelled" in page
    assert "/pictures/101/elnet-0001.png" in page
    assert "/pictures/101/elnet-0002.png" in page
    assert "/pictures/103/" not in page
