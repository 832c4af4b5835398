"""What a decoder hands over: the bands of an image as they are stored, nothing stretched, nothing guessed."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import ELNetError

Affine6 = tuple[float, float, float, float, float, float]
ORIENTATION_TAG = 274  # of EXIF and TIFF alike

_quiet_lock = threading.Lock()


class RasterError(ELNetError):
    """An image or mask that cannot be read or written: names it and the cure."""


@dataclass
class Bands:
    """An image as stored.

    Attributes:
        planes: one to three arrays (H, W): the bands that make the picture, any real dtype.
        present: for each plane (H, W) bool, False at nodata, masked or fully transparent pixels; None where
            the file declares no such thing.
        opaque: no alpha channel, or one that is opaque everywhere.
        nodata: the declared nodata value of the first band.
        affine: a, b, c, d, e, f: x = a col + b row + c, y = d col + e row + f.
        crs: "EPSG:4326" or WKT.
    """

    planes: list[NDArray[Any]]
    present: list[NDArray[np.bool_] | None]
    opaque: bool = True
    nodata: float | None = None
    affine: Affine6 | None = None
    crs: str | None = None

    def turn(self, orientation: int) -> None:
        """Stand an image upright that was stored with an EXIF orientation of 2 to 8; others are upright."""
        if orientation in range(2, 9):
            self.planes = [_turned(plane, orientation) for plane in self.planes]
            self.present = [None if p is None else _turned(p, orientation) for p in self.present]


def check_size(height: int, width: int, name: str, max_pixels: int) -> None:
    """Refuse an image by its header, before any pixel is decoded."""
    if height * width > max_pixels:
        raise RasterError(
            f"{name}: {width} x {height} pixels, more than the limit of {max_pixels}; "
            "cut it into tiles, or raise the limit if you trust the file"
        )


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Pillow and rasterio warn about headers: not georeferenced, odd EXIF.

    The filters of `warnings` belong to the whole process, hence the lock, and hence never around decoding.
    """
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _turned(plane: NDArray[Any], orientation: int) -> NDArray[Any]:
    """EXIF 2.32, tag 274: where the stored first row and first column belong."""
    if orientation >= 5:
        plane = plane.T
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(plane[::rows, ::columns])
