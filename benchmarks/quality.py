"""How far a quality score can be trusted: ranks, calibration, and promises kept, on images with truth.

`python -m benchmarks.quality --checkpoint CHECKPOINT --data ../shared/data/sar_oil/test`

Scores are compared on the same predictions. Whatever is fitted is fitted on one half of the scenes and
measured on the other, over and over again (`--splits`); siblings stay on one side. `--flips 8` predicts in
eight views, and `--sam` adds what SAM 2 foresees.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from active_learning.calibrator import Calibrator, cross_fitted
from active_learning.guarantee import Promise
from active_learning.rehearsal import Graded, halves, rehearse
from active_learning.risk import augrc, aurc, rank_correlation, risk_coverage
from active_learning.signals import features, measure, score
from benchmarks.sam_head import SamHead
from model.device import describe_machine
from model.metrics import SegmentationMetrics
from model.pairs import find_pairs, read_pair
from model.predictor import CUT, Predictor

OURS = "score (ours)"
PROMISES = [Promise(iou, risk, 0.9) for iou in (0.5, 0.6, 0.7) for risk in (0.1, 0.2)]


@dataclass(frozen=True, slots=True)
class Sample:
    """Every image, and its scores by name, (n,) each."""

    graded: Graded
    scores: dict[str, NDArray[np.float64]]


def main() -> None:
    """Predict, measure and print the tables."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.quality", description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and masks/")
    parser.add_argument("--splits", type=int, default=500)
    parser.add_argument("--flips", type=int, default=1, help="views that a prediction is the mean of")
    parser.add_argument("--sam", action="store_true", help="also SAM 2's own IoU head (2 s an image)")
    given = parser.parse_args()
    started = time.monotonic()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {describe_machine()}, torch {torch.__version__}")
    rival = SamHead.fetched() if given.sam else None
    sample = collect(given.checkpoint, given.data, given.flips, rival)
    ious, scenes = sample.graded.ious, sample.graded.scenes
    print(f"{len(ious)} images of {len(set(scenes))} scenes, mean IoU {np.mean(ious):.3f}")
    print("\n| score | rank correlation | AURC | of mean confidence's | AUGRC |\n|---|---|---|---|---|")
    for name, rank, area, share, general in ranks(sample):
        print(f"| {name} | {rank:.3f} | {area:.3f} | {share:.2f} | {general:.3f} |")
    error, kinds = calibration_error(sample.graded, given.splits)
    chosen = ", ".join(f"{kind} {count}" for kind, count in kinds.most_common())
    print("\nPredicted IoU, fitted on one half of the scenes and measured on the other:")
    print(f"mean absolute error {error:.3f}; chosen: {chosen}")
    print(
        "\n| promise, confidence 0.9 | kept in | coverage | best possible | no threshold in |\n"
        "|---|---|---|---|---|"
    )
    for promise in PROMISES:
        found = rehearse(sample.graded, promise, given.splits)
        print(
            f"| at most {promise.risk:.0%} below IoU {promise.iou:g} | {found.kept:.1%} | "
            f"{found.coverage:.1%} | {found.best:.1%} | {found.refused:.1%} |"
        )
    print(f"\n{given.splits} splits, {time.monotonic() - started:.0f} s")


def collect(checkpoint: Path, data: Path, flips: int = 1, rival: SamHead | None = None) -> Sample:
    """Predict a folder and score every image in every way."""
    predictor = Predictor(checkpoint, flips=flips)
    pairs, classes = find_pairs(data)
    metrics = SegmentationMetrics(classes)
    rows: list[dict[str, float | None]] = []
    told: list[list[float | None] | None] = []
    for pair in pairs:
        image, truth, valid = read_pair(pair)
        [found] = predictor.predict([image])
        metrics.update(found.probability > CUT, truth, valid, name=pair.stem)
        measured = measure(found, CUT, image.valid)
        told.append(features(measured.to_dict()))
        rows.append(_scores(found.probability[:, image.valid], measured.to_dict(), score(measured)))
        if rival is not None:
            highest, nearest = rival(image, found.probability.max(axis=0))
            rows[-1] |= {"SAM's IoU head, highest": highest, "SAM's IoU head, mask nearest to ours": nearest}
    ious = [entry["iou"] for entry in metrics.compute().per_image]
    scores = {
        name: np.array([row[OURS] if row[name] is None else row[name] for row in rows], np.float64)
        for name in rows[0]
        if any(row[name] is not None for row in rows)
    }
    graded = Graded(scores[OURS].tolist(), ious, [pair.scene for pair in pairs], told)
    scores["predicted IoU, of other scenes"] = cross_fitted(graded.scores, ious, graded.scenes, told)
    return Sample(graded, scores)


def _scores(probability: NDArray[Any], measured: Mapping[str, Any], ours: float) -> dict[str, float | None]:
    """Each signal by itself, of the class with the lowest score; all in [0, 1], high is good.

    None for one that was not measured, such as the quality head's of an empty mask: our score stands for it.
    """
    worst = min(measured["classes"], key=lambda c: c["score"])
    confidence = np.maximum(probability, 1 - probability).mean()
    return {
        OURS: ours,
        "stability": worst["stability"],
        "Soft Dice Confidence": worst["soft_dice_confidence"],
        "boundary entropy": 1 - worst["boundary_entropy"],
        "edge agreement": worst["edge_agreement"],
        "flip agreement": worst["flip_agreement"],
        "quality head": worst["learned_iou"],
        "mean entropy": 1 - worst["entropy"],
        "mean confidence": float(confidence),
    }


def ranks(sample: Sample) -> list[tuple[str, float, float, float, float]]:
    """Of each score: its name, rank correlation with IoU, AURC, that over mean confidence's, and AUGRC."""
    ious = sample.graded.ious
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


def calibration_error(graded: Graded, splits: int) -> tuple[float, Counter[str]]:
    """Mean absolute error of the predicted IoU, as the loop fits it, and how often it chose which kind."""
    errors = []
    kinds: Counter[str] = Counter()
    for fit, test in halves(graded.scenes, splits):
        audits, others = graded.take(fit), graded.take(test)
        calibrator = Calibrator.fit(audits.scores, audits.ious, audits.scenes, audits.features)
        kinds[calibrator.kind] += 1
        foreseen = calibrator.predict(others.scores, others.features)
        errors.append(np.abs(foreseen - np.array(others.ious)).mean())
    return float(np.mean(errors)), kinds


if __name__ == "__main__":
    main()
