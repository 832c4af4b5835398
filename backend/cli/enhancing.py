"""A folder of images and coarse masks -> enhanced masks, what changed, and a line for each."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from active_learning.quality import score, signals
from backend.cli.folders import FolderError, groups, mask_files, pixels_at_a_time
from backend.cli.progress import Report
from model.enhance import CUT, Enhancement, enhance
from model.errors import ELNetError
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
    try:
        out.mkdir(parents=True, exist_ok=True)
        lines = (out / ENHANCED).open("w", encoding="utf-8")
    except OSError as error:
        raise FolderError(f"{out}: cannot be written to ({error.strerror})") from error
    errors: list[dict[str, Any]] = []
    done = added = removed = 0
    report("enhancing", 0, len(pairs))
    with lines:
        read = (_read(pair, max_pixels) for pair in pairs)
        for group in groups(read, _size, pixels_at_a_time(predictor)):
            whole = [item for item in group if not isinstance(item, ELNetError)]
            found = iter(
                enhance(
                    predictor,
                    [image for image, _ in whole],
                    [masks for _, masks in whole],
                    reach=reach,
                    smallest=smallest,
                )
            )
            for item in group:
                pair = pairs[done]
                row: dict[str, Any] = {"image": str(pair.image.absolute())}
                if isinstance(item, ELNetError):
                    row["error"] = str(item)
                    errors.append(row)
                else:
                    row |= _write(out, pair, tuple(classes), item[0], next(found))
                    row["model_version"] = predictor.version
                    added += row["added"]
                    removed += row["removed"]
                lines.write(json.dumps(row) + "\n")
                done += 1
            lines.flush()
            report("enhancing", done, len(pairs))
    return {
        "n": len(pairs),
        "failed": len(errors),
        "errors": errors,
        "enhanced": str(out / ENHANCED),
        "added": added,
        "removed": removed,
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


def _read(pair: Pair, max_pixels: int) -> tuple[Raster, NDArray[np.bool_]] | ELNetError:
    """An image and its coarse masks, or what is wrong with them."""
    try:
        raster, masks, _ = read_pair(pair, max_pixels=max_pixels)
    except ELNetError as error:
        return error
    return raster, masks


def _size(item: tuple[Raster, NDArray[np.bool_]] | ELNetError) -> int:
    return 0 if isinstance(item, ELNetError) else item[0].valid.size


def _write(
    out: Path, pair: Pair, classes: tuple[str, ...], raster: Raster, enhancement: Enhancement
) -> dict[str, Any]:
    """Write one image's masks and change maps; returns what its line says of them."""
    masks = mask_files(out / "masks", classes, pair.stem)
    changes = mask_files(out / "changes", classes, pair.stem)
    for plane, name in enumerate(classes):
        write_mask(masks[name], enhancement.masks[plane], raster)
        write_png(changes[name], change_map(enhancement, plane))
    answer = enhancement.prediction
    return {
        "mask": _paths(masks),
        "change": _paths(changes),
        "quality": round(score(signals(answer.probability, answer.edge, CUT, raster.valid)), 6),
        "added": int(enhancement.added.sum()),
        "removed": int(enhancement.removed.sum()),
    }


def _paths(files: dict[str, Path]) -> str | dict[str, str]:
    named = {name: str(path) for name, path in files.items()}
    return named if len(named) > 1 else next(iter(named.values()))
