from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from active_learning.ledger import Ledger, Project

Elnet = Callable[..., Any]


@pytest.fixture(autouse=True)
def _project(own_settings: Path, monkeypatch: pytest.MonkeyPatch, ledger: Ledger) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("ELNET_USER", "lea")
    with ledger.session() as session:
        session.add(Project(name="spills", tool_url="http://tool", tool_project_id=7, classes=["oil"]))


def test_the_policy_is_shown_changed_and_remembered(elnet: Elnet) -> None:
    shown = {row["setting"]: row["value"] for row in elnet("policy", "--json").json()}
    assert shown["audit_share"] == 0.1
    assert "drawn at random for a human" in elnet("policy").out
    answer = elnet("policy", "set", "audit_share=0.25", "training={mode: full, epochs: 12}", "--why", "trial")
    assert answer.code == 0, answer.err
    assert "mode" in answer.out
    rows = elnet("policy", "history", "--json").json()
    assert {(row["who"], row["setting"], row["why"]) for row in rows} == {
        ("lea", "audit_share", "trial"), ("lea", "training", "trial"),
    }  # fmt: skip
    assert elnet("policy", "set", "strategy=typiclust", "--why", "few labels yet").code == 0
    again = elnet("policy", "set", "audit_share=0.25", "--why", "again")
    assert again.out == "Nothing changes: that is how it is already.\n"


@pytest.mark.parametrize(
    ("assignment", "said"),
    [
        ("audit_share", "should be NAME=VALUE"),
        ("audit_share=", "should be NAME=VALUE"),
        ("audit_share=many", "audit_share cannot be 'many'"),
        ("training={mode: full", "cannot be read"),
        ("colour=red", "no setting 'colour'"),
    ],
)
def test_what_cannot_be_set_is_explained(elnet: Elnet, assignment: str, said: str) -> None:
    answer = elnet("policy", "set", assignment, "--why", "x")
    assert answer.code == 1
    assert said in answer.err


def test_before_any_change_the_history_says_so(elnet: Elnet) -> None:
    assert elnet("policy", "history").out == "The policy of 'spills' was never changed.\n"
