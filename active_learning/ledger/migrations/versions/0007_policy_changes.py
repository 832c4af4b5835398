"""A lead may change a project's policy; each change is written down.

Revision: 0007, after 0006.
"""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

from active_learning.ledger.migrations.guards import append_only

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.create_table(
        "policy_changes",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("who", sa.String(length=200), nullable=False),
        sa.Column("setting", sa.String(length=50), nullable=False),
        sa.Column("from_value", sa.JSON(), nullable=False),
        sa.Column("to_value", sa.JSON(), nullable=False),
        sa.Column("why", sa.Text(), nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_policy_changes_project_id_projects")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_policy_changes")),
    )
    op.create_index(op.f("ix_policy_changes_project_id"), "policy_changes", ["project_id"], unique=False)
    append_only("policy_changes")


def downgrade() -> None:
    op.drop_table("policy_changes")
