"""Label enhancement: an image and a coarse mask -> the mask that was meant.

The labeling module of SAM2-ELNet (arXiv 2503.12404) in this project's form: the network itself takes the
coarse mask as a prompt and has learned, from masks made coarse (`model.coarsen`), what the image says about
it. What it answers is held to bounds that do not depend on the network: nothing changes farther than `reach`
from the outline that the human drew, and specks and holes that the human did not draw are removed.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from model.errors import ELNetError
from model.predictor import CUT, ImagePrediction, Predictor
from model.prompts import signed_distance
from model.raster import Raster

Mask = NDArray[np.bool_]
REACH = 12.0  # px
SMALLEST = 24  # px


class EnhancementError(ELNetError):
    """A coarse mask that does not fit its image."""


@dataclass(frozen=True, slots=True)
class Enhancement:
    """One enhanced label.

    Attributes:
        masks: (N, H, W) bool.
        coarse: what it was made of, the same shape.
        prediction: the network's answer before the bounds.
    """

    masks: NDArray[np.bool_]
    coarse: NDArray[np.bool_]
    prediction: ImagePrediction

    @property
    def added(self) -> NDArray[np.bool_]:
        """(N, H, W) bool."""
        return self.masks & ~self.coarse

    @property
    def removed(self) -> NDArray[np.bool_]:
        """(N, H, W) bool."""
        return self.coarse & ~self.masks


def enhance(
    predictor: Predictor,
    images: Sequence[Raster],
    coarse: Sequence[NDArray[np.bool_]],
    *,
    reach: float = REACH,
    smallest: int = SMALLEST,
) -> list[Enhancement]:
    """Enhance the labels of images.

    Args:
        predictor: of a network that takes coarse masks.
        images: of any sizes.
        coarse: (N, H, W) bool for each image, in the order of the network's classes.
        reach: px from a coarse outline within which pixels may change; a class without any coarse pixel stays
            empty.
        smallest: px; smaller pieces without a coarse pixel and smaller holes without coarse background go.

    Raises:
        EnhancementError: a mask of another size or number of classes than its image and the network have.
        PredictionError: the network takes no coarse masks.
    """
    for image, masks in zip(images, coarse, strict=True):
        expected = (len(predictor.card.classes), *image.valid.shape)
        if masks.shape != expected:
            raise EnhancementError(
                f"a coarse mask of shape {masks.shape} for an image and classes of {expected}: draw it on "
                "the image itself"
            )
    answers = predictor.predict(images, coarse)
    return [
        Enhancement(np.stack(list(_bounded(answer, masks, image.valid, reach, smallest))), masks, answer)
        for answer, masks, image in zip(answers, coarse, images, strict=True)
    ]


def _bounded(
    answer: ImagePrediction, coarse: NDArray[np.bool_], valid: Mask, reach: float, smallest: int
) -> Iterator[Mask]:
    for probability, mask in zip(answer.probability, coarse, strict=True):
        distance = signed_distance(mask)
        found = np.where(valid, probability > CUT, mask)
        found = (found | (distance > reach)) & (distance >= -reach)
        yield _clean(found, mask, smallest)


def _clean(mask: Mask, coarse: Mask, smallest: int) -> Mask:
    """Without small pieces and small holes that the coarse mask does not have."""
    without_specks = mask & ~_small(mask, coarse, smallest)
    return without_specks | _small(~without_specks, ~coarse, smallest)


def _small(mask: Mask, drawn: Mask, smallest: int) -> Mask:
    """The components of a mask that have fewer pixels than `smallest`, none of them drawn."""
    labels, count = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=count + 1)
    touched = np.bincount(labels[drawn], minlength=count + 1) > 0
    small = (sizes < smallest) & ~touched
    small[0] = False
    return np.asarray(small[labels])
