"""What was once written stays: triggers on the append-only tables and the immutable columns.

Revision: 0002, after 0001.
"""

from __future__ import annotations

from alembic import op

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
            _sqlite(table, "UPDATE", f"{table} is append-only")
            _sqlite(table, "DELETE", f"{table} is append-only")
        for table, columns in IMMUTABLE.items():
            _sqlite(table, f"UPDATE OF {columns}", f"{columns} of {table} never change")
        _sqlite("model_versions", "DELETE", "a model version is never deleted")
    else:
        op.execute(
            "CREATE FUNCTION elnet_refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation'; END $$"
        )
        for table in APPEND_ONLY:
            _postgresql(table, "UPDATE OR DELETE", f"{table} is append-only")
            _postgresql(table, "TRUNCATE", f"{table} is append-only", each="STATEMENT")
        for table, columns in IMMUTABLE.items():
            _postgresql(table, f"UPDATE OF {columns}", f"{columns} of {table} never change")
        _postgresql("model_versions", "DELETE", "a model version is never deleted")


def downgrade() -> None:
    raise RuntimeError("not undone: without the guards labels could be changed; upgrade elnet-loop instead")


def _sqlite(table: str, event: str, message: str) -> None:
    op.execute(
        f"CREATE TRIGGER {_name(table, event)} BEFORE {event} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
    )


def _postgresql(table: str, event: str, message: str, each: str = "ROW") -> None:
    op.execute(
        f"CREATE TRIGGER {_name(table, event)} BEFORE {event} ON {table} "
        f"FOR EACH {each} EXECUTE FUNCTION elnet_refuse('{message}')"
    )


def _name(table: str, event: str) -> str:
    return f"{table}_no_{event.split(' OF ')[0].replace(' OR ', '_').lower()}"
