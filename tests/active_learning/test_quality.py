from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select

from active_learning import quality, routing
from active_learning.ledger import Calibration, LabelSource, ModelVersion, Prediction, Project, Task

SIDE = 32


def square(size: int) -> np.ndarray:
    masks = np.zeros((1, SIDE, SIDE), np.bool_)
    masks[:, :size, :size] = True
    return masks


def audit(loop: Any, version: int, scores: list[float], *, audit_share: float = 1.0) -> list[int]:
    """Tasks with these scores are routed, and labelled by people who find half of each mask wrong."""
    loop.configure(audit_share=audit_share)
    ids: list[int] = loop.routed(version, scores, masks=square(16))
    half = square(16)
    half[:, :8] = False
    for task_id in ids:
        loop.label(task_id, half)
    return ids


def recalibrate(loop: Any, version: int) -> Calibration:
    with loop.ledger.session() as session:
        project = session.get_one(Project, loop.project_id)
        return quality.recalibrate(session, project, session.get_one(ModelVersion, version))


def test_audits_pair_the_score_of_the_prediction_with_its_iou_against_the_label(loop):
    ids = audit(loop, loop.promote(), [0.95, 0.99])
    assert [label.source for i in ids for label in loop.labels(i)] == [LabelSource.AUDIT] * 2
    with loop.ledger.session(write=False) as session:
        found = quality.audited(session, session.get_one(Project, loop.project_id))
    assert [(a.score, a.iou) for a in found] == [(0.95, pytest.approx(0.5)), (0.99, pytest.approx(0.5))]


def test_only_audits_that_live_count_and_no_label_of_the_review_queue(loop):
    version = loop.promote()
    audit(loop, version, [0.5], audit_share=0.0)
    (buried,) = audit(loop, version, [0.95])
    loop.bury(loop.labels(buried)[0].tool_annotation_id)
    with loop.ledger.session(write=False) as session:
        assert quality.audited(session, session.get_one(Project, loop.project_id)) == []


def test_with_few_audits_the_identity_is_written_down(loop):
    version = loop.promote()
    audit(loop, version, [0.95])
    calibration = recalibrate(loop, version)
    assert (calibration.kind, calibration.samples) == ("identity", 1)


def test_enough_audits_grade_predictions_and_tasks_anew(loop):
    version = loop.promote()
    ids = audit(loop, version, np.linspace(0.9, 1, quality.MIN_SAMPLES).tolist())
    (waiting,) = audit(loop, version, [0.7], audit_share=0.0)  # below the threshold: review
    calibration = recalibrate(loop, version)
    assert (calibration.kind, calibration.samples) == ("isotonic", quality.MIN_SAMPLES)
    assert loop.predictions(ids[0])[0].quality == pytest.approx(0.5)
    assert loop.predictions(waiting)[0].quality == pytest.approx(0.7 / 0.9 * 0.5)
    assert loop.task(ids[0]).quality == pytest.approx(0.5)
    with loop.ledger.session(write=False) as session:
        assert quality.current_calibrator(session, version).kind == "isotonic"


def test_what_the_session_has_loaded_is_not_stale_after_grading(loop):
    version = loop.promote()
    (task, *_) = audit(loop, version, [0.95] * quality.MIN_SAMPLES)
    with loop.ledger.session() as session:
        row = session.get_one(Task, task)
        assert row.quality == 0.95
        project = session.get_one(Project, loop.project_id)
        quality.recalibrate(session, project, session.get_one(ModelVersion, version))
        assert row.quality == pytest.approx(0.5)


def test_audits_of_an_earlier_version_calibrate_the_next(loop):
    first = loop.promote("elnet-0001")
    audit(loop, first, [0.95] * quality.MIN_SAMPLES)
    second = loop.promote("elnet-0002")
    assert recalibrate(loop, second).kind == "isotonic"


def test_an_unusable_prediction_keeps_the_quality_zero(loop):
    version = loop.promote()
    audit(loop, version, [0.95] * quality.MIN_SAMPLES)
    (task,) = loop.add("x")
    with loop.ledger.session() as session:
        unusable = {"usable": False, "classes": []}
        session.add(
            Prediction(
                task_id=task,
                model_version_id=version,
                masks=square(4),
                score=0.0,
                quality=0.3,
                signals=unusable,
            )
        )
    recalibrate(loop, version)
    assert loop.predictions(task)[0].quality == 0
    assert loop.task(task).quality is None


def test_recalibrating_again_without_new_audits_changes_nothing(loop):
    version = loop.promote()
    audit(loop, version, [0.95] * quality.MIN_SAMPLES)
    assert recalibrate(loop, version).id == recalibrate(loop, version).id
    audit(loop, version, [0.97])
    recalibrate(loop, version)
    with loop.ledger.session(write=False) as session:
        assert session.scalar(select(func.count()).select_from(Calibration)) == 2


def test_a_new_calibration_is_routed_by(loop):
    version = loop.promote()
    audit(loop, version, [0.95] * quality.MIN_SAMPLES)
    loop.configure(audit_share=0.0)
    (task,) = loop.add("x")
    with loop.ledger.session() as session:
        session.add(
            Prediction(
                task_id=task,
                model_version_id=version,
                masks=square(4),
                score=0.95,
                quality=0.95,
                signals={"usable": True, "classes": []},
            )
        )
        session.flush()
        routing.route(session, session.get_one(Project, loop.project_id))
        assert session.get_one(Task, task).status == "accepted"
    recalibrate(loop, version)
    routing.settle(loop.ledger, loop.project_id)
    assert loop.task(task).status == "review"


def test_a_calibration_that_ends_after_another_version_was_promoted_grades_its_own_only(loop):
    first = loop.promote("elnet-0001")
    ids = audit(loop, first, [0.95] * quality.MIN_SAMPLES)
    second = loop.promote("elnet-0002")
    (task,) = loop.routed(second, [0.8])
    recalibrate(loop, first)
    assert loop.predictions(ids[0])[0].quality == pytest.approx(0.5)
    assert (loop.task(task).quality, loop.predictions(task)[0].quality) == (0.8, 0.8)
