"""The versions of a demo side by side, on the images of the holdout."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from backend.demo_data import DemoImage
from backend.oracle import Touched
from backend.report import CycleReport, Picture
from model.metrics import SegmentationMetrics, iou
from model.predictor import Predictor

_PICTURES = 6


@dataclass(frozen=True, slots=True)
class DemoTurn:
    """What one cycle's turn came to: see `backend.report.CycleReport`."""

    cycle_id: int
    touched: list[Touched]
    share_accepted: float
    accepted_iou: float | None
    seconds: float


@dataclass(frozen=True, slots=True)
class DemoVersion:
    """What a cycle trained, and what served after it: the same, unless the gate rejected it.

    Attributes:
        serving: name of the version that serves, and `path` its checkpoint; None: the gate has rejected all.
        gate_iou: of what the cycle trained, when the gate decided.
        labels: that the cycle trained on.
    """

    turn: DemoTurn
    number: int
    name: str
    state: str
    serving: str | None
    path: Path | None
    gate_iou: float
    labels: int


def compare(
    versions: Sequence[DemoVersion], judges: Sequence[DemoImage], classes: Sequence[str], device: str
) -> tuple[list[CycleReport], dict[str, list[Picture]]]:
    """Run what serves after each cycle on the images that judge.

    Returns:
        A row for each cycle, and for each version that served the pictures of its sheet.
    """
    figures: dict[str, tuple[float, float]] = {}
    sheets: dict[str, list[Picture]] = {}
    for version in versions:
        if version.serving is None or version.path is None or version.serving in figures:
            continue
        pooled = SegmentationMetrics(classes)
        pictures = []
        for image, masks in _look(Predictor(version.path, device=device), judges):
            pooled.update(masks, image.truth)
            pictures.append(_picture(image, masks))
        scores = pooled.compute()
        figures[version.serving] = scores.fg_iou, scores.fg_iou_per_image
        pictures.sort(key=lambda picture: not picture.truth.any())  # those with something to see first
        sheets[version.serving] = pictures[:_PICTURES]
    nothing = (None, None)
    rows = [
        _row(v, len(judges), *(figures[v.serving] if v.serving is not None else nothing)) for v in versions
    ]
    return rows, sheets


def _look(predictor: Predictor, images: Sequence[DemoImage]) -> Iterator[tuple[DemoImage, NDArray[np.bool_]]]:
    predictions = predictor.predict([image.raster for image in images])
    for image, prediction in zip(images, predictions, strict=True):
        yield image, prediction.probability >= 0.5


def _picture(image: DemoImage, masks: NDArray[np.bool_]) -> Picture:
    truth = np.any(image.truth, axis=0)
    return Picture(image.stem, image.raster.pixels, truth, np.any(masks, axis=0), iou(masks, image.truth))


def _row(
    version: DemoVersion, judges: int, holdout_iou: float | None, per_image: float | None
) -> CycleReport:
    turn = version.turn
    return CycleReport(
        cycle=version.number,
        state=version.state,
        model_version=version.name,
        serving=version.serving,
        labels=version.labels,
        holdout_images=judges,
        holdout_iou=holdout_iou,
        holdout_iou_per_image=per_image,
        gate_iou=version.gate_iou,
        share_accepted=turn.share_accepted,
        accepted_iou=turn.accepted_iou,
        touched=len(turn.touched),
        corrected_pixels=sum(touched.corrected_pixels for touched in turn.touched),
        human_s=sum(touched.seconds for touched in turn.touched),
        seconds=turn.seconds,
    )
