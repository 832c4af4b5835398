"""Every table as of version 0.1.

Revision: 0001, after nothing.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

PLACES = ("waiting", "review", "accepted", "audit", "done", "skipped", "failed", "gone")


def _enum(name: str, *values: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=20)


def upgrade() -> None:
    op.create_table(
        "inbox",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("key", sa.String(length=64), nullable=False),
        sa.Column("tool_project_id", sa.BigInteger(), nullable=True),
        sa.Column("action", sa.String(length=100), nullable=False),
        sa.Column("state", _enum("inbox_state", "waiting", "done", "failed"), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.Column("error", sa.Text(), nullable=True),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("done_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("payload", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_inbox")),
        sa.UniqueConstraint("key", name=op.f("uq_inbox_key")),
    )
    op.create_index("ix_inbox_state", "inbox", ["state", "id"], unique=False)
    op.create_table(
        "projects",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("tool_url", sa.String(length=500), nullable=False),
        sa.Column("tool_project_id", sa.BigInteger(), nullable=False),
        sa.Column("classes", sa.JSON(), nullable=False),
        sa.Column("accept_threshold", sa.Double(), nullable=True),
        sa.Column("audit_share", sa.Double(), nullable=False),
        sa.Column("holdout_share", sa.Double(), nullable=False),
        sa.Column("labels_per_cycle", sa.Integer(), nullable=False),
        sa.Column("cooldown_s", sa.Double(), nullable=False),
        sa.Column("training", sa.JSON(), nullable=False),
        sa.Column("champion_id", sa.Integer(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "accept_threshold IS NULL OR (accept_threshold >= 0 AND accept_threshold <= 1)",
            name=op.f("ck_projects_threshold"),
        ),
        sa.CheckConstraint("audit_share >= 0 AND audit_share <= 1", name=op.f("ck_projects_audit_share")),
        sa.CheckConstraint("holdout_share > 0 AND holdout_share < 1", name=op.f("ck_projects_holdout_share")),
        sa.CheckConstraint("labels_per_cycle >= 1", name=op.f("ck_projects_labels_per_cycle")),
        sa.ForeignKeyConstraint(
            ["champion_id"],
            ["model_versions.id"],
            name="fk_projects_champion_id_model_versions",
            use_alter=True,
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_projects")),
        sa.UniqueConstraint("name", name=op.f("uq_projects_name")),
    )
    op.create_index("uq_projects_tool", "projects", ["tool_url", "tool_project_id"], unique=True)
    op.create_table(
        "worker_leases",
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column("holder", sa.String(length=64), nullable=False),
        sa.Column("host", sa.String(length=200), nullable=False),
        sa.Column("pid", sa.Integer(), nullable=False),
        sa.Column("heartbeat_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_worker_leases")),
    )
    op.create_table(
        "scenes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("scene", sa.String(length=500), nullable=False),
        sa.Column("side", sa.String(length=20), nullable=False),
        sa.Column("added_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("side IN ('train', 'holdout')", name=op.f("ck_scenes_side")),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_scenes_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_scenes")),
        sa.UniqueConstraint("project_id", "scene", name="uq_scenes_scene"),
    )
    op.create_table(
        "snapshots",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_snapshots_project_id_projects")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_snapshots")),
        sa.UniqueConstraint("project_id", "sha256", name="uq_snapshots_sha256"),
    )
    op.create_table(
        "tasks",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("tool_task_id", sa.BigInteger(), nullable=False),
        sa.Column("image_uri", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("scene", sa.String(length=500), nullable=False),
        sa.Column("width", sa.Integer(), nullable=True),
        sa.Column("height", sa.Integer(), nullable=True),
        sa.Column("affine", sa.JSON(), nullable=True),
        sa.Column("crs", sa.Text(), nullable=True),
        sa.Column("status", _enum("task_status", *PLACES), nullable=False),
        sa.Column("quality", sa.Double(), nullable=True),
        sa.Column("priority", sa.Double(), nullable=True),
        sa.Column("failure", sa.Text(), nullable=True),
        sa.Column("pushed", sa.JSON(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "quality IS NULL OR (quality >= 0 AND quality <= 1)", name=op.f("ck_tasks_quality")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_tasks_project_id_projects")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tasks")),
        sa.UniqueConstraint("project_id", "tool_task_id", name="uq_tasks_tool_task_id"),
    )
    op.create_index("ix_tasks_project_status", "tasks", ["project_id", "status"], unique=False)
    op.create_table(
        "threshold_changes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("who", sa.String(length=200), nullable=False),
        sa.Column("from_value", sa.Double(), nullable=True),
        sa.Column("to_value", sa.Double(), nullable=True),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_threshold_changes_project_id_projects")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_threshold_changes")),
    )
    op.create_index(
        op.f("ix_threshold_changes_project_id"), "threshold_changes", ["project_id"], unique=False
    )
    op.create_table(
        "tombstones",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("tool_annotation_id", sa.BigInteger(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_tombstones_project_id_projects")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tombstones")),
        sa.UniqueConstraint("project_id", "tool_annotation_id", name="uq_tombstones_annotation"),
    )
    op.create_table(
        "model_versions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("name", sa.String(length=100), nullable=False),
        sa.Column(
            "state", _enum("model_state", "trained", "rejected", "champion", "retired"), nullable=False
        ),
        sa.Column("path", sa.Text(), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("snapshot_id", sa.Integer(), nullable=True),
        sa.Column("parent_id", sa.Integer(), nullable=True),
        sa.Column("metrics", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("promoted_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["parent_id"], ["model_versions.id"], name=op.f("fk_model_versions_parent_id_model_versions")
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_model_versions_project_id_projects")
        ),
        sa.ForeignKeyConstraint(
            ["snapshot_id"], ["snapshots.id"], name=op.f("fk_model_versions_snapshot_id_snapshots")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_model_versions")),
        sa.UniqueConstraint("project_id", "name", name="uq_model_versions_name"),
    )
    op.create_index(
        "uq_model_versions_champion",
        "model_versions",
        ["project_id"],
        unique=True,
        sqlite_where=sa.text("state = 'champion'"),
        postgresql_where=sa.text("state = 'champion'"),
    )
    if op.get_bind().dialect.name != "sqlite":  # there it stands in the table already; it has no ALTER for it
        op.create_foreign_key(
            "fk_projects_champion_id_model_versions", "projects", "model_versions", ["champion_id"], ["id"]
        )
    op.create_table(
        "calibrations",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("model_version_id", sa.Integer(), nullable=False),
        sa.Column("kind", sa.String(length=50), nullable=False),
        sa.Column("samples", sa.Integer(), nullable=False),
        sa.Column("parameters", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_version_id"],
            ["model_versions.id"],
            name=op.f("fk_calibrations_model_version_id_model_versions"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_calibrations_project_id_projects")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_calibrations")),
    )
    op.create_index(op.f("ix_calibrations_project_id"), "calibrations", ["project_id"], unique=False)
    op.create_table(
        "cycles",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("trigger", sa.String(length=200), nullable=False),
        sa.Column(
            "state",
            _enum("cycle_state", "requested", "running", "promoted", "rejected", "failed", "cancelled"),
            nullable=False,
        ),
        sa.Column("step", sa.String(length=50), nullable=True),
        sa.Column("reason", sa.Text(), nullable=True),
        sa.Column("snapshot_id", sa.Integer(), nullable=True),
        sa.Column("challenger_id", sa.Integer(), nullable=True),
        sa.Column("seconds", sa.JSON(), nullable=False),
        sa.Column("requested_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["challenger_id"], ["model_versions.id"], name=op.f("fk_cycles_challenger_id_model_versions")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_cycles_project_id_projects")),
        sa.ForeignKeyConstraint(
            ["snapshot_id"], ["snapshots.id"], name=op.f("fk_cycles_snapshot_id_snapshots")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cycles")),
    )
    op.create_index(
        "uq_cycles_active",
        "cycles",
        ["project_id"],
        unique=True,
        sqlite_where=sa.text("state IN ('requested', 'running')"),
        postgresql_where=sa.text("state IN ('requested', 'running')"),
    )
    op.create_table(
        "predictions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("model_version_id", sa.Integer(), nullable=False),
        sa.Column("score", sa.Double(), nullable=False),
        sa.Column("quality", sa.Double(), nullable=False),
        sa.Column("signals", sa.JSON(), nullable=False),
        sa.Column("tool_prediction_id", sa.BigInteger(), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("embedding", sa.LargeBinary(), nullable=True),
        sa.Column("masks", sa.LargeBinary(), nullable=False),
        sa.CheckConstraint("quality >= 0 AND quality <= 1", name=op.f("ck_predictions_quality")),
        sa.CheckConstraint("score >= 0 AND score <= 1", name=op.f("ck_predictions_score")),
        sa.ForeignKeyConstraint(
            ["model_version_id"],
            ["model_versions.id"],
            name=op.f("fk_predictions_model_version_id_model_versions"),
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_predictions_task_id_tasks")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_predictions")),
        sa.UniqueConstraint("task_id", "model_version_id", name="uq_predictions_task_version"),
    )
    op.create_index(
        op.f("ix_predictions_model_version_id"), "predictions", ["model_version_id"], unique=False
    )
    op.create_index(
        op.f("ix_predictions_tool_prediction_id"), "predictions", ["tool_prediction_id"], unique=False
    )
    op.create_table(
        "promotions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("model_version_id", sa.Integer(), nullable=False),
        sa.Column("rollback", sa.Boolean(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_version_id"],
            ["model_versions.id"],
            name=op.f("fk_promotions_model_version_id_model_versions"),
        ),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_promotions_project_id_projects")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_promotions")),
    )
    op.create_index(op.f("ix_promotions_project_id"), "promotions", ["project_id"], unique=False)
    op.create_table(
        "cycle_events",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("cycle_id", sa.Integer(), nullable=False),
        sa.Column("step", sa.String(length=50), nullable=False),
        sa.Column("message", sa.Text(), nullable=False),
        sa.Column("data", sa.JSON(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["cycle_id"], ["cycles.id"], name=op.f("fk_cycle_events_cycle_id_cycles")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cycle_events")),
    )
    op.create_index(op.f("ix_cycle_events_cycle_id"), "cycle_events", ["cycle_id"], unique=False)
    op.create_table(
        "labels",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("tool_annotation_id", sa.BigInteger(), nullable=False),
        sa.Column("revision", sa.String(length=64), nullable=False),
        sa.Column("content", sa.String(length=64), nullable=False),
        sa.Column("source", _enum("label_source", "human", "audit", "machine"), nullable=False),
        sa.Column("annotator", sa.String(length=200), nullable=False),
        sa.Column("cancelled", sa.Boolean(), nullable=False),
        sa.Column("soft_edges", sa.Boolean(), nullable=False),
        sa.Column("prediction_id", sa.Integer(), nullable=True),
        sa.Column("prefill_iou", sa.Double(), nullable=True),
        sa.Column("lead_time_s", sa.Double(), nullable=True),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("masks", sa.LargeBinary(), nullable=True),
        sa.CheckConstraint("cancelled = (masks IS NULL)", name=op.f("ck_labels_cancelled")),
        sa.CheckConstraint(
            "prefill_iou IS NULL OR (prefill_iou >= 0 AND prefill_iou <= 1)",
            name=op.f("ck_labels_prefill_iou"),
        ),
        sa.ForeignKeyConstraint(
            ["prediction_id"], ["predictions.id"], name=op.f("fk_labels_prediction_id_predictions")
        ),
        sa.ForeignKeyConstraint(["project_id"], ["projects.id"], name=op.f("fk_labels_project_id_projects")),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_labels_task_id_tasks")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_labels")),
        sa.UniqueConstraint("project_id", "tool_annotation_id", "revision", name="uq_labels_revision"),
    )
    op.create_index(op.f("ix_labels_task_id"), "labels", ["task_id"], unique=False)
    op.create_table(
        "route_decisions",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("prediction_id", sa.Integer(), nullable=True),
        sa.Column("status", _enum("route_status", *PLACES), nullable=False),
        sa.Column("quality", sa.Double(), nullable=True),
        sa.Column("threshold", sa.Double(), nullable=True),
        sa.Column("reason", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "status <> 'accepted' OR quality IS NOT NULL", name=op.f("ck_route_decisions_accepted")
        ),
        sa.CheckConstraint(
            "quality IS NULL OR (quality >= 0 AND quality <= 1)", name=op.f("ck_route_decisions_quality")
        ),
        sa.ForeignKeyConstraint(
            ["prediction_id"], ["predictions.id"], name=op.f("fk_route_decisions_prediction_id_predictions")
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_route_decisions_task_id_tasks")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_route_decisions")),
    )
    op.create_index(op.f("ix_route_decisions_task_id"), "route_decisions", ["task_id"], unique=False)


def downgrade() -> None:
    raise RuntimeError("not undone: that would delete what people labelled; drop the database by hand")
