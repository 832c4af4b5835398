"""The loop replayed on labelled data: which strategy gives the best model for the fewest labels.

Each run is one strategy with one seed. It begins without a model; in each round the strategy names the next
images, the oracle annotator corrects their prefills, the network is fine-tuned from the version that serves,
the gate decides, and what serves is measured on images that no round may choose. The same seed gives every
strategy the same first images, the same test images and the same initial weights.

It runs the loop's own parts: strategies, oracle, snapshot's sides, training, gate, quality score. It leaves
out the labeling tool, the ledger and the accept threshold: every image without a label stays in the pool.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from active_learning import evaluation, gate, snapshot_files
from active_learning.acquisition import STRATEGIES, order
from active_learning.candidates import Candidate
from active_learning.fine_tuning import MODE
from active_learning.guarantee import Promise
from active_learning.oracle import annotate
from active_learning.rehearsal import Graded, rehearse
from active_learning.risk import aurc, rank_correlation, risk_coverage
from active_learning.signals import features, measure, score
from active_learning.split import HOLDOUT, TRAIN, assign
from model.errors import ELNetError
from model.metrics import SegmentationMetrics
from model.pairs import Pair, find_pairs, read_pair
from model.predictor import CUT, Predictor
from model.raster import Raster
from model.scenes import split_by_scene
from model.train_config import TrainConfig
from model.training import train

CACHE_GB = 20.0  # of disk for frozen features, which all runs share
FULL = "all"  # stands for a strategy: one round with every image of the pool
REHEARSALS = 50  # random halves in which a promise is rehearsed
_AT_ONCE = 32  # images predicted together


class SimulationError(ELNetError):
    """The plan does not fit the data, or another plan's runs stand in the folder."""


@dataclass(frozen=True, slots=True)
class SimulationPlan:
    """What is replayed.

    Attributes:
        strategies: keys of `active_learning.acquisition.STRATEGIES`; "all" trains once, on the whole pool.
        seeds: each strategy runs once with each.
        labels: how many labels there are at each training, ascending; a label is an image.
        test_share: of the scenes, drawn by the seed, where no test folder is given.
        holdout_share: of the labelled scenes, for the gate; 0: there is no gate, and each new version serves.
        tolerance_px: boundary errors that the oracle lets pass.
        promise: what would be promised of the accepted masks, as "IoU, risk"; it is rehearsed on the test
            images, with audits of one half of their scenes, and does not change what is labelled.
        training: overrides of `model.train_config.TrainConfig`.
    """

    strategies: tuple[str, ...] = ("hybrid", "random")
    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    labels: tuple[int, ...] = (8, 16, 32)
    test_share: float = 0.4
    holdout_share: float = 0.0
    tolerance_px: int = 1
    promise: tuple[float, float] = (0.5, 0.2)
    training: dict[str, Any] = field(default_factory=dict)

    def check(self) -> None:
        """Refuse a plan that no data could fit.

        Raises:
            SimulationError: names what is wrong.
        """
        unknown = [name for name in self.strategies if name not in (*STRATEGIES, FULL)]
        if unknown or not self.strategies:
            names = ", ".join((*STRATEGIES, FULL))
            raise SimulationError(
                f"no such strategy: {', '.join(unknown) or 'none given'}; choose of {names}"
            )
        if not self.seeds:
            raise SimulationError("at least one seed is needed")
        rising = all(a < b for a, b in zip(self.labels, self.labels[1:], strict=False))
        if not self.labels or self.labels[0] < 2 or not rising:
            raise SimulationError(
                f"the numbers of labels must rise and begin at 2 or more, not {self.labels}"
            )
        if not (0 < self.test_share < 1 and 0 <= self.holdout_share < 1):
            raise SimulationError("the shares of test and holdout must lie between 0 and 1")
        Promise(*self.promise)
        TrainConfig.from_mapping(self.training)


@dataclass(frozen=True, slots=True)
class Round:
    """One training, and what serves after it.

    Attributes:
        strategy: what chose the labels.
        seed: of the run.
        labels: images labelled so far, those of the gate's holdout among them.
        promoted: whether the gate let the new version serve.
        fg_iou: pooled over the test images, of what serves, against the truth.
        fg_iou_per_image: mean over the test images.
        boundary_f1: mean over the test images.
        spearman: rank correlation of the quality score and the IoU of each test image; None if either is
            the same everywhere.
        aurc: area under the risk-coverage curve of the score on the test images: the mean over coverages of
            1 - IoU of what is accepted first. Lower is better.
        accepted: share of the test images that the plan's promise would accept, mean over `REHEARSALS` halves
            of their scenes, of which the other one is audited, see `active_learning.rehearsal`.
        realised_risk: share of the accepted that were bad after all, mean over the halves that accepted any;
            None where none did.
        promise_kept: share of the halves in which it was at most the promised one.
        corrected_pixels: that the annotator changed so far, in millions.
        touched: images so far whose prefill did not pass as it was.
        seconds: of this round.
    """

    strategy: str
    seed: int
    labels: int
    promoted: bool
    fg_iou: float
    fg_iou_per_image: float
    boundary_f1: float
    spearman: float | None
    aurc: float
    accepted: float
    realised_risk: float | None
    promise_kept: float
    corrected_pixels: float
    touched: int
    seconds: float


@dataclass(frozen=True, slots=True)
class _Image:
    """An image of the folder, with its truth (N, H, W)."""

    key: int
    stem: str
    scene: str
    raster: Raster
    truth: NDArray[np.bool_]
    valid: NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class _Said:
    """What a version says of an image, without its probabilities: they would fill the memory."""

    mask: NDArray[np.bool_]  # (N, H, W)
    quality: float
    features: list[float | None] | None
    candidate: Candidate


def simulate(
    data: Path,
    out: Path,
    plan: SimulationPlan,
    *,
    test: Path | None = None,
    progress: Callable[[str, int, int], None] = lambda detail, done, total: None,
) -> list[Round]:
    """Run what is still missing of a plan.

    All images are held in memory.

    Args:
        data: folder with images/ and masks/ to choose from.
        out: the finished runs are kept in its runs.jsonl, a line each; they are not run again.
        plan: what is replayed.
        test: another such folder, to measure on; None: a share of `data` is put aside.
        progress: called with what was done last, and how many runs of how many are.

    Returns:
        The rounds of all runs of the plan, strategy by strategy, seed by seed.

    Raises:
        SimulationError: the plan does not fit the data, or `out` cannot be written.
        ELNetError: a file cannot be read or a training went astray.
    """
    plan.check()
    pairs, classes = find_pairs(data)
    images = [_read(key, pair) for key, pair in enumerate(pairs)]
    judges = None
    if test is not None:
        judges = [_read(key, pair) for key, pair in enumerate(find_pairs(test, classes)[0])]
    digest = _digest(plan, images, judges)
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SimulationError(f"{out} cannot be made ({error.strerror}); name another folder") from error
    runs = [(strategy, seed) for seed in plan.seeds for strategy in plan.strategies]
    found: dict[tuple[str, int], list[Round]] = {}
    for number, (strategy, seed) in enumerate(runs):
        which = {"plan": digest, "strategy": strategy, "seed": seed}
        rounds = _kept(out / "runs.jsonl", which)
        if not rounds:
            for done in _run(strategy, seed, images, judges, classes, plan):
                rounds.append(done)
                progress(f"{strategy}, seed {seed}, {done.labels} labels", number, len(runs))
            _keep(out / "runs.jsonl", which, rounds)
        found[strategy, seed] = rounds
        progress(f"{strategy}, seed {seed}", number + 1, len(runs))
    return [row for strategy in plan.strategies for seed in plan.seeds for row in found[strategy, seed]]


def _run(
    strategy: str,
    seed: int,
    images: list[_Image],
    judges: list[_Image] | None,
    classes: list[str],
    plan: SimulationPlan,
) -> Iterator[Round]:
    """One strategy with one seed, round by round."""
    pool = images
    if judges is None:
        pool, judges = split_by_scene(images, plan.test_share, seed)
    labels = (len(pool),) if strategy == FULL else plan.labels
    if labels[-1] > len(pool):
        raise SimulationError(
            f"{labels[-1]} labels are asked for, and there are {len(pool)} images to choose from; ask for "
            "fewer labels, or give more images"
        )
    config = TrainConfig.from_mapping({"mode": MODE, "cache_gb": CACHE_GB, **plan.training, "seed": seed})
    labelled: dict[int, _Image] = {}
    sides: dict[str, str] = {}
    champion: Path | None = None
    predictor: Predictor | None = None
    pixels = touched = 0
    with tempfile.TemporaryDirectory(prefix="elnet-simulate-") as scratch:
        for number, count in enumerate(labels):
            started = time.monotonic()
            said = _look(predictor, pool)
            corrections = {}
            for image in _chosen(strategy, pool, labelled.keys(), said, count - len(labelled), seed):
                prefill = said[image.key].mask & image.raster.valid if said else None
                corrections[image.key] = annotate(prefill, image.truth, plan.tolerance_px)
                labelled[image.key] = image
            sides = _sides(labelled.values(), sides, plan.holdout_share)
            for key, correction in corrections.items():
                image = labelled[key]
                side = Path(scratch, sides[image.scene])
                snapshot_files.render(side, image.stem, image.raster, correction.mask, classes)
                pixels, touched = pixels + correction.corrected_pixels, touched + correction.touched
            out = Path(scratch, f"model-{number}")
            train(Path(scratch, TRAIN), out, config, init=champion)
            challenger = Predictor(out, config.device, cache_gb=CACHE_GB)
            holdout = Path(scratch, HOLDOUT)
            promoted = not holdout.exists() or _is_better(challenger, predictor, holdout, classes)
            if promoted:
                champion, predictor = out, challenger
            figures = _judge(_look(predictor, judges), judges, classes, Promise(*plan.promise))
            seconds = time.monotonic() - started
            yield Round(strategy, seed, count, promoted, *figures, pixels / 1e6, touched, round(seconds, 1))


def _read(key: int, pair: Pair) -> _Image:
    raster, truth, valid = read_pair(pair)
    return _Image(key, pair.stem, pair.scene, raster, truth, valid)


def _look(predictor: Predictor | None, images: Sequence[_Image]) -> dict[int, _Said]:
    """What the version that serves says of each image; nothing while none does."""
    said: dict[int, _Said] = {}
    if predictor is None:
        return said
    for begin in range(0, len(images), _AT_ONCE):
        group = images[begin : begin + _AT_ONCE]
        for image, found in zip(group, predictor.predict([i.raster for i in group]), strict=True):
            measured = measure(found, CUT, image.raster.valid)
            quality = score(measured)
            told = measured.to_dict()
            candidate = Candidate.of(image.key, quality, told, found.embedding)
            said[image.key] = _Said(found.probability > CUT, quality, features(told), candidate)
    return said


def _chosen(
    strategy: str,
    pool: Sequence[_Image],
    labelled: Collection[int],
    said: Mapping[int, _Said],
    count: int,
    seed: int,
) -> list[_Image]:
    """The next images to label; at random while no version serves, as in the loop."""
    waiting = {image.key: image for image in pool if image.key not in labelled}
    if not said:
        nothing = [Candidate(key, 0.0, None) for key in waiting]
        return [waiting[key] for key in order("random", nothing, [], count, seed)]
    candidates = [said[key].candidate for key in waiting]
    known = [e for key in labelled if (e := said[key].candidate.embedding) is not None]
    return [waiting[key] for key in order(strategy, candidates, known, count, seed)]


def _sides(labelled: Iterable[_Image], known: dict[str, str], share: float) -> dict[str, str]:
    """Which labelled scenes train and which judge for the gate, as in a snapshot."""
    scenes = Counter(image.scene for image in labelled)
    return assign(scenes, known, share) if share else dict.fromkeys(scenes, TRAIN)


def _is_better(challenger: Predictor, champion: Predictor | None, holdout: Path, classes: list[str]) -> bool:
    new, old = (
        gate.image_scores(evaluation.evaluate(p, holdout, classes)["per_image"]) if p is not None else None
        for p in (challenger, champion)
    )
    return gate.decide(new or [], old).promote


def _judge(
    said: Mapping[int, _Said], judges: Sequence[_Image], classes: list[str], promise: Promise
) -> tuple[float, float, float, float | None, float, float, float | None, float]:
    """`Round`'s figures from `fg_iou` to `promise_kept`. Where no version serves, every mask is empty."""
    metrics = SegmentationMetrics(classes)
    for image in judges:
        mask = said[image.key].mask if said else np.zeros_like(image.truth)
        metrics.update(mask, image.truth, image.valid, name=image.stem)
    scores = metrics.compute()
    qualities = [said[image.key].quality if said else 0.0 for image in judges]
    ious = [entry["iou"] for entry in scores.per_image]
    signals = [said[image.key].features if said else None for image in judges]
    graded = Graded(qualities, ious, [image.scene for image in judges], signals)
    rehearsed = rehearse(graded, promise, REHEARSALS)
    return (
        scores.fg_iou,
        scores.fg_iou_per_image,
        scores.boundary_f1,
        rank_correlation(qualities, ious),
        aurc(risk_coverage(qualities, ious)),
        rehearsed.coverage,
        rehearsed.risk,
        rehearsed.kept,
    )


def _digest(plan: SimulationPlan, images: Sequence[_Image], judges: Sequence[_Image] | None) -> str:
    """Of all that makes one run of a strategy and a seed differ from another."""
    counted = {k: v for k, v in asdict(plan).items() if k not in ("strategies", "seeds")}
    found = sha256(json.dumps(counted, sort_keys=True).encode())
    for image in (*images, *(judges or ())):
        found.update(f"{image.stem}\0".encode())
        found.update(image.raster.pixels.tobytes())
        found.update(np.packbits(image.truth).tobytes())
    return found.hexdigest()[:16]


def _kept(path: Path, which: Mapping[str, Any]) -> list[Round]:
    """The rounds of a run that came to its end before; none if it did not."""
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):  # half a line, of a process that was killed
            told = json.loads(line)
            if which.items() <= told.items():
                return [Round(**row) for row in told["rounds"]]
    return []


def _keep(path: Path, which: Mapping[str, Any], rounds: Sequence[Round]) -> None:
    try:
        with path.open("a") as lines:
            lines.write(json.dumps({**which, "rounds": [asdict(row) for row in rounds]}) + "\n")
    except OSError as error:
        raise SimulationError(f"{path} cannot be written ({error.strerror}); the runs in it stay") from error
