"""What was once written stays: triggers on the append-only tables and the immutable columns.

Revision: 0002, after 0001.
"""

from __future__ import annotations

from alembic import op

from active_learning.ledger.migrations.guards import append_only, on_postgresql, on_sqlite

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

APPEND_ONLY = (
    "labels",
    "tombstones",
    "route_decisions",
    "threshold_changes",
    "snapshots",
    "scenes",
    "promotions",
    "calibrations",
    "cycle_events",
)
IMMUTABLE = {
    "model_versions": "project_id, name, path, sha256, snapshot_id, parent_id, created_at",
    "predictions": "task_id, model_version_id, masks",
}


def upgrade() -> None:
    if op.get_bind().dialect.name == "sqlite":
        for table in APPEND_ONLY:
            append_only(table)
        for table, columns in IMMUTABLE.items():
            on_sqlite(table, f"UPDATE OF {columns}", f"{columns} of {table} never change")
        on_sqlite("model_versions", "DELETE", "a model version is never deleted")
    else:
        op.execute(
            "CREATE FUNCTION elnet_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation'; END $$"
        )
        for table in APPEND_ONLY:
            append_only(table)
        for table, columns in IMMUTABLE.items():
            on_postgresql(table, f"UPDATE OF {columns}", f"{columns} of {table} never change")
        on_postgresql("model_versions", "DELETE", "a model version is never deleted")


def downgrade() -> None:
    raise RuntimeError("not undone: without the guards labels could be changed; upgrade elnet-loop instead")
