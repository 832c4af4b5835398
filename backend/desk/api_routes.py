"""The operations of /api/v1, one line each: who may, what does it, what it takes and gives.

Left to the pages is what would open the desk still when a token that leaked has been revoked: users, one-time
passwords and tokens are not made here, and by token no admin is made or changed (`backend.desk.users`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Final

from pydantic import Field
from sqlalchemy.orm import Session

from active_learning.guarantee import Promise
from active_learning.ledger import Project, Role, TaskStatus
from backend.desk import (
    account,
    cycle_page,
    cycles,
    model_page,
    models,
    overview,
    policy,
    quality,
    queue,
    threshold,
    users,
)
from backend.desk.index import ProjectLine, project_lines
from backend.desk.strategy import Foreseen, comparison

Why = Annotated[str, Field(min_length=1, max_length=2000, description="the reason, for those who come later")]
Share = Annotated[float, Field(gt=0, lt=1)]
Bar = Annotated[float, Field(gt=0, le=1, description="an IoU")]


@dataclass(frozen=True, slots=True)
class PromiseQuery:
    """A promise to look at; without `risk` and `iou` the one that stands, or a usual one."""

    risk: Share | None = None
    iou: Bar | None = None
    confidence: Share = 0.9


@dataclass(frozen=True, slots=True)
class ThresholdBody:
    """A threshold of the lead's own; null: nothing is accepted without a human."""

    value: Annotated[float, Field(ge=0, le=1)] | None
    why: Why


@dataclass(frozen=True, slots=True)
class PromiseBody:
    """A promise that is to set the threshold."""

    risk: Share
    iou: Bar
    why: Why
    confidence: Share = 0.9
    classes: dict[str, Bar] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class PolicyBody:
    """Settings to change, all or none; see `elnet policy` for what there is."""

    changes: dict[str, Any]
    why: Why


@dataclass(frozen=True, slots=True)
class Older:
    """To page on: only what is older than the one of this id."""

    before: int | None = None


@dataclass(frozen=True, slots=True)
class PageQuery:
    """To page on, from 1."""

    page: Annotated[int, Field(ge=1, lt=10**9)] = 1


@dataclass(frozen=True, slots=True)
class QueueQuery:
    """Which images: where they stand, part of a scene's name, predicted IoU from `least` to below `most`."""

    view: TaskStatus = TaskStatus.REVIEW
    scene: str = ""
    least: Annotated[float, Field(ge=0, le=1)] | None = None
    most: Annotated[float, Field(ge=0, le=1)] | None = None
    page: Annotated[int, Field(ge=1, lt=10**9)] = 1
    size: Annotated[int, Field(ge=1, le=1000)] = queue.PAGE


@dataclass(frozen=True, slots=True)
class OtherQuery:
    """The version that one is compared with; default: the champion, or the one that it succeeded."""

    other: str | None = None


@dataclass(frozen=True, slots=True)
class NameBody:
    """Which user."""

    name: str


@dataclass(frozen=True, slots=True)
class RoleBody:
    """What a user is to be."""

    name: str
    role: Role


@dataclass(frozen=True, slots=True)
class Nothing:
    """No body, no query."""


@dataclass(frozen=True, slots=True)
class Route:
    """One operation.

    Attributes:
        method: GET reads; POST changes something.
        path: as Flask writes it, below /api/v1.
        summary: a sentence for the document.
        does: session, the project if the path names one, what was given (unless `given` is Nothing), what
            else stands in the path -> the answer.
        answer: its type.
        given: dataclass of the query (GET) or the JSON body (POST).
        needs: the role that may; None: viewers look, leads change.
    """

    method: str
    path: str
    summary: str
    does: Callable[..., Any]
    answer: Any
    given: Any = Nothing
    needs: Role | None = None

    @property
    def writes(self) -> bool:
        """Whether it changes something."""
        return self.method != "GET"

    @property
    def role(self) -> Role:
        """The role that may."""
        return self.needs or (Role.LEAD if self.writes else Role.VIEWER)


def _threshold(session: Session, project: Project, given: PromiseQuery) -> threshold.ThresholdFacts:
    asked = None
    if given.risk is not None and given.iou is not None:
        asked = Promise(given.iou, given.risk, given.confidence)
    return threshold.facts(session, project, asked)


def _set_threshold(session: Session, project: Project, given: ThresholdBody) -> threshold.Move:
    return threshold.set_number(session, project, given.value, given.why)


def _promise(session: Session, project: Project, given: PromiseBody) -> threshold.Move:
    promised = Promise(given.iou, given.risk, given.confidence, given.classes)
    return threshold.make_promise(session, project, promised, given.why)


def _set_policy(session: Session, project: Project, given: PolicyBody) -> policy.Policy:
    return policy.change(session, project, given.changes, given.why)


def _models(session: Session, project: Project, given: Older) -> models.Models:
    return models.facts(session, project, given.before)


def _model(session: Session, project: Project, given: OtherQuery, name: str) -> model_page.ModelPage:
    return model_page.facts(session, project, name, given.other)


def _cycles(session: Session, project: Project, given: Older) -> cycles.Cycles:
    return cycles.facts(session, project, given.before)


def _cycle(session: Session, project: Project, given: Older, cycle_id: int) -> cycle_page.CyclePage:
    return cycle_page.facts(session, project, cycle_id, given.before)


def _queue(session: Session, project: Project, given: QueueQuery) -> queue.QueueFacts:
    filters = queue.Filters(given.view, given.scene, given.least, given.most, given.page)
    return queue.facts(session, project, filters, given.size)


def _foreseen(session: Session, project: Project, strategy: str) -> Foreseen:
    return comparison(session, project, strategy)


def _quality(session: Session, project: Project, given: PageQuery) -> quality.QualityFacts:
    return quality.facts(session, project, given.page)


def _give_role(session: Session, given: RoleBody) -> users.UserLine:
    return users.give_role(session, given.name, given.role)


def _of_user(does: Callable[[Session, str], users.UserLine]) -> Callable[..., users.UserLine]:
    def named(session: Session, given: NameBody) -> users.UserLine:
        return does(session, given.name)

    return named


_OF_PROJECT: Final = (
    Route("GET", "", "Where the project stands, and what needs a lead.",
          overview.overview, overview.Overview),
    Route("GET", "/threshold", "What each threshold would do, what can be promised, and its history.",
          _threshold, threshold.ThresholdFacts, PromiseQuery),
    Route("POST", "/threshold", "Set the threshold to a number, or to none.",
          _set_threshold, threshold.Move, ThresholdBody),
    Route("POST", "/threshold/promise", "Let a promise set the threshold, now and after each cycle.",
          _promise, threshold.Move, PromiseBody),
    Route("POST", "/threshold/undo", "Take back the last move of the threshold.",
          threshold.take_back, threshold.Move),
    Route("GET", "/queue", "Images of a view in their order, and why each stands there.",
          _queue, queue.QueueFacts, QueueQuery),
    Route("GET", "/queue/strategy/<strategy>", "What another strategy of the queue would change.",
          _foreseen, Foreseen),
    Route("GET", "/quality", "What audits said of the masks, and labels worth a second look.",
          _quality, quality.QualityFacts, PageQuery),
    Route("GET", "/quality/agreement", "How far two people agree.",
          quality.agreement, quality.AgreementFacts),
    Route("GET", "/quality/drift", "Whether images have come in that no audit speaks for.",
          quality.drift, quality.DriftFacts),
    Route("GET", "/models", "Model versions, newest first.", _models, models.Models, Older),
    Route("GET", "/models/<name>", "One version beside another: figures, image by image, lineage.",
          _model, model_page.ModelPage, OtherQuery),
    Route("POST", "/models/<name>/promote", "Let a version serve.", models.let_serve, models.VersionFacts),
    Route("POST", "/models/<name>/reject", "Put a version aside.", models.put_aside, models.VersionFacts),
    Route("POST", "/models/rollback", "Go back to the champion before this one.",
          models.roll_back, models.VersionFacts),
    Route("GET", "/cycles", "Retraining cycles, newest first, and what the next one waits for.",
          _cycles, cycles.Cycles, Older),
    Route("POST", "/cycles", "Ask for a cycle now.", cycles.ask_for, cycles.CycleFacts),
    Route("GET", "/cycles/<int:cycle_id>", "One cycle: its steps, and its log, newest first.",
          _cycle, cycle_page.CyclePage, Older),
    Route("POST", "/cycles/<int:cycle_id>/cancel", "Stop a cycle.", cycles.stop, cycles.CycleFacts),
    Route("POST", "/cycles/<int:cycle_id>/resume", "Let a cycle go on with the step that it did not finish.",
          cycles.go_on, cycles.CycleFacts),
    Route("GET", "/policy", "The settings of the project, and their changes.", policy.facts, policy.Policy),
    Route("POST", "/policy", "Change settings of the project, all or none.",
          _set_policy, policy.Policy, PolicyBody),
)  # fmt: skip

ROUTES: Final = (
    Route("GET", "/projects", "Every project.", project_lines, list[ProjectLine]),
    *(replace(route, path=f"/projects/<int:project_id>{route.path}") for route in _OF_PROJECT),
    Route("GET", "/account", "Who asks, and their tokens.", account.facts, account.Account),
    Route("POST", "/tokens/<int:token_id>/revoke", "Make a token of one's own worthless; an admin anybody's.",
          account.revoke_token, account.Token, needs=Role.VIEWER),
    Route("GET", "/users", "Who may sign in, and everybody's tokens.",
          users.facts, users.Users, needs=Role.ADMIN),
    Route("POST", "/users/role", "Give a user another role.",
          _give_role, users.UserLine, RoleBody, Role.ADMIN),
    Route("POST", "/users/disable", "Let a user in no longer, by password, token or session.",
          _of_user(users.disable), users.UserLine, NameBody, Role.ADMIN),
    Route("POST", "/users/enable", "Let a user in again.",
          _of_user(users.enable), users.UserLine, NameBody, Role.ADMIN),
    Route("POST", "/users/remove", "Delete a user and their tokens; what they did stays in the log.",
          _of_user(users.remove), users.UserLine, NameBody, Role.ADMIN),
)  # fmt: skip
