"""A folder of images and masks, made ready for the demo: chosen, cut to tiles, with the truth in memory."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from backend.sample import CLASS, sample_folder
from model.cache_root import cache_root
from model.errors import ELNetError
from model.pairs import Pair, find_pairs
from model.raster import Raster, open_raster, read_masks, write_png
from model.scenes import scene_of
from model.tiles import cut

_FEWEST = 12
_LARGEST = 768  # px: larger images are cut to tiles of half that


class DemoDataError(ELNetError):
    """The folder does not serve for a demo."""


@dataclass(frozen=True, slots=True)
class DemoImage:
    """An image of the demo and its truth, (N, H, W) bool."""

    stem: str
    raster: Raster
    truth: NDArray[np.bool_]

    @property
    def scene(self) -> str:
        """Siblings share it."""
        return scene_of(self.stem)


class DemoData(NamedTuple):
    """What the demo runs on.

    Attributes:
        images: with their truths.
        classes: names of the truths' planes.
        origin: what to call the data.
    """

    images: list[DemoImage]
    classes: list[str]
    origin: str


def prepare(data: Path | None, folder: Path, limit: int, seed: int) -> DemoData:
    """Choose whole scenes by `seed` up to `limit` images, and write them as PNG.

    Args:
        data: folder with `images/` and `masks/`; None: the sample scene.
        folder: where the images go.
        limit: images at most.
        seed: of the choice.

    Raises:
        DemoDataError: fewer than `_FEWEST` images.
        ELNetError: a broken image or mask, or the sample cannot be fetched.
    """
    if data is None:
        pairs, classes = find_pairs(sample_folder(cache_root() / "samples"), [CLASS])
        origin = "SpaceNet Vegas roads (sample scene)"
    else:
        pairs, classes = find_pairs(data)
        origin = str(data)
    folder.mkdir(parents=True)
    images: list[DemoImage] = []
    for pair in _chosen(pairs, limit, seed):
        for image in _tiles(pair):
            if len(images) == limit:
                break
            images.append(image)
    if len(images) < _FEWEST:
        raise DemoDataError(
            f"{origin} gives {len(images)} images of at most {_LARGEST} px; the demo needs {_FEWEST} or more."
        )
    for image in images:
        write_png(folder / f"{image.stem}.png", image.raster.pixels)
    return DemoData(images, classes, origin)


def _chosen(pairs: list[Pair], limit: int, seed: int) -> list[Pair]:
    scenes: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        scenes[scene_of(pair.stem)].append(pair)
    names = sorted(scenes)
    random.Random(seed).shuffle(names)
    return [pair for name in names for pair in scenes[name]][:limit]


def _tiles(pair: Pair) -> Iterator[DemoImage]:
    raster = open_raster(pair.image)
    truth = np.stack([read_masks(path)[0] for path in pair.masks])
    if truth.shape[1:] != raster.pixels.shape[:2]:
        raise DemoDataError(
            f"{pair.image} is {raster.pixels.shape[1]} x {raster.pixels.shape[0]} px, but its mask is "
            f"{truth.shape[2]} x {truth.shape[1]} px: they must be of one size."
        )
    if max(raster.valid.shape) <= _LARGEST:
        yield DemoImage(pair.stem, raster, truth)
        return
    for name, tile, window in cut(raster, _LARGEST // 2, stem=pair.stem):
        yield DemoImage(name, tile, truth[(slice(None), *window)])
