from __future__ import annotations

import csv
import io
import json
from dataclasses import asdict
from datetime import timedelta
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select

from active_learning import thresholds
from active_learning.guarantee import Promise
from active_learning.ledger import Label, LabelSource, Prediction, Task
from active_learning.ledger.types import utc_now
from backend.desk import quality
from backend.desk.quality import facts

HALF = np.zeros((1, 8, 8), np.bool_)
HALF[:, :4] = True


def look(spills: Any, page: int = 1) -> Any:
    with spills.ledger.session(write=False) as session:
        return facts(session, spills.project(session), page)


def rows(spills: Any, chart: str) -> list[dict[str, str]]:
    answer = spills.client.get(f"{spills.path}/charts/{chart}.csv")
    return list(csv.DictReader(io.StringIO(answer.get_data(as_text=True))))


def promise(spills: Any, value: float | None, risk: float = 0.4) -> None:
    with spills.ledger.session() as session:
        promised = Promise(0.6, risk)
        thresholds.set_threshold(session, spills.project(session), value, "lea", "a promise", promised)


def audits(spills: Any, *said: tuple[float, float], blind: bool = False, annotator: str = "1") -> None:
    """Labels of new images: (predicted IoU, IoU with the label) of each."""
    for task, (_, iou) in zip(spills.add(*(p for p, _ in said), audit_share=1.0), said, strict=True):
        add_label(spills, task, iou, annotator, blind=blind)


def add_label(
    spills: Any, task: Task, iou: float | None, annotator: str, *, blind: bool = False, rows: int = 4
) -> None:
    masks = np.zeros((1, 8, 8), np.bool_)
    masks[:, :rows] = True
    with spills.ledger.session() as session:
        said = session.scalars(select(Prediction).where(Prediction.task_id == task.id)).first()
        number = session.scalar(select(func.count()).select_from(Label))
        session.add(
            Label(
                project_id=spills.project_id, task_id=task.id, tool_annotation_id=9000 + number, revision="r",
                source=LabelSource.AUDIT, annotator=annotator, prediction_id=said.id, prefill_iou=iou,
                blind=blind, updated_at=utc_now() + timedelta(seconds=number), masks=masks,
            )
        )  # fmt: skip


def test_realised_risk_stands_beside_the_promised_one(spills):
    promise(spills, 0.8)
    audits(spills, (0.9, 0.9), (0.95, 0.3), (0.85, 0.8), (0.7, 0.1))
    kept = look(spills).kept
    assert (kept.risk, kept.threshold, kept.missing) == (0.4, 0.8, None)
    assert (kept.watch.audited, kept.watch.failures) == (3, 1)  # the last would not have been accepted
    page = spills.page("/quality")
    assert "33% <small>bad, 40% promised" in page
    assert "<strong>1 of 3</strong> audited scenes" in page
    found = rows(spills, "realised-risk")
    assert [(row["audited"], row["bad"]) for row in found] == [("1", "0"), ("2", "1"), ("3", "1")]
    assert float(found[-1]["evidence"]) == pytest.approx(kept.watch.evidence)
    assert rows(spills, "evidence") == found


def test_a_promise_that_waits_says_how_many_audits_it_takes(spills):
    promise(spills, None, risk=0.1)
    page = spills.page("/quality")
    assert "22 more audited masks of elnet-0001 until the first promise, if all are good" in page
    audits(spills, *[(0.9, 0.9)] * 12)
    assert look(spills).kept.missing == 10
    audits(spills, *[(0.9, 0.9)] * 12)
    assert "The audits of elnet-0001 cannot promise it yet" in spills.page("/quality")


def test_without_anything_every_part_says_what_it_needs(empty_spills):
    page = empty_spills.page("/quality")
    assert "Nothing is promised, so nothing can be broken" in page
    assert "Charts come with the first audited masks" in page
    assert "No label contradicts" in page
    assert "data-chart" not in page
    assert "No audit is blind: set a" in page
    assert "It takes 20 audited scenes" in empty_spills.page("/quality/drift")
    assert "No image was labelled by two people yet" in empty_spills.page("/quality/agreement", bare=1)
    for chart in ("reliability", "realised-risk", "evidence", "predicted-and-true", "quality-over-time"):
        assert empty_spills.client.get(f"{empty_spills.path}/charts/{chart}.json").get_json() == {
            "empty": True
        }


def test_calibration_says_how_many_audits_it_lacks(spills):
    assert "20 more audits until predicted IoU is calibrated" in spills.page("/quality")
    audits(spills, *[(0.9, 0.8)] * 3)
    found = look(spills)
    assert (found.audited, found.own, found.until_scale) == (3, 3, 20)  # calibrated at the end of a cycle
    assert found.error == pytest.approx(0.1)


def test_blind_audits_stand_beside_the_others(spills):
    with spills.ledger.session() as session:
        spills.project(session).blind_share = 0.2
    audits(spills, *[(0.8, 0.85)] * 5)
    audits(spills, *[(0.8, 0.6)] * 3, blind=True)
    found = look(spills)
    assert found.anchoring is None
    assert found.until_anchoring == (0, 2)
    assert "2 more blind audits until it can be told" in spills.page("/quality")
    audits(spills, *[(0.8, 0.6)] * 2, blind=True)
    found = look(spills)
    assert found.anchoring.difference == pytest.approx(0.25)
    assert [(g.kind, g.audits, round(g.iou, 2)) for g in found.groups] == [
        ("mask shown", 5, 0.85),
        ("blind", 5, 0.6),
    ]
    assert "+0.250 <small>IoU" in spills.page("/quality")
    assert [row["mask"] for row in rows(spills, "predicted-and-true")].count("blind") == 5


def test_suspected_labels_are_shown_with_both_masks_and_a_link(spills):
    audits(spills, (0.9, 0.1), (0.8, 0.75), (0.7, 0.3))
    found = look(spills)
    assert found.suspected == 2
    assert [round(one.label.shortfall, 1) for one in found.suspects] == [0.8, 0.4]
    page = spills.page("/quality")
    task = found.suspects[0].label.task
    assert f"pictures/{task}/elnet-0001.png" in page
    assert f"pictures/{task}/label.png" in page
    assert f"http://tool/projects/1/data?task={task}" in page
    json.dumps(asdict(found), default=str)


def test_suspects_fill_pages_and_there_are_no_others(spills):
    audits(spills, *[(0.9, 0.1)] * 14)
    assert [len(look(spills, page).suspects) for page in (1, 2)] == [12, 2]
    assert "page 2 of 2" in spills.page("/quality", page=2)
    for wrong in ("3", "0", "-1"):
        assert spills.client.get(f"{spills.path}/quality?page={wrong}").status_code == 404


def test_two_peoples_labels_of_an_image_are_compared(spills):
    tasks = spills.add(0.5, 0.5)
    for task, drawn in zip(tasks, (2, 3), strict=True):
        add_label(spills, task, 0.5, "3", rows=4)
        add_label(spills, task, 0.5, "4", rows=drawn)
    with spills.ledger.session(write=False) as session:
        found = quality.agreement(session, spills.project(session))
    [two] = found.people
    assert (two.annotators, two.images, two.iou) == (("3", "4"), 2, 0.625)
    assert [pair.iou for pair in found.pairs] == [0.5, 0.75]
    part = spills.page("/quality/agreement", bare=1)
    assert "<html" not in part
    assert found.pairs[0].url in part
    assert "<html" in spills.page("/quality/agreement")


def test_drift_is_told_of_what_was_accepted_since(spills):
    with spills.ledger.session() as session:
        spills.project(session).accept_threshold = 0.5
    rng = np.random.default_rng(0)
    audits(spills, *[(0.9, 0.9)] * 25)
    spills.add(*[0.9] * 15)
    with spills.ledger.session() as session:
        for said in session.scalars(select(Prediction)):
            said.embedding = rng.normal(size=4).astype(np.float32) + (9 if said.task_id > 28 else 0)
    with spills.ledger.session(write=False) as session:
        found = quality.drift(session, spills.project(session))
    assert found.alarming
    assert found.drift.strange > 0.9
    part = spills.page("/quality/drift", bare=1)
    assert "The imagery has drifted" in part
    assert "25 audited ones" in part


def test_the_reliability_chart_is_drawn_of_bins(spills):
    rng = np.random.default_rng(0)
    audits(spills, *[(q, float(np.clip(q + 0.1 * rng.normal(), 0, 1))) for q in rng.uniform(0.2, 1, 40)])
    found = rows(spills, "reliability")
    assert sum(int(row["audits"]) for row in found) == 40
    assert all(float(row["from"]) <= float(row["iou"]) <= float(row["to"]) for row in found)
    drawn = json.dumps(spills.client.get(f"{spills.path}/charts/reliability.json").get_json())
    assert "40 audits; one mask is off by" in drawn
    assert "rank correlation" in drawn
    assert len(rows(spills, "quality-over-time")) == 8  # four groups of ten, two lines


def test_unknown_projects_and_parts_are_not_found(spills):
    assert spills.client.get("/desk/99/quality").status_code == 404
    answer = spills.client.get(f"{spills.path}/quality/colour")
    assert answer.status_code == 404
    assert "it has agreement, drift" in answer.text


def test_a_course_of_many_audits_is_thinned_and_keeps_its_end() -> None:
    from backend.desk.quality_charts import DRAWN, _thinned

    found = _thinned([{"n": n} for n in range(10 * DRAWN + 3)])
    assert len(found) <= DRAWN
    assert found[-1] == {"n": 10 * DRAWN + 2}
    assert _thinned([]) == []
