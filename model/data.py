"""Pairs of images and masks -> crops to train on, the same again for the same seed, epoch and index."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from model.coarsen import coarsen
from model.pairs import DataError, Pair, find_pairs, read_pair
from model.prompts import encode
from model.raster import MAX_PIXELS
from model.scenes import scene_of, split_by_scene
from model.symmetry import Symmetry
from model.tiles import STRIDE, Window, extract, windows

__all__ = [
    "DataError",
    "Pair",
    "Sample",
    "SegmentationData",
    "find_pairs",
    "read_pair",
    "scene_of",
    "split_by_scene",
]

MEAN: Final = (0.485, 0.456, 0.406)  # ImageNet's, of pixels in [0, 1]
STD: Final = (0.229, 0.224, 0.225)
CACHE_BYTES = 2 * 2**30
_GAIN = 0.15  # augmentation: pixels x (1 +- gain) +- offset, of a range of 1
_OFFSET = 0.08
_TRIES = 8


class Sample(NamedTuple):
    """A crop, or a batch of them with a leading B.

    Attributes:
        image: (3, S, S) float32, normalised.
        masks: (N, S, S) float32, 0 or 1.
        valid: (S, S) bool: where the loss may look. False at nodata and in what was padded.
        weight: () float32, of the pair.
        prompt: (2 N, S, S) float32, a coarse version of the masks as `model.prompts.encode` makes it; zero
            for a crop without one; (0, S, S) in a set that holds none.
    """

    image: Tensor
    masks: Tensor
    valid: Tensor
    weight: Tensor
    prompt: Tensor


class _Decoded(NamedTuple):
    pixels: NDArray[np.uint8]  # (H, W, 3), or (H, W, 1) for grey: a third of the memory
    masks: NDArray[np.bool_]  # (H, W, N)
    valid: NDArray[np.bool_]  # (H, W)


class SegmentationData(Dataset[Sample]):
    """Square crops of up to `size` px; an image gives as many as cover it.

    Every pair is read once at the start, so that a broken file is named before training begins; what fits
    into `cache_bytes` stays decoded in memory, shared with forked workers. With augmentation a crop lies
    anywhere, is turned and mirrored (eight symmetries) and gets a mild gain and offset; without, the crops
    are the windows that cover the image. An image smaller than `size` is padded by reflection, and not valid
    there; crops are never larger than the largest image, for padding costs as much as pixels.

    Args:
        pairs: of one set of classes.
        size: largest side of a crop, px; the attribute `size` tells what it came to.
        augment: see above.
        seed: of the augmentation.
        views: draw from so many augmented views of each crop, the same in every epoch and for every seed, of
            which the first is the crop as it is; None: from all.
        prompted: share of the crops that come with a coarse version of their masks; None: there are none,
            and no planes for them.
        cache_bytes: of decoded images.
        max_pixels: of an image.

    Raises:
        DataError: a pair cannot be read, or has no valid pixel.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        size: int,
        *,
        augment: bool = True,
        seed: int = 0,
        views: int | None = None,
        prompted: float | None = None,
        cache_bytes: int = CACHE_BYTES,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        if not pairs:
            raise DataError("no image to train on; label some first")
        self.pairs = list(pairs)
        self.size = size
        self._augment = augment
        self._seed = seed
        self._views = views
        self._prompted = prompted
        self._max_pixels = max_pixels
        # In shared memory, so that persistent workers see it change.
        self._epoch: Tensor = torch.zeros((), dtype=torch.int64).share_memory_()  # type: ignore[no-untyped-call]
        self._mean, self._std = (torch.tensor(v).view(3, 1, 1) for v in (MEAN, STD))
        self._cache: dict[int, _Decoded] = {}
        self._contents: dict[int, int] = {}  # digests of images, for the views
        self._crops: list[tuple[int, Window]] = []
        self._read_all(cache_bytes)

    def set_epoch(self, epoch: int) -> None:
        """Draw other crops from the next iteration on; also reaches workers that are already running."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return len(self._crops)

    def stem(self, index: int) -> str:
        """The name of the image that a crop is of."""
        return self.pairs[self._crops[index][0]].stem

    def scene(self, index: int) -> str:
        """The scene of the image that a crop is of."""
        return self.pairs[self._crops[index][0]].scene

    def __getitem__(self, index: int) -> Sample:
        number, window = self._crops[index]
        decoded = self._decoded(number)
        random = self._random(index) if self._augment else None
        if random is not None:
            window = _draw_window(decoded.valid, window, random)
        pixels = extract(decoded.pixels, window, self.size)
        masks = extract(decoded.masks, window, self.size)
        valid: NDArray[np.bool_] = np.zeros((self.size, self.size), np.bool_)
        valid[: window.height, : window.width] = _inside(decoded.valid, window)
        gain, offset = 1.0, 0.0
        if random is not None:
            symmetry = Symmetry(int(random.integers(4)), bool(random.integers(2)))
            pixels, masks, valid = (symmetry.apply(a) for a in (pixels, masks, valid))
            gain += float(random.uniform(-_GAIN, _GAIN))
            offset += float(random.uniform(-_OFFSET, _OFFSET))
        planes = np.ascontiguousarray(masks.transpose(2, 0, 1))
        image = torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1))).float() / 255
        if random is not None:
            image = (image * gain + offset).clamp_(0, 1)
        return Sample(
            (image - self._mean) / self._std,
            torch.from_numpy(planes).float(),
            torch.from_numpy(np.ascontiguousarray(valid)),
            torch.tensor(self.pairs[number].weight, dtype=torch.float32),
            torch.from_numpy(self._prompt(index, planes)),
        )

    def _random(self, index: int) -> np.random.Generator | None:
        """What a crop's augmentation is drawn from; None for the crop as it is."""
        epoch = int(self._epoch)
        if self._views is None:
            return np.random.default_rng([self._seed, epoch, index])
        view = (epoch + index) % self._views
        if not view:
            return None
        number, window = self._crops[index]
        if number not in self._contents:
            digest = blake2b(self._decoded(number).pixels.tobytes(), digest_size=8).digest()
            self._contents[number] = int.from_bytes(digest)
        return np.random.default_rng([self._contents[number], window.row, window.col, view])

    def _prompt(self, index: int, masks: NDArray[np.bool_]) -> NDArray[np.float32]:
        """A coarse version of (N, S, S) masks, anew in every epoch, or none."""
        if self._prompted is None:
            return np.zeros((0, *masks.shape[1:]), np.float32)
        random = np.random.default_rng([self._seed, int(self._epoch), index, 1])
        if random.random() >= self._prompted:
            return np.zeros((2 * len(masks), *masks.shape[1:]), np.float32)
        return encode(np.stack([coarsen(mask, random) for mask in masks]))

    def __getstate__(self) -> dict[str, Any]:
        """A worker that is not forked reads for itself rather than receive the whole cache through a pipe."""
        return {**self.__dict__, "_cache": {}}

    def _read_all(self, cache_bytes: int) -> None:
        free, shapes = cache_bytes, []
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            for number, decoded in enumerate(pool.map(self._read, range(len(self.pairs)))):
                shapes.append(decoded.valid.shape)
                free -= sum(a.nbytes for a in decoded)
                if free >= 0:
                    self._cache[number] = decoded
        largest = max(max(shape) for shape in shapes)
        self.size = min(self.size, -(-largest // STRIDE) * STRIDE)
        for number, (height, width) in enumerate(shapes):
            self._crops += [(number, w) for w in windows(height, width, self.size, 0)]

    def _decoded(self, number: int) -> _Decoded:
        return self._cache[number] if number in self._cache else self._read(number)

    def _read(self, number: int) -> _Decoded:
        pair = self.pairs[number]
        raster, masks, valid = read_pair(pair, max_pixels=self._max_pixels)
        if len(pair.masks) != len(self.pairs[0].masks):
            raise DataError(f"{pair.image}: {len(pair.masks)} masks, others have {len(self.pairs[0].masks)}")
        if not valid.any():
            raise DataError(f"{pair.image}: no valid pixel in image and mask; remove it")
        pixels = raster.pixels
        if (pixels == pixels[..., :1]).all():
            pixels = np.ascontiguousarray(pixels[..., :1])
        return _Decoded(pixels, np.ascontiguousarray(np.moveaxis(masks, 0, -1)), valid)


def _inside(array: NDArray[Any], window: Window) -> NDArray[Any]:
    return array[window.row : window.row + window.height, window.col : window.col + window.width]


def _draw_window(valid: NDArray[np.bool_], like: Window, random: np.random.Generator) -> Window:
    """A window of the same size anywhere in the image, with at least one valid pixel."""
    rows, cols = valid.shape[0] - like.height, valid.shape[1] - like.width
    for _ in range(_TRIES):
        window = Window(
            int(random.integers(rows + 1)), int(random.integers(cols + 1)), like.height, like.width
        )
        if _inside(valid, window).any():
            return window
    places = np.flatnonzero(valid)
    row, col = divmod(int(places[random.integers(len(places))]), valid.shape[1])
    return Window(
        min(max(row - like.height // 2, 0), rows), min(max(col - like.width // 2, 0), cols),
        like.height, like.width,
    )  # fmt: skip
