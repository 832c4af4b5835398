"""What every threshold would do, and what audits say of it: for the slider and the risk-coverage curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import ColumnElement, select
from sqlalchemy.orm import Session

from active_learning.guarantee import Promise, one_of_each_scene, upper_bound
from active_learning.ledger import Prediction, Project, Task, TaskStatus
from active_learning.risk import risk_coverage, seconds_per_label
from active_learning.tallies import BINS, open_routes
from active_learning.thresholds import Judged
from backend.addresses import task_url
from backend.desk.charts import Row

STEPS: Final = 200  # of the slider, between 0 and 1; whole bins of the counts
NEAR: Final = 4  # masks shown on either side of the line


@dataclass(frozen=True, slots=True)
class Reached:
    """Audited scenes from a predicted IoU on.

    Attributes:
        threshold: the predicted IoU.
        scenes: how many reach it.
        bad: of these, those that the promise calls bad.
        coverage: their share of all audited scenes.
        low: lower end of the one-sided exact interval of the share of bad ones, at the promise's confidence;
        high: the upper end.
    """

    threshold: float
    scenes: int
    bad: int
    coverage: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Ladder:
    """What a slider needs to answer by itself.

    Attributes:
        accepted: (`STEPS` + 1,) masks that would be accepted from k / `STEPS` on.
        audit: tasks drawn for the audit, whatever the threshold.
        unusable: tasks without a usable mask, for people whatever the threshold.
        waiting: tasks that the champion has not predicted yet.
        seconds: median time of a label; None: not known.
        reached: what audits say, from the strictest threshold to the loosest.
    """

    accepted: list[int]
    audit: int
    unusable: int
    waiting: int
    seconds: float | None
    reached: list[Reached]


@dataclass(frozen=True, slots=True)
class Near:
    """A mask near the line: the task's id in Label Studio, its predicted IoU, where it opens."""

    task: int
    quality: float
    url: str


def ladder(session: Session, project: Project, promised: Promise, judged: Judged) -> Ladder:
    """What every threshold would do, and what audits say of it."""
    routes = open_routes(session, project)
    reaching = routes.bins[::-1].cumsum()[::-1]  # from each bin on
    return Ladder(
        reaching[:: BINS // STEPS].tolist(),
        routes.audit,
        routes.unusable,
        routes.waiting,
        seconds_per_label(session, project),
        reached(judged, promised),
    )


def reached(judged: Judged, promised: Promise) -> list[Reached]:
    """The risk-coverage curve of the champion's audits, one mask of each scene."""
    quality, iou = one_of_each_scene(judged.qualities, judged.ious, judged.scenes)
    sure = promised.confidence
    return [
        Reached(
            point.threshold,
            point.accepted,
            point.failures,
            point.coverage,
            1 - upper_bound(point.accepted - point.failures, point.accepted, sure),
            upper_bound(point.failures, point.accepted, sure),
        )
        for point in risk_coverage(quality.tolist(), iou.tolist(), promised.iou)
    ]


def near(session: Session, project: Project, threshold: float) -> tuple[list[Near], list[Near]]:
    """Masks just above a threshold, nearest first, and just below it."""

    def chosen(which: ColumnElement[bool], order: Any) -> list[Near]:
        query = (  # along the index of a version's predictions by quality
            select(Task.tool_task_id, Prediction.quality)
            .join(Prediction, Prediction.task_id == Task.id)
            .where(Prediction.model_version_id == project.champion_id, which)
            .where(Task.status.in_((TaskStatus.REVIEW, TaskStatus.ACCEPTED)), Task.quality.is_not(None))
            .order_by(order, Prediction.id)
            .limit(NEAR)
        )
        return [Near(task, quality, task_url(project, task)) for task, quality in session.execute(query)]

    above = chosen(Prediction.quality >= threshold, Prediction.quality)
    return above, chosen(Prediction.quality < threshold, Prediction.quality.desc())


def draw(rows: Sequence[Row]) -> Any:
    """The risk-coverage curve: rows as `curve` makes them; a parameter `at` moves a cursor."""
    import altair as alt

    percent = alt.Axis(format="%", labelOverlap=True)
    base = alt.Chart(alt.Data(values=list(rows)), width="container", height=260)
    x = alt.X("coverage:Q", title="share of the audited masks that is accepted", axis=percent)
    x = x.scale(domain=[0, 1])
    tip = [
        alt.Tooltip("threshold:Q", format=".3f"),
        alt.Tooltip("coverage:Q", format=".0%"),
        "audited scenes:Q",
        "bad:Q",
        alt.Tooltip("share bad:Q", format=".1%"),
        alt.Tooltip("high:Q", format=".1%", title="at most"),
    ]
    band = base.mark_area(opacity=0.18, interpolate="step-before").encode(
        x=x, y=alt.Y("low:Q", title="share of bad masks", axis=percent), y2="high:Q"
    )
    line = base.mark_line(interpolate="step-before", strokeWidth=2).encode(x=x, y="share bad:Q")
    points = base.mark_point(filled=True, size=28).encode(x=x, y="share bad:Q", tooltip=tip)
    limit = base.mark_rule(strokeDash=[5, 4]).encode(y="promised:Q")
    at = alt.param(name="at", value=-1)
    cursor = (
        alt.Chart(alt.Data(values=[{}]))
        .mark_rule(strokeWidth=2)
        .transform_calculate(at="at")
        .transform_filter("datum.at >= 0")
        .encode(x="at:Q")
    )
    return (band + limit + line + points + cursor).add_params(at)
