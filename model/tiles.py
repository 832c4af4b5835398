"""A large image as windows that overlap by a halo, and as one image again; cutting it up for good."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.raster import Raster

_TILE_STEM = re.compile(r"(?P<stem>.+)__r(?P<row>\d+)_c(?P<col>\d+)")


STRIDE = 32  # of the trunk's last stage: sides of tiles and crops are multiples of it


@dataclass(frozen=True, slots=True)
class Window:
    """A rectangle inside an image, in pixels from its upper left corner."""

    row: int
    col: int
    height: int
    width: int

    def affine(self, affine: tuple[float, ...] | None) -> tuple[float, ...] | None:
        """The affine a, b, c, d, e, f of this window of an image that has `affine`."""
        if affine is None:
            return None
        a, b, c, d, e, f = affine
        return a, b, c + a * self.col + b * self.row, d, e, f + d * self.col + e * self.row


def windows(height: int, width: int, size: int, halo: int) -> list[Window]:
    """Cover an image with windows of `size` that overlap by at least twice the halo.

    The last window of a row or column is moved back to end with the image, so that no context is invented
    where the image has some. Only an image smaller than `size` gets smaller windows: `extract` pads those.

    Args:
        height: of the image, at least 1.
        width: of the image, at least 1.
        size: side of a window, more than twice the halo.
        halo: pixels at each inner side of a window that serve as context only.

    Returns:
        Windows from left to right, then from top to bottom.
    """
    if height < 1 or width < 1 or halo < 0 or size <= 2 * halo:
        raise ValueError(f"no windows of size {size} with halo {halo} over {height} x {width}")
    rows, cols = _starts(height, size, halo), _starts(width, size, halo)
    return [Window(r, c, min(size, height), min(size, width)) for r in rows for c in cols]


def extract(image: NDArray[Any], window: Window, size: int) -> NDArray[Any]:
    """Read a window, padded to `size` at the lower and right side by reflection.

    Reflection goes to and fro where the image is smaller than the padding; one pixel is repeated.

    Args:
        image: (H, W) or (H, W, C).
        window: as `windows` gives it.
        size: side of the result.

    Returns:
        (size, size) or (size, size, C), a view where nothing is padded.
    """
    part = image[window.row : window.row + window.height, window.col : window.col + window.width]
    missing = [(0, size - window.height), (0, size - window.width)] + [(0, 0)] * (image.ndim - 2)
    return np.pad(part, missing, mode="reflect") if any(after for _, after in missing) else part


def stitch(
    tiles: Iterable[tuple[Window, NDArray[Any]]], channels: int, height: int, width: int, halo: int
) -> NDArray[np.float32]:
    """Blend overlapping tiles into one image by their weighted mean.

    Weights fall off linearly over the overlap, so no seam shows. The mean is updated tile by tile,
    m += w / (w + sum of weights) (x - m): where tiles agree the result is exactly what they say, and only one
    tile needs to be in memory besides the result.

    Args:
        tiles: window and (channels, >= window.height, >= window.width); padding beyond the window is ignored.
        channels: C of the result.
        height: H of the result.
        width: W of the result.
        halo: as given to `windows`.

    Returns:
        (C, H, W) float32; 0 where no tile was.
    """
    mean = np.zeros((channels, height, width), np.float32)
    total = np.zeros((height, width), np.float32)
    for window, tile in tiles:
        weight = np.outer(_ramp(window.height, halo), _ramp(window.width, halo))
        here = (slice(window.row, window.row + window.height), slice(window.col, window.col + window.width))
        total[here] += weight
        inside = mean[:, here[0], here[1]]
        inside += (weight / total[here]) * (tile[:, : window.height, : window.width] - inside)
    return mean


def cut(raster: Raster, size: int, stem: str) -> Iterator[tuple[str, Raster, tuple[slice, slice]]]:
    """Cut a raster into tiles that do not overlap, named "STEM__r<row>_c<col>" by their first pixel.

    A remainder narrower than a quarter of `size` is left with its neighbour: nobody wants to label a sliver.
    Tiles without a valid pixel are left out.

    Yields:
        Name, tile (views, not copies) with its own affine, and its rows and columns, to cut masks alike.
    """
    for top, bottom in _edges(raster.valid.shape[0], size):
        for left, right in _edges(raster.valid.shape[1], size):
            here = slice(top, bottom), slice(left, right)
            valid = raster.valid[here]
            if valid.any():
                affine = Window(top, left, bottom - top, right - left).affine(raster.affine)
                tile = Raster(raster.pixels[here], valid, affine, raster.crs)
                yield f"{stem}__r{top:05d}_c{left:05d}", tile, here


def parse_tile(stem: str) -> tuple[str, int, int] | None:
    """The stem, first row and first column that `cut` put into a name; None for any other name."""
    match = _TILE_STEM.fullmatch(stem)
    return (match["stem"], int(match["row"]), int(match["col"])) if match else None


def _starts(length: int, size: int, halo: int) -> list[int]:
    if length <= size:
        return [0]
    return [*range(0, length - size, size - 2 * halo), length - size]


def _edges(length: int, size: int) -> list[tuple[int, int]]:
    if size < 1:
        raise ValueError(f"no tiles of {size} pixels")
    starts = list(range(0, length, size))
    if len(starts) > 1 and (length - starts[-1]) * 4 < size:
        starts.pop()
    return list(zip(starts, [*starts[1:], length], strict=True))


def _ramp(length: int, halo: int) -> NDArray[np.float32]:
    """(length,) weights: 1 in the core, falling over the overlap of two halos towards both ends, never 0."""
    place = np.arange(length, dtype=np.float32)
    from_end = np.minimum(place, place[::-1]) + 1
    return np.minimum(from_end / np.float32(2 * halo + 1), np.float32(1))
