from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from active_learning import drift, thresholds
from active_learning.drift import LEAST_ACCEPTED, LEAST_AUDITED, USUAL, compare
from active_learning.ledger import Project, TaskStatus

SIDE = 32


def cloud(count: int, seed: int, shift: float = 0.0) -> NDArray[np.float32]:
    found = np.random.default_rng(seed).normal(size=(count, 16))
    found[:, 0] += shift
    return found.astype(np.float32)


def names(count: int, kind: str, siblings: int = 1) -> list[str]:
    return [f"{kind}-{i // siblings}" for i in range(count)]


def test_images_of_one_kind_hardly_ever_alarm() -> None:
    shares, alarms = [], 0
    for seed in range(200):
        known, new = cloud(40, seed), cloud(60, 1000 + seed)
        found = compare(known, names(40, "a"), new, names(60, "b"))
        assert found is not None
        assert (found.audited, found.accepted) == (40, 60)
        shares.append(found.strange)
        alarms += found.alarming
    assert np.mean(shares) == pytest.approx(USUAL, abs=0.02)
    assert alarms == 0


def test_another_kind_alarms_and_says_why() -> None:
    found = compare(cloud(40, 1), names(40, "a"), cloud(60, 2, shift=8), names(60, "b"))
    assert found is not None
    assert found.alarming
    assert found.strange > 0.9
    assert "as unlike the 40 audited scenes as only 10% of those are" in str(found)


def test_siblings_count_as_one_scene_and_are_no_neighbours() -> None:
    known = np.repeat(cloud(30, 3), 2, axis=0)  # every image has a twin of its own scene
    found = compare(known, names(60, "a", 2), np.repeat(cloud(30, 4), 3, axis=0), names(90, "b", 3))
    assert found is not None
    assert (found.audited, found.accepted) == (30, 30)
    assert not found.alarming  # though each audited image has another at no distance


def test_too_few_scenes_tell_nothing() -> None:
    many, few = cloud(40, 1), cloud(40, 2)
    assert compare(many[: LEAST_AUDITED - 1], names(LEAST_AUDITED - 1, "a"), few, names(40, "b")) is None
    assert compare(many, names(40, "a"), few[: LEAST_ACCEPTED - 1], names(LEAST_ACCEPTED - 1, "b")) is None
    assert compare(many, names(40, "a", 4), few, names(40, "b")) is None


def predict(loop: Any, version: int, embeddings: NDArray[np.float32], quality: float = 0.95) -> list[int]:
    """Images with these embeddings, predicted and routed; they reach the threshold of 0.9."""
    masks = np.zeros((1, SIDE, SIDE), np.bool_)
    masks[:, 8:24, 8:24] = True
    ids: list[int] = loop.routed(version, [quality] * len(embeddings), masks=masks, embeddings=embeddings)
    return ids


def look(loop: Any) -> Any:
    with loop.ledger.session() as session:
        return drift.watch(session, session.get_one(Project, loop.project_id))


@pytest.fixture
def audited(loop: Any) -> int:
    """Thirty audited images, then nothing is audited any more; the version's id."""
    version: int = loop.promote("elnet-0001")
    loop.configure(audit_share=1.0)
    for task in predict(loop, version, cloud(30, 1)):
        loop.label(task)
    loop.configure(audit_share=0.0)
    return version


def test_accepting_stops_when_the_imagery_drifts_and_a_lead_brings_it_back(loop: Any, audited: int) -> None:
    predict(loop, audited, cloud(30, 2))
    assert look(loop) is None
    ids = predict(loop, audited, cloud(30, 3, shift=8))
    change = look(loop)
    assert change.to_value is None
    assert "the imagery has drifted" in change.why
    assert loop.project().accept_threshold is None
    assert {loop.task(i).status for i in ids} == {TaskStatus.REVIEW}
    assert look(loop) is None  # nothing is accepted any more
    with loop.ledger.session() as session:
        project = session.get_one(Project, loop.project_id)
        assert thresholds.switched_off(session, project) == change.why
        thresholds.set_threshold(session, project, 0.9, "lea", "looked at forty of them: they are fine")
    assert look(loop) is None  # the lead knew these
    predict(loop, audited, cloud(30, 4, shift=8))
    assert look(loop) is not None  # and not those


@pytest.mark.parametrize("easy", [LEAST_AUDITED - 1, 30])
def test_audited_images_that_would_not_be_accepted_say_nothing(loop: Any, easy: int) -> None:
    """What is accepted is unlike the rest by its nature: that is no drift."""
    version = loop.promote("elnet-0001")
    loop.configure(audit_share=1.0)
    audited = predict(loop, version, cloud(60, 1), quality=0.4) + predict(loop, version, cloud(easy, 2, 8))
    for task in audited:
        loop.label(task)
    loop.configure(audit_share=0.0)
    predict(loop, version, cloud(30, 3, 8))
    with loop.ledger.session(write=False) as session:
        found = drift.drift(session, session.get_one(Project, loop.project_id))
    if easy < LEAST_AUDITED:
        assert found is None
    else:
        assert found is not None
        assert (found.audited, found.alarming) == (easy, False)


def test_what_another_version_saw_is_not_compared(loop: Any, audited: int) -> None:
    second = loop.promote("elnet-0002")
    predict(loop, second, cloud(30, 3, shift=8))
    assert look(loop) is None


def test_embeddings_that_are_no_numbers_are_left_out(loop: Any, audited: int) -> None:
    broken = cloud(30, 2)
    broken[:5] = np.nan
    predict(loop, audited, broken)
    assert look(loop) is None
    with loop.ledger.session(write=False) as session:
        found = drift.drift(session, session.get_one(Project, loop.project_id))
    assert found is not None
    assert found.accepted == 25
