"""A folder of images and coarse masks -> enhanced masks, what changed, and a line for each."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from backend.cli.folders import FolderError, mask_files, paths_of, quality_of, write_lines
from backend.cli.progress import Report
from model.enhance import Enhancement, enhance
from model.pairs import Pair, find_pairs, read_pair
from model.predictor import Predictor
from model.raster import Raster, write_mask, write_png

ENHANCED: Final = "enhanced.jsonl"
KEPT, ADDED, REMOVED = (255, 255, 255), (0, 200, 80), (230, 40, 40)  # colours of a change map


def enhance_folder(
    data: Path,
    predictor: Predictor,
    out: Path,
    report: Report,
    *,
    reach: float,
    smallest: int,
    max_pixels: int,
) -> dict[str, Any]:
    """Write enhanced masks, change maps and `enhanced.jsonl`.

    A line of that file holds image, mask and change (paths; with several classes a path for each), quality
    (the predicted IoU), added and removed (pixels), and model_version; or image and error.

    Args:
        data: a folder with images/ and coarse masks/ of the model's classes.
        predictor: of a network that takes coarse masks.
        out: gets masks/ and changes/, with a folder for each class if there are several.
        report: told how many images are done.
        reach: see `model.enhance.enhance`.
        smallest: see there.
        max_pixels: of an image that is still read.

    Returns:
        n, failed, errors (the lines with an error), enhanced (the file), added, removed, model_version,
        seconds.

    Raises:
        FolderError: `out` cannot be written to, or is `data`: the coarse masks are never overwritten.
        DataError: no pair is there.
        PredictionError: the network takes no coarse masks.
    """
    started = time.monotonic()
    if out.absolute() == data.absolute():
        raise FolderError(f"{out}: the coarse masks are there and are not overwritten; name another folder")
    pairs, classes = find_pairs(data, predictor.card.classes)

    def read(number: int) -> tuple[Raster, NDArray[np.bool_]]:
        raster, masks, _ = read_pair(pairs[number], max_pixels=max_pixels)
        return raster, masks

    def work(items: list[tuple[Raster, NDArray[np.bool_]]]) -> list[Enhancement]:
        images, coarse = [image for image, _ in items], [masks for _, masks in items]
        return enhance(predictor, images, coarse, reach=reach, smallest=smallest)

    rows = write_lines(
        out / ENHANCED,
        [pair.image for pair in pairs],
        predictor,
        read=read,
        size=lambda item: item[0].valid.size,
        work=work,
        write=lambda number, item, made: _write(out, pairs[number], tuple(classes), item[0], made),
        report=lambda done: report("enhancing", done, len(pairs)),
    )
    errors = [row for row in rows if "error" in row]
    return {
        "n": len(pairs),
        "failed": len(errors),
        "errors": errors,
        "enhanced": str(out / ENHANCED),
        "added": sum(row.get("added", 0) for row in rows),
        "removed": sum(row.get("removed", 0) for row in rows),
        "model_version": predictor.version,
        "seconds": round(time.monotonic() - started, 1),
    }


def change_map(enhancement: Enhancement, plane: int) -> NDArray[np.uint8]:
    """What changed in one class: kept white, added green, removed red, on black: (H, W, 3) uint8."""
    canvas = np.zeros((*enhancement.masks.shape[1:], 3), np.uint8)
    canvas[enhancement.masks[plane]] = KEPT
    canvas[enhancement.added[plane]] = ADDED
    canvas[enhancement.removed[plane]] = REMOVED
    return canvas


def _write(
    out: Path, pair: Pair, classes: tuple[str, ...], raster: Raster, enhancement: Enhancement
) -> dict[str, Any]:
    """Write one image's masks and change maps; returns what its line says of them."""
    masks = mask_files(out / "masks", classes, pair.stem)
    changes = mask_files(out / "changes", classes, pair.stem)
    for plane, name in enumerate(classes):
        write_mask(masks[name], enhancement.masks[plane], raster)
        write_png(changes[name], change_map(enhancement, plane))
    return {
        "mask": paths_of(masks),
        "change": paths_of(changes),
        "quality": quality_of(raster, enhancement.prediction),
        "added": int(enhancement.added.sum()),
        "removed": int(enhancement.removed.sum()),
    }
