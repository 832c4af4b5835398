"""An image file -> its bands, upright.

TIFF and 16-bit colour PNG go through GDAL (rasterio), other PNG and JPEG through Pillow. A file is judged by
its first bytes, never by its name, and only these drivers may touch it: GDAL's virtual formats can name other
files and addresses. The size is read from the header and checked before any pixel is decoded.
"""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from rasterio.errors import RasterioError

from model.bands import ORIENTATION_TAG, Bands, RasterError, check_size, quiet
from model.geotiff import read_bands, read_sidecar, tiff_orientation

Format = Literal["PNG", "PNG16", "JPEG", "TIFF"]

# What Pillow and GDAL are known to raise on damaged files; anything else is a defect of ours.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, RasterioError)
_IN_MEMORY = re.compile(r"'?/vsimem/[^\s':,]+'?")  # GDAL's name for bytes


def decode(source: Path | bytes, name: str, max_pixels: int) -> Bands:
    """Read an image file.

    Args:
        source: a file or its content.
        name: what error messages call it.
        max_pixels: height x width that is still decoded.

    Raises:
        RasterError: missing, empty, not PNG, JPEG or TIFF, complex, too large, truncated or damaged.
    """
    kind = _format(_head(source, name), name)
    try:
        if kind in ("TIFF", "PNG16"):
            return _by_gdal(source, kind, name, max_pixels)
        return _by_pillow(source, kind, name, max_pixels)
    except MemoryError as error:
        raise RasterError(f"{name}: not enough memory to decode it; cut it into tiles first") from error
    except _DAMAGED as error:
        detail = _IN_MEMORY.sub("the file", str(error.__cause__ or error))
        raise RasterError(
            f"{name}: truncated, damaged or of a rare kind ({detail}); export it again"
        ) from error


def _head(source: Path | bytes, name: str) -> bytes:
    """The first 32 bytes."""
    if isinstance(source, bytes):
        head = source[:32]
    else:
        try:
            with source.open("rb") as file:
                head = file.read(32)
        except FileNotFoundError as error:
            raise RasterError(f"{name}: no such file; check the path") from error
        except OSError as error:
            raise RasterError(f"{name}: cannot be read ({error.strerror}); check path and rights") from error
    if not head:
        raise RasterError(f"{name}: the file is empty; copy or export it again")
    return head


def _format(head: bytes, name: str) -> Format:
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        # IHDR: bit depth at byte 24, colour type at 25. Pillow would cut 16-bit colour down to its high byte.
        deep_colour = len(head) > 25 and head[24] == 16 and head[25] in (2, 4, 6)
        return "PNG16" if deep_colour else "PNG"
    if head.startswith(b"\xff\xd8\xff"):
        return "JPEG"
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return "TIFF"
    raise RasterError(f"{name}: not a PNG, JPEG or TIFF image; convert it to one of these")


def _by_gdal(source: Path | bytes, kind: Format, name: str, max_pixels: int) -> Bands:
    bands = read_bands(source, "GTiff" if kind == "TIFF" else "PNG", name, max_pixels)
    if bands.affine is not None:  # it counts pixels as they are stored
        return bands
    if kind == "TIFF":
        bands.turn(_tiff_orientation(source))
    else:
        with _open(source, kind) as image:
            bands.turn(_exif_orientation(image))
    return bands


def _by_pillow(source: Path | bytes, kind: Format, name: str, max_pixels: int) -> Bands:
    with _open(source, kind) as image:
        check_size(image.height, image.width, name, max_pixels)
        image.load()
        bands, orientation = _bands(image), _exif_orientation(image)
    if (
        orientation != 1
    ):  # as browsers show it; whether a world file means that or the stored frame is unknown
        bands.turn(orientation)
    elif isinstance(source, Path):
        bands.affine, bands.crs = read_sidecar(source, kind)
    return bands


def _open(source: Path | bytes, kind: Format) -> Image.Image:
    """The header. Not by Image.open: it applies Pillow's own size limit, one for the whole process."""
    plugin = JpegImageFile if kind == "JPEG" else PngImageFile
    with quiet():
        return plugin(source if isinstance(source, Path) else io.BytesIO(source))


def _bands(image: Image.Image) -> Bands:
    transparent = "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa")
    if image.mode not in ("L", "RGB", "I", "I;16", "I;16B", "I;16L", "F") or transparent:
        grey = image.mode in ("1", "L", "LA")
        image = image.convert(("LA" if grey else "RGBA") if transparent else ("L" if grey else "RGB"))
    pixels = np.asarray(image)
    stack = pixels[..., None] if pixels.ndim == 2 else pixels
    planes = [stack[..., i] for i in range(stack.shape[2] - transparent)]
    alpha = stack[..., -1] if transparent else None
    opaque = alpha is None or bool((alpha == 255).all())
    return Bands(planes, [None if alpha is None or opaque else alpha > 0] * len(planes), opaque)


def _exif_orientation(image: Image.Image) -> int:
    """1 to 8; 1 also where the EXIF block is damaged, as browsers do."""
    try:
        with quiet():
            return int(image.getexif().get(ORIENTATION_TAG, 1))
    except (*_DAMAGED, KeyError, TypeError):
        return 1


def _tiff_orientation(source: Path | bytes) -> int:
    """1 to 8; 1 also where the directory is damaged."""
    try:
        return tiff_orientation(source)
    except (*_DAMAGED, KeyError, TypeError):
        return 1
