"""Image files -> files that Label Studio's editor can show: upright 8-bit PNG and JPEG, of bearable size.

What the editor shows as it is, is linked or copied. Everything else (TIFF, 16-bit, float, palettes, CMYK,
rotated by EXIF) is rendered once, just as the model will see it, for Label Studio would not show it or would
shift the masks. What is too large is cut into tiles.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from model.errors import ELNetError
from model.raster import Raster, RasterError, open_raster
from model.scenes import scene_of
from model.tiles import cut

TILE = 1024  # px, of the tiles of an image that is cut
CUT_ABOVE = 2048  # px, of the longer side; the editor becomes slow beyond
_ORIENTATION = ExifTags.Base.Orientation
_SIDECARS = {
    ".xml",
    ".pgw",
    ".tfw",
    ".jgw",
    ".wld",
    ".prj",
    ".ovr",
    ".json",
    ".csv",
    ".txt",
    ".md",
    ".geojson",
}


class ImportFolderError(ELNetError):
    """A folder of images that cannot be read, or a media folder that cannot be written."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file that may be imported.

    Attributes:
        path: the file.
        scene: of the whole file; siblings share it.
        sha256: of its bytes, first 16 digits.
    """

    path: Path
    scene: str
    sha256: str


@dataclass(frozen=True, slots=True)
class Prepared:
    """A file in the media folder, which becomes one task.

    Attributes:
        path: PNG or JPEG.
        content: names source and tile, the same at every import.
        affine: a, b, c, d, e, f, where the image is georeferenced.
    """

    path: Path
    content: str
    source: Path
    scene: str
    width: int
    height: int
    affine: tuple[float, ...] | None
    crs: str | None


def find_images(folder: Path) -> list[Path]:
    """The files of a folder and its subfolders that may be images; those in `images/` if there is such a one.

    Raises:
        ImportFolderError: not a folder, or nothing in it.
    """
    if not folder.is_dir():
        raise ImportFolderError(f"{folder} is not a folder; name the folder that holds the images")
    root = folder / "images" if (folder / "images").is_dir() else folder
    found = sorted(
        path
        for path in root.rglob("*")
        if path.is_file() and not path.name.startswith(".") and path.suffix.lower() not in _SIDECARS
    )
    if not found:
        raise ImportFolderError(f"{root} holds no images; put PNG, JPEG or GeoTIFF files there")
    return found


def identify(path: Path, root: Path, max_bytes: int) -> ImageFile:
    """Hash a file.

    Args:
        path: the file.
        root: the folder that is imported; images of other subfolders are other scenes.
        max_bytes: of a file that is still read.

    Raises:
        RasterError: it cannot be read, or is too large.
    """
    try:
        size = path.stat().st_size
        if size > max_bytes:
            raise RasterError(
                f"{path}: has {size} bytes, more than media.max_bytes allows ({max_bytes}); cut it into "
                "smaller files, or raise ELNET_MEDIA__MAX_BYTES"
            )
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()[:16]
    except OSError as error:
        raise RasterError(f"{path}: cannot be read ({error.strerror}); give yourself the right to") from error
    parent = path.parent.relative_to(root).as_posix() if path.is_relative_to(root) else "."
    scene = scene_of(path.stem)
    return ImageFile(path, scene if parent == "." else f"{parent}/{scene}", digest)


def prepare(
    image: ImageFile, media: Path, tile: int | None, max_pixels: int, known: Collection[str] = ()
) -> Iterator[Prepared]:
    """Put an image into the media folder, whole or as tiles.

    Args:
        image: the file.
        media: the project's folder; each image gets one of its own there, named by its hash.
        tile: side of tiles in px: larger images are cut. None: above 2048 px they are cut at 1024. 0: never.
        max_pixels: of an image that is still decoded.
        known: `Prepared.content` of what was imported before; it is not made again.

    Raises:
        RasterError: not an image, damaged or too large; names the file.
        ImportFolderError: the media folder cannot be written.
    """
    if image.sha256 in known:
        return
    raster = open_raster(image.path, max_pixels=max_pixels)
    height, width = raster.valid.shape
    limit, side = (CUT_ABOVE, TILE) if tile is None else (tile, tile)
    folder = media / image.sha256
    stem = _safe(image.path.stem)
    if side and max(height, width) > limit:
        for name, part, _ in cut(raster, side, stem):
            content = f"{image.sha256}{name.removeprefix(stem)}"
            if content not in known:
                yield _prepared(image, folder / f"{name}.png", content, part, scene_of(name, 2 * side))
    elif not raster.valid.any():
        raise RasterError(f"{image.path}: holds no data: every pixel is nodata")
    elif _is_shown_as_it_is(image.path):
        target = folder / f"{stem}{image.path.suffix.lower()}"
        _link(image.path, target)
        yield _described(image, target, image.sha256, raster, image.scene)
    else:
        yield _prepared(image, folder / f"{stem}.png", image.sha256, raster, image.scene)


def _prepared(image: ImageFile, target: Path, content: str, raster: Raster, scene: str) -> Prepared:
    _write(target, raster)
    if scene != image.scene and "/" in image.scene:
        scene = f"{image.scene.rpartition('/')[0]}/{scene}"
    return _described(image, target, content, raster, scene)


def _described(image: ImageFile, target: Path, content: str, raster: Raster, scene: str) -> Prepared:
    height, width = raster.valid.shape
    return Prepared(target, content, image.path, scene, width, height, raster.affine, raster.crs)


def _is_shown_as_it_is(path: Path) -> bool:
    """Whether browsers show the very pixels that `open_raster` gives."""
    try:
        with Image.open(path) as image:
            plain = image.format in {"PNG", "JPEG"} and image.mode in {"L", "RGB"}
            rotated = image.getexif().get(_ORIENTATION, 1) != 1
            return plain and not rotated and "transparency" not in image.info
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return False  # what `open_raster` read by another way


def _link(source: Path, target: Path) -> None:
    """A second name for the file where that goes, else a copy: it stays when the first name goes."""
    with _writing(target) as part:
        part.unlink()
        try:
            os.link(source.resolve(), part)
        except OSError:  # another file system, or one without links
            shutil.copyfile(source, part)  # and readable by a server under another user


def _write(target: Path, raster: Raster) -> None:
    """The pixels as PNG; grey as one band, nodata as full transparency, which `open_raster` reads again."""
    pixels = raster.pixels
    if (pixels == pixels[..., :1]).all():
        pixels = pixels[..., :1]
    if not raster.valid.all():
        alpha = np.where(raster.valid, np.uint8(255), np.uint8(0))[..., None]
        pixels = np.concatenate([pixels, alpha], axis=-1)
    with _writing(target) as part:
        part.chmod(0o644)  # a server under another user reads it
        Image.fromarray(np.ascontiguousarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels)).save(
            part, "PNG"
        )


@contextlib.contextmanager
def _writing(target: Path) -> Iterator[Path]:
    """A temporary file that becomes the target when all went well."""
    part = None
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=".part-")
        os.close(descriptor)
        part = Path(name)
        yield part
        part.replace(target)
    except OSError as error:
        raise ImportFolderError(
            f"{target} cannot be written ({error.strerror or error}); make room in the media folder, or let "
            "ELNET_STATE name another one"
        ) from error
    finally:
        if part is not None:
            part.unlink(missing_ok=True)


def _safe(stem: str) -> str:
    """A stem that goes through every URL and file system unchanged."""
    return re.sub(r"[^\w.\-]+", "_", stem, flags=re.ASCII)[:100] or "image"
