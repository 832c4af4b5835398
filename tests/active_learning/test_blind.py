"""Blind audits: a part of the audited masks is not shown, to tell how far masks draw people to them."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from active_learning import routing
from active_learning.judgements import LEAST_BLIND, Judgement, anchoring, audits
from active_learning.ledger import Project, TaskStatus
from active_learning.ledger.draws import audit_draw
from active_learning.prefill import predict_waiting
from active_learning.push import push
from active_learning.routing import BLIND, is_blind


@pytest.fixture
def pushed(loop: Any, make_predictor: Any) -> list[int]:
    """Twenty images, all audited, about half of them blind, pushed; their ids."""
    loop.configure(audit_share=1.0, blind_share=0.5)
    ids: list[int] = loop.add(*(loop.image(0.9, seed=i) for i in range(20)))
    loop.promote("elnet-0001")
    predict_waiting(loop.ledger, loop.project_id, make_predictor("elnet-0001"), loop.images)
    push(loop.ledger, loop.project_id, loop.tool)
    return ids


def hidden(loop: Any, ids: list[int]) -> set[int]:
    return {i for i in ids if is_blind(loop.project(), "elnet-0001", i, holdout=False)}


def shown(loop: Any, task_id: int) -> np.ndarray[Any, Any]:
    masks: np.ndarray[Any, Any] = loop.tool.predictions[loop.task(task_id).tool_task_id][1].masks
    return masks


def test_the_tool_is_not_told_the_mask(loop: Any, pushed: list[int]) -> None:
    blind = hidden(loop, pushed)
    assert 4 < len(blind) < 16
    for i in pushed:
        (prediction,) = loop.predictions(i)
        assert prediction.masks.any()
        assert shown(loop, i).shape == prediction.masks.shape
        assert shown(loop, i).any() == (i not in blind)
        assert loop.decisions(i)[-1].reason.endswith(BLIND) == (i in blind)
    assert push(loop.ledger, loop.project_id, loop.tool).prefills == 0


def test_a_label_is_compared_with_the_mask_that_was_hidden(loop: Any, pushed: list[int]) -> None:
    blind = hidden(loop, pushed)
    for i in pushed:
        (prediction,) = loop.predictions(i)
        loop.label(i, prediction.masks)
        (label,) = loop.labels(i)
        assert label.blind == (i in blind)
        assert label.prefill_iou == 1
    with loop.ledger.session(write=False) as session:
        done = audits(session, session.get_one(Project, loop.project_id))
    assert sum(one.blind for one in done) == len(blind)


def test_a_mask_is_shown_once_its_image_is_no_audit_any_more(loop: Any, pushed: list[int]) -> None:
    blind = hidden(loop, pushed)
    loop.configure(audit_share=0.0)
    with loop.ledger.session() as session:
        routing.route(session, session.get_one(Project, loop.project_id))
    assert {loop.task(i).status for i in pushed} <= {TaskStatus.REVIEW, TaskStatus.ACCEPTED}
    assert push(loop.ledger, loop.project_id, loop.tool).prefills == len(blind)
    assert all(shown(loop, i).any() for i in pushed)
    loop.label(pushed[0])
    assert not loop.labels(pushed[0])[0].blind


def test_the_draw_is_a_share_of_the_audits_and_of_the_holdout() -> None:
    project = Project(audit_share=0.2, blind_share=0.3)
    drawn = [is_blind(project, "v1", i, holdout=False) for i in range(5000)]
    assert np.mean(drawn) == pytest.approx(0.2 * 0.3, abs=0.012)
    assert all(audit_draw(i, "v1") < 0.2 for i, blind in enumerate(drawn) if blind)
    judges = [is_blind(project, "v1", i, holdout=True) for i in range(5000)]
    assert np.mean(judges) == pytest.approx(0.3, abs=0.025)
    assert not any(
        is_blind(Project(audit_share=1.0, blind_share=0.0), "v1", i, holdout=True) for i in range(99)
    )


def test_anchoring_by_hand() -> None:
    def audit(predicted: float, iou: float, blind: bool) -> Judgement:
        return Judgement(1, "v1", predicted, iou, "3", None, datetime.now(UTC), blind)

    unseen = [audit(0.8, 0.6, True), audit(0.6, 0.6, True)] * 3
    seen = [audit(0.7, 0.9, False), audit(0.9, 0.9, False)] * 4
    found = anchoring(unseen + seen)
    assert found is not None
    assert (found.blind, found.shown) == (6, 8)
    assert found.difference == pytest.approx(0.1 - -0.1)
    # both vary by 0.1 about their mean: variances 0.01 n / (n - 1)
    assert found.error == pytest.approx(math.sqrt(0.01 / 5 + 0.01 / 7))
    assert anchoring(unseen[: LEAST_BLIND - 1] + seen) is None
    assert anchoring(seen) is None
