from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning import registry
from active_learning.ledger import Ledger, ModelState, ModelVersion, Project, Promotion, Snapshot
from active_learning.registry import RegistryError


def sha(number: int) -> str:
    return f"{number:064x}"


def a_project(session: Session, number: int = 1) -> Project:
    project = Project(name=f"p{number}", tool_url="http://tool", tool_project_id=number, classes=["oil"])
    session.add(project)
    session.flush()
    return project


def enter(session: Session, project: Project, number: int, **rest: Any) -> ModelVersion:
    return registry.register(session, project, Path(f"models/{number}"), sha(number), **rest)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def session(request: pytest.FixtureRequest, ledger: Ledger) -> Iterator[Session]:
    if request.param == "postgresql":
        ledger = Ledger(request.getfixturevalue("postgresql_url"))
        ledger.upgrade()
    with ledger, ledger.session() as session:
        yield session


def states(session: Session) -> list[str]:
    session.expire_all()
    return [
        str(state.value) for state in session.scalars(select(ModelVersion.state).order_by(ModelVersion.id))
    ]


def test_a_version_is_entered_with_all_that_made_it(session: Session) -> None:
    project = a_project(session)
    snapshot = Snapshot(project_id=project.id, sha256=sha(9), manifest={})
    session.add(snapshot)
    session.flush()
    assert registry.next_name(session, project) == "elnet-0001"
    first = enter(session, project, 1, snapshot=snapshot, metrics={"fg_iou": 0.6})
    second = enter(session, project, 2, parent=first)
    assert (first.name, first.state, first.sha256) == ("elnet-0001", ModelState.TRAINED, sha(1))
    assert (first.snapshot_id, first.metrics) == (snapshot.id, {"fg_iou": 0.6})
    assert (second.name, second.parent_id) == ("elnet-0002", first.id)
    assert project.champion_id is None


def test_names_count_for_each_project_and_go_on_beyond_given_ones(session: Session) -> None:
    one, two = a_project(session, 1), a_project(session, 2)
    enter(session, one, 1)
    enter(session, one, 2, name="elnet-0041")
    enter(session, one, 3, name="imported")
    assert registry.next_name(session, one) == "elnet-0042"
    assert enter(session, two, 1).name == "elnet-0001"


def test_entering_a_checkpoint_again_gives_the_first_entry(session: Session) -> None:
    project = a_project(session)
    first = enter(session, project, 1)
    registry.promote(session, first)
    assert enter(session, project, 1) is first
    assert first.state is ModelState.CHAMPION
    assert registry.next_name(session, project) == "elnet-0002"


def test_versions_never_change(session: Session) -> None:
    project = a_project(session)
    enter(session, project, 1)
    with pytest.raises(RegistryError, match=r"models/1 is elnet-0001 already, with other weights"):
        registry.register(session, project, Path("models/1"), sha(2))
    with pytest.raises(RegistryError, match="elnet-0001 exists already"):
        enter(session, project, 2, name="elnet-0001")


@pytest.mark.parametrize("bad", ["", "abc", "g" * 64, "A" * 64])
def test_a_checkpoint_needs_its_hash(ledger: Ledger, bad: str) -> None:
    with ledger.session() as session:
        project = a_project(session)
        with pytest.raises(RegistryError, match="is no sha256"):
            registry.register(session, project, Path("models/1"), bad)


def test_promotion_moves_the_pointer_and_retires_the_former(session: Session) -> None:
    project = a_project(session)
    first, second = enter(session, project, 1), enter(session, project, 2)
    registry.promote(session, first)
    registry.promote(session, second)
    registry.promote(session, second)
    assert states(session) == ["retired", "champion"]
    assert project.champion is second
    assert second.promoted_at is not None
    assert len(session.scalars(select(Promotion)).all()) == 2


def test_projects_have_champions_of_their_own(session: Session) -> None:
    one, two = a_project(session, 1), a_project(session, 2)
    registry.promote(session, enter(session, one, 1))
    registry.promote(session, enter(session, two, 1))
    assert states(session) == ["champion", "champion"]


def test_rollback_goes_to_the_champion_before(session: Session) -> None:
    project = a_project(session)
    versions = [enter(session, project, i) for i in range(1, 5)]
    for version in versions[:3]:
        registry.promote(session, version)
    assert registry.rollback(session, project) is versions[1]
    assert states(session) == ["retired", "champion", "retired", "trained"]
    assert registry.rollback(session, project) is versions[0]
    with pytest.raises(RegistryError, match="no champion before"):
        registry.rollback(session, project)
    registry.promote(session, versions[3])
    assert registry.rollback(session, project) is versions[0]  # not the third, which was taken back
    assert project.champion_id == versions[0].id


def test_there_is_nothing_to_roll_back_to_without_a_model(session: Session) -> None:
    with pytest.raises(RegistryError, match="nothing to go back to"):
        registry.rollback(session, a_project(session))


def test_rejection_is_safe_to_repeat_and_never_takes_the_champion(session: Session) -> None:
    project = a_project(session)
    first, second = enter(session, project, 1), enter(session, project, 2)
    registry.promote(session, first)
    registry.reject(session, second)
    registry.reject(session, second)
    assert states(session) == ["champion", "rejected"]
    with pytest.raises(RegistryError, match="elnet-0001 is champion"):
        registry.reject(session, first)
    registry.promote(session, second)  # a lead may overrule the gate
    assert states(session) == ["retired", "champion"]


def test_a_challenger_waits_until_a_lead_speaks(session: Session) -> None:
    project = a_project(session)
    versions = [enter(session, project, number) for number in (1, 2, 3)]
    registry.promote(session, versions[0])
    for version in versions[1:]:
        registry.challenge(session, version)
        registry.challenge(session, version)
    assert states(session) == ["champion", "challenger", "challenger"]
    registry.promote(session, versions[1], "ada")
    registry.challenge(session, versions[1])  # by a cycle that begins its step again
    assert states(session) == ["retired", "champion", "rejected"]
    moves = session.scalars(select(Promotion).order_by(Promotion.id)).all()
    assert [(move.who, move.model_version_id) for move in moves] == [(None, 1), ("ada", 2)]
    registry.rollback(session, project, "bob")
    assert session.scalars(select(Promotion.who).order_by(Promotion.id)).all()[-1] == "bob"


def test_promoting_the_champion_again_leaves_those_that_challenge_it(session: Session) -> None:
    project = a_project(session)
    versions = [enter(session, project, number) for number in (1, 2)]
    registry.promote(session, versions[0])
    registry.challenge(session, versions[1])
    registry.promote(session, versions[0])
    assert states(session) == ["champion", "challenger"]


def test_a_lead_may_put_a_challenger_aside_and_think_again(session: Session) -> None:
    version = enter(session, a_project(session), 1)
    registry.challenge(session, version)
    registry.reject(session, version)
    registry.challenge(session, version)
    assert states(session) == ["rejected"]
    registry.promote(session, version, "ada")
    assert states(session) == ["champion"]


def test_a_promotion_leaves_the_challengers_of_other_projects(session: Session) -> None:
    first, second = (enter(session, a_project(session, number), number) for number in (1, 2))
    registry.challenge(session, first)
    registry.challenge(session, second)
    registry.promote(session, first, "ada")
    assert states(session) == ["champion", "challenger"]


def test_an_error_after_a_promotion_leaves_the_former_champion(ledger: Ledger) -> None:
    with ledger.session() as session:
        project = a_project(session)
        registry.promote(session, enter(session, project, 1))
    with pytest.raises(ZeroDivisionError), ledger.session() as session:
        _promote_and_fail(session)
    with ledger.session() as session:
        assert states(session) == ["champion"]
        champion = session.scalars(select(Project)).one().champion
        assert champion is not None
        assert champion.name == "elnet-0001"
        assert len(session.scalars(select(Promotion)).all()) == 1


def _promote_and_fail(session: Session) -> None:
    registry.promote(session, enter(session, session.scalars(select(Project)).one(), 2))
    raise ZeroDivisionError


@given(moves=st.lists(st.one_of(st.integers(0, 3), st.none()), max_size=12))
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_moves_leave_one_champion_and_a_true_history(ledger: Ledger, moves: list[int | None]) -> None:
    """None is a rollback. The expected champion is the top of a stack."""
    with ledger.session() as session:
        number = len(session.scalars(select(Project)).all())
        project = a_project(session, number)
        versions = [registry.register(session, project, Path(f"{number}/{i}"), sha(i)) for i in range(4)]
        stack: list[int] = []
        for move in moves:
            if move is None:
                if len(stack) < 2:
                    with pytest.raises(RegistryError):
                        registry.rollback(session, project)
                    continue
                stack.pop()
                registry.rollback(session, project)
            else:
                if stack[-1:] != [move]:
                    stack.append(move)
                registry.promote(session, versions[move])
            champions = [v for v in versions if v.state is ModelState.CHAMPION]
            assert champions == [versions[stack[-1]]] == [project.champion]
            former = registry.former(session, project)
            assert former is (versions[stack[-2]] if len(stack) > 1 else None)
