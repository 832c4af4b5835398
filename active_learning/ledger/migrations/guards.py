"""Triggers that refuse a change, and checks of values, for migrations."""

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


def allow_values(table: str, check: str, before: tuple[str, ...], after: tuple[str, ...]) -> None:
    """Change which values the column `state` of a table may have.

    SQLite cannot alter a check, and a table that others refer to cannot be made anew while foreign keys hold.
    So its definition is rewritten, as https://www.sqlite.org/lang_altertable.html describes for such changes.
    No row can contradict it: `after` holds every value of `before`.
    """
    old, new = ("state IN ('" + "', '".join(values) + "')" for values in (before, after))
    bind = op.get_bind()
    if bind.dialect.name != "sqlite":
        op.drop_constraint(op.f(f"ck_{table}_{check}"), table, type_="check")
        op.create_check_constraint(op.f(f"ck_{table}_{check}"), table, new)
        return
    version = bind.exec_driver_sql("PRAGMA schema_version").scalar_one()
    bind.exec_driver_sql("PRAGMA writable_schema = ON")
    changed = bind.exec_driver_sql(
        "UPDATE sqlite_master SET sql = replace(sql, ?, ?) "
        "WHERE type = 'table' AND name = ? AND instr(sql, ?)",
        (old, new, table, old),
    )
    if changed.rowcount != 1:
        raise RuntimeError(f"the definition of {table} does not hold the check {old}")
    bind.exec_driver_sql(f"PRAGMA schema_version = {version + 1}")
    bind.exec_driver_sql("PRAGMA writable_schema = OFF")


def _name(table: str, event: str) -> str:
    return f"{table}_no_{event.split(' OF ')[0].replace(' OR ', '_').lower()}"
