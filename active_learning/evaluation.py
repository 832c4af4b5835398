"""A model version judged on a folder of images and masks."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from active_learning.inference import CUT, MaskPredictor
from active_learning.signals import Signals, features, measure, score
from model.errors import ELNetError
from model.metrics import SegmentationMetrics
from model.pairs import find_pairs, read_pair
from model.raster import Raster

HEADLINE = (
    "n", "fg_iou", "fg_iou_per_image", "miou_2class", "dice", "boundary_f1", "boundary_iou", "cl_dice",
)  # fmt: skip
FOREIGN_SIDE: Final = 256  # px


class EvaluationError(ELNetError):
    """A model version cannot be judged; the text says why."""


def evaluate(
    predictor: MaskPredictor,
    folder: Path,
    classes: Sequence[str],
    *,
    each: Callable[[], None] = lambda: None,
    keep: Callable[[str, NDArray[np.bool_]], None] = lambda stem, masks: None,
) -> dict[str, Any]:
    """Predict every image of a folder and compare with its masks.

    Args:
        predictor: of the model version.
        folder: with images/ and masks/, as `model.pairs.find_pairs` reads them.
        classes: names of the N masks, in their order.
        each: called before each image; what it raises ends the evaluation.
        keep: called after each image with its stem and the masks that were drawn on it, (N, H, W).

    Returns:
        The figures of `model.metrics.Scores` as JSON, with `per_image`, whose entries also have the `score`
        and the `features` of the prediction (`active_learning.signals`); and `seconds`, the median time of a
        prediction.

    Raises:
        EvaluationError: the model has other classes.
        ELNetError: the folder holds no pair, or a file cannot be read.
    """
    pairs, names = find_pairs(folder, classes)
    metrics = SegmentationMetrics(names)
    measured: list[Signals] = []
    seconds: list[float] = []
    for pair in pairs:
        each()
        image, truth, valid = read_pair(pair)
        began = time.perf_counter()
        [found] = predictor.predict([image])
        seconds.append(time.perf_counter() - began)
        if len(found.probability) != len(names):
            raise EvaluationError(
                f"{predictor.version} predicts {len(found.probability)} classes, {folder} holds {len(names)}"
            )
        masks = found.probability > CUT
        metrics.update(masks, truth, valid, name=pair.stem)
        measured.append(measure(found, CUT, image.valid))
        keep(pair.stem, masks & image.valid)
    figures = {**asdict(metrics.compute()), "seconds": statistics.median(seconds)}
    for entry, value in zip(figures["per_image"], measured, strict=True):
        entry |= {"score": score(value), "features": features(value.to_dict())}
    return figures


def fault_on_foreign(predictor: MaskPredictor) -> str | None:
    """What is wrong with its output on images like none of the project's; None if nothing is.

    On black, white and noise every probability must be one, and where an image holds no data there must be no
    mask. Whether it sees something there is left open: a black image may well be all oil.
    """
    shape = (FOREIGN_SIDE, FOREIGN_SIDE)
    everywhere, black = np.ones(shape, np.bool_), np.zeros((*shape, 3), np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, black.shape, dtype=np.uint8)
    images = {
        "a black image": Raster(black, everywhere),
        "a white image": Raster(black + 255, everywhere),
        "noise": Raster(noise, everywhere),
        "an image without data": Raster(black, ~everywhere),
    }
    for name, image in images.items():
        [found] = predictor.predict([image])
        if not ((found.probability >= 0) & (found.probability <= 1)).all():  # NaN fails both
            return f"its output on {name} is no probability"
        if (found.probability[:, ~image.valid] > CUT).any():
            return f"it draws on {name}"
    return None
