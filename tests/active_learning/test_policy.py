from __future__ import annotations

from typing import Any

import pytest

from active_learning import policy
from active_learning.ledger import Project, TaskStatus
from active_learning.policy import SETTINGS, PolicyError
from model.train_config import TrainingError


def change(loop: Any, why: str = "too few audits", **wanted: Any) -> list[tuple[str, Any, Any]]:
    with loop.ledger.session() as session:
        made = policy.change(session, session.get_one(Project, loop.project_id), wanted, "lea", why)
        return [(one.setting, one.from_value, one.to_value) for one in made]


def history(loop: Any) -> list[tuple[str, str, Any, Any, str]]:
    with loop.ledger.session(write=False) as session:
        found = policy.history(session, session.get_one(Project, loop.project_id))
        return [(c.who, c.setting, c.from_value, c.to_value, c.why) for c in found]


def test_every_setting_is_a_column_of_the_project(loop: Any) -> None:
    assert all(hasattr(loop.project(), name) for name in SETTINGS)


def test_changes_are_made_and_written_down_and_what_is_so_already_is_none(loop: Any) -> None:
    loop.configure(audit_share=0.1, labels_per_cycle=50)
    assert change(loop, audit_share=0.2, labels_per_cycle=50) == [("audit_share", 0.1, 0.2)]
    assert change(loop, "roads", training={"mode": "full", "epochs": 12}) == [
        ("training", {}, {"mode": "full", "epochs": 12})
    ]
    project = loop.project()
    assert (project.audit_share, project.training) == (0.2, {"mode": "full", "epochs": 12})
    assert history(loop) == [
        ("lea", "training", {}, {"mode": "full", "epochs": 12}, "roads"),
        ("lea", "audit_share", 0.1, 0.2, "too few audits"),
    ]


def test_a_larger_audit_share_draws_more_masks_and_lets_go_of_none(loop: Any) -> None:
    loop.configure(audit_share=0.3)
    ids = loop.routed(loop.promote(), [0.95] * 60)
    before = {i for i in ids if loop.task(i).status is TaskStatus.AUDIT}
    change(loop, audit_share=0.6)
    after = {i for i in ids if loop.task(i).status is TaskStatus.AUDIT}
    assert before < after
    change(loop, audit_share=0.0)
    assert {loop.task(i).status for i in ids} == {TaskStatus.ACCEPTED}


@pytest.mark.parametrize(
    ("wanted", "said"),
    [
        ({"audit_shar": 0.2}, "no setting 'audit_shar'; there are audit_share"),
        ({"accept_threshold": 0.2}, "no setting 'accept_threshold'"),
        ({"audit_share": 1.2}, "audit_share cannot be 1.2"),
        ({"audit_share": float("nan")}, "audit_share cannot be nan"),
        ({"holdout_share": 0}, "holdout_share cannot be 0"),
        ({"labels_per_cycle": 0}, "labels_per_cycle cannot be 0"),
        ({"training": [1]}, "training cannot be"),
        ({"audit_share": None}, "audit_share cannot be None"),
        ({"gain": 1.0}, "gain cannot be 1.0"),
        ({"schedule": "at night"}, "'at night' is no cron expression"),
        ({"schedule": 3}, "schedule cannot be 3"),
        ({"strategy": "best"}, "strategy cannot be 'best'.*'typiclust'"),
        ({"retrain_on_alarm": "perhaps"}, "retrain_on_alarm cannot be 'perhaps'"),
    ],
)
def test_what_is_no_policy_is_refused_and_nothing_else_is_changed(
    loop: Any, wanted: dict[str, Any], said: str
) -> None:
    before = loop.project().cooldown_s
    with pytest.raises(PolicyError, match=said):
        change(loop, cooldown_s=7.0, **wanted)
    assert loop.project().cooldown_s == before
    assert history(loop) == []


def test_a_schedule_and_a_gain_are_set_and_taken_away(loop: Any) -> None:
    change(loop, schedule="0 2 * * 1-5", gain=0.01)
    assert (loop.project().schedule, loop.project().gain) == ("0 2 * * 1-5", 0.01)
    change(loop, schedule=None, gain=None)
    assert (loop.project().schedule, loop.project().gain) == (None, None)


def test_training_settings_are_checked(loop: Any) -> None:
    with pytest.raises(TrainingError, match="epoch"):
        change(loop, training={"epoch": 3})


def test_a_change_without_a_reason_is_refused(loop: Any) -> None:
    with pytest.raises(PolicyError, match="who made it and why"):
        change(loop, " ", audit_share=0.3)
