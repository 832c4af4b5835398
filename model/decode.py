"""An image file -> its bands as they are stored, upright, with nothing stretched and nothing guessed.

TIFF and 16-bit colour PNG go through GDAL (rasterio), other PNG and JPEG through Pillow. A file is judged by
its first bytes, never by its name, and only these drivers may touch it: GDAL's virtual formats can name other
files and addresses. The size is read from the header and checked before any pixel is decoded.
"""

from __future__ import annotations

import io
import re
import struct
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from rasterio.enums import ColorInterp, Interleaving, MaskFlags
from rasterio.errors import RasterioError
from rasterio.io import MemoryFile

from model.errors import ELNetError

Format = Literal["PNG", "PNG16", "JPEG", "TIFF"]
Affine6 = tuple[float, float, float, float, float, float]

_ORIENTATION_TAG = 274
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# What Pillow and GDAL are known to raise on damaged files; anything else is a defect of ours.
_DAMAGED = (OSError, SyntaxError, ValueError, EOFError, struct.error, RasterioError)
_IN_MEMORY = re.compile(r"'?/vsimem/[^\s':,]+'?")  # GDAL's name for bytes
_quiet_lock = threading.Lock()


class RasterError(ELNetError):
    """An image or mask that cannot be read or written: names it and the cure."""


@dataclass
class Bands:
    """An upright image as stored.

    Attributes:
        planes: one to three arrays (H, W): the bands that make the picture, any real dtype.
        present: for each plane (H, W) bool, False at nodata, masked or fully transparent pixels; None where
            the file declares no such thing.
        opaque: no alpha channel, or one that is opaque everywhere.
        nodata: the declared nodata value of the first band.
        affine: a, b, c, d, e, f: x = a col + b row + c, y = d col + e row + f.
        crs: "EPSG:4326" or WKT.
    """

    planes: list[NDArray[Any]]
    present: list[NDArray[np.bool_] | None]
    opaque: bool = True
    nodata: float | None = None
    affine: Affine6 | None = None
    crs: str | None = None


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
            return _decode_gdal(source, "GTiff" if kind == "TIFF" else "PNG", name, max_pixels)
        return _decode_pillow(source, kind, name, max_pixels)
    except MemoryError as error:
        raise RasterError(f"{name}: not enough memory to decode it; cut it into tiles first") from error
    except _DAMAGED as error:
        detail = _IN_MEMORY.sub("the file", str(error.__cause__ or error))
        raise RasterError(
            f"{name}: truncated, damaged or of a rare kind ({detail}); export it again"
        ) from error


@contextmanager
def quiet() -> Iterator[None]:
    """Silence what Pillow and rasterio warn about headers: not georeferenced, odd EXIF.

    The filters of `warnings` belong to the whole process, hence the lock, and hence never around decoding.
    """
    with _quiet_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


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


def _check_size(height: int, width: int, name: str, max_pixels: int) -> None:
    if height * width > max_pixels:
        raise RasterError(
            f"{name}: {width} x {height} pixels, more than the limit of {max_pixels}; "
            "cut it into tiles, or raise the limit if you trust the file"
        )


def _decode_pillow(source: Path | bytes, kind: Format, name: str, max_pixels: int) -> Bands:
    # Not Image.open: it applies Pillow's own size limit, which is one for the whole process.
    plugin = PngImageFile if kind == "PNG" else JpegImageFile
    with quiet():
        image: Image.Image = plugin(source if isinstance(source, Path) else io.BytesIO(source))
    with image:
        _check_size(image.height, image.width, name, max_pixels)
        image.load()
        with quiet():
            orientation = _exif_orientation(image)
        transparent = "transparency" in image.info or image.mode in ("LA", "PA", "RGBA", "La", "RGBa")
        if image.mode not in ("L", "RGB", "I", "I;16", "I;16B", "I;16L", "F") or transparent:
            grey = image.mode in ("1", "L", "LA")
            image = image.convert(("LA" if grey else "RGBA") if transparent else ("L" if grey else "RGB"))
        if orientation in _TRANSPOSE:
            image = image.transpose(_TRANSPOSE[orientation])
        pixels = np.asarray(image)
    stack = pixels[..., None] if pixels.ndim == 2 else pixels
    alpha = stack[..., -1] if transparent else None
    planes = [stack[..., i] for i in range(stack.shape[2] - transparent)]
    opaque = alpha is None or bool((alpha == 255).all())
    present = None if alpha is None or opaque else alpha > 0
    bands = Bands(planes, [present] * len(planes), opaque)
    if orientation not in _TRANSPOSE:  # a turned picture's world file may mean either frame
        bands.affine, bands.crs = _sidecar(source, kind)
    return bands


def _exif_orientation(image: Image.Image) -> int:
    """1 to 8; 1 also where the EXIF block is damaged, as browsers do."""
    try:
        return int(image.getexif().get(_ORIENTATION_TAG, 1))
    except (*_DAMAGED, KeyError, TypeError):
        return 1


def _sidecar(source: Path | bytes, kind: Format) -> tuple[Affine6 | None, str | None]:
    """Affine and CRS from a world file or GDAL's .aux.xml beside a PNG or JPEG."""
    if isinstance(source, bytes):
        return None, None
    letter = "p" if kind == "PNG" else "j"
    world = [source.with_suffix(s) for s in (f".{letter}gw", f"{source.suffix}w", ".wld")]
    if not any(p.is_file() for p in [*world, source.with_name(f"{source.name}.aux.xml")]):
        return None, None
    with quiet():
        dataset = rasterio.open(source, driver=kind)
    with dataset:
        return _georeference(dataset)


def _georeference(dataset: Any) -> tuple[Affine6 | None, str | None]:
    a, b, c, d, e, f = (float(x) for x in tuple(dataset.transform)[:6])
    affine = None if dataset.transform.is_identity else (a, b, c, d, e, f)
    return affine, dataset.crs.to_string() if dataset.crs else None


def _decode_gdal(source: Path | bytes, driver: str, name: str, max_pixels: int) -> Bands:
    if isinstance(source, bytes):
        with MemoryFile(source, filename="image") as memory:
            with quiet():
                dataset = memory.open(driver=driver)
            with dataset:
                bands = _read_dataset(dataset, name, max_pixels)
    else:
        with quiet():
            dataset = rasterio.open(source, driver=driver)
        with dataset:
            bands = _read_dataset(dataset, name, max_pixels)
    if bands.affine is None and driver == "GTiff":  # GDAL ignores the tag
        orientation = _tiff_orientation(source)
        if orientation in _TRANSPOSE:
            bands.planes = [_turn(p, orientation) for p in bands.planes]
            bands.present = [None if p is None else _turn(p, orientation) for p in bands.present]
    return bands


def _read_dataset(dataset: Any, name: str, max_pixels: int) -> Bands:
    _check_size(dataset.height, dataset.width, name, max_pixels)
    block_height, block_width = dataset.block_shapes[0]
    together = dataset.count if dataset.interleaving is Interleaving.pixel else 1  # bands decoded at once
    if block_height * block_width * together > 4 * max(max_pixels, 2**16):
        raise RasterError(
            f"{name}: stored in blocks of {block_width} x {block_height} pixels, too large to decode; "
            "export it again in tiles of 512"
        )
    if any("complex" in kind for kind in dataset.dtypes):
        raise RasterError(
            f"{name}: complex pixels ({dataset.dtypes[0]}); export amplitude or intensity (dB) instead"
        )
    interpretation = list(dataset.colorinterp)
    indexes = _picture_bands(interpretation)
    affine, crs = _georeference(dataset)
    bands = Bands([], [], ColorInterp.alpha not in interpretation, dataset.nodata, affine, crs)
    for index in indexes:
        bands.planes.append(dataset.read(index))
        declared = MaskFlags.all_valid not in dataset.mask_flag_enums[index - 1]
        bands.present.append(dataset.read_masks(index) > 0 if declared else None)
    if interpretation[indexes[0] - 1] is ColorInterp.palette:
        table = np.zeros((2**16, 3), np.uint8)
        for entry, colour in dataset.colormap(indexes[0]).items():
            table[entry] = colour[:3]
        bands.planes = list(np.moveaxis(table[bands.planes[0]], -1, 0))
        bands.present *= 3
    bits = int(dataset.tags(indexes[0], ns="IMAGE_STRUCTURE").get("NBITS", 8))
    if bits < 8 and len(bands.planes) == 1 and bands.planes[0].dtype == np.uint8:
        bands.planes[0] = bands.planes[0] * np.uint8(255 // (2**bits - 1))
    return bands


def _picture_bands(interpretation: list[ColorInterp]) -> list[int]:
    """Band numbers, from 1: red, green, blue where they are named, else the first three besides alpha."""
    rgb = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colour in interpretation for colour in rgb):
        return [interpretation.index(colour) + 1 for colour in rgb]
    plain = [i + 1 for i, kind in enumerate(interpretation) if kind is not ColorInterp.alpha]
    return plain[:3] or [1]


def _tiff_orientation(source: Path | bytes) -> int:
    """The orientation tag of the first directory; 1 where it is absent or unreadable."""
    try:
        with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file, quiet():
            header = file.read(8)
            header += file.read(8) if 43 in header[2:4] else b""
            directory = ImageFileDirectory_v2(header)
            file.seek(directory.next)
            directory.load(file)
            return int(directory.get(_ORIENTATION_TAG, 1))
    except (*_DAMAGED, KeyError, TypeError):
        return 1


def _turn(plane: NDArray[Any], orientation: int) -> NDArray[Any]:
    """The upright view of (H, W) that was stored with a TIFF/EXIF orientation of 2 to 8."""
    if orientation >= 5:
        plane = plane.T
    rows = -1 if orientation in (3, 4, 7, 8) else 1
    columns = -1 if orientation in (2, 3, 6, 7) else 1
    return np.ascontiguousarray(plane[::rows, ::columns])
