"""How alembic reaches the ledger.

The program hands over its own connection (`Ledger.upgrade`). By hand, for a new revision:

    alembic -x url=sqlite:////tmp/ledger.sqlite upgrade head
    alembic -x url=sqlite:////tmp/ledger.sqlite revision --autogenerate -m "what changes"
"""

from __future__ import annotations

from typing import Any, Literal

from alembic import context
from alembic.autogenerate.api import AutogenContext
from sqlalchemy import Connection, TypeDecorator, text

from active_learning.ledger.base import Base
from active_learning.ledger.database import VERSION_TABLE, Ledger


def _render(kind: str, item: Any, _: AutogenContext) -> str | Literal[False]:
    """Our column types as what the database sees, so that a revision does not change with our code."""
    if kind == "type" and isinstance(item, TypeDecorator):
        return f"sa.{item.impl_instance!r}"
    return False


def migrate(connection: Connection) -> None:
    """Run what was asked in one transaction, alone: whoever comes second finds it done."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        version_table=VERSION_TABLE,
        transactional_ddl=True,  # on SQLite too: half a migration is undone
        render_as_batch=connection.dialect.name == "sqlite",
        render_item=_render,
    )
    with context.begin_transaction():
        if connection.dialect.name == "postgresql":
            connection.execute(text("SELECT pg_advisory_xact_lock(7231885)"))
        context.run_migrations()


if context.is_offline_mode():
    raise SystemExit("the ledger's migrations run on a database: leave --sql away and give -x url=...")
if (given := context.config.attributes.get("connection")) is not None:
    migrate(given)
else:
    url = context.get_x_argument(as_dictionary=True).get("url")
    if not url:
        raise SystemExit("name the ledger: alembic -x url=sqlite:////tmp/ledger.sqlite ...")
    with Ledger(url) as ledger, ledger.engine.connect() as own:
        migrate(own)
