"""Triggers that refuse a change, for migrations."""

from __future__ import annotations

from alembic import op


def append_only(table: str) -> None:
    """Refuse every change and deletion of what is in a table."""
    message = f"{table} is append-only"
    if op.get_bind().dialect.name == "sqlite":
        on_sqlite(table, "UPDATE", message)
        on_sqlite(table, "DELETE", message)
    else:
        on_postgresql(table, "UPDATE OR DELETE", message)
        on_postgresql(table, "TRUNCATE", message, each="STATEMENT")


def on_sqlite(table: str, event: str, message: str) -> None:
    """Refuse an event such as "UPDATE OF name"."""
    op.execute(
        f"CREATE TRIGGER {_name(table, event)} BEFORE {event} ON {table} "
        f"BEGIN SELECT RAISE(ABORT, '{message}'); END"
    )


def on_postgresql(table: str, event: str, message: str, each: str = "ROW") -> None:
    """The same; revision 0002 makes the function."""
    op.execute(
        f"CREATE TRIGGER {_name(table, event)} BEFORE {event} ON {table} "
        f"FOR EACH {each} EXECUTE FUNCTION elnet_refuse('{message}')"
    )


def _name(table: str, event: str) -> str:
    return f"{table}_no_{event.split(' OF ')[0].replace(' OR ', '_').lower()}"
