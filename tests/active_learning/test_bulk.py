from __future__ import annotations

import pytest
from sqlalchemy import insert, select

from active_learning.ledger import Ledger, Project, Task, TaskStatus, bulk


def test_each_row_gets_its_values_in_as_many_statements_as_it_takes(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bulk, "_AT_ONCE", 3)
    with Ledger(url) as ledger:
        ledger.upgrade()
        with ledger.session() as session:
            session.add(Project(id=1, name="oil", tool_url="http://tool", tool_project_id=1, classes=["oil"]))
            session.flush()
            rows = [{"project_id": 1, "tool_task_id": i, "image_uri": "x", "scene": "x"} for i in range(8)]
            session.execute(insert(Task), rows)
            ids = session.scalars(select(Task.id).order_by(Task.id)).all()
            wanted = {
                i: (TaskStatus.REVIEW if i % 2 else TaskStatus.AUDIT, None if i % 3 else i / 10, f"'{i}'")
                for i in ids[1:]
            }
            values = [
                {"id": i, "status": status, "quality": quality, "failure": failure}
                for i, (status, quality, failure) in wanted.items()
            ]
            bulk.update_rows(session, Task, values)
            bulk.update_rows(session, Task, [])
        with ledger.session(write=False) as session:
            found = {
                task.id: (task.status, task.quality, task.failure) for task in session.scalars(select(Task))
            }
    assert found == {ids[0]: (TaskStatus.WAITING, None, None), **wanted}
