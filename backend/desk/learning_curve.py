"""What labels have bought so far: IoU over labels, version by version, and what the next step takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning.ledger import ModelVersion, Project
from active_learning.triggers import labels_for_gain
from backend.desk.charts import Chart, Row, chart
from backend.desk.summaries import labels_of, metrics_of
from backend.desk.words import count

if TYPE_CHECKING:
    import altair as alt

GAIN: Final = 0.01  # of IoU


@dataclass(frozen=True, slots=True)
class NextGain:
    """What the next step in IoU takes.

    Attributes:
        gain: the step, of IoU over all pixels of the holdout.
        labels: how many more labels it takes at least; None: that cannot be told.
        why: where the number comes from, or why there is none.
        measured: what the last step to the champion brought, in words; None: there was none.
    """

    gain: float
    labels: int | None
    why: str
    measured: str | None


def next_gain(session: Session, project: Project) -> NextGain:
    """By `triggers.labels_for_gain` from the champion on."""
    if project.champion_id is None:
        return NextGain(GAIN, None, "no version serves yet", None)
    said = ModelVersion.metrics
    query = select(
        ModelVersion.name,
        ModelVersion.snapshot_id,
        said["fg_iou"].as_float(),
        said[("champion", "name")].as_string(),
        said[("champion", "fg_iou")].as_float(),
    )
    row = session.execute(query.where(ModelVersion.id == project.champion_id)).one()
    name, snapshot, iou, beaten, beaten_iou = row
    if iou is None or snapshot is None:
        return NextGain(GAIN, None, f"{name} was trained or judged outside of the loop", None)
    held = labels_of(session, {snapshot})[snapshot]
    labels = labels_for_gain(iou, GAIN, held)
    why = f"1 - IoU = exp(-c n), through IoU {iou:.3f} with {count(held, 'label')}"
    if labels is None:
        why = f"the rule of thumb has no answer at IoU {iou:.3f}"
    measured = None
    if beaten is not None and (before := _labels_of(session, project, beaten)) is not None:
        measured = _measured(f"from {beaten} to {name}", iou - beaten_iou, held - before)
    return NextGain(GAIN, labels, why, measured)


def _labels_of(session: Session, project: Project, name: str) -> int | None:
    mine = (ModelVersion.project_id == project.id, ModelVersion.name == name)
    snapshot = session.scalar(select(ModelVersion.snapshot_id).where(*mine))
    return None if snapshot is None else labels_of(session, {snapshot})[snapshot]


def _measured(step: str, moved: float, more: int) -> str:
    """What a step brought, on the one holdout that judged both versions."""
    said = f"{step} IoU moved by {moved:+.3f} with {count(more, 'more label')}"
    if moved <= 0 or more <= 0:
        return said
    return f"{said}, so +{GAIN:g} took about {max(1, round(GAIN * more / moved))}"


@chart("learning-curve")
def curve(session: Session, project: Project, _query: Mapping[str, str]) -> Chart:
    """Every version that was judged, by the labels that it was trained on."""
    columns = (ModelVersion.id, ModelVersion.name, ModelVersion.state, ModelVersion.snapshot_id)
    mine = (ModelVersion.project_id == project.id, ModelVersion.snapshot_id.is_not(None))
    versions = session.execute(select(*columns).where(*mine).order_by(ModelVersion.id)).all()
    metrics = metrics_of(session, [version.id for version in versions])
    labels = labels_of(session, {version.snapshot_id for version in versions})
    rows = [
        {
            "version": version.name,
            "state": version.state.value,
            "labels": labels[version.snapshot_id],
            "holdout": said["n"],
            "over all pixels": said["fg_iou"],
            "mean over images": said["fg_iou_per_image"],
        }
        for version in versions
        if {"n", "fg_iou", "fg_iou_per_image"} <= (said := metrics[version.id]).keys()
    ]
    return Chart(sorted(rows, key=lambda row: row["labels"]), _draw_curve)


def _draw_curve(rows: Sequence[Row]) -> alt.TopLevelMixin:
    import altair as alt

    base = (
        alt.Chart(alt.Data(values=list(rows)))
        .transform_fold(["over all pixels", "mean over images"], as_=["measure", "IoU"])
        .encode(
            x=alt.X("labels:Q", title="labels trained on", scale=alt.Scale(zero=False, padding=12)),
            y=alt.Y("IoU:Q", title="IoU on the holdout", scale=alt.Scale(zero=False, padding=8)),
            color=alt.Color("measure:N", sort=["over all pixels", "mean over images"]),
            tooltip=[
                alt.Tooltip("version:N"),
                alt.Tooltip("state:N"),
                alt.Tooltip("labels:Q", format=","),
                alt.Tooltip("holdout:Q", title="images of the holdout", format=","),
                alt.Tooltip("measure:N"),
                alt.Tooltip("IoU:Q", format=".3f"),
            ],
        )
    )
    served = alt.condition("datum.state == 'champion'", alt.value(160), alt.value(55))
    points = base.mark_point(filled=True, opacity=1).encode(size=served)
    return alt.layer(base.mark_line(), points).properties(width="container", height=240)
