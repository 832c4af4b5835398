"""The charts of the page on quality."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import TYPE_CHECKING, Final

from sqlalchemy.orm import Session

from active_learning import reliability as reliabilities
from active_learning import thresholds
from active_learning.judgements import audits
from active_learning.ledger import Project
from active_learning.reliability import Reliability
from active_learning.thresholds import FALSE_ALARM
from backend.desk.charts import Chart, Row, chart, diagonal

if TYPE_CHECKING:
    import altair as alt

DRAWN: Final = 1000  # audits, the newest
AT_ONCE: Final = 10  # audits of one point of a course, at least
POINTS: Final = 30  # of a course, at most
AXIS: Final = "audited scenes since the threshold moved"
MAPS: Final = {
    "identity": "an uncalibrated score",
    "isotonic": "by isotonic regression of the score",
    "ridge": "by ridge regression of all signals",
}


@chart("reliability")
def reliability(session: Session, project: Project, query: Mapping[str, str]) -> Chart:
    """Mean IoU of audits over what was predicted of them, with twice its standard error."""
    found = reliabilities.reliability(session, project)
    rows: list[Row] = [
        {
            "predicted": b.predicted,
            "iou": b.iou,
            "from": max(0.0, b.iou - 2 * b.error),
            "to": min(1.0, b.iou + 2 * b.error),
            "audits": b.audits,
            "lowest_predicted": b.low,
            "highest_predicted": b.high,
        }
        for b in (found.bins if found else ())
    ]
    return Chart(rows, lambda rows: _reliability(rows, found))


def _reliability(rows: Sequence[Row], found: Reliability | None) -> alt.TopLevelMixin:
    import altair as alt

    data = alt.Data(values=list(rows))
    x = alt.X("predicted:Q", title="predicted IoU", scale=alt.Scale(domain=[0, 1]))
    unit = alt.Scale(domain=[0, 1])
    tips = ["audits:Q", *(alt.Tooltip(f"{name}:Q", format=".3f") for name in ("predicted", "iou"))]
    bars = alt.Chart(data).mark_rule(strokeWidth=2, opacity=0.6).encode(
        x=x, y=alt.Y("from:Q", title="IoU with the label", scale=unit), y2="to:Q"
    )  # fmt: skip
    size = alt.Size("audits:Q", legend=None)
    points = alt.Chart(data).mark_point(filled=True, opacity=1).encode(
        x=x, y=alt.Y("iou:Q", scale=unit), size=size, tooltip=tips
    )  # fmt: skip
    drawn = alt.layer(diagonal(), bars, points).properties(width="container", height=280)
    if found is None:
        return drawn
    lines = [f"{found.audits} audits; one mask is off by {found.absolute_error:.3f}"]
    if found.rank_correlation is not None:
        lines.append(f"rank correlation {found.rank_correlation:.2f}")
    return drawn.properties(title=alt.Title(lines, subtitle=MAPS[found.kind]))


@chart("realised-risk")
def realised_risk(session: Session, project: Project, query: Mapping[str, str]) -> Chart:
    """Share of bad ones among the audited masks that are accepted, since the threshold last moved."""
    promised = thresholds.standing(project)
    rows: list[Row] = [
        {
            "at": at.isoformat(),
            "audited": seen.audited,
            "bad": seen.failures,
            "share": seen.failures / seen.audited,
            "promised": promised.risk if promised else None,
            "evidence": seen.evidence,
        }
        for at, seen in thresholds.course(session, project)
    ]
    return Chart(_thinned(rows), _realised_risk)


def _realised_risk(rows: Sequence[Row]) -> alt.TopLevelMixin:
    import altair as alt

    data = alt.Data(values=list(rows))
    x = alt.X("audited:Q", title=AXIS, axis=alt.Axis(tickMinStep=1))
    tips = [alt.Tooltip("at:T", format="%Y-%m-%d %H:%M"), "audited:Q", "bad:Q"]
    share = alt.Chart(data).mark_line(interpolate="step-after", point=True).encode(
        x=x, y=alt.Y("share:Q", title="bad so far", axis=alt.Axis(format="%")), tooltip=tips
    )  # fmt: skip
    promised = alt.Chart(alt.Data(values=[rows[-1]])).mark_rule(strokeDash=[5, 4], strokeWidth=1.5)
    return alt.layer(promised.encode(y="promised:Q"), share).properties(width="container", height=220)


@chart("evidence")
def evidence(session: Session, project: Project, query: Mapping[str, str]) -> Chart:
    """The evidence against the promise after each audit; where it stops auto-accept."""
    return Chart(realised_risk(session, project, query).rows, _evidence)


def _evidence(rows: Sequence[Row]) -> alt.TopLevelMixin:
    import altair as alt

    log = alt.Scale(type="log", domainMin=0.1)
    tips = [
        alt.Tooltip("at:T", format="%Y-%m-%d %H:%M"),
        "audited:Q",
        alt.Tooltip("evidence:Q", format=".2f"),
    ]
    line = alt.Chart(alt.Data(values=list(rows))).mark_line(interpolate="step-after", point=True).encode(
        x=alt.X("audited:Q", title=AXIS, axis=alt.Axis(tickMinStep=1)),
        y=alt.Y("evidence:Q", title="evidence", scale=log, axis=alt.Axis(tickCount=4)),
        tooltip=tips,
    )  # fmt: skip
    limit = alt.Chart(alt.Data(values=[{"limit": 1 / FALSE_ALARM}])).mark_rule(strokeDash=[5, 4])
    return alt.layer(limit.encode(y=alt.Y("limit:Q", scale=log)), line).properties(
        width="container", height=220
    )


@chart("predicted-and-true")
def predicted_and_true(session: Session, project: Project, query: Mapping[str, str]) -> Chart:
    """Every audit: the IoU that was predicted of its mask, and the one with the label."""
    rows: list[Row] = [
        {
            "task": one.task,
            "predicted": one.predicted,
            "iou": one.iou,
            "mask": "blind" if one.blind else "shown",
            "version": one.version,
            "at": one.at.isoformat(),
        }
        for one in audits(session, project)[:DRAWN]
    ]
    return Chart(rows, _predicted_and_true)


def _predicted_and_true(rows: Sequence[Row]) -> alt.TopLevelMixin:
    import altair as alt

    kinds = ["shown", "blind"]
    unit = alt.Scale(domain=[0, 1])
    tips = [
        "task:N",
        "version:N",
        "mask:N",
        *(alt.Tooltip(f"{n}:Q", format=".3f") for n in ("predicted", "iou")),
    ]
    points = alt.Chart(alt.Data(values=list(rows))).mark_point(filled=True, size=50, opacity=0.75).encode(
        x=alt.X("predicted:Q", title="predicted IoU", scale=unit),
        y=alt.Y("iou:Q", title="IoU with the label", scale=unit),
        color=alt.Color("mask:N", scale=alt.Scale(domain=kinds)),
        shape=alt.Shape("mask:N", scale=alt.Scale(domain=kinds)),
        tooltip=tips,
    )  # fmt: skip
    return alt.layer(diagonal(), points).properties(width="container", height=280)


@chart("quality-over-time")
def quality_over_time(session: Session, project: Project, query: Mapping[str, str]) -> Chart:
    """Means over audits that followed each other: the IoU, and what was predicted."""
    done = audits(session, project)[::-1]
    size = max(AT_ONCE, -(-len(done) // POINTS))
    rows: list[Row] = []
    for start in range(0, len(done), size):
        part = done[start : start + size]
        for of, mean in (
            ("IoU with the label", fmean(one.iou for one in part)),
            ("predicted", fmean(one.predicted for one in part)),
        ):
            rows.append({"at": part[-1].at.isoformat(), "of": of, "iou": mean, "audits": len(part)})
    return Chart(rows, _quality_over_time)


def _quality_over_time(rows: Sequence[Row]) -> alt.TopLevelMixin:
    import altair as alt

    tips = [
        alt.Tooltip("at:T", format="%Y-%m-%d %H:%M"),
        "of:N",
        alt.Tooltip("iou:Q", format=".3f"),
        "audits:Q",
    ]
    return (
        alt.Chart(alt.Data(values=list(rows)))
        .mark_line(point=True)
        .encode(
            x=alt.X("at:T", title=None, axis=alt.Axis(labelOverlap=True, tickCount=5)),
            y=alt.Y("iou:Q", title="mean IoU", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("of:N"),
            tooltip=tips,
        )
        .properties(width="container", height=220)
    )


def _thinned(rows: list[Row]) -> list[Row]:
    """At most `DRAWN` of them and the last."""
    step = -(-len(rows) // DRAWN) or 1
    return rows[(len(rows) - 1) % step :: step]
