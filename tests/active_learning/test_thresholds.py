from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from active_learning import routing, thresholds
from active_learning.guarantee import Guarantee, Promise
from active_learning.ledger import ModelVersion, Prediction, Project, ThresholdChange
from active_learning.quality import current_calibrator
from active_learning.thresholds import ThresholdError


def predicted(loop: Any, *qualities: float) -> list[int]:
    ids: list[int] = loop.routed(loop.promote(), qualities)
    return ids


def move(loop: Any, value: float | None, who: str = "lea", why: str = "too strict") -> None:
    with loop.ledger.session() as session:
        thresholds.set_threshold(session, session.get_one(Project, loop.project_id), value, who, why)


def history(loop: Any) -> list[tuple[str, float | None, float | None, str]]:
    with loop.ledger.session(write=False) as session:
        changes = thresholds.history(session, session.get_one(Project, loop.project_id))
        return [(c.who, c.from_value, c.to_value, c.why) for c in changes]


def statuses(loop: Any, ids: list[int]) -> list[str]:
    return [loop.task(i).status.value for i in ids]


def test_a_change_is_written_down_and_everything_is_routed_again(loop):
    ids = predicted(loop, 0.95, 0.85)
    assert statuses(loop, ids) == ["accepted", "review"]
    move(loop, 0.8)
    assert statuses(loop, ids) == ["accepted", "accepted"]
    move(loop, None, why="the lead is on holiday")
    assert statuses(loop, ids) == ["review", "review"]
    assert history(loop) == [
        ("lea", 0.8, None, "the lead is on holiday"),
        ("lea", 0.9, 0.8, "too strict"),
    ]


def test_undo_takes_the_last_change_back_and_undoing_twice_brings_it_back(loop):
    ids = predicted(loop, 0.85)
    move(loop, 0.8)
    for expected, status in ((0.9, "review"), (0.8, "accepted")):
        with loop.ledger.session() as session:
            change = thresholds.undo(session, session.get_one(Project, loop.project_id), "max")
            assert change.to_value == expected
        assert loop.project().accept_threshold == expected
        assert statuses(loop, ids) == [status]
    assert len(history(loop)) == 3
    assert "undoes the change to 0.8 by lea" in history(loop)[1][3]


def test_what_was_never_changed_cannot_be_undone(loop):
    with loop.ledger.session() as session, pytest.raises(ThresholdError, match="never changed"):
        thresholds.undo(session, session.get_one(Project, loop.project_id), "max")


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan"), float("inf"), 0.9])
def test_a_threshold_that_is_none_or_no_change_is_refused(loop, value):
    with pytest.raises(ThresholdError):
        move(loop, value)
    assert history(loop) == []
    assert loop.project().accept_threshold == 0.9


@pytest.mark.parametrize(("who", "why"), [("", "x"), ("x", " ")])
def test_a_change_needs_who_and_why(loop, who, why):
    with pytest.raises(ThresholdError, match="who made it and why"):
        move(loop, 0.5, who, why)


def test_a_label_by_a_person_stays_when_the_threshold_moves(loop):
    (task,) = predicted(loop, 0.85)
    loop.label(task)
    move(loop, 0.1)
    assert statuses(loop, [task]) == ["done"]


PROMISE = Promise(iou=0.6, risk=0.1, confidence=0.9)
SQUARE = np.zeros((1, 32, 32), np.bool_)
SQUARE[:, 8:24, 8:24] = True


def audits(loop: Any, version: int, good: int, bad: int, *, quality: float = 0.8) -> list[int]:
    """Audited predictions of a version; what is bad has an IoU of 0 with the label."""
    share = loop.project().audit_share
    loop.configure(audit_share=1.0)
    ids = loop.add(*["x"] * (good + bad))
    with loop.ledger.session() as session:
        for number, task_id in enumerate(ids):
            session.add(
                Prediction(
                    task_id=task_id,
                    model_version_id=version,
                    masks=SQUARE if number < good else ~SQUARE,
                    score=quality,
                    quality=float(current_calibrator(session, version).predict(quality)),
                    signals={"usable": True, "classes": []},
                )
            )
        session.flush()
        routing.route(session, session.get_one(Project, loop.project_id))
    for task_id in ids:
        loop.label(task_id, SQUARE)
    loop.configure(audit_share=share)
    return ids


def promise(loop: Any, promised: Promise = PROMISE) -> Guarantee:
    with loop.ledger.session() as session:
        project = session.get_one(Project, loop.project_id)
        return thresholds.promise(session, project, promised, "lea", "the customer asks for it")[1]


def keep(loop: Any) -> float | None:
    with loop.ledger.session() as session:
        project = session.get_one(Project, loop.project_id)
        change, _ = thresholds.keep(session, project)
        assert change is None or (change.who, change.promise) == ("elnet", project.promise)
        return project.accept_threshold


def watch(loop: Any) -> tuple[thresholds.Watch | None, ThresholdChange | None]:
    with loop.ledger.session() as session:
        project = session.get_one(Project, loop.project_id)
        return thresholds.watched(session, project), thresholds.watch(session, project)


def test_a_promise_sets_the_threshold_and_stands(loop):
    (waiting,) = predicted(loop, 0.85)
    audits(loop, loop.promote(), good=25, bad=0, quality=0.8)
    found = promise(loop)
    assert (found.threshold, found.samples) == (1.0, 25)  # all audits were perfect, so that is their scale
    assert loop.project().accept_threshold == 1.0
    assert statuses(loop, [waiting]) == ["accepted"]
    [(who, before, after, why)] = history(loop)
    assert (who, before, after) == ("lea", 0.9, 1.0)
    assert why == f"the customer asks for it ({PROMISE})"
    with pytest.raises(ThresholdError, match="already"):
        promise(loop)


def test_a_promise_that_cannot_be_kept_yet_accepts_nothing_until_it_can(loop):
    (waiting,) = predicted(loop, 0.95)
    version = loop.promote()
    audits(loop, version, good=10, bad=0, quality=0.9)
    found = promise(loop)
    assert found.threshold is None
    assert found.more == 34
    assert statuses(loop, [waiting]) == ["review"]
    assert keep(loop) is None
    audits(loop, version, good=12, bad=0, quality=0.9)
    assert keep(loop) == 1.0
    assert statuses(loop, [waiting]) == ["accepted"]
    assert len(history(loop)) == 2


def test_a_new_champion_has_to_earn_the_promise_anew(loop):
    audits(loop, loop.promote("elnet-0001"), good=25, bad=0)
    promise(loop)
    second = loop.promote("elnet-0002")
    assert loop.project().accept_threshold is None
    assert history(loop)[0][3] == f"0 audits of elnet-0002 cannot promise it yet: {PROMISE}"
    with loop.ledger.session(write=False) as session:
        assert thresholds.switched_off(session, session.get_one(Project, loop.project_id)) is None
    audits(loop, second, good=22, bad=0, quality=0.7)
    assert keep(loop) == 1.0


def test_audited_images_of_the_holdout_tell_of_a_new_champion(loop):
    old = audits(loop, loop.promote("elnet-0001"), good=25, bad=0)
    second = loop.promote("elnet-0002")
    entries = [{"image": f"{task_id:08d}", "iou": 0.9, "score": 0.7} for task_id in old]
    entries.append({"image": "00099999", "iou": 0.0, "score": 0.9})  # of the holdout, but never audited
    with loop.ledger.session() as session:
        session.get_one(ModelVersion, second).metrics = {"per_image": entries}
    assert promise(loop).threshold == pytest.approx(0.95, abs=0.06)  # of IoUs of 0.9 and 1
    loop.bury(loop.labels(old[0])[0].tool_annotation_id)
    with loop.ledger.session() as session:
        project = session.get_one(Project, loop.project_id)
        assert thresholds.assess(session, project, PROMISE).samples == 24


def test_a_number_of_a_leads_own_ends_the_promise_and_undo_brings_it_back(loop):
    audits(loop, loop.promote(), good=25, bad=0)
    promise(loop)
    move(loop, 0.95)
    assert loop.project().promise is None
    assert keep(loop) == 0.95
    with loop.ledger.session() as session:
        thresholds.undo(session, session.get_one(Project, loop.project_id), "max")
    assert loop.project().accept_threshold == 1.0
    assert thresholds.standing(loop.project()) == PROMISE


def test_without_a_model_nothing_can_be_promised_and_the_promise_waits(loop):
    assert promise(loop).samples == 0
    assert loop.project().accept_threshold is None
    audits(loop, loop.promote(), good=25, bad=0)
    assert keep(loop) == 1.0


def test_audits_that_contradict_the_promise_switch_auto_accept_off(loop):
    (waiting,) = predicted(loop, 0.85)
    version = loop.promote()
    audits(loop, version, good=25, bad=0)
    promise(loop)
    assert watch(loop) == (thresholds.Watch(0, 0, 1.0), None)
    audits(loop, version, good=6, bad=1)
    audits(loop, version, good=0, bad=3, quality=0.5)  # below the threshold: nothing was promised of these
    seen, change = watch(loop)
    assert (seen.audited, seen.failures, seen.broken, change) == (7, 1, False, None)
    audits(loop, version, good=1, bad=5)
    seen, change = watch(loop)
    assert (seen.audited, seen.failures, seen.broken) == (13, 6, True)
    assert change.who == "elnet"
    assert "6 of 13 audits of accepted masks had an IoU below 0.6, where at most 10%" in change.why
    assert (loop.project().accept_threshold, loop.project().promise) == (None, None)
    assert statuses(loop, [waiting]) == ["review"]
    with loop.ledger.session(write=False) as session:
        assert thresholds.switched_off(session, session.get_one(Project, loop.project_id)) == change.why
    assert watch(loop) == (None, None)
    assert keep(loop) is None, "only a lead brings it back"


def test_the_course_of_a_promise_ends_where_it_stands_now(loop):
    version = loop.promote()
    audits(loop, version, good=25, bad=0)
    assert course(loop) == []
    promise(loop)
    assert course(loop) == []
    audits(loop, version, good=3, bad=2)
    found = course(loop)
    assert [(seen.audited, seen.failures) for _, seen in found] == [(1, 0), (2, 0), (3, 0), (4, 1), (5, 2)]
    assert found[-1][1] == watch(loop)[0]
    assert [at for at, _ in found] == sorted(at for at, _ in found)


def course(loop: Any) -> list[Any]:
    with loop.ledger.session(write=False) as session:
        return thresholds.course(session, session.get_one(Project, loop.project_id))


def test_the_alarm_is_seldom_false_however_often_one_looks():
    random = np.random.default_rng(0)
    false = caught = 0
    for _ in range(400):
        kept, broken = (np.cumsum(random.uniform(size=200) < p) for p in (0.1, 0.3))
        false += any(thresholds.evidence(int(k), n, 0.1) >= 20 for n, k in enumerate(kept, start=1))
        caught += any(thresholds.evidence(int(k), n, 0.1) >= 20 for n, k in enumerate(broken[:60], start=1))
    assert false / 400 <= 0.05
    assert caught / 400 > 0.85


def test_evidence_of_nothing_says_nothing_and_huge_counts_do_not_overflow():
    assert thresholds.evidence(0, 0, 0.1) == pytest.approx(1)
    assert thresholds.evidence(0, 100, 0.1) < 0.1
    assert np.isfinite(thresholds.evidence(100_000, 100_000, 0.1))


def test_a_promise_whose_audits_are_deleted_later_accepts_nothing_any_more(loop):
    (waiting,) = predicted(loop, 0.85)
    ids = audits(loop, loop.promote(), good=25, bad=0)
    assert promise(loop).threshold is not None
    assert statuses(loop, [waiting]) == ["accepted"]
    for task_id in ids[:10]:
        loop.bury(loop.labels(task_id)[0].tool_annotation_id)
    assert keep(loop) is None
    assert statuses(loop, [waiting]) == ["review"]
    assert history(loop)[0][3].startswith("15 audits of elnet-0001 cannot promise it yet")


def test_a_promise_may_speak_of_single_classes(make_loop, ledger):
    loop = make_loop(ledger, ("oil", "ship"))
    version = loop.promote()
    loop.configure(audit_share=1.0)
    right = np.repeat(SQUARE, 2, axis=0)
    no_ship = right.copy()
    no_ship[1] = False
    for masks, count in ((right, 45), (no_ship, 15)):
        for task_id in loop.routed(version, [0.9] * count, masks=masks):
            loop.label(task_id, right)
    [label] = loop.labels(task_id)
    assert (label.class_ious, label.prefill_iou) == ([1.0, 0.0], 0.5)

    def assess(**bars: float) -> Guarantee:
        with loop.ledger.session() as session:
            project = session.get_one(Project, loop.project_id)
            return thresholds.assess(session, project, Promise(0.4, 0.3, 0.9, bars))

    assert assess().failures == assess(oil=0.5).failures == 0
    assert assess(oil=0.5).reached == 60
    assert assess(ship=0.5).threshold is None  # a quarter of the ships are lost
    assert 0.25 < assess(ship=0.5).best_risk < 0.5
    with pytest.raises(ThresholdError, match="no class road; it has oil, ship"):
        assess(road=0.5)


def test_a_promise_of_a_class_is_watched_class_by_class(make_loop, ledger):
    loop = make_loop(ledger, ("oil", "ship"))
    version = loop.promote()
    loop.configure(audit_share=1.0)
    right = np.repeat(SQUARE, 2, axis=0)
    no_ship = right.copy()
    no_ship[1] = False
    for task_id in loop.routed(version, [0.9] * 40, masks=right):
        loop.label(task_id, right)
    promised = Promise(0.4, 0.1, 0.9, {"ship": 0.5})
    assert promise(loop, promised).threshold is not None
    assert thresholds.standing(loop.project()) == promised
    for task_id in loop.routed(version, [1.0] * 6, masks=no_ship):
        loop.label(task_id, right)
    seen, change = watch(loop)
    assert (seen.audited, seen.failures) == (6, 6)
    assert change is not None
    assert "6 of 6 audits of accepted masks had an IoU below 0.4, or of ship below 0.5" in change.why


def test_the_class_of_a_project_that_has_one_is_the_mask_itself(loop):
    version = loop.promote()
    audits(loop, version, good=25, bad=0)
    with loop.ledger.session() as session:
        project = session.get_one(Project, loop.project_id)
        found = thresholds.assess(session, project, Promise(0.5, 0.1, 0.9, {"oil": 0.9}))
    assert (found.samples, found.failures) == (25, 0)


def test_labels_of_before_classes_were_told_do_not_count_for_a_promise_of_one(make_loop, ledger):
    loop = make_loop(ledger, ("oil", "ship"))
    loop.configure(audit_share=1.0)
    right = np.repeat(SQUARE, 2, axis=0)
    for task_id in loop.routed(loop.promote(), [0.9] * 3, masks=right):
        loop.label(task_id, right)
    with loop.ledger.session() as session:
        project = session.get_one(Project, loop.project_id)
        version = session.get_one(ModelVersion, project.champion_id)
        entry = {"image": "00000009", "iou": 0.9, "score": 0.9}  # judged before classes were told
        version.metrics = {"per_image": [entry]}
        assert thresholds.assess(session, project, Promise(0.5, 0.1, 0.9, {"oil": 0.5})).samples == 3
