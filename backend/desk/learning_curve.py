"""What labels have bought so far: IoU over labels, version by version, and what the next step takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from sqlalchemy import func, select
from sqlalchemy.orm import Session

from active_learning.ledger import ModelVersion, Project, Snapshot
from active_learning.triggers import labels_for_gain
from backend.desk.charts import Chart, Row, chart
from backend.desk.words import count

if TYPE_CHECKING:
    import altair as alt

GAIN: Final = 0.01  # of IoU
# Read inside the database: a manifest and a version's metrics hold megabytes where thousands are labelled.
LABELS: Final = func.json_array_length(Snapshot.manifest["train"])
IOU: Final = ModelVersion.metrics["fg_iou"].as_float()


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
    former = ModelVersion.metrics["champion"]
    columns = (ModelVersion.name, IOU, LABELS, former["name"].as_string(), former["fg_iou"].as_float())
    query = select(*columns).outerjoin(Snapshot, Snapshot.id == ModelVersion.snapshot_id)
    name, iou, held, beaten, beaten_iou = session.execute(
        query.where(ModelVersion.id == project.champion_id)
    ).one()
    if iou is None or held is None:
        return NextGain(GAIN, None, f"{name} was trained or judged outside of the loop", None)
    labels = labels_for_gain(iou, GAIN, held)
    why = f"1 - IoU = exp(-c n), through IoU {iou:.3f} with {count(held, 'label')}"
    if labels is None:
        why = f"the rule of thumb has no answer at IoU {iou:.3f}"
    return NextGain(GAIN, labels, why, _measured(session, project, name, iou, held, beaten, beaten_iou))


def _measured(
    session: Session,
    project: Project,
    name: str,
    iou: float,
    held: int,
    beaten: str | None,
    beaten_iou: float | None,
) -> str | None:
    """On one holdout, as the gate saw both."""
    mine = select(LABELS).join(ModelVersion, ModelVersion.snapshot_id == Snapshot.id)
    before = session.scalar(mine.where(ModelVersion.project_id == project.id, ModelVersion.name == beaten))
    if before is None or beaten_iou is None:
        return None
    moved, more = iou - beaten_iou, held - before
    said = f"from {beaten} to {name} IoU moved by {moved:+.3f} with {count(more, 'more label')}"
    if moved <= 0 or more <= 0:
        return said
    return f"{said}: one for each {moved / more:.4f}, so {GAIN:g} took {GAIN * more / moved:.0f}"


@chart("learning-curve")
def curve(session: Session, project: Project, _query: Mapping[str, str]) -> Chart:
    """Every version that was judged, by the labels that it was trained on."""
    per_image = ModelVersion.metrics["fg_iou_per_image"].as_float()
    query = (
        select(ModelVersion.name, ModelVersion.state, LABELS, ModelVersion.metrics["n"].as_integer())
        .add_columns(IOU, per_image)
        .join(Snapshot, Snapshot.id == ModelVersion.snapshot_id)
        .where(ModelVersion.project_id == project.id, IOU.is_not(None), per_image.is_not(None))
        .order_by(LABELS, ModelVersion.id)
    )
    rows = [
        {
            "version": name,
            "state": state.value,
            "labels": labels,
            "holdout": holdout,
            "over all pixels": iou,
            "mean over images": mean,
        }
        for name, state, labels, holdout, iou, mean in session.execute(query)
    ]
    return Chart(rows, _draw_curve)


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
