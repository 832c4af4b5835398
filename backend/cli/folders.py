"""A folder of images through a checkpoint: measured against truth, or predicted image by image."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Final, TypeVar

from active_learning.quality import score, signals
from backend.cli.progress import Report
from model.errors import ELNetError
from model.metrics import SegmentationMetrics
from model.pairs import SUFFIXES, find_pairs, read_pair
from model.predictor import ImagePrediction, Predictor
from model.raster import MAX_PIXELS, Raster, RasterError, open_raster, write_mask

CUT: Final = 0.5  # of the probability: foreground is above
PREDICTIONS: Final = "predictions.jsonl"
T = TypeVar("T")


class FolderError(ELNetError):
    """A folder that holds nothing to work on, or cannot be written to."""


def evaluate_folder(
    data: Path, predictor: Predictor, report: Report, max_pixels: int = MAX_PIXELS
) -> dict[str, Any]:
    """Compare a model's masks with the truth.

    Args:
        data: a folder with images/ and masks/ of the model's classes.
        predictor: the model.
        report: told how many images are done.
        max_pixels: of an image that is still read.

    Returns:
        The model version and the figures of `model.metrics.Scores`.

    Raises:
        DataError: a pair is broken. Figures over the rest would not be what was asked for.
    """
    pairs, classes = find_pairs(data, predictor.card.classes)
    metrics = SegmentationMetrics(classes)
    report("evaluating", 0, len(pairs))
    done = 0
    read = (read_pair(pair, max_pixels=max_pixels) for pair in pairs)
    for group in groups(read, lambda pair: pair[2].size, pixels_at_a_time(predictor)):
        predictions = predictor.predict([raster for raster, _, _ in group])
        for (_, truth, valid), prediction in zip(group, predictions, strict=True):
            metrics.update(prediction.probability > CUT, truth, valid, name=pairs[done].stem)
            done += 1
        report("evaluating", done, len(pairs))
    return {"model_version": predictor.version, **metrics.compute().summary()}


def predict_folder(
    images: Path, predictor: Predictor, out: Path, report: Report, max_pixels: int = MAX_PIXELS
) -> dict[str, Any]:
    """Write the masks of a folder of images, and `predictions.jsonl`.

    A line of that file holds image, mask (a path; with several classes a path for each), quality and
    model_version, with affine and crs where the image has them; or image and error.

    Args:
        images: a folder of image files, or one file.
        predictor: the model.
        out: gets masks/STEM.png, or masks/CLASS/STEM.png with several classes.
        report: told how many images are done.
        max_pixels: of an image that is still read.

    Returns:
        n, failed, errors (the lines with an error), predictions (the file), model_version, seconds.

    Raises:
        FolderError: no image there, or `out` cannot be made.
        RasterError: a mask cannot be written.
    """
    started = time.monotonic()
    paths = find_images(images)
    names = _mask_names(paths)
    errors = []
    done = 0
    report("predicting", 0, len(paths))
    try:
        out.mkdir(parents=True, exist_ok=True)
        lines = (out / PREDICTIONS).open("w", encoding="utf-8")
    except OSError as error:
        raise FolderError(f"{out}: cannot be written to ({error.strerror})") from error
    with lines:
        for group in groups((_open(path, max_pixels) for path in paths), _size, pixels_at_a_time(predictor)):
            predictions = iter(predictor.predict([item for item in group if isinstance(item, Raster)]))
            for item in group:
                path = paths[done]
                row: dict[str, Any] = {"image": str(path.absolute())}
                if isinstance(item, Raster):
                    files = mask_files(out / "masks", predictor.card.classes, names[done])
                    row |= _write(item, next(predictions), files) | {"model_version": predictor.version}
                else:
                    row["error"] = str(item)
                    errors.append(row)
                lines.write(json.dumps(row) + "\n")
                done += 1
            lines.flush()
            report("predicting", done, len(paths))
    return {
        "n": len(paths),
        "failed": len(errors),
        "errors": errors,
        "predictions": str(out / PREDICTIONS),
        "model_version": predictor.version,
        "seconds": round(time.monotonic() - started, 1),
    }


def find_images(folder: Path) -> list[Path]:
    """The image files of a folder in the order of their names, or the one file that was named.

    Raises:
        FolderError: there is none.
    """
    if folder.is_file():
        return [folder]
    if not folder.is_dir():
        raise FolderError(f"{folder}: no such file or folder")
    found = [
        path
        for path in sorted(folder.iterdir())
        if path.suffix.lower() in SUFFIXES and not path.name.startswith(".") and not path.is_dir()
    ]
    if not found:
        hint = f"; did you mean {folder / 'images'}?" if (folder / "images").is_dir() else ""
        raise FolderError(f"{folder}: no image in it, {', '.join(SUFFIXES)} are read{hint}")
    return found


def _mask_names(paths: list[Path]) -> list[str]:
    """The stem of each image, or its whole name where another image has the same stem."""
    stems = Counter(path.stem for path in paths)
    return [path.stem if stems[path.stem] == 1 else path.name for path in paths]


def mask_files(folder: Path, classes: tuple[str, ...], name: str) -> dict[str, Path]:
    """Where the masks of an image go: FOLDER/NAME.png, or FOLDER/CLASS/NAME.png with several classes."""
    folder = folder.absolute()
    if len(classes) == 1:
        return {classes[0]: folder / f"{name}.png"}
    return {class_: folder / class_ / f"{name}.png" for class_ in classes}


def _write(raster: Raster, prediction: ImagePrediction, files: dict[str, Path]) -> dict[str, Any]:
    """Write an image's masks; returns what its line says of them."""
    for probability, file in zip(prediction.probability, files.values(), strict=True):
        write_mask(file, probability > CUT, raster)
    measured = signals(prediction.probability, prediction.edge, CUT, raster.valid)
    masks = {class_: str(file) for class_, file in files.items()}
    row: dict[str, Any] = {
        "mask": masks if len(masks) > 1 else next(iter(masks.values())),
        "quality": round(score(measured), 6),
    }
    if raster.affine is not None:
        row["affine"] = list(raster.affine)
    if raster.crs is not None:
        row["crs"] = raster.crs
    return row


def _open(path: Path, max_pixels: int) -> Raster | RasterError:
    """An image, or what is wrong with it."""
    try:
        return open_raster(path, max_pixels=max_pixels)
    except RasterError as error:
        return error


def _size(item: Raster | RasterError) -> int:
    return item.valid.size if isinstance(item, Raster) else 0


def pixels_at_a_time(predictor: Predictor) -> int:
    """Images are held until they fill a batch of tiles."""
    return predictor.batch_size * predictor.tile**2


def groups(items: Iterable[T], size: Callable[[T], int], enough: int) -> Iterator[list[T]]:
    """Lists of items in their order, each closed as soon as its sizes reach `enough`."""
    group: list[T] = []
    total = 0
    for item in items:
        group.append(item)
        total += size(item)
        if total >= enough:
            yield group
            group, total = [], 0
    if group:
        yield group
