"""A folder of images and masks: which belong together, and reading a pair.

images/STEM.png (.jpg, .tif)      one class: masks/STEM.png, or masks/CLASS/STEM.png
                                  more:      masks/CLASS/STEM.png
manifest.json, if present:        {"classes": [...], "scenes": {STEM: SCENE}, "weights": {STEM: WEIGHT}}
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from model.errors import ELNetError
from model.raster import MAX_PIXELS, Raster, RasterError, open_raster, read_masks
from model.scenes import scene_of

SUFFIXES = (".png", ".jpg", ".jpeg", ".tif", ".tiff")
UNNAMED = "foreground"  # the class of a folder that names none

_log = logging.getLogger(__name__)


class DataError(ELNetError):
    """Images and masks that cannot be used as they are: names the file and the cure."""


@dataclass(frozen=True, slots=True)
class Pair:
    """An image and its masks, one file for each class in order.

    Attributes:
        stem: the name that image and masks share.
        scene: siblings share it.
        weight: of its loss in training, above 0.
    """

    stem: str
    image: Path
    masks: tuple[Path, ...]
    scene: str
    weight: float = 1.0


def find_pairs(folder: Path, classes: Sequence[str] | None = None) -> tuple[list[Pair], list[str]]:
    """Pair images with masks by their stems, in the order of the stems.

    Images without any mask and masks without an image are left out, which is logged.

    Args:
        folder: as above.
        classes: names, in the order of the mask planes; default: the manifest's, else the names of the
            folders in masks/, else "foreground".

    Returns:
        The pairs, and the classes.

    Raises:
        DataError: no such folder, nothing in it, no pair, a mask of one class missing, a bad manifest.
    """
    for part in (folder, folder / "images", folder / "masks"):
        if not part.is_dir():
            raise DataError(
                f"{part}: no such folder; a data folder holds images/ and masks/ with equal stems"
            )
    manifest = _manifest(folder)
    images = _by_stem(folder / "images")
    if not images:
        raise DataError(f"{folder / 'images'}: no image in it; {', '.join(SUFFIXES)} are read")
    names = list(classes or manifest.get("classes") or _layout(folder / "masks"))
    masks = _masks(folder / "masks", names)
    pairs = []
    for stem in sorted(images):
        files = [planes.get(stem) for planes in masks]
        if not any(files):
            continue
        for name, file in zip(names, files, strict=True):
            if file is None:
                raise DataError(
                    f"{folder / 'masks' / name}: no mask for {stem}, other classes have one; "
                    "add it, all black if the class is absent there"
                )
        scene = manifest.get("scenes", {}).get(stem) or scene_of(stem)
        weight = _weight(folder, stem, manifest.get("weights", {}).get(stem, 1.0))
        pairs.append(Pair(stem, images[stem], tuple(f for f in files if f), scene, weight))
    if not pairs:
        raise DataError(
            f"{folder}: no image and mask with equal stems; name masks/STEM.png after images/STEM.*"
        )
    without_image = set().union(*masks) - set(images)
    if len(pairs) < len(images) or without_image:
        _log.warning(
            "%s: %d images without a mask and %d masks without an image are left out",
            folder, len(images) - len(pairs), len(without_image),
        )  # fmt: skip
    return pairs, names


def read_pair(
    pair: Pair, *, max_pixels: int = MAX_PIXELS
) -> tuple[Raster, NDArray[np.bool_], NDArray[np.bool_]]:
    """Read an image and its masks.

    Returns:
        The image; (N, H, W) bool masks; (H, W) bool, valid in the image and in every mask.

    Raises:
        DataError: a file cannot be read, a mask is not binary, sizes differ.
    """
    try:
        raster = open_raster(pair.image, max_pixels=max_pixels)
        planes, valids = zip(*(read_masks(m, max_pixels=max_pixels) for m in pair.masks), strict=True)
    except RasterError as error:
        raise DataError(str(error)) from error
    valid = raster.valid.copy()
    for path, mask_valid in zip(pair.masks, valids, strict=True):
        if mask_valid.shape != valid.shape:
            (h, w), (mask_h, mask_w) = valid.shape, mask_valid.shape
            raise DataError(
                f"{path}: {mask_w} x {mask_h} pixels, but its image {pair.image} has {w} x {h}; "
                "export the mask in the image's size, or remove both"
            )
        valid &= mask_valid
    return raster, np.stack(planes), valid


def _manifest(folder: Path) -> dict[str, Any]:
    path = folder / "manifest.json"
    if not path.exists():
        return {}
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not readable as JSON ({error}); mend or remove it") from error
    kinds = {"classes": list, "scenes": dict, "weights": dict}
    if not isinstance(manifest, dict):
        raise DataError(f"{path}: not a JSON object; mend or remove it")
    for key, kind in kinds.items():
        if not isinstance(manifest.get(key, kind()), kind):
            raise DataError(f"{path}: {key} is not a {kind.__name__}; mend or remove it")
    return manifest


def _weight(folder: Path, stem: str, value: Any) -> float:
    if isinstance(value, (int, float)) and math.isfinite(value) and value > 0:
        return float(value)
    raise DataError(
        f"{folder / 'manifest.json'}: weight {value!r} of {stem} is not a number above 0; mend it"
    )


def _by_stem(folder: Path) -> dict[str, Path]:
    """Stem -> image file; world files and hidden files are not images."""
    found: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and path.is_file():
            if path.stem in found:
                raise DataError(f"{path}: {found[path.stem].name} has the same stem; rename or remove one")
            found[path.stem] = path
    return found


def _layout(masks: Path) -> list[str]:
    """The classes that the folders name; none are needed where masks lie flat."""
    folders = [] if _by_stem(masks) else _folders(masks)
    return folders or [UNNAMED]


def _folders(masks: Path) -> list[str]:
    return sorted(p.name for p in masks.iterdir() if p.is_dir() and not p.name.startswith("."))


def _masks(folder: Path, names: Sequence[str]) -> list[Mapping[str, Path]]:
    """For each class: stem -> mask file."""
    if len(set(names)) < len(names):
        raise DataError(f"{folder}: the classes {', '.join(names)} are not distinct; name each once")
    flat = _by_stem(folder)
    if len(names) == 1 and flat and not (folder / names[0]).is_dir():
        return [flat]
    there = _folders(folder)
    if not flat and not there:
        raise DataError(f"{folder}: no mask in it; name masks/STEM.png after images/STEM.*")
    if missing := [name for name in names if name not in there]:
        raise DataError(
            f"{folder}: no folder for {', '.join(missing)} in it (there are: {', '.join(there) or 'none'}); "
            "put the masks of each class into masks/CLASS/STEM.png"
        )
    return [_by_stem(folder / name) for name in names]
