from __future__ import annotations

import random
from datetime import timedelta

import numpy as np
import pytest
from sqlalchemy import select

from active_learning.ledger import Label, LabelSource, Ledger, Project, Task, TaskStatus, Tombstone
from active_learning.ledger.types import utc_now
from active_learning.living import PEOPLE, current_ids

MASKS = np.ones((1, 2, 2), np.bool_)


@pytest.mark.parametrize("seed", range(3))
def test_who_asks_for_some_sources_gets_what_counts_among_all(url: str, seed: int) -> None:
    """Labels of other sources may be left out of the search, and never out of the answer."""
    draws = random.Random(seed)
    sources = list(LabelSource)
    with Ledger(url) as ledger:
        ledger.upgrade()
        with ledger.session() as session:
            session.add(Project(id=1, name="oil", tool_url="http://tool", tool_project_id=1, classes=["oil"]))
            session.flush()
            status = (TaskStatus.DONE, TaskStatus.DONE, TaskStatus.GONE)
            session.add_all(
                Task(
                    id=i, project_id=1, tool_task_id=i, image_uri="x", scene="x", status=draws.choice(status)
                )
                for i in range(1, 41)
            )
            session.flush()
            for number in range(240):
                annotation = draws.randrange(120)
                cancelled = draws.random() < 0.2
                session.add(
                    Label(
                        project_id=1,
                        task_id=annotation % 40 + 1,
                        tool_annotation_id=annotation,
                        revision=str(number),
                        source=draws.choice(sources),
                        annotator="ada",
                        cancelled=cancelled,
                        masks=None if cancelled else MASKS,
                        updated_at=utc_now() + timedelta(seconds=draws.randrange(9)),
                    )
                )
            buried = draws.sample(range(120), 20)
            session.add_all(Tombstone(project_id=1, tool_annotation_id=i) for i in buried)
        with ledger.session(write=False) as session:
            everything = session.scalars(select(Label).where(Label.id.in_(current_ids(1, sources)))).all()
            for wanted in (PEOPLE, (LabelSource.AUDIT,), (LabelSource.HUMAN,), (LabelSource.MACHINE,)):
                found = set(session.scalars(current_ids(1, wanted)))
                assert found == {label.id for label in everything if label.source in wanted}
                assert found
