"""The policy of a project, and its changes: who made each, when and why. The threshold has `thresholds`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import Field, TypeAdapter, ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning.cron import Cron
from active_learning.ledger import PolicyChange, Project
from active_learning.ledger.locking import lock_project
from active_learning.routing import route
from active_learning.strategy import Strategy
from model.errors import ELNetError

Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Inside = Annotated[float, Field(gt=0, lt=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NotNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class PolicyError(ELNetError):
    """A setting that does not exist, a value out of its range, or a change that nobody explains."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A setting of a project: its meaning, and what takes and checks a value."""

    meaning: str
    parse: Callable[[Any], Any]


def _training(value: Any) -> dict[str, Any]:
    from model.train_config import TrainConfig  # needs torch, which the command line does without

    overrides = TypeAdapter(dict[str, Any]).validate_python(value)
    TrainConfig.from_mapping(overrides)
    return overrides


def _number(kind: Any) -> Callable[[Any], Any]:
    return TypeAdapter(kind).validate_python


SETTINGS: Final[Mapping[str, Setting]] = {
    "audit_share": Setting("of all masks, drawn at random for a human: they calibrate", _number(Share)),
    "blind_share": Setting("of the audits, shown without their mask", _number(Share)),
    "holdout_share": Setting(
        "of newly labelled scenes: they judge models, never train them", _number(Inside)
    ),
    "labels_per_cycle": Setting("new labels that start a cycle,", _number(Annotated[int, Field(ge=1)])),
    "label_growth": Setting(
        "or this share of the labels that there are, if that is more", _number(NotNegative)
    ),
    "cooldown_s": Setting("between two cycles that start by themselves, seconds", _number(NotNegative)),
    "gain": Setting(
        "of IoU: cycles wait for the labels that it takes, not for a number", _number(Inside | None)
    ),
    "schedule": Setting(
        "cron in UTC, such as `0 2 * * *`: a cycle then, if any label is new", _number(Cron | None)
    ),
    "retrain_on_alarm": Setting("a cycle when auto-accept has switched itself off", _number(bool)),
    "approval": Setting("a lead's word before a version that the gate lets pass serves", _number(bool)),
    "latency_s": Setting(
        "seconds that a version may take for an image on the worker, median", _number(Positive | None)
    ),
    "strategy": Setting("of acquisition: what orders the review queue", _number(Strategy)),
    "training": Setting("overrides of the training settings, from the next cycle on", _training),
}
_ROUTES: Final = ("audit_share", "blind_share")


def change(
    session: Session, project: Project, wanted: Mapping[str, Any], who: str, why: str
) -> list[PolicyChange]:
    """Change settings, all or none, write each change down, and route anew where it matters.

    A larger audit share draws more of the same masks, a smaller one fewer: what was drawn stays a random
    sample either way.

    Args:
        session: a writing session; the caller commits.
        project: the project.
        wanted: setting -> value, as JSON or text.
        who: the lead.
        why: the reason, for those who come later.

    Returns:
        The changes; a setting that has its value already is none.

    Raises:
        PolicyError: see there; nothing is changed.
        TrainingError: the training settings are not valid.
    """
    if not who.strip() or not why.strip():
        raise PolicyError("a change of the policy needs who made it and why")
    values = {name: _checked(name, value) for name, value in wanted.items()}
    lock_project(session, project.id)
    changes = [
        PolicyChange(
            project_id=project.id,
            who=who.strip()[:200],
            setting=name,
            from_value=getattr(project, name),
            to_value=value,
            why=why.strip(),
        )
        for name, value in values.items()
        if getattr(project, name) != value
    ]
    for made in changes:
        setattr(project, made.setting, made.to_value)
    session.add_all(changes)
    session.flush()
    if any(made.setting in _ROUTES for made in changes):
        route(session, project)
    return changes


def history(session: Session, project: Project) -> list[PolicyChange]:
    """Every change of the project's policy, the newest first."""
    mine = select(PolicyChange).where(PolicyChange.project_id == project.id)
    return list(session.scalars(mine.order_by(PolicyChange.id.desc())))


def _checked(name: str, value: Any) -> Any:
    if name not in SETTINGS:
        raise PolicyError(f"there is no setting {name!r}; there are {', '.join(SETTINGS)}")
    try:
        return SETTINGS[name].parse(value)
    except ValidationError as error:
        said = error.errors()[0]["msg"]
        raise PolicyError(f"{name} cannot be {value!r}: {said}") from error
