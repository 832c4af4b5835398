"""The tables of the loop; those of the desk stand in `desk_tables`.

What always holds, and what holds it:

* a human label is never changed or lost: `Label` is append-only (triggers of revision 0002 refuse UPDATE and
  DELETE), a deletion in the labeling tool adds a `Tombstone`;
* a prediction carries exactly one model version: one row per (task, model version), foreign key not null;
* one champion per project: a partial unique index, moved together with `Project.champion_id` in one
  transaction and written down in `Promotion`;
* a scene stands on one side of the split for good: `Scene` is append-only and unique per project;
* a quality is in [0, 1] or absent: CHECK constraints;
* the same event twice leaves the same state: `InboxEvent.key` is unique;
* what is counted is what is there: triggers of revision 0013 keep `TaskCount` and `QualityCount`.

Large columns stand last in their tables: SQLite reads through them to reach what stands behind.
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import (
    JSON,
    CheckConstraint,
    ForeignKey,
    Index,
    String,
    Text,
    UniqueConstraint,
    false,
    text,
    true,
)
from sqlalchemy.engine.default import DefaultExecutionContext
from sqlalchemy.orm import Mapped, mapped_column, relationship

from active_learning.ledger.base import Base, ToolId, named
from active_learning.ledger.states import (
    CountedAs,
    CycleState,
    InboxState,
    LabelSource,
    ModelState,
    TaskStatus,
)
from active_learning.ledger.types import EmbeddingType, MaskType, hash_masks, utc_now
from active_learning.strategy import HYBRID, Strategy


class Project(Base):
    """One labeling project and its policy."""

    __tablename__ = "projects"
    __table_args__ = (
        CheckConstraint(
            "accept_threshold IS NULL OR (accept_threshold >= 0 AND accept_threshold <= 1)", "threshold"
        ),
        CheckConstraint("audit_share >= 0 AND audit_share <= 1", "audit_share"),
        CheckConstraint("holdout_share > 0 AND holdout_share < 1", "holdout_share"),
        CheckConstraint("labels_per_cycle >= 1", "labels_per_cycle"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(String(200), unique=True)
    tool_url: Mapped[str] = mapped_column(String(500))
    tool_project_id: Mapped[ToolId]
    classes: Mapped[list[str]]  # in the order of the mask planes
    accept_threshold: Mapped[float | None]  # None: nothing is accepted without a human
    audit_share: Mapped[float] = mapped_column(default=0.1)
    holdout_share: Mapped[float] = mapped_column(default=0.25)
    labels_per_cycle: Mapped[int] = mapped_column(default=50)
    cooldown_s: Mapped[float] = mapped_column(default=600.0)
    training: Mapped[dict[str, Any]] = mapped_column(default=dict)  # overrides of model.training.TrainConfig
    champion_id: Mapped[int | None] = mapped_column(
        ForeignKey("model_versions.id", use_alter=True, name="fk_projects_champion_id_model_versions")
    )
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    label_growth: Mapped[float] = mapped_column(default=0.0, server_default="0")  # see triggers.wanted
    promise: Mapped[dict[str, Any] | None]  # fields of guarantee.Promise: sets the threshold by itself
    blind_share: Mapped[float] = mapped_column(default=0.0, server_default="0")  # see routing.is_blind
    schedule: Mapped[str | None] = mapped_column(String(100))  # cron, UTC: a cycle then, if anything is new
    gain: Mapped[float | None]  # of IoU, whose labels start a cycle; see triggers.labels_for_gain
    retrain_on_alarm: Mapped[bool] = mapped_column(default=True, server_default=true())
    approval: Mapped[bool] = mapped_column(default=False, server_default=false())  # a lead's, of versions
    latency_s: Mapped[float | None]  # that a version may take for an image, median; None: any time
    strategy: Mapped[Strategy] = mapped_column(String(50), default=HYBRID, server_default=HYBRID)
    ordered_by: Mapped[str | None] = mapped_column(String(50))  # the strategy by which the queue stands now

    champion: Mapped[ModelVersion | None] = relationship(foreign_keys=[champion_id], post_update=True)


Index("uq_projects_tool", Project.tool_url, Project.tool_project_id, unique=True)


class Task(Base):
    """One image of a project."""

    __tablename__ = "tasks"
    __table_args__ = (
        UniqueConstraint("project_id", "tool_task_id", name="uq_tasks_tool_task_id"),
        CheckConstraint("quality IS NULL OR (quality >= 0 AND quality <= 1)", "quality"),
        Index("ix_tasks_queue", "project_id", "status", "priority", "id"),  # for `queue.upcoming`
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    tool_task_id: Mapped[ToolId]
    image_uri: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)  # the tool's task data as last seen
    scene: Mapped[str] = mapped_column(String(500))  # siblings share it and stay on one side of every split
    width: Mapped[int | None]
    height: Mapped[int | None]
    affine: Mapped[list[float] | None]  # a, b, c, d, e, f of the image, where it is georeferenced
    crs: Mapped[str | None] = mapped_column(Text)
    status: Mapped[TaskStatus] = mapped_column(named(TaskStatus, "task_status"), default=TaskStatus.WAITING)
    quality: Mapped[float | None]  # predicted IoU of the current prediction
    priority: Mapped[float | None]  # the review queue is worked off from high to low
    failure: Mapped[str | None] = mapped_column(Text)
    pushed: Mapped[
        dict[str, Any] | None
    ]  # status, quality, priority, model version as the tool last heard them
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    holdout: Mapped[bool] = mapped_column(default=False, server_default=false())  # see holdout.draw

    project: Mapped[Project] = relationship()


class ModelVersion(Base):
    """One immutable checkpoint: adapter and decoder."""

    __tablename__ = "model_versions"
    __table_args__ = (
        UniqueConstraint("project_id", "name", name="uq_model_versions_name"),
        Index(
            "uq_model_versions_champion",
            "project_id",
            unique=True,
            sqlite_where=text("state = 'champion'"),
            postgresql_where=text("state = 'champion'"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    name: Mapped[str] = mapped_column(String(100))  # also the backend's title in Label Studio
    state: Mapped[ModelState] = mapped_column(named(ModelState, "model_state"), default=ModelState.TRAINED)
    path: Mapped[str] = mapped_column(Text)  # the checkpoint's folder or address
    sha256: Mapped[str] = mapped_column(String(64))
    snapshot_id: Mapped[int | None] = mapped_column(ForeignKey("snapshots.id"))
    parent_id: Mapped[int | None] = mapped_column(ForeignKey("model_versions.id"))  # warm start
    metrics: Mapped[dict[str, Any]] = mapped_column(default=dict)  # on the holdout
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    promoted_at: Mapped[datetime | None]


class Promotion(Base):
    """A move of the champion pointer: append-only, so that a rollback knows where to go."""

    __tablename__ = "promotions"

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"), index=True)
    model_version_id: Mapped[int] = mapped_column(
        ForeignKey("model_versions.id")
    )  # the champion from then on
    rollback: Mapped[bool] = mapped_column(default=False)
    at: Mapped[datetime] = mapped_column(default=utc_now)
    who: Mapped[str | None] = mapped_column(String(200))  # the lead; None: a cycle's gate


class Prediction(Base):
    """What one model version says of one image."""

    __tablename__ = "predictions"
    __table_args__ = (
        UniqueConstraint("task_id", "model_version_id", name="uq_predictions_task_version"),
        CheckConstraint("score >= 0 AND score <= 1", "score"),
        CheckConstraint("quality >= 0 AND quality <= 1", "quality"),
        Index("ix_predictions_version_quality", "model_version_id", "quality"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"))
    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id"))
    score: Mapped[float]  # uncalibrated, from the signals
    quality: Mapped[float]  # predicted IoU: the score through the current calibration
    signals: Mapped[dict[str, Any]]
    tool_prediction_id: Mapped[ToolId | None] = mapped_column(index=True)  # read back after the push
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    embedding: Mapped[NDArray[np.float32] | None] = mapped_column(EmbeddingType)
    masks: Mapped[NDArray[np.bool_]] = mapped_column(MaskType)

    task: Mapped[Task] = relationship()
    model_version: Mapped[ModelVersion] = relationship()


class HoldoutMask(Base):
    """What a version drew on an image of the holdout when it was last judged; see `holdout_masks`."""

    __tablename__ = "holdout_masks"

    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id"), primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"), primary_key=True)
    masks: Mapped[NDArray[np.bool_]] = mapped_column(MaskType)


class TaskCount(Base):
    """How many images of a project have a status. Kept by triggers: read only."""

    __tablename__ = "task_counts"

    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"), primary_key=True)
    status: Mapped[TaskStatus] = mapped_column(named(TaskStatus, "counted_status"), primary_key=True)
    tasks: Mapped[int]


class QualityCount(Base):
    """How many open images a version's predictions would send where. Kept by triggers: read only.

    Of every version, so that a promotion or a rollback changes nothing here. See `active_learning.tallies`.
    """

    __tablename__ = "quality_counts"

    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id"), primary_key=True)
    counted_as: Mapped[CountedAs] = mapped_column(named(CountedAs, "counted_as"), primary_key=True)
    bin: Mapped[int] = mapped_column(primary_key=True)  # of the quality where graded, else 0
    tasks: Mapped[int]


class RouteDecision(Base):
    """Why an image was accepted, sent to a human or drawn for the audit: append-only."""

    __tablename__ = "route_decisions"
    __table_args__ = (
        CheckConstraint("quality IS NULL OR (quality >= 0 AND quality <= 1)", "quality"),
        CheckConstraint("status <> 'accepted' OR quality IS NOT NULL", "accepted"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"), index=True)
    prediction_id: Mapped[int | None] = mapped_column(ForeignKey("predictions.id"))
    status: Mapped[TaskStatus] = mapped_column(named(TaskStatus, "route_status"))
    quality: Mapped[float | None]
    threshold: Mapped[float | None]
    reason: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(default=utc_now)


def _content_of(context: DefaultExecutionContext) -> str:
    return hash_masks((context.current_parameters or {}).get("masks"))


class Label(Base):
    """One revision of one annotation: append-only."""

    __tablename__ = "labels"
    __table_args__ = (
        UniqueConstraint("project_id", "tool_annotation_id", "revision", name="uq_labels_revision"),
        CheckConstraint("prefill_iou IS NULL OR (prefill_iou >= 0 AND prefill_iou <= 1)", "prefill_iou"),
        CheckConstraint("cancelled = (masks IS NULL)", "cancelled"),
        Index("ix_labels_project_source", "project_id", "source", "task_id"),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    task_id: Mapped[int] = mapped_column(ForeignKey("tasks.id"), index=True)
    tool_annotation_id: Mapped[ToolId]
    revision: Mapped[str] = mapped_column(String(64))  # hash of what it says and of the tool's updated_at
    content: Mapped[str] = mapped_column(
        String(64), default=_content_of
    )  # hash of the masks alone: saved again unchanged is no new label
    source: Mapped[LabelSource] = mapped_column(named(LabelSource, "label_source"))
    annotator: Mapped[str] = mapped_column(String(200))  # the tool's user id
    cancelled: Mapped[bool] = mapped_column(default=False)  # a skip: no mask is meant
    soft_edges: Mapped[bool] = mapped_column(default=False)  # strokes with anti-aliased alpha, cut at > 127
    prediction_id: Mapped[int | None] = mapped_column(
        ForeignKey("predictions.id")
    )  # the prefill it began with
    prefill_iou: Mapped[float | None]  # IoU of that prefill and what was submitted
    lead_time_s: Mapped[float | None]
    updated_at: Mapped[datetime]  # the tool's clock: the latest revision is the one that counts
    received_at: Mapped[datetime] = mapped_column(default=utc_now)
    masks: Mapped[NDArray[np.bool_] | None] = mapped_column(MaskType)
    blind: Mapped[bool] = mapped_column(default=False, server_default=false())  # the prefill was not shown
    class_ious: Mapped[list[float] | None]  # `prefill_iou` is their mean; None for a single class

    task: Mapped[Task] = relationship()


class Tombstone(Base):
    """An annotation that was deleted in the tool; may arrive before the annotation itself."""

    __tablename__ = "tombstones"
    __table_args__ = (UniqueConstraint("project_id", "tool_annotation_id", name="uq_tombstones_annotation"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    tool_annotation_id: Mapped[ToolId]
    at: Mapped[datetime] = mapped_column(default=utc_now)


class InboxEvent(Base):
    """One webhook delivery, kept until it is worked off and after."""

    __tablename__ = "inbox"
    __table_args__ = (Index("ix_inbox_state", "state", "id"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(String(64), unique=True)  # sha256 of the canonical payload
    tool_project_id: Mapped[ToolId | None]
    action: Mapped[str] = mapped_column(String(100))
    state: Mapped[InboxState] = mapped_column(named(InboxState, "inbox_state"), default=InboxState.WAITING)
    attempts: Mapped[int] = mapped_column(default=0)
    error: Mapped[str | None] = mapped_column(Text)
    received_at: Mapped[datetime] = mapped_column(default=utc_now)
    done_at: Mapped[datetime | None]
    payload: Mapped[dict[str, Any]]


class Scene(Base):
    """The side of a scene, decided once: append-only, and one row per scene."""

    __tablename__ = "scenes"
    __table_args__ = (
        UniqueConstraint("project_id", "scene", name="uq_scenes_scene"),
        CheckConstraint("side IN ('train', 'holdout')", "side"),
    )
    __mapper_args__ = {"polymorphic_on": "side", "polymorphic_abstract": True}  # noqa: RUF012

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    scene: Mapped[str] = mapped_column(String(500))
    side: Mapped[str] = mapped_column(String(20))
    added_at: Mapped[datetime] = mapped_column(default=utc_now)


class HoldoutScene(Scene):
    """A scene that is evaluated on and never trained on. The holdout only grows."""

    __mapper_args__ = {"polymorphic_identity": "holdout"}  # noqa: RUF012


class TrainScene(Scene):
    """A scene that was trained on, and so can never judge."""

    __mapper_args__ = {"polymorphic_identity": "train"}  # noqa: RUF012


class Snapshot(Base):
    """Which label of which image a cycle trained and was judged on: immutable, content-hashed."""

    __tablename__ = "snapshots"
    __table_args__ = (UniqueConstraint("project_id", "sha256", name="uq_snapshots_sha256"),)

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    sha256: Mapped[str] = mapped_column(String(64))
    created_at: Mapped[datetime] = mapped_column(default=utc_now)
    manifest: Mapped[dict[str, Any]]  # {"classes": [...], "train": [ENTRY...], "holdout": [ENTRY...]}


class Cycle(Base):
    """One retraining cycle."""

    __tablename__ = "cycles"
    __table_args__ = (
        Index(
            "uq_cycles_active",
            "project_id",
            unique=True,
            sqlite_where=text("state IN ('requested', 'running')"),
            postgresql_where=text("state IN ('requested', 'running')"),
        ),
    )

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"))
    trigger: Mapped[str] = mapped_column(
        String(200)
    )  # "labels: 50 since ...", "command by ...", "Start training"
    state: Mapped[CycleState] = mapped_column(named(CycleState, "cycle_state"), default=CycleState.REQUESTED)
    step: Mapped[str | None] = mapped_column(String(50))  # the one under way, or the last
    reason: Mapped[str | None] = mapped_column(Text)  # why it ended as it did
    snapshot_id: Mapped[int | None] = mapped_column(ForeignKey("snapshots.id"))
    challenger_id: Mapped[int | None] = mapped_column(ForeignKey("model_versions.id"))
    seconds: Mapped[dict[str, Any]] = mapped_column(default=dict)  # step -> wall seconds
    requested_at: Mapped[datetime] = mapped_column(default=utc_now)
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]

    project: Mapped[Project] = relationship()


class CycleEvent(Base):
    """Progress of a cycle: append-only."""

    __tablename__ = "cycle_events"

    id: Mapped[int] = mapped_column(primary_key=True)
    cycle_id: Mapped[int] = mapped_column(ForeignKey("cycles.id"), index=True)
    step: Mapped[str] = mapped_column(String(50))
    message: Mapped[str] = mapped_column(Text)
    data: Mapped[dict[str, Any]] = mapped_column(default=dict)
    at: Mapped[datetime] = mapped_column(default=utc_now)


class Calibration(Base):
    """A fitted map from score to predicted IoU: append-only, the newest of a model version counts."""

    __tablename__ = "calibrations"

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"), index=True)
    model_version_id: Mapped[int] = mapped_column(ForeignKey("model_versions.id"))
    kind: Mapped[str] = mapped_column(String(50))  # of active_learning.calibrator.Calibrator
    samples: Mapped[int]
    parameters: Mapped[dict[str, Any]]
    created_at: Mapped[datetime] = mapped_column(default=utc_now)


class ThresholdChange(Base):
    """Who moved the accept threshold, when, from what to what, and why: append-only."""

    __tablename__ = "threshold_changes"

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"), index=True)
    who: Mapped[str] = mapped_column(String(200))
    from_value: Mapped[float | None]
    to_value: Mapped[float | None]
    why: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(default=utc_now)
    promise: Mapped[dict[str, Any] | None]  # that stands from then on


class PolicyChange(Base):
    """Who changed which setting of a project, when, from what to what, and why: append-only."""

    __tablename__ = "policy_changes"

    id: Mapped[int] = mapped_column(primary_key=True)
    project_id: Mapped[int] = mapped_column(ForeignKey("projects.id"), index=True)
    who: Mapped[str] = mapped_column(String(200))
    setting: Mapped[str] = mapped_column(String(50))
    from_value: Mapped[Any] = mapped_column(JSON)
    to_value: Mapped[Any] = mapped_column(JSON)
    why: Mapped[str] = mapped_column(Text)
    at: Mapped[datetime] = mapped_column(default=utc_now)


class WorkerLease(Base):
    """A worker whose heart beats, or a cycle that one runs: no two have the same name."""

    __tablename__ = "worker_leases"

    name: Mapped[str] = mapped_column(String(100), primary_key=True)
    holder: Mapped[str] = mapped_column(String(64))
    host: Mapped[str] = mapped_column(String(200))
    pid: Mapped[int]
    heartbeat_at: Mapped[datetime]
