"""One writer at a time per project, where the database lets several write."""

from __future__ import annotations

from sqlalchemy.orm import Session

from active_learning.ledger.tables import Project


def lock_project(session: Session, project_id: int) -> Project:
    """The project's row, fresh, and held until the transaction ends (FOR NO KEY UPDATE on PostgreSQL).

    Whoever writes several rows of a project takes this first: then no two transactions can wait for each
    other. On SQLite the transaction is alone already.
    """
    session.flush()  # the row is read anew, and what was set on it must not be lost
    return session.get_one(Project, project_id, with_for_update={"key_share": True})
