from __future__ import annotations

import threading
from typing import Any

import pytest

from active_learning.ledger import Ledger, Project
from active_learning.ledger.locking import lock_project


def test_the_row_is_fresh_and_what_was_set_on_it_is_kept(loop):
    with loop.ledger.session() as session:
        project = session.get_one(Project, loop.project_id)
        project.cooldown_s = 5.0
        assert lock_project(session, loop.project_id) is project
        assert project.cooldown_s == 5.0
    assert loop.project().cooldown_s == 5.0


@pytest.mark.postgresql
def test_a_second_writer_waits_and_then_sees_what_the_first_one_wrote(postgresql_url, make_loop):
    with Ledger(postgresql_url) as ledger:
        ledger.upgrade()
        loop: Any = make_loop(ledger)
        seen: list[float] = []

        def second() -> None:
            with ledger.session() as session:
                stale = session.get_one(Project, loop.project_id).cooldown_s
                started.set()
                seen.extend((stale, lock_project(session, loop.project_id).cooldown_s))

        started = threading.Event()
        thread = threading.Thread(target=second)
        with ledger.session() as session:
            lock_project(session, loop.project_id).cooldown_s = 7.0
            thread.start()
            assert started.wait(20)
            thread.join(0.5)
            assert thread.is_alive()
        thread.join(20)
        assert seen == [60.0, 7.0]
