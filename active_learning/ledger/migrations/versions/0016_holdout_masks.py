"""The masks that versions drew on the holdout when they were judged.

Revision: 0016, after 0015.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "holdout_masks",
        sa.Column("model_version_id", sa.Integer(), nullable=False),
        sa.Column("task_id", sa.Integer(), nullable=False),
        sa.Column("masks", sa.LargeBinary(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_version_id"],
            ["model_versions.id"],
            name=op.f("fk_holdout_masks_model_version_id_model_versions"),
        ),
        sa.ForeignKeyConstraint(["task_id"], ["tasks.id"], name=op.f("fk_holdout_masks_task_id_tasks")),
        sa.PrimaryKeyConstraint("model_version_id", "task_id", name=op.f("pk_holdout_masks")),
    )


def downgrade() -> None:
    op.drop_table("holdout_masks")
