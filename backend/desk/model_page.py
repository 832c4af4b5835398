"""One model version: its figures beside another's, image by image, and the labels that it learned from."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from datetime import datetime
from typing import Any, Final

from flask import Response, request
from sqlalchemy import func, select
from sqlalchemy.orm import Session

from active_learning import lineage
from active_learning.holdout_masks import KEPT
from active_learning.ledger import Label, ModelState, ModelVersion, Project, Snapshot
from backend.desk.charts import download_csv
from backend.desk.comparison import FIGURES, Comparison, compare
from backend.desk.models import VersionFacts, blueprint, find_version, version_facts
from backend.desk.project_page import open_project, render
from backend.desk.shifts import Shifts, shifts
from backend.desk.summaries import labels_of

TASKS: Final = 200  # links to images; the file has them all
OTHERS: Final = 50  # versions that can be chosen to compare with
_CHUNK: Final = 10_000  # ids in one query


@dataclass(frozen=True, slots=True)
class Origin:
    """The labels of a version's own training.

    Attributes:
        snapshot: sha256 of what was frozen.
        frozen_at: when.
        labels: images trained on.
        holdout: images that judge.
        left_out: labelled images that could not be used.
        scenes: that the labels are of.
        by_source: "human" or "audit" -> labels.
        by_annotator: the labeling tool's user id -> labels, the most first.
        tasks: ids of the first images in the labeling tool.
    """

    snapshot: str
    frozen_at: datetime
    labels: int
    holdout: int
    left_out: int
    scenes: int
    by_source: dict[str, int]
    by_annotator: dict[str, int]
    tasks: list[int]


@dataclass(frozen=True, slots=True)
class Ancestor:
    """A version that the training went on from, and how many labels that one was trained on."""

    name: str
    state: ModelState
    labels: int | None


@dataclass(frozen=True, slots=True)
class ModelPage:
    """A version.

    Attributes:
        version: what the list says of it.
        sha256: of its weights.
        figures: of the holdout, by the names of `model.metrics.Scores`; empty: it was not judged.
        per_class: class -> the same figures; empty for a single class.
        other: what it is compared with.
        others: versions that it can be compared with, newest first.
        comparison: with one of them on the holdout; None: nothing can be compared.
        shifts: what it changed to that one where nobody has labelled; None: no image was predicted by both.
        origin: None: it was trained outside of the loop.
        ancestry: what it went on from, the nearest first.
    """

    version: VersionFacts
    sha256: str
    figures: dict[str, float]
    per_class: dict[str, dict[str, float]]
    other: str | None
    others: list[str]
    comparison: Comparison | None
    shifts: Shifts | None
    origin: Origin | None
    ancestry: list[Ancestor]


def facts(session: Session, project: Project, name: str, other: str | None = None) -> ModelPage:
    """Of one version.

    Args:
        session: any.
        project: the project.
        name: of the version.
        other: what it is compared with; default: the champion, and of that the version that it succeeded.

    Raises:
        NotFound: the project has no version of one of these names.
    """
    version = find_version(session, project, name)
    against = _against(session, project, version, other)
    others = select(ModelVersion.name).where(
        ModelVersion.project_id == project.id, ModelVersion.id != version.id
    )
    return ModelPage(
        version_facts(session, project, version),
        version.sha256,
        {key: version.metrics[key] for key in FIGURES if version.metrics.get(key) is not None},
        version.metrics.get("per_class", {}),
        against.name if against is not None else None,
        list(session.scalars(others.order_by(ModelVersion.id.desc()).limit(OTHERS))),
        compare(session, project, version, against) if against is not None else None,
        shifts(session, version, against) if against is not None else None,
        _origin(session, version),
        _ancestry(session, version),
    )


def _against(
    session: Session, project: Project, version: ModelVersion, name: str | None
) -> ModelVersion | None:
    if name and name != version.name:
        return find_version(session, project, name)
    if project.champion_id != version.id:
        return project.champion
    beaten = version.metrics.get("champion")
    return find_version(session, project, beaten["name"]) if beaten else None


def _origin(session: Session, version: ModelVersion) -> Origin | None:
    snapshot = session.get(Snapshot, version.snapshot_id) if version.snapshot_id else None
    if snapshot is None:
        return None
    trained = snapshot.manifest["train"]
    people: Counter[str] = Counter()
    for start in range(0, len(trained), _CHUNK):
        ids = [entry["label_id"] for entry in trained[start : start + _CHUNK]]
        drew = select(Label.annotator, func.count()).where(Label.id.in_(ids)).group_by(Label.annotator)
        people.update({annotator: labels for annotator, labels in session.execute(drew)})  # noqa: C416 - rows are no pairs
    return Origin(
        snapshot.sha256,
        snapshot.created_at,
        len(trained),
        len(snapshot.manifest["holdout"]),
        len(snapshot.manifest.get("left_out", [])),
        len({entry["scene"] for entry in trained}),
        dict(Counter(entry["source"] for entry in trained)),
        dict(people.most_common()),
        [entry["tool_task_id"] for entry in trained[:TASKS]],
    )


def _ancestry(session: Session, version: ModelVersion) -> list[Ancestor]:
    columns = (ModelVersion.name, ModelVersion.state, ModelVersion.snapshot_id, ModelVersion.parent_id)
    chain, parent = [], version.parent_id
    while parent is not None:
        chain.append(session.execute(select(*columns).where(ModelVersion.id == parent)).one())
        parent = chain[-1].parent_id
    labels = labels_of(session, {one.snapshot_id for one in chain if one.snapshot_id is not None})
    return [Ancestor(one.name, one.state, labels.get(one.snapshot_id)) for one in chain]


@blueprint.get("/<int:project_id>/models/<name>", endpoint="version")
def show(project_id: int, name: str) -> str:
    """The page; `with` names the version that it is compared with."""
    with open_project(project_id) as (session, project):
        found = facts(session, project, name, request.args.get("with"))
        return render("model.html", project, facts=found, measures=FIGURES, kept=KEPT)


@blueprint.get("/<int:project_id>/models/<name>/labels.csv", endpoint="labels")
def labels(project_id: int, name: str) -> Response:
    """Every label that it has learned from, itself or through those it went on from, and its holdout."""
    with open_project(project_id) as (session, project):
        find_version(session, project, name)
        rows: list[dict[str, Any]] = [asdict(use) for use in lineage.of_version(session, project, name)]
    return download_csv(rows, f"{name}-labels")
