"""Those for whom somebody else vouches, when several requests of theirs come at once."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from active_learning.ledger import Ledger, Role
from backend.actions import latest
from backend.desk.roles import admit
from backend.settings import RoleRules


@pytest.mark.postgresql
def test_requests_at_once_make_one_user(postgresql_url):
    rules = RoleRules(roles={"geo-leads": "lead"})
    with Ledger(postgresql_url) as ledger, ThreadPoolExecutor(8) as pool:
        ledger.upgrade()
        made = list(
            pool.map(lambda _: admit(ledger, rules, "proxy:eve", "eve", ["geo-leads"], "::1"), range(8))
        )
        with ledger.session(write=False) as session:
            actions = [action.action for action in latest(session, 9)]
    assert {(user.id, user.role) for user in made} == {(made[0].id, Role.LEAD)}
    assert actions == ["user.add"]
