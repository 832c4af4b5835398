from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sqlalchemy import select, update

from active_learning import holdout_masks
from active_learning.holdout_masks import forget_older, keeping
from active_learning.ledger import HoldoutMask, Ledger, ModelVersion, Project


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with Ledger(url) as ledger:
        ledger.upgrade()
        yield ledger


@pytest.fixture
def tasks(loop: Any) -> dict[str, int]:
    return {f"image-{i}": task for i, task in enumerate(loop.add(*["x"] * 5))}


def drawn(number: int, side: int = 6) -> NDArray[np.bool_]:
    masks = np.zeros((2, side, side + 1), np.bool_)
    masks[0].flat[number] = masks[1].flat[-1] = True
    return masks


def held(ledger: Ledger) -> dict[tuple[int, int], bytes]:
    with ledger.session(write=False) as session:
        return {
            (row.model_version_id, row.task_id): row.masks.tobytes()
            for row in session.scalars(select(HoldoutMask))
        }


def keep_all(
    ledger: Ledger, version: int, tasks: dict[str, int], more: int = 0, stems: Iterable[str] = ()
) -> None:
    with keeping(ledger, version, tasks) as keep:
        for number, stem in enumerate(stems or tasks):
            keep(stem, drawn(number + more))


def test_masks_are_kept_as_they_are_and_once(loop: Any, ledger: Ledger, tasks: dict[str, int]) -> None:
    one, two = loop.promote("elnet-0001"), loop.promote("elnet-0002")
    for _ in range(2):
        keep_all(ledger, one, tasks)
        keep_all(ledger, two, tasks, more=10)
    wanted = {(one, task): drawn(i).tobytes() for i, task in enumerate(tasks.values())}
    wanted |= {(two, task): drawn(i + 10).tobytes() for i, task in enumerate(tasks.values())}
    assert held(ledger) == wanted
    with ledger.session(write=False) as session:
        assert session.scalars(select(HoldoutMask.masks)).first().shape == (2, 6, 7)


def test_a_later_judging_replaces_them(loop: Any, ledger: Ledger, tasks: dict[str, int]) -> None:
    version = loop.promote()
    keep_all(ledger, version, tasks)
    with keeping(ledger, version, tasks) as keep:
        keep("image-1", drawn(3, side=4))
    found = held(ledger)
    assert len(found) == 5
    assert found[version, tasks["image-1"]] == drawn(3, side=4).tobytes()
    assert found[version, tasks["image-2"]] == drawn(2).tobytes()


@pytest.mark.parametrize(("limit", "value", "at_once"), [("_ROWS", 2, 2), ("_BYTES", 1, 1), ("_ROWS", 9, 9)])
def test_some_are_written_at_a_time(
    loop: Any,
    ledger: Ledger,
    tasks: dict[str, int],
    monkeypatch: pytest.MonkeyPatch,
    limit: str,
    value: int,
    at_once: int,
) -> None:
    monkeypatch.setattr(holdout_masks, limit, value)
    version = loop.promote()
    with keeping(ledger, version, tasks) as keep:
        for number, stem in enumerate(tasks):
            keep(stem, drawn(number))
            assert len(held(ledger)) == (number + 1) // at_once * at_once
    assert len(held(ledger)) == 5


def test_what_was_written_before_an_error_stays_and_a_repetition_ends_it(
    loop: Any, ledger: Ledger, tasks: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holdout_masks, "_ROWS", 2)
    version = loop.promote()
    with pytest.raises(KeyError, match="unknown"):
        keep_all(ledger, version, tasks, stems=[*list(tasks)[:3], "unknown"])
    assert sorted(held(ledger)) == [(version, tasks["image-0"]), (version, tasks["image-1"])]
    keep_all(ledger, version, tasks)
    assert len(held(ledger)) == 5


def test_the_champion_and_the_newest_stay(
    loop: Any, ledger: Ledger, tasks: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holdout_masks, "KEPT", 2)
    monkeypatch.setattr(holdout_masks, "_ROWS", 2)  # five masks go in three parts
    first, *others = [loop.promote(f"elnet-000{number}") for number in range(1, 6)]
    for version in (first, *others):
        keep_all(ledger, version, tasks)
    with ledger.session() as session:
        elsewhere = Project(name="roads", tool_url="http://tool", tool_project_id=8, classes=["road"])
        session.add(elsewhere)
        session.flush()
        foreign = ModelVersion(project_id=elsewhere.id, name="elnet-0001", path="m", sha256="0" * 64)
        session.add(foreign)
        session.execute(update(Project).where(Project.id == loop.project_id).values(champion_id=first))
    keep_all(ledger, foreign.id, tasks)
    forget_older(ledger, loop.project_id)
    left = {version for version, _ in held(ledger)}
    assert left == {first, *others[-2:], foreign.id}
    assert len(held(ledger)) == 4 * len(tasks)
    forget_older(ledger, foreign.project_id)
    assert len(held(ledger)) == 4 * len(tasks)


def test_before_there_is_a_champion_the_newest_stay(
    loop: Any, ledger: Ledger, tasks: dict[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holdout_masks, "KEPT", 1)
    versions = [loop.promote(f"elnet-000{number}") for number in (1, 2)]
    loop.configure(champion_id=None)
    for version in versions:
        keep_all(ledger, version, tasks)
    forget_older(ledger, loop.project_id)
    assert {version for version, _ in held(ledger)} == {versions[1]}
