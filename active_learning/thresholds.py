"""The accept threshold: who moved it, when and why, and the promise that moves it by itself.

A lead sets a threshold (`set_threshold`), or states a promise (`promise`) and lets the audits find the
loosest threshold that keeps it (`active_learning.guarantee`). A promise stands: with each new champion and
after each cycle its threshold is found anew (`keep`), and where the audits of a new champion do not yet
suffice, nothing is accepted until they do. When audits of what was accepted contradict it, auto-accept is
switched off (`watch`), and only a lead's decision brings it back. What a threshold costs is told by
`active_learning.risk`.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from itertools import accumulate
from typing import Any

import numpy as np
from sqlalchemy import Select, select
from sqlalchemy.orm import Session

from active_learning.guarantee import Guarantee, Promise, guarantee
from active_learning.ledger import Label, LabelSource, Prediction, Project, Task, ThresholdChange
from active_learning.ledger.locking import lock_project
from active_learning.living import current_ids
from active_learning.quality import calibration_samples, cross_graded, recalibrate
from active_learning.risk import ThresholdError, check
from active_learning.routing import route

LOOP = "elnet"  # who moves the threshold when no person does
FALSE_ALARM = 0.05  # chance of ever switching off while the promise holds


def set_threshold(
    session: Session,
    project: Project,
    value: float | None,
    who: str,
    why: str,
    standing: Promise | None = None,
) -> ThresholdChange:
    """Move the accept threshold, write down the change, and route every current prediction again.

    Args:
        session: a writing session; the caller commits.
        project: the project.
        value: predicted IoU in [0, 1] from which a mask is accepted; None: nothing is accepted.
        who: the lead.
        why: the reason, for those who come later.
        standing: the promise that stands from now on; None: none, the number is the lead's own.

    Raises:
        ThresholdError: not in [0, 1], nothing would change, or nobody or no reason is named.
    """
    check(value)
    if not who.strip() or not why.strip():
        raise ThresholdError("a change of the threshold needs who made it and why")
    lock_project(session, project.id)
    before, promised = project.accept_threshold, None if standing is None else asdict(standing)
    if before == value and project.promise == promised:
        raise ThresholdError(f"the threshold of project {project.name!r} is {_shown(value)} already")
    change = ThresholdChange(
        project_id=project.id,
        who=who.strip()[:200],
        from_value=before,
        to_value=value,
        why=why.strip(),
        promise=promised,
    )
    session.add(change)
    project.accept_threshold, project.promise = value, promised
    session.flush()
    if before != value:
        route(session, project)
    return change


def undo(session: Session, project: Project, who: str) -> ThresholdChange:
    """Take back the last change, by a new one. Undoing twice brings it back.

    Raises:
        ThresholdError: it was never changed.
    """
    changes = history(session, project)
    if not changes:
        raise ThresholdError(f"the threshold of project {project.name!r} was never changed")
    last, earlier = changes[0], changes[1] if len(changes) > 1 else None
    why = f"undoes the change to {_shown(last.to_value)} by {last.who} of {last.at:%Y-%m-%d %H:%M} UTC"
    standing = Promise(**earlier.promise) if earlier is not None and earlier.promise else None
    return set_threshold(session, project, last.from_value, who, why, standing)


def history(session: Session, project: Project) -> list[ThresholdChange]:
    """Every change of the project's threshold, the newest first."""
    return list(session.scalars(_changes(project)))


def last_change(session: Session, project: Project) -> ThresholdChange | None:
    """The newest change of the project's threshold."""
    found: ThresholdChange | None = session.scalar(_changes(project).limit(1))
    return found


def switched_off(session: Session, project: Project) -> str | None:
    """Why the loop itself has stopped accepting, until a lead decides; None if it has not."""
    last = last_change(session, project)
    stopped = last is not None and last.who == LOOP and last.to_value is None and last.promise is None
    return last.why if stopped and last is not None else None


def standing(project: Project) -> Promise | None:
    """The promise that sets the project's threshold; None: a lead's number does, or nothing."""
    return None if project.promise is None else Promise(**project.promise)


def assess(session: Session, project: Project, promised: Promise) -> Guarantee:
    """What the champion's audits say of a promise. Without a champion there is none.

    The champion's predictions are graded anew on all audits, since that is the scale of the threshold; the
    audits themselves are graded by the same kind of map, fitted without their scene.

    Args:
        session: a writing session; one that is rolled back leaves everything as it was.
        project: the project.
        promised: what is to hold.

    Raises:
        ThresholdError: it speaks of a class that the project does not have.
    """
    _refuse_unknown(project, promised)
    if project.champion is not None:
        recalibrate(session, project, project.champion)
    return judged(session, project, promised).guarantee(promised)


@dataclass(frozen=True, slots=True)
class Judged:
    """The champion's audits, as a promise judges them; lists of equal length.

    Attributes:
        qualities: predicted IoU, of each by a map that has not seen its scene.
        ious: with what the auditor drew; 1 or 0, good or bad as a whole, where the promise names classes.
        scenes: of the images.
    """

    qualities: list[float]
    ious: list[float]
    scenes: list[str]

    def guarantee(self, promised: Promise) -> Guarantee:
        """What can be promised by them."""
        return guarantee(self.qualities, self.ious, promised, self.scenes)


def judged(session: Session, project: Project, promised: Promise) -> Judged:
    """The audits that a promise is tested on; none without a champion. Only reads.

    Raises:
        ThresholdError: it speaks of a class that the project does not have.
    """
    _refuse_unknown(project, promised)
    if project.champion is None:
        return Judged([], [], [])
    samples = calibration_samples(session, project, project.champion)
    qualities = cross_graded(samples)
    fails = [promised.fails(s.iou, s.class_ious, project.classes) for s in samples]
    own = [
        i
        for i, sample in enumerate(samples)
        if sample.version == project.champion_id and fails[i] is not None
    ]
    ious = [float(not fails[i]) if promised.classes else samples[i].iou for i in own]
    return Judged(qualities[own].tolist(), ious, [samples[i].scene for i in own])


def _refuse_unknown(project: Project, promised: Promise) -> None:
    if unknown := promised.classes.keys() - set(project.classes):
        raise ThresholdError(
            f"project {project.name!r} has no class {', '.join(sorted(unknown))}; it has "
            f"{', '.join(project.classes)}"
        )


def promise(
    session: Session, project: Project, promised: Promise, who: str, why: str
) -> tuple[ThresholdChange, Guarantee]:
    """Let a promise set the threshold, now and after each cycle.

    Where the audits do not suffice yet, nothing is accepted; the guarantee says how many more it takes.

    Raises:
        ThresholdError: nothing would change, or nobody or no reason is named.
    """
    lock_project(session, project.id)
    found = assess(session, project, promised)
    return set_threshold(session, project, found.threshold, who, f"{why} ({promised})", promised), found


def keep(session: Session, project: Project) -> tuple[ThresholdChange | None, Guarantee | None]:
    """Find the threshold of the standing promise anew.

    Meant for moments that the audits did not choose, such as the end of a cycle: looking after each single
    audit until one looks good would spend the confidence.

    Returns:
        The change, if the threshold moved, and the guarantee; None and None without a promise.
    """
    promised = standing(project)
    if promised is None:
        return None, None
    lock_project(session, project.id)
    found = assess(session, project, promised)
    if found.threshold == project.accept_threshold:
        return None, found
    version = project.champion.name if project.champion else "no version"
    audits = f"{found.samples} audits of {version}"
    why = f"what {audits} can promise" if found.threshold is not None else f"{audits} cannot promise it yet"
    why += f": {promised}"
    return set_threshold(session, project, found.threshold, LOOP, why, promised), found


@dataclass(frozen=True, slots=True)
class Watch:
    """What audits since the threshold's last move say of the promise.

    Attributes:
        audited: of masks that the champion would have had accepted; one of each scene.
        failures: of these, what the promise calls bad.
        evidence: against the promise, an e-value: a bet that wins where more than the promised risk fails. 1
            says nothing; at 1 / `FALSE_ALARM` the promise counts as broken.
    """

    audited: int
    failures: int
    evidence: float

    @property
    def broken(self) -> bool:
        """Whether the promise counts as broken."""
        return self.evidence >= 1 / FALSE_ALARM


def watched(session: Session, project: Project) -> Watch | None:
    """Look at the standing promise; None where there is none, or nothing is accepted by it.

    It may be looked at at any time: while the promise holds, the chance that the evidence ever reaches
    1 / `FALSE_ALARM` is at most `FALSE_ALARM` (Ville's inequality; Ramdas et al. 2023, "Game-theoretic
    statistics and safe anytime-valid inference").
    """
    promised = standing(project)
    found = _audited_since(session, project)
    if promised is None or found is None:
        return None
    failures = sum(failed for _, failed in found)
    return Watch(len(found), failures, evidence(failures, len(found), promised.risk))


def course(session: Session, project: Project) -> list[tuple[datetime, Watch]]:
    """What `watched` would have said after each audit, oldest first, and when that came in."""
    promised = standing(project)
    found = _audited_since(session, project)
    if promised is None or found is None:
        return []
    failures = accumulate(int(failed) for _, failed in found)
    counted = enumerate(zip(found, failures, strict=True), 1)
    return [(at, Watch(n, k, evidence(k, n, promised.risk))) for n, ((at, _), k) in counted]


def _audited_since(session: Session, project: Project) -> list[tuple[datetime, bool]] | None:
    """The first audit of each scene since the threshold's last move: when it came in, and whether it was bad.

    Of masks that the champion would have had accepted. None where no promise sets a threshold.
    """
    promised = standing(project)
    last = last_change(session, project)
    if promised is None or project.accept_threshold is None or last is None:
        return None
    rows = session.execute(
        select(Label.prefill_iou, Label.class_ious, Task.scene, Label.received_at)
        .join(Prediction, Label.prediction_id == Prediction.id)
        .join(Task, Task.id == Label.task_id)
        .where(Label.id.in_(current_ids(project.id, (LabelSource.AUDIT,))), Label.prefill_iou.is_not(None))
        .where(Prediction.model_version_id == project.champion_id, Label.received_at > last.at)
        .where(Prediction.quality >= project.accept_threshold)
        .order_by(Label.id)
    ).all()
    first: dict[str, tuple[datetime, bool]] = {}
    for iou, of_classes, scene, at in rows:
        failed = None if iou is None else promised.fails(iou, of_classes, project.classes)
        if failed is not None:
            first.setdefault(scene, (at, failed))
    return list(first.values())


def evidence(failures: int, samples: int, risk: float) -> float:
    """The e-value against "at most `risk` fail": a mixture of bets on larger shares.

    Each bet is a likelihood ratio of a share above the risk to the risk itself, whose mean is at most 1 under
    every share up to the risk.
    """
    shares = risk + (1 - risk) * (np.arange(20) + 0.5) / 20
    logs = failures * np.log(shares / risk) + (samples - failures) * np.log((1 - shares) / (1 - risk))
    return float(np.exp(np.minimum(logs, 700)).mean())


def watch(session: Session, project: Project) -> ThresholdChange | None:
    """Switch auto-accept off when the promise is broken.

    Returns:
        The change; None while the promise holds, or there is none.
    """
    seen, promised = watched(session, project), standing(project)
    if seen is None or promised is None or not seen.broken:
        return None
    why = (
        f"the promise is broken: {seen.failures} of {seen.audited} audits of accepted masks had "
        f"{promised.failure}, where at most {promised.risk:.0%} were promised. Nothing is accepted until "
        "a lead decides anew"
    )
    return set_threshold(session, project, None, LOOP, why)


def _changes(project: Project) -> Select[Any]:
    mine = select(ThresholdChange).where(ThresholdChange.project_id == project.id)
    return mine.order_by(ThresholdChange.id.desc())


def _shown(value: float | None) -> str:
    return "none" if value is None else f"{value:g}"
