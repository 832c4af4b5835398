"""A lead's word before a version serves, and who moved the champion.

Revision: 0010, after 0009.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from active_learning.ledger.migrations.guards import allow_values

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

MODEL_STATES = ("trained", "rejected", "champion", "retired")
CYCLE_STATES = ("requested", "running", "promoted", "rejected", "failed", "cancelled")


def upgrade() -> None:
    op.add_column("projects", sa.Column("approval", sa.Boolean(), nullable=False, server_default=sa.false()))
    op.add_column("promotions", sa.Column("who", sa.String(length=200), nullable=True))
    allow_values(
        "model_versions",
        "model_state",
        MODEL_STATES,
        ("trained", "rejected", "challenger", "champion", "retired"),
    )
    allow_values(
        "cycles",
        "cycle_state",
        CYCLE_STATES,
        ("requested", "running", "promoted", "passed", "rejected", "failed", "cancelled"),
    )


def downgrade() -> None:
    raise RuntimeError("not undone: versions may be waiting for a lead; upgrade elnet-loop instead")
