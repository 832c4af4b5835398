"""Cycles by a schedule, by the gain that labels promise, and after auto-accept switched itself off.

Revision: 0009, after 0008.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("schedule", sa.String(length=100), nullable=True))
    op.add_column("projects", sa.Column("gain", sa.Double(), nullable=True))
    op.add_column(
        "projects", sa.Column("retrain_on_alarm", sa.Boolean(), nullable=False, server_default=sa.true())
    )


def downgrade() -> None:
    for name in ("schedule", "gain", "retrain_on_alarm"):
        op.drop_column("projects", name)
