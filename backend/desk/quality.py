"""Quality: whether the masks are as good as was predicted and promised, and which labels to look at again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Final

from flask import Blueprint, request, url_for
from sqlalchemy.orm import Session
from werkzeug.exceptions import NotFound

from active_learning import drift as drifts
from active_learning import judgements, standing, thresholds
from active_learning.drift import LEAST_ACCEPTED, LEAST_AUDITED, Drift
from active_learning.guarantee import fewest
from active_learning.judgements import LEAST_BLIND, Anchoring, Judgement
from active_learning.ledger import LabelSource, Project, TaskStatus
from active_learning.quality import MIN_SAMPLES, calibration_samples, current_calibrator
from active_learning.thresholds import FALSE_ALARM, Watch
from backend.addresses import task_url
from backend.desk.project_page import open_project, render, render_part

blueprint = Blueprint("desk_quality", __name__, url_prefix="/desk")

SUSPECTS: Final = 12  # on a page
PAIRS: Final = 20  # of two people's labels, the least alike ones


@dataclass(frozen=True, slots=True)
class Kept:
    """The standing promise beside what audits say.

    Attributes:
        promise: as a sentence; None: none stands.
        risk: share of accepted masks that may be bad; None without a promise.
        threshold: predicted IoU from which masks are accepted; None: nothing is.
        watch: audits of accepted masks since the threshold last moved; None where nothing is accepted by it.
        limit: of the evidence, at which auto-accept stops.
        missing: audits of the version that serves that it takes at least until a threshold can be promised;
            0: their number suffices, but not what they said; None where one is set, or nothing is promised.
    """

    promise: str | None
    risk: float | None
    threshold: float | None
    watch: Watch | None
    limit: float
    missing: int | None


@dataclass(frozen=True, slots=True)
class Audits:
    """Audited masks of one kind: how many, mean IoU that was predicted, and mean IoU with the labels."""

    kind: str
    audits: int
    predicted: float
    iou: float


@dataclass(frozen=True, slots=True)
class Suspect:
    """A label worth a second look, and where it opens in Label Studio."""

    label: Judgement
    url: str


@dataclass(frozen=True, slots=True)
class QualityFacts:
    """How good the masks and the labels of a project are.

    Attributes:
        champion: version that serves; None before the first.
        kept: whether the promise is.
        audited: masks that were audited, of all versions.
        own: of these, of the version that serves.
        waiting: images that wait in the audit.
        error: mean absolute error of one mask's predicted IoU; None without an audit.
        calibrated_on: audits by which the predicted IoU of the version that serves was calibrated; those of
            the holdout, judged anew, are among them.
        until_scale: audits that are missing until predicted IoU is more than an uncalibrated score.
        groups: audits whose mask was shown, and blind ones, as far as there are any.
        anchoring: how far people are drawn towards a mask that they see; None: too few audits of either kind.
        until_anchoring: audits that are missing until that can be told: shown ones, and blind ones.
        blind_share: of the audits to come, that are blind.
        suspected: labels worth a second look,
        suspects: and those of this page, the worst first.
        page: from 1 on.
        pages: that they fill.
    """

    champion: str | None
    kept: Kept
    audited: int
    own: int
    waiting: int
    error: float | None
    calibrated_on: int
    until_scale: int
    groups: list[Audits]
    anchoring: Anchoring | None
    until_anchoring: tuple[int, int]
    blind_share: float
    suspected: int
    suspects: list[Suspect]
    page: int
    pages: int


def facts(session: Session, project: Project, page: int = 1) -> QualityFacts:
    """Look at a project; only reads."""
    said = judgements.judged(session, project)
    done = [one for source, one in said if source is LabelSource.AUDIT]
    champion = project.champion.name if project.champion else None
    own = sum(one.version == champion for one in done)
    kinds = {"mask shown": [a for a in done if not a.blind], "blind": [a for a in done if a.blind]}
    shown, blind = (max(0, LEAST_BLIND - len(group)) for group in kinds.values())
    doubted = judgements.doubtful(one for _, one in said)
    version = project.champion
    calibrated_on = current_calibrator(session, version.id).samples if version else 0
    begin = (page - 1) * SUSPECTS
    return QualityFacts(
        champion,
        _kept(session, project),
        len(done),
        own,
        standing.counts(session, project)[TaskStatus.AUDIT],
        fmean(abs(one.shortfall) for one in done) if done else None,
        calibrated_on,
        max(0, MIN_SAMPLES - calibrated_on),
        [_group(kind, group) for kind, group in kinds.items() if group],
        judgements.anchoring(done),
        (shown, blind),
        project.blind_share,
        len(doubted),
        [Suspect(one, task_url(project, one.task)) for one in doubted[begin : begin + SUSPECTS]],
        page,
        max(1, -(-len(doubted) // SUSPECTS)),
    )


def _kept(session: Session, project: Project) -> Kept:
    promised = thresholds.standing(project)
    missing = None
    if promised is not None and project.accept_threshold is None:
        champion = project.champion
        samples = calibration_samples(session, project, champion) if champion else []
        own = sum(champion is not None and sample.version == champion.id for sample in samples)
        missing = max(0, fewest(promised) - own)
    return Kept(
        None if promised is None else str(promised),
        None if promised is None else promised.risk,
        project.accept_threshold,
        thresholds.watched(session, project),
        1 / FALSE_ALARM,
        missing,
    )


def _group(kind: str, group: Sequence[Judgement]) -> Audits:
    return Audits(kind, len(group), fmean(a.predicted for a in group), fmean(a.iou for a in group))


@dataclass(frozen=True, slots=True)
class Pair:
    """Two people's labels of one image: their ids in Label Studio, the IoU, and where it opens."""

    task: int
    annotators: tuple[str, str]
    iou: float
    url: str


@dataclass(frozen=True, slots=True)
class Annotators:
    """Two people: images that both labelled, and the median IoU of what they drew."""

    annotators: tuple[str, str]
    images: int
    iou: float


@dataclass(frozen=True, slots=True)
class AgreementFacts:
    """How far people agree: every two of them, least first, and the images on which they agree least."""

    people: list[Annotators]
    pairs: list[Pair]


def agreement(session: Session, project: Project) -> AgreementFacts:
    """Look at images that two people labelled; reads their masks, and so is no part of `facts`."""
    found = judgements.agreements(session, project)
    ious: dict[tuple[str, str], list[float]] = {}
    for one in found:
        ious.setdefault(one.annotators, []).append(one.iou)
    people = [Annotators(two, len(of), median(of)) for two, of in ious.items()]
    pairs = [Pair(one.task, one.annotators, one.iou, task_url(project, one.task)) for one in found[:PAIRS]]
    return AgreementFacts(sorted(people, key=lambda two: two.iou), pairs)


@dataclass(frozen=True, slots=True)
class DriftFacts:
    """Whether accepted images are unlike the audited ones.

    Attributes:
        drift: None: nothing is accepted, or there are too few images to tell.
        alarming: whether auto-accept stops.
        usual: share of strange images where nothing has drifted.
        least: scenes that it takes at least, audited and accepted ones.
    """

    drift: Drift | None
    alarming: bool
    usual: float
    least: tuple[int, int]


def drift(session: Session, project: Project) -> DriftFacts:
    """Look at the embeddings of up to 4,000 images, and so is no part of `facts`."""
    found = drifts.drift(session, project)
    alarming = found is not None and found.alarming
    return DriftFacts(found, alarming, drifts.USUAL, (LEAST_AUDITED, LEAST_ACCEPTED))


@blueprint.get("/<int:project_id>/quality")
def show(project_id: int) -> str:
    """The page; its charts, the agreement and the drift are asked for by themselves."""
    page = request.args.get("page", 1, type=int)
    with open_project(project_id) as (session, project):
        found = facts(session, project, max(1, page))
        if page != found.page or page > found.pages:
            raise NotFound(f"There is no page {page} of these labels; there are {found.pages}.")
        return render("quality.html", project, facts=found)


@blueprint.get("/<int:project_id>/quality/<part>")
def show_part(project_id: int, part: str) -> str:
    """A part of the page that takes longer: `agreement` or `drift`."""
    looks = {"agreement": (agreement, "How far people agree"), "drift": (drift, "Drift of the imagery")}
    if part not in looks:
        raise NotFound(f"The page has no part {part!r}; it has {', '.join(looks)}.")
    look, title = looks[part]
    with open_project(project_id) as (session, project):
        back = url_for("desk_quality.show", project_id=project_id)
        return render_part(f"quality_{part}.html", project, title, back, facts=look(session, project))
