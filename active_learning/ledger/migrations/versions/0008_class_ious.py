"""A label tells how far its prefill was right in each class.

Revision: 0008, after 0007.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("labels", sa.Column("class_ious", sa.JSON(), nullable=True))


def downgrade() -> None:
    op.drop_column("labels", "class_ious")
