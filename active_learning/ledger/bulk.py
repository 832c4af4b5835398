"""Many rows written at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from sqlalchemy import Table, column, func, literal, update
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.dialects.postgresql import ARRAY
from sqlalchemy.orm import Session

from active_learning.ledger.base import Base

_AT_ONCE = 2000  # rows in one statement; with more, PostgreSQL reads all of a table that a trigger joins


def insert(session: Session, table: type[Base] | Table) -> postgresql.Insert | sqlite.Insert:
    """An INSERT that can say what to do where the row is there already, in the words of the database."""
    own = sqlite.insert if session.get_bind().dialect.name == "sqlite" else postgresql.insert
    return own(table)


def update_rows(session: Session, table: type[Base], rows: Sequence[dict[str, Any]]) -> None:
    """Set columns of rows, found by their `id`; each row names the same columns.

    PostgreSQL gets many rows in one statement: it is several times quicker, and what triggers count
    is summed up before it is written. Objects of the session that show these rows stay as they are.
    """
    if session.get_bind().dialect.name == "sqlite":
        if rows:
            session.execute(update(table), rows)
        return
    for start in range(0, len(rows), _AT_ONCE):
        _update_on_postgresql(session, cast(Table, table.__table__), rows[start : start + _AT_ONCE])


def _update_on_postgresql(session: Session, table: Table, rows: Sequence[dict[str, Any]]) -> None:
    types = {name: table.c[name].type for name in rows[0]}
    arrays = [literal([row[name] for row in rows], ARRAY(kind)) for name, kind in types.items()]
    columns = [column(name, kind) for name, kind in types.items()]
    given = func.unnest(*arrays).table_valued(*columns, name="given").render_derived()
    values = {name: given.c[name] for name in types if name != "id"}
    session.execute(update(table).values(values).where(table.c.id == given.c.id))
