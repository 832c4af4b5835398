"""A model version judged on a folder of images and masks."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from active_learning.prefill import CUT, MaskPredictor
from active_learning.signals import Signals, features, measure, score
from model.errors import ELNetError
from model.metrics import SegmentationMetrics
from model.pairs import find_pairs, read_pair

HEADLINE = (
    "n", "fg_iou", "fg_iou_per_image", "miou_2class", "dice", "boundary_f1", "boundary_iou", "cl_dice",
)  # fmt: skip


class EvaluationError(ELNetError):
    """A model version cannot be judged; the text says why."""


def evaluate(
    predictor: MaskPredictor,
    folder: Path,
    classes: Sequence[str],
    *,
    each: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Predict every image of a folder and compare with its masks.

    Args:
        predictor: of the model version.
        folder: with images/ and masks/, as `model.pairs.find_pairs` reads them.
        classes: names of the N masks, in their order.
        each: called before each image; what it raises ends the evaluation.

    Returns:
        The figures of `model.metrics.Scores` as JSON, with `per_image`, whose entries also have the `score`
        and the `features` of the prediction (`active_learning.signals`).

    Raises:
        EvaluationError: the model has other classes.
        ELNetError: the folder holds no pair, or a file cannot be read.
    """
    pairs, names = find_pairs(folder, classes)
    metrics = SegmentationMetrics(names)
    measured: list[Signals] = []
    for pair in pairs:
        each()
        image, truth, valid = read_pair(pair)
        [found] = predictor.predict([image])
        if len(found.probability) != len(names):
            raise EvaluationError(
                f"{predictor.version} predicts {len(found.probability)} classes, {folder} holds {len(names)}"
            )
        metrics.update(found.probability > CUT, truth, valid, name=pair.stem)
        measured.append(measure(found, CUT, image.valid))
    figures = asdict(metrics.compute())
    for entry, value in zip(figures["per_image"], measured, strict=True):
        entry |= {"score": score(value), "features": features(value.to_dict())}
    return figures
