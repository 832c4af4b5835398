"""True masks made coarse, as hurried hands draw them: what label enhancement learns from and is judged on."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw
from skimage.measure import approximate_polygon, find_contours

from model.prompts import signed_distance

Mask = NDArray[np.bool_]
LEAST: Final = 3.0  # px: how far a coarse boundary lies from the true one
MOST: Final = 5.0
_LARGEST_LOSS: Final = 16.0  # px: radius of a part that is left out
_LOSSES: Final = 3


def eroded(mask: Mask, random: np.random.Generator) -> Mask:
    """Drawn too narrow, by 3 to 5 px everywhere."""
    return signed_distance(mask) > random.uniform(LEAST, MOST)


def dilated(mask: Mask, random: np.random.Generator) -> Mask:
    """Drawn too wide, by 3 to 5 px everywhere."""
    return signed_distance(mask) > -random.uniform(LEAST, MOST)


def shifted(mask: Mask, random: np.random.Generator) -> Mask:
    """Drawn 3 to 5 px beside its place; what comes in from outside repeats the edge."""
    angle, length = random.uniform(0, 2 * np.pi), random.uniform(LEAST, MOST)
    rows, cols = round(length * np.sin(angle)), round(length * np.cos(angle))
    height, width = mask.shape
    moved: Mask = mask[np.clip(np.arange(height) - rows, 0, height - 1)][
        :, np.clip(np.arange(width) - cols, 0, width - 1)
    ]
    return moved


def simplified(mask: Mask, random: np.random.Generator) -> Mask:
    """Drawn with few corners: each outline as a polygon within 3 to 5 px of it (Douglas and Peucker 1973)."""
    tolerance = random.uniform(LEAST, MOST)
    canvas = Image.new("L", (mask.shape[1], mask.shape[0]))
    draw = ImageDraw.Draw(canvas)
    outlines = [approximate_polygon(line, tolerance) for line in find_contours(np.pad(mask, 1).astype(float))]
    outlines = [line - 1 for line in outlines if len(line) > 3]
    # The sign of the area tells outline from hole. Larger outlines first, so that holes stay open.
    for line in sorted(outlines, key=lambda line: -abs(_area(line))):
        draw.polygon([(float(x), float(y)) for y, x in line], fill=255 if _area(line) > 0 else 0)
    return np.asarray(canvas) > 0


def with_losses(mask: Mask, random: np.random.Generator) -> Mask:
    """Left incomplete: one to three round parts of up to 16 px radius are missing, all of it never."""
    rows, cols = np.nonzero(mask)
    result = mask.copy()
    if not len(rows):
        return result
    y, x = np.ogrid[: mask.shape[0], : mask.shape[1]]
    for _ in range(random.integers(1, _LOSSES + 1)):
        here = random.integers(len(rows))
        radius = random.uniform(LEAST, _LARGEST_LOSS)
        result &= (y - rows[here]) ** 2 + (x - cols[here]) ** 2 > radius**2
    return result if result.any() else mask.copy()


KINDS: Final[dict[str, Callable[[Mask, np.random.Generator], Mask]]] = {
    "simplified": simplified,
    "eroded": eroded,
    "dilated": dilated,
    "shifted": shifted,
    "with losses": with_losses,
}


def coarsen(mask: Mask, random: np.random.Generator) -> Mask:
    """One or two of `KINDS`, drawn at random; a mask that would vanish by them stays as it is.

    Args:
        mask: (H, W) bool.
        random: is drawn from.

    Returns:
        (H, W) bool.
    """
    result = mask
    for name in random.choice(list(KINDS), size=random.integers(1, 3), replace=False):
        made = KINDS[name](result, random)
        if made.any():
            result = made
    return result.copy() if result is mask else result


def _area(line: NDArray[np.float64]) -> float:
    """Signed area inside an outline of (row, col)."""
    y, x = line[:, 0], line[:, 1]
    return float(np.dot(x[:-1], y[1:]) - np.dot(x[1:], y[:-1])) / 2
