"""Two model versions side by side, image by image of a holdout that both were judged on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from sqlalchemy import select, union
from sqlalchemy.orm import Session

from active_learning.gate import MIN_IMAGES, bootstrap
from active_learning.ledger import HoldoutMask, Label, ModelVersion, Prediction, Project, Snapshot, Task
from active_learning.living import current_ids
from backend.desk.charts import Chart, Row, chart, diagonal
from backend.desk.models import find_version
from backend.desk.pictures import is_hidden

if TYPE_CHECKING:
    import altair as alt

SHOWN: Final = 6  # best and worst images
SAME: Final = 5e-4  # of IoU: what a page shows as 0.000
VERDICTS: Final = ("better", "worse", "as good")
FIGURES: Final = {  # of `model.metrics.Scores`, as pages call them
    "fg_iou": "IoU over all pixels",
    "fg_iou_per_image": "IoU, mean over images",
    "miou_2class": "IoU, mean of foreground and background",
    "dice": "Dice over all pixels",
    "boundary_f1": "boundary F at 2 px",
    "boundary_iou": "boundary IoU",
    "cl_dice": "centreline Dice",
}

Entry = Mapping[str, Any]  # of `per_image`, or of a snapshot's manifest


class Judged(NamedTuple):
    """Two versions on the images that both were judged on, by the same labels.

    Attributes:
        new: image -> the version's entry of `per_image`.
        old: the other's.
        images: image -> its entry in the manifest.
        figures: name -> both versions' over that very holdout, where the gate has compared them; else empty.
        left_out: images that only one of them was judged on, or by another label.
    """

    new: dict[str, Entry]
    old: dict[str, Entry]
    images: dict[str, Entry]
    figures: dict[str, tuple[float, float]]
    left_out: int


@dataclass(frozen=True, slots=True)
class ImagePair:
    """What two versions reach on one image.

    Attributes:
        task: the image's id in the labeling tool.
        iou: smoothed IoU of the version, which is what the gate compares.
        other_iou: of the other.
        delta: the one less the other.
        predicted: whether the version's mask can be shown: the ledger holds it, and no blind audit is open.
        other_predicted: the same of the other.
        labelled: whether the label that judged them is still the image's.
    """

    task: int
    iou: float
    other_iou: float
    delta: float
    predicted: bool
    other_predicted: bool
    labelled: bool


@dataclass(frozen=True, slots=True)
class Comparison:
    """A version against another.

    Attributes:
        images: that both were judged on, by the same labels.
        left_out: that only one was judged on, or by another label.
        better: on how many the version reaches more, `worse`, less, `equal`, the same to three digits.
        delta: mean difference of smoothed IoU.
        interval: the 90 % interval of that by the gate's bootstrap; None: too few images, as for the gate.
        figures: name -> the version's and the other's, where the gate has compared these two; else empty.
        best: where the version gains most, the first gains most of all.
        worst: where it loses most.
    """

    version: str
    other: str
    images: int
    left_out: int
    better: int
    worse: int
    equal: int
    delta: float
    interval: tuple[float, float] | None
    figures: dict[str, tuple[float, float]]
    best: list[ImagePair]
    worst: list[ImagePair]


def compare(
    session: Session, project: Project, version: ModelVersion, other: ModelVersion
) -> Comparison | None:
    """Hold a version against another; None where no image can be compared."""
    judged = judge(session, version, other)
    if not judged.images:
        return None
    deltas = {image: _delta(judged, image) for image in judged.images}
    differences = np.array(list(deltas.values()))
    order = sorted(deltas, key=lambda image: deltas[image])
    worst = [image for image in order[:SHOWN] if deltas[image] < -SAME]
    best = [image for image in order[::-1][:SHOWN] if deltas[image] > SAME]
    pairs = _pairs(session, project, judged, version, other, best + worst)
    return Comparison(
        version.name,
        other.name,
        len(deltas),
        judged.left_out,
        int((differences > SAME).sum()),
        int((differences < -SAME).sum()),
        int((abs(differences) <= SAME).sum()),
        float(differences.mean()),
        bootstrap(differences) if len(differences) >= MIN_IMAGES else None,
        judged.figures,
        pairs[: len(best)],
        pairs[len(best) :],
    )


def judge(session: Session, version: ModelVersion, other: ModelVersion) -> Judged:
    """What both were judged on: the gate's figures where it compared them, else what each has of its own."""
    for one, against in ((version, other), (other, version)):
        champion = one.metrics.get("champion")
        if champion is not None and champion["name"] == against.name:
            new, old = (one.metrics, champion) if one is version else (champion, one.metrics)
            there = [name for name in FIGURES if None not in (new.get(name), old.get(name))]
            figures = {name: (new[name], old[name]) for name in there}
            return _judged(new, old, _holdout(session, one), figures)
    mine, its = _holdout(session, version), _holdout(session, other)
    same = {
        image: entry
        for image, entry in mine.items()
        if image in its and its[image]["content"] == entry["content"]
    }
    return _judged(version.metrics, other.metrics, same, {})


def _judged(
    metrics: Entry, others: Entry, images: Mapping[str, Entry], figures: dict[str, tuple[float, float]]
) -> Judged:
    new, old = _by_image(metrics), _by_image(others)
    both = {image: entry for image, entry in images.items() if image in new and image in old}
    return Judged(new, old, both, figures, len(new.keys() | old.keys()) - len(both))


def _by_image(metrics: Entry) -> dict[str, Entry]:
    """Without images whose result is not a finite number, which the ledger keeps as null."""
    entries = metrics.get("per_image", [])
    return {entry["image"]: entry for entry in entries if entry["smoothed_iou"] is not None}


def _holdout(session: Session, version: ModelVersion) -> dict[str, Entry]:
    """The images of a version's holdout: stem -> the manifest's entry."""
    entries = session.scalar(select(Snapshot.manifest["holdout"]).where(Snapshot.id == version.snapshot_id))
    return {entry["stem"]: entry for entry in entries or []}


def _delta(judged: Judged, image: str) -> float:
    return float(judged.new[image]["smoothed_iou"] - judged.old[image]["smoothed_iou"])


def _pairs(
    session: Session,
    project: Project,
    judged: Judged,
    version: ModelVersion,
    other: ModelVersion,
    images: Sequence[str],
) -> list[ImagePair]:
    tasks = [judged.images[image]["task_id"] for image in images]
    mine, its = (_shown(session, project, tasks, one) for one in (version, other))
    found = []
    for image, task in zip(images, tasks, strict=True):
        new, old, entry = judged.new[image], judged.old[image], judged.images[image]
        ids = current_ids(project.id, task_id=task)
        content = session.scalar(select(Label.content).where(Label.id.in_(ids)))
        found.append(
            ImagePair(
                entry["tool_task_id"],
                new["smoothed_iou"],
                old["smoothed_iou"],
                _delta(judged, image),
                task in mine,
                task in its,
                content == entry["content"],
            )
        )
    return found


def _shown(session: Session, project: Project, tasks: Sequence[int], version: ModelVersion) -> set[int]:
    """Of these tasks, those on which a version's mask can be shown: as it was judged, or drawn before."""
    held = [
        select(kind.task_id).where(kind.model_version_id == version.id, kind.task_id.in_(tasks))
        for kind in (HoldoutMask, Prediction)
    ]
    return {
        task.id
        for task in session.scalars(select(Task).where(Task.id.in_(union(*held))))
        if not is_hidden(project, task, version.name)
    }


def _rows(session: Session, project: Project, query: Mapping[str, str]) -> list[Row]:
    """Every image that both were judged on, the greatest gain first."""
    version = find_version(session, project, query.get("version", ""))
    other = find_version(session, project, query.get("other", ""))
    judged = judge(session, version, other)
    order = sorted(judged.images, key=lambda image: _delta(judged, image), reverse=True)
    return [
        {
            "rank": rank,
            "task": judged.images[image]["tool_task_id"],
            "version": version.name,
            "other": other.name,
            "iou": judged.new[image]["smoothed_iou"],
            "other_iou": judged.old[image]["smoothed_iou"],
            "difference": delta,
            "verdict": VERDICTS[0] if delta > SAME else VERDICTS[1] if delta < -SAME else VERDICTS[2],
        }
        for rank, image in enumerate(order, 1)
        for delta in [_delta(judged, image)]
    ]


@chart("version-differences")
def differences(session: Session, project: Project, query: Mapping[str, str]) -> Chart:
    """The difference on every image, sorted; of `version` and `other` of the query."""
    return Chart(_rows(session, project, query), _draw_differences)


@chart("version-scatter")
def scatter(session: Session, project: Project, query: Mapping[str, str]) -> Chart:
    """One version over the other, a point for each image."""
    return Chart(_rows(session, project, query), _draw_scatter)


def _draw_differences(rows: Sequence[Row]) -> alt.TopLevelMixin:
    import altair as alt

    return (
        alt.Chart(alt.Data(values=list(rows)))
        .mark_bar()
        .encode(
            x=alt.X("rank:O", axis=None),
            y=alt.Y("difference:Q", title="difference in smoothed IoU"),
            color=_verdict(rows),
            tooltip=_tooltip(rows),
        )
        .properties(width="container", height=260)
    )


def _draw_scatter(rows: Sequence[Row]) -> alt.TopLevelMixin:
    import altair as alt

    unit = alt.Scale(domain=[0, 1])
    points = (
        alt.Chart(alt.Data(values=list(rows)))
        .mark_point(filled=True, size=45, opacity=0.75)
        .encode(
            x=alt.X("other_iou:Q", title=f"smoothed IoU of {rows[0]['other']}", scale=unit),
            y=alt.Y("iou:Q", title=f"smoothed IoU of {rows[0]['version']}", scale=unit),
            color=_verdict(rows),
            tooltip=_tooltip(rows),
        )
    )
    return alt.layer(diagonal(), points).properties(width="container", height=260)


def _verdict(rows: Sequence[Row]) -> alt.Color:
    import altair as alt

    there = {row["verdict"] for row in rows}
    return alt.Color("verdict:N", scale=alt.Scale(domain=[said for said in VERDICTS if said in there]))


def _tooltip(rows: Sequence[Row]) -> list[alt.Tooltip]:
    import altair as alt

    return [
        alt.Tooltip("task:N"),
        alt.Tooltip("iou:Q", title=rows[0]["version"], format=".3f"),
        alt.Tooltip("other_iou:Q", title=rows[0]["other"], format=".3f"),
        alt.Tooltip("difference:Q", format="+.3f"),
    ]
