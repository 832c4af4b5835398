"""A promise about the accepted masks may set the threshold.

Revision: 0004, after 0003.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None


def upgrade() -> None:
    for table in ("projects", "threshold_changes"):
        op.add_column(table, sa.Column("promise", sa.JSON(), nullable=True))


def downgrade() -> None:
    for table in ("projects", "threshold_changes"):
        op.drop_column(table, "promise")
