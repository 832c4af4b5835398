"""How far a quality score can be trusted: ranks, calibration, and promises kept, on images with truth.

`python -m benchmarks.quality --checkpoint CHECKPOINT --data ../shared/data/sar_oil/test`

Scores are compared on the same predictions. Whatever is fitted is fitted on one half of the scenes and
measured on the other, over and over again (`--splits`); siblings stay on one side.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from active_learning.calibrator import Calibrator, cross_fitted
from active_learning.guarantee import Promise, guarantee
from active_learning.risk import augrc, aurc, rank_correlation, risk_coverage
from active_learning.signals import features, measure, score
from model.device import describe_machine
from model.metrics import SegmentationMetrics
from model.pairs import find_pairs, read_pair
from model.predictor import CUT, Predictor

OURS = "score (ours)"
PROMISES = [Promise(iou, risk, 0.9) for iou in (0.5, 0.6, 0.7) for risk in (0.1, 0.2)]


@dataclass(frozen=True, slots=True)
class Sample:
    """Every image's scene, true IoU, signals to regress on, and scores by name, (n,) each."""

    scenes: list[str]
    ious: NDArray[np.float64]
    features: list[list[float] | None]
    scores: dict[str, NDArray[np.float64]]


def main() -> None:
    """Predict, measure and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and masks/")
    parser.add_argument("--splits", type=int, default=500)
    given = parser.parse_args()
    started = time.monotonic()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {describe_machine()}, torch {torch.__version__}")
    sample = collect(given.checkpoint, given.data)
    print(f"{len(sample.ious)} images of {len(set(sample.scenes))} scenes, mean IoU {sample.ious.mean():.3f}")
    print("\n| score | rank correlation | AURC | of mean confidence's | AUGRC |\n|---|---|---|---|---|")
    for name, rank, area, share, general in ranks(sample):
        print(f"| {name} | {rank:.3f} | {area:.3f} | {share:.2f} | {general:.3f} |")
    error, kinds = calibration_error(sample, given.splits)
    chosen = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    print("\nPredicted IoU, fitted on one half of the scenes and measured on the other:")
    print(f"mean absolute error {error:.3f}; chosen: {chosen}")
    print(
        "\n| promise, confidence 0.9 | kept in | coverage | best possible | no threshold in |\n"
        "|---|---|---|---|---|"
    )
    for promise in PROMISES:
        kept, coverage, best, none = promises(sample, promise, given.splits)
        print(
            f"| at most {promise.risk:.0%} below IoU {promise.iou:g} | {kept:.1%} | {coverage:.1%} | "
            f"{best:.1%} | {none:.1%} |"
        )
    print(f"\n{given.splits} splits, {time.monotonic() - started:.0f} s")


def collect(checkpoint: Path, data: Path) -> Sample:
    """Predict a folder and score every image in every way."""
    predictor = Predictor(checkpoint)
    pairs, classes = find_pairs(data)
    metrics = SegmentationMetrics(classes)
    rows: list[dict[str, float]] = []
    told: list[list[float] | None] = []
    for pair in pairs:
        image, truth, valid = read_pair(pair)
        [found] = predictor.predict([image])
        metrics.update(found.probability > CUT, truth, valid, name=pair.stem)
        measured = measure(found, CUT, image.valid)
        told.append(features(measured.to_dict()))
        rows.append(_scores(found.probability[:, image.valid], measured.to_dict(), score(measured)))
    ious = np.array([entry["iou"] for entry in metrics.compute().per_image])
    scores = {name: np.array([row[name] for row in rows]) for name in rows[0]}
    scenes = [pair.scene for pair in pairs]
    scores["predicted IoU, of other scenes"] = cross_fitted(
        scores[OURS].tolist(), ious.tolist(), scenes, told
    )
    return Sample(scenes, ious, told, scores)


def _scores(probability: NDArray[Any], measured: Mapping[str, Any], ours: float) -> dict[str, float]:
    """Each signal by itself, of the class with the lowest score; all in [0, 1], high is good."""
    worst = min(measured["classes"], key=lambda c: c["score"])
    confidence = np.maximum(probability, 1 - probability).mean()
    return {
        OURS: ours,
        "stability": worst["stability"],
        "Soft Dice Confidence": worst["soft_dice_confidence"],
        "boundary entropy": 1 - worst["boundary_entropy"],
        "edge agreement": worst["edge_agreement"],
        "mean entropy": 1 - worst["entropy"],
        "mean confidence": float(confidence),
    }


def ranks(sample: Sample) -> list[tuple[str, float, float, float, float]]:
    """Of each score: its name, rank correlation with IoU, AURC, that over mean confidence's, and AUGRC."""
    ious = sample.ious.tolist()
    curves = {name: risk_coverage(values.tolist(), ious) for name, values in sample.scores.items()}
    confidence = aurc(curves["mean confidence"])
    return [
        (
            name,
            rank_correlation(sample.scores[name].tolist(), ious) or 0.0,
            aurc(curve),
            aurc(curve) / confidence,
            augrc(curve),
        )
        for name, curve in curves.items()
    ]


def halves(scenes: Sequence[str], splits: int) -> list[tuple[NDArray[np.bool_], NDArray[np.bool_]]]:
    """Random halves of the scenes, as masks over the images."""
    names, index = np.unique(np.array(scenes), return_inverse=True)
    found = []
    for seed in range(splits):
        first = np.random.default_rng(seed).permutation(len(names)) < len(names) // 2
        found.append((first[index], ~first[index]))
    return found


def calibration_error(sample: Sample, splits: int) -> tuple[float, Counter[str]]:
    """Mean absolute error of the predicted IoU, as the loop fits it, and how often it chose which kind."""
    errors = []
    kinds: Counter[str] = Counter()
    for fit, test in halves(sample.scenes, splits):
        calibrator = Calibrator.fit(*_taken(sample, fit))
        kinds[calibrator.kind] += 1
        scores, ious, _, told = _taken(sample, test)
        errors.append(np.abs(calibrator.predict(scores, told) - np.array(ious)).mean())
    return float(np.mean(errors)), kinds


def promises(sample: Sample, promise: Promise, splits: int) -> tuple[float, float, float, float]:
    """A promise over the splits, calibrated and set on one half as the loop does it, measured on the other.

    Returns:
        Share of splits in which the realised risk is at most the promised one; mean coverage; mean of the
        largest coverage that an oracle could have had by the same qualities; share of splits without a
        threshold.
    """
    kept, coverage, best, none = [], [], [], []
    for fit, test in halves(sample.scenes, splits):
        scores, ious, scenes, told = _taken(sample, fit)
        calibrator = Calibrator.fit(scores, ious, scenes, told)
        found = guarantee(cross_fitted(scores, ious, scenes, told).tolist(), ious, promise, scenes)
        scores, ious, _, told = _taken(sample, test)
        quality, failed = calibrator.predict(scores, told), np.array(ious) < promise.iou
        accepted = np.zeros(len(quality), np.bool_) if found.threshold is None else quality >= found.threshold
        kept.append(not accepted.any() or failed[accepted].mean() <= promise.risk)
        coverage.append(accepted.mean())
        none.append(found.threshold is None)
        ranked = np.cumsum(failed[np.argsort(-quality, kind="stable")])
        good = ranked <= promise.risk * np.arange(1, len(failed) + 1)
        best.append((np.flatnonzero(good).max() + 1) / len(failed) if good.any() else 0.0)
    return float(np.mean(kept)), float(np.mean(coverage)), float(np.mean(best)), float(np.mean(none))


def _taken(
    sample: Sample, which: NDArray[np.bool_]
) -> tuple[list[float], list[float], list[str], list[list[float] | None]]:
    """Scores, IoUs, scenes and signals of some images."""
    kept = np.flatnonzero(which).tolist()
    scores, ious = sample.scores[OURS][which].tolist(), sample.ious[which].tolist()
    return scores, ious, [sample.scenes[i] for i in kept], [sample.features[i] for i in kept]


if __name__ == "__main__":
    main()
