"""How long a version may take for an image.

Revision: 0011, after 0010.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("projects", sa.Column("latency_s", sa.Double(), nullable=True))


def downgrade() -> None:
    raise RuntimeError("not undone: a lead's limit would be lost; upgrade elnet-loop instead")
