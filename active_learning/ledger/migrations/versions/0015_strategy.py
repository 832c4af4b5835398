"""The strategy that orders a project's review queue.

Revision: 0015, after 0013.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0013"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column(
        "projects", sa.Column("strategy", sa.String(length=50), nullable=False, server_default="hybrid")
    )
    op.add_column("projects", sa.Column("ordered_by", sa.String(length=50), nullable=True))


def downgrade() -> None:
    raise RuntimeError("not undone: a lead's choice would be lost; upgrade elnet-loop instead")
