"""The files of a snapshot: rendered into a workshop beside their place, moved there when all is done.

    manifest.json
    train/   images/<stem>.png   masks/<stem>.png, or masks/<class>/<stem>.png   manifest.json
    holdout/ the same

Images are 8-bit PNG; where an image has pixels without data they are fully transparent (alpha 0), which
`open_raster` gives back as not valid. Masks are 0 and 255.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from active_learning.split import HOLDOUT, TRAIN
from model.errors import ELNetError
from model.raster import Raster, write_mask, write_png

WORK = "all"  # of the workshop: where images are rendered before it is known on which side they stand
Entry = dict[str, Any]  # one image, as the manifest tells it


class MisfitError(ELNetError):
    """A label and an image that do not belong together."""


def stem_of(task_id: int) -> str:
    """What a task's files are called."""
    return f"{task_id:08d}"


@contextmanager
def workshop(folder: Path, name: str) -> Iterator[Path]:
    """A folder of our own inside `folder`, removed at the end; what a killed process left there, too."""
    prefix = f".unfinished-{name}-"
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
    with tempfile.TemporaryDirectory(prefix=prefix, dir=folder, ignore_cleanup_errors=True) as path:
        yield Path(path)


def render(
    folder: Path, stem: str, raster: Raster, masks: NDArray[np.bool_], classes: Sequence[str]
) -> Entry:
    """Write an image and its masks.

    Args:
        folder: gets images/ and masks/.
        stem: what its files are called.
        raster: the image.
        masks: (N, H, W) bool; empty ones may be (N, 0, 0).
        classes: the N names.

    Returns:
        Height, width and the image's hash, for the manifest.

    Raises:
        MisfitError: the masks are not of the image's size or the classes' number, or nothing is valid.
        RasterError: a file cannot be written.
    """
    masks = _fitting(masks, raster, len(classes))
    image, *targets = _paths(folder, stem, classes)
    write_png(image, _with_alpha(raster))
    for path, mask in zip(targets, masks, strict=True):
        write_mask(path, mask)
    height, width = raster.valid.shape
    return {"height": height, "width": width, "image_sha256": _hash_image(raster)}


def publish(place: Path, manifest: dict[str, Any], sha256: str, final: Path) -> None:
    """Sort what was rendered in `place / WORK` into train and holdout, and move it to its place in one step.

    A folder that stands there whole is left alone; one that somebody took files from is replaced.
    """
    finished, classes = place / "finished", manifest["classes"]
    for side in (TRAIN, HOLDOUT):
        entries = manifest[side]
        for stem in (entry["stem"] for entry in entries):
            for old, new in zip(
                _paths(place / WORK, stem, classes), _paths(finished / side, stem, classes), strict=True
            ):
                new.parent.mkdir(parents=True, exist_ok=True)
                old.rename(new)
        _write_json(
            finished / side / "manifest.json",
            {
                "snapshot": sha256,
                "classes": classes,
                "scenes": {entry["stem"]: entry["scene"] for entry in entries},
                "weights": {entry["stem"]: entry["weight"] for entry in entries},
            },
        )
    _write_json(finished / "manifest.json", {"sha256": sha256, **manifest})
    if final.exists():
        if _names(finished) <= _names(final):
            return
        shutil.rmtree(final)
    finished.rename(final)


def _paths(folder: Path, stem: str, classes: Sequence[str]) -> list[Path]:
    """The image, then the masks in the classes' order."""
    image, masks = folder / "images" / f"{stem}.png", folder / "masks"
    if len(classes) == 1:
        return [image, masks / f"{stem}.png"]
    return [image, *(masks / name / f"{stem}.png" for name in classes)]


def _fitting(masks: NDArray[np.bool_], raster: Raster, classes: int) -> NDArray[np.bool_]:
    size = raster.valid.shape
    if len(masks) != classes:
        raise MisfitError(f"its label has {len(masks)} classes and the project {classes}; label it again")
    if not raster.valid.any():
        raise MisfitError("the image has no valid pixel")
    if not masks.any():
        return np.zeros((classes, *size), np.bool_)
    if masks.shape[1:] != size:
        label, image = (f"{width} x {height}" for height, width in (masks.shape[1:], size))
        raise MisfitError(f"its label is of {label} pixels and the image of {image}; label it again")
    return masks


def _with_alpha(raster: Raster) -> NDArray[np.uint8]:
    """(H, W, 3) uint8, or (H, W, 4) with alpha 0 where the image has no data."""
    if raster.valid.all():
        return raster.pixels
    return np.dstack([raster.pixels, raster.valid.astype(np.uint8) * np.uint8(255)])


def _hash_image(raster: Raster) -> str:
    """Of what was decoded, so that another PNG encoder makes no other snapshot."""
    digest = hashlib.sha256(repr(raster.valid.shape).encode())
    digest.update(raster.pixels.tobytes())
    digest.update(np.packbits(raster.valid).tobytes())
    return digest.hexdigest()


def _names(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=1, ensure_ascii=False), encoding="utf-8")
