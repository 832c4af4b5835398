"""Can wrong labels be told from right ones? Labels of other images than those trained on, some made wrong.

`python -m benchmarks.label_noise --checkpoint CHECKPOINT --data ../shared/data/sar_oil/test`

A tenth of the labels is made wrong: another image's, without its largest part, 24 px beside its place, or
empty. Then every label is scored by how suspicious it is, and the average precision says how well that finds
the wrong ones; the share of wrong labels is what chance would get. *Shortfall* is ours
(`active_learning.judgements`): predicted IoU, fitted on other scenes by the same partly wrong labels, less
the IoU with the label. *Softmin* is cleanlab's for segmentation (arXiv 2307.05080): the mean of the label's
probability over the pixels, by weights exp((1 - p) / 0.1).
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from sklearn.metrics import average_precision_score, roc_auc_score

from active_learning.calibrator import cross_fitted
from active_learning.signals import features, measure, score
from model.device import describe_machine
from model.metrics import iou
from model.pairs import find_pairs, read_pair
from model.predictor import CUT, Predictor

Mask = NDArray[np.bool_]
WRONG = 0.1  # share of the labels that are made wrong
SHIFT = 24  # px
TEMPERATURE = 0.1  # of softmin, cleanlab's default
STILL_RIGHT = 0.8  # IoU with the original: what was made wrong and is still so near is not counted as wrong


@dataclass(frozen=True, slots=True)
class Sample:
    """Every image's probabilities (H, W), label (H, W), scene, score, and signals to regress on."""

    probabilities: list[NDArray[np.float32]]
    labels: list[Mask]
    scenes: list[str]
    scores: list[float]
    features: list[list[float] | None]


def main() -> None:
    """Predict, make labels wrong and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.label_noise", description=main.__doc__)
    parser.add_argument("--checkpoint", type=Path, required=True, help="of a single class")
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and masks/")
    parser.add_argument("--draws", type=int, default=20)
    given = parser.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {describe_machine()}, torch {torch.__version__}")
    sample = collect(Predictor(given.checkpoint), given.data)
    print(f"{len(sample.labels)} labels, {WRONG:.0%} of them made wrong, mean of {given.draws} draws\n")
    print("| suspicion | average precision | area under the ROC curve |\n|---|---|---|")
    drawn = [compare(sample, seed) for seed in range(given.draws)]
    for name in drawn[0]:
        precision, area = np.mean([one[name] for one in drawn], axis=0)
        print(f"| {name} | {precision:.3f} | {area:.3f} |")


def collect(predictor: Predictor, data: Path) -> Sample:
    """Predict a folder of other images than those trained on."""
    sample = Sample([], [], [], [], [])
    for pair in find_pairs(data)[0]:
        image, truth, _ = read_pair(pair)
        [found] = predictor.predict([image])
        measured = measure(found, CUT, image.valid)
        sample.probabilities.append(np.asarray(found.probability[0], np.float32))
        sample.labels.append(truth[0])
        sample.scenes.append(pair.scene)
        sample.scores.append(score(measured))
        sample.features.append(features(measured.to_dict()))
    return sample


def compare(sample: Sample, seed: int) -> dict[str, tuple[float, float]]:
    """Average precision and area under the ROC curve of every kind of suspicion."""
    random = np.random.default_rng(seed)
    labels, wrong = list(sample.labels), np.zeros(len(sample.labels), np.bool_)
    for i in np.flatnonzero(random.random(len(labels)) < WRONG):
        labels[i] = spoilt(sample.labels, int(i), random)
        wrong[i] = iou(labels[i], sample.labels[i]) < STILL_RIGHT
    found = [iou(p > CUT, label) for p, label in zip(sample.probabilities, labels, strict=True)]
    predicted = cross_fitted(sample.scores, found, sample.scenes, sample.features)
    told = [np.where(label, p, 1 - p) for p, label in zip(sample.probabilities, labels, strict=True)]
    suspicions = {
        "shortfall (ours)": predicted - np.array(found),
        "one minus IoU": 1 - np.array(found),
        "softmin (cleanlab)": -np.array([softmin(p) for p in told]),
        "one minus the label's mean probability": -np.array([p.mean() for p in told]),
    }
    return {
        name: (float(average_precision_score(wrong, values)), float(roc_auc_score(wrong, values)))
        for name, values in suspicions.items()
    }


def spoilt(labels: Sequence[Mask], which: int, random: np.random.Generator) -> Mask:
    """A wrong label for an image, as hurried people make them."""
    label = labels[which]
    kind = random.integers(4)
    if kind == 0:
        others = [other for other in labels if other.shape == label.shape]
        return others[random.integers(len(others))]
    if kind == 1:
        return _without_largest(label)
    if kind == 2:
        return np.roll(label, random.choice((-SHIFT, SHIFT), size=2), axis=(0, 1))
    return np.zeros_like(label)


def _without_largest(label: Mask) -> Mask:
    """Without its largest component; half of it is left where there is only one."""
    parts, count = ndimage.label(label)
    if count < 2:
        half: Mask = label.copy()
        half[: len(half) // 2] = False
        return half
    largest = np.bincount(parts[label]).argmax()
    return np.asarray(label & (parts != largest))


def softmin(probabilities: NDArray[np.floating]) -> float:
    """A mean in which the lowest values weigh most."""
    weights = np.exp((1 - probabilities) / TEMPERATURE)
    return float((probabilities * weights).sum() / weights.sum())


if __name__ == "__main__":
    main()
