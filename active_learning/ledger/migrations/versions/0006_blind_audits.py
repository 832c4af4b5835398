"""A part of the audits is blind: their prefill is not shown.

Revision: 0006, after 0005.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("blind_share", sa.Double(), nullable=False, server_default="0"))
    op.add_column("labels", sa.Column("blind", sa.Boolean(), nullable=False, server_default=sa.false()))


def downgrade() -> None:
    op.drop_column("labels", "blind")
    op.drop_column("projects", "blind_share")
