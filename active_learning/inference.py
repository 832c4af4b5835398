"""From images to rows: open them, run the model, measure what it says. No database here.

One image that is broken, or that breaks the model, spoils only itself.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from active_learning.ports import ImageSource, ImageUnavailableError
from active_learning.signals import measure, score
from model.errors import ELNetError
from model.raster import Raster, RasterError

if TYPE_CHECKING:  # it brings torch, which the web process need not load for what the ledger holds already
    from model.predictor import ImagePrediction

log = logging.getLogger(__name__)

CUT = 0.5
PIXELS_AT_ONCE = 32_000_000  # a group is cut short when its images together are larger


class PrefillError(ELNetError):
    """The predictor does not fit the project."""


class MaskPredictor(Protocol):
    """What is needed of `model.predictor.Predictor`."""

    @property
    def version(self) -> str:
        """The model version's name."""

    def predict(self, images: Sequence[Raster]) -> list[ImagePrediction]:
        """One prediction per image, in order."""


@dataclass(frozen=True, slots=True)
class Made:
    """What came of one image: a prediction ready to be stored, or the reason why there is none."""

    task_id: int
    failure: str | None = None
    row: dict[str, Any] | None = None  # columns of `Prediction`
    image: dict[str, Any] | None = None  # columns of `Task` that the image tells


def opened(images: ImageSource, uris: Mapping[int, str]) -> Iterator[list[tuple[int, Raster | str]]]:
    """Open images in groups of at most `PIXELS_AT_ONCE`; a text stands for one that cannot be had."""
    group: list[tuple[int, Raster | str]] = []
    pixels = 0
    for task_id, uri in uris.items():
        try:
            raster = images.open(uri)
        except (ImageUnavailableError, RasterError) as error:
            group.append((task_id, str(error)))
            continue
        if group and pixels + raster.valid.size > PIXELS_AT_ONCE:
            yield group
            group, pixels = [], 0
        group.append((task_id, raster))
        pixels += raster.valid.size
    if group:
        yield group


class Answer(NamedTuple):
    """What the model said of a task's image, or the reason why there is no image or answer."""

    task_id: int
    image: Raster | str
    outcome: ImagePrediction | Exception | None = None


def ask(predictor: MaskPredictor, group: Sequence[tuple[int, Raster | str]]) -> list[Answer]:
    """Predict a group of images; those that cannot be had or predicted carry the reason.

    Raises:
        PrefillError: the predictor fails on any image at all.
    """
    rasters = [(task_id, image) for task_id, image in group if isinstance(image, Raster)]
    outcomes = _attempt(predictor, [raster for _, raster in rasters])
    missing = [Answer(task_id, image) for task_id, image in group if isinstance(image, str)]
    return missing + [Answer(*asked, outcome) for asked, outcome in zip(rasters, outcomes, strict=True)]


def rows_of(answers: Iterable[Answer], classes: int) -> list[Made]:
    """Measure what the model said.

    Raises:
        PrefillError: it predicts another number of classes than the project has.
    """
    made = []
    for task_id, image, outcome in answers:
        if isinstance(image, str):
            made.append(Made(task_id, failure=image))
        elif isinstance(outcome, Exception):
            made.append(Made(task_id, failure=f"the model failed on this image: {_told(outcome)}"))
        elif outcome is not None:
            made.append(_made(task_id, image, outcome, classes))
    return made


def _attempt(predictor: MaskPredictor, rasters: list[Raster]) -> list[ImagePrediction | Exception]:
    """Predict together; if that fails, one by one, so that a bad image spoils only itself.

    Raises:
        PrefillError: the predictor fails on any image at all, so none of these is to blame.
    """
    if not rasters:
        return []
    try:
        outcomes = predictor.predict(rasters)
        if len(outcomes) != len(rasters):
            raise PrefillError(f"{len(rasters)} images gave {len(outcomes)} predictions")
        return list(outcomes)
    except Exception as error:  # the border of the model: out of memory, a kernel's fault, anything
        if len(rasters) == 1:
            _check_works(predictor, error)
            log.warning(
                "the predictor failed on an image of %s pixels: %s", rasters[0].valid.shape, _told(error)
            )
            return [error]
        log.warning("the predictor failed on %d images (%s); one by one now", len(rasters), _told(error))
    return [outcome for raster in rasters for outcome in _attempt(predictor, [raster])]


def _check_works(predictor: MaskPredictor, error: Exception) -> None:
    """Tell a broken image from a broken predictor by a small blank one."""
    blank = Raster(np.full((64, 64, 3), 128, np.uint8), np.ones((64, 64), np.bool_))
    try:
        predictor.predict([blank])
    except Exception as again:  # the same border
        raise PrefillError(
            f"model version {predictor.version} cannot predict any image ({_told(again)}); "
            "see the log, then restart the worker or roll back to an earlier version"
        ) from error


def _made(task_id: int, raster: Raster, outcome: ImagePrediction, classes: int) -> Made:
    """Measure a prediction and make its row."""
    probability: NDArray[np.floating[Any]] = outcome.probability
    if probability.shape[0] != classes:
        raise PrefillError(
            f"the predictor gives {probability.shape[0]} classes and the project has {classes}; "
            "retrain the model on the project's classes"
        )
    if probability.shape[1:] != raster.valid.shape:
        wrong = f"the model answered {probability.shape[1:]} pixels for an image of {raster.valid.shape}"
        return Made(task_id, failure=wrong)
    if not raster.valid.any():  # an empty mask would be right, and be accepted unseen
        return Made(task_id, failure="the image holds no data: every pixel is nodata")
    measured = measure(outcome, CUT, raster.valid)
    row = {
        "masks": (probability > CUT) & raster.valid,
        "score": score(measured),
        "signals": measured.to_dict(),
        "embedding": np.asarray(outcome.embedding, dtype=np.float32),
    }
    height, width = raster.valid.shape
    affine = None if raster.affine is None else list(raster.affine)
    image = {"height": height, "width": width, "affine": affine, "crs": raster.crs}
    return Made(task_id, row=row, image=image)


def _told(error: Exception) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
