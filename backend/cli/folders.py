"""A folder of images through a checkpoint: measured against truth, or predicted image by image."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from active_learning.signals import measure, score
from backend.cli.progress import Report
from model.errors import ELNetError
from model.metrics import SegmentationMetrics
from model.pairs import SUFFIXES, find_pairs, read_pair
from model.predictor import CUT, ImagePrediction, Predictor
from model.raster import MAX_PIXELS, Raster, open_raster, write_mask

PREDICTIONS: Final = "predictions.jsonl"
T = TypeVar("T")
Answer = TypeVar("Answer")


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
    for group in _groups(read, lambda pair: pair[2].size, _pixels_at_a_time(predictor)):
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

    def write(number: int, raster: Raster, prediction: ImagePrediction) -> dict[str, Any]:
        return _write(raster, prediction, mask_files(out / "masks", predictor.card.classes, names[number]))

    rows = write_lines(
        out / PREDICTIONS,
        paths,
        predictor,
        read=lambda number: open_raster(paths[number], max_pixels=max_pixels),
        size=lambda raster: raster.valid.size,
        work=predictor.predict,
        write=write,
        report=lambda done: report("predicting", done, len(paths)),
    )
    errors = [row for row in rows if "error" in row]
    return {
        "n": len(paths),
        "failed": len(errors),
        "errors": errors,
        "predictions": str(out / PREDICTIONS),
        "model_version": predictor.version,
        "seconds": round(time.monotonic() - started, 1),
    }


def write_lines(
    file: Path,
    images: Sequence[Path],
    predictor: Predictor,
    *,
    read: Callable[[int], T],
    size: Callable[[T], int],
    work: Callable[[list[T]], Iterable[Answer]],
    write: Callable[[int, T, Answer], dict[str, Any]],
    report: Callable[[int], None],
) -> list[dict[str, Any]]:
    """Work off images in batches of tiles, a line of JSON for each; a broken one spoils only its own.

    Args:
        file: gets the lines: image, model_version and what `write` says of it, or image and error.
        images: the files, which the lines name.
        predictor: the model.
        read: an image's number -> what is worked on; an ELNetError is that image's error.
        size: its pixels.
        work: what was read -> an answer for each.
        write: number, what was read and its answer -> what its line says; writes the image's own files.
        report: told how many are done.

    Returns:
        The lines.

    Raises:
        FolderError: the file's folder cannot be written to.
    """
    rows: list[dict[str, Any]] = []
    report(0)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lines = file.open("w", encoding="utf-8")
    except OSError as error:
        raise FolderError(f"{file.parent}: cannot be written to ({error.strerror})") from error

    def attempt(number: int) -> T | ELNetError:
        try:
            return read(number)
        except ELNetError as error:
            return error

    def size_of(item: T | ELNetError) -> int:
        return 0 if isinstance(item, ELNetError) else size(item)

    with lines:
        items = map(attempt, range(len(images)))
        for group in _groups(items, size_of, _pixels_at_a_time(predictor)):
            answers = iter(work([item for item in group if not isinstance(item, ELNetError)]))
            for item in group:
                row: dict[str, Any] = {"image": str(images[len(rows)].absolute())}
                if isinstance(item, ELNetError):
                    row["error"] = str(item)
                else:
                    row |= write(len(rows), item, next(answers)) | {"model_version": predictor.version}
                lines.write(json.dumps(row) + "\n")
                rows.append(row)
            lines.flush()
            report(len(rows))
    return rows


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
    row: dict[str, Any] = {"mask": paths_of(files), "quality": quality_of(raster, prediction)}
    if raster.affine is not None:
        row["affine"] = list(raster.affine)
    if raster.crs is not None:
        row["crs"] = raster.crs
    return row


def paths_of(files: dict[str, Path]) -> str | dict[str, str]:
    """The files of an image as its line holds them: a path, or with several classes a path for each."""
    paths = {class_: str(file) for class_, file in files.items()}
    return paths if len(paths) > 1 else next(iter(paths.values()))


def quality_of(raster: Raster, prediction: ImagePrediction) -> float:
    """The predicted IoU of an image's masks."""
    return round(score(measure(prediction, CUT, raster.valid)), 6)


def _pixels_at_a_time(predictor: Predictor) -> int:
    """Images are held until they fill a batch of tiles."""
    return predictor.batch_size * predictor.tile**2


def _groups(items: Iterable[T], size: Callable[[T], int], enough: int) -> Iterator[list[T]]:
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
