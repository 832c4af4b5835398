"""A cycle may wait for a share of the labels that there are.

Revision: 0003, after 0002.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("label_growth", sa.Double(), nullable=False, server_default="0"))


def downgrade() -> None:
    op.drop_column("projects", "label_growth")
