from __future__ import annotations

import pytest

from backend.desk.policy import facts


def values(spills):
    with spills.ledger.session(write=False) as session:
        return {one.name: one.value for one in facts(session, spills.project(session)).settings}


def test_what_differs_is_changed_for_a_reason(spills):
    before = values(spills)
    page = spills.post(
        "/policy",
        audit_share="0.25",
        schedule="0 2 * * 1-5",
        training="{mode: full}",
        approval="false",
        why="nights",
    )
    assert "Recorded: audit_share, schedule, training" in page
    assert "nights" in page
    changed = {"audit_share": 0.25, "schedule": "0 2 * * 1-5", "training": {"mode": "full"}}
    assert values(spills) == {**before, **changed}


def test_the_page_shows_values_as_they_are_typed(spills):
    page = spills.page("/policy")
    for said in ('value="null"', 'value="0.1"', 'value="true"', 'value="{}"'):
        assert said in page
    assert "every setting has this value already" in spills.post("/policy", audit_share="0.1", why="x")


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ({"audit_share": "2", "why": "x"}, "audit_share cannot be 2"),
        ({"audit_share": "0.2", "why": ""}, "needs who made it and why"),
        ({"schedule": "0 2 [", "why": "x"}, "schedule cannot be"),
        ({"training": "{epochs: [", "why": "x"}, "training cannot be read"),
        ({"training": "{colour: 1}", "why": "x"}, "colour"),
    ],
)
def test_what_cannot_be_is_said_and_changes_nothing(spills, form, said):
    before = values(spills)
    page = spills.post("/policy", **form)
    assert "Nothing was changed" in page
    assert said in page
    assert values(spills) == before
