"""Images and masks as the model sees them: 8-bit pixels, what is valid, where on Earth."""

from __future__ import annotations

import contextlib
import io
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rasterio.crs import CRS

from model.bands import Bands, RasterError
from model.decode import decode

__all__ = ["MAX_PIXELS", "Raster", "RasterError", "open_raster", "read_masks", "write_mask", "write_png"]

MAX_PIXELS = 400_000_000
_PERCENTILES = (2.0, 98.0)
_ABSURD = 1e30  # no sensor measures this: GDAL's undeclared nodata of -3.4e38; NaN fails the comparison too
_FLAT = 1e-30  # a range that is none
_SAMPLE = 4_000_000  # pixels that percentiles are taken from, and that are stretched at a time
_SOFT = (64, 192)  # grey levels that are neither background nor foreground in an 8-bit mask
_SOFT_SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Raster:
    """An image, upright.

    Attributes:
        pixels: (H, W, 3) uint8, display range 0 to 255; a grey image is repeated.
        valid: (H, W) bool, False at nodata, NaN and fully transparent pixels.
        affine: a, b, c, d, e, f: x = a col + b row + c, y = d col + e row + f; None without georeference.
        crs: "EPSG:4326" or WKT; None without one.
    """

    pixels: NDArray[np.uint8]
    valid: NDArray[np.bool_]
    affine: tuple[float, ...] | None = None
    crs: str | None = None


def open_raster(source: Path | bytes, *, name: str | None = None, max_pixels: int = MAX_PIXELS) -> Raster:
    """Read PNG, JPEG or GeoTIFF.

    8-bit values stay as they are. Others are stretched band by band between the 2 % and 98 % percentiles of
    the valid pixels. One band is repeated; two (VV and VH, say) get their difference, the ratio in dB, as the
    third; of more, red, green and blue where they are named, else the first three.

    Args:
        source: a file or its content.
        name: what error messages call it; default: the path.
        max_pixels: height x width that is still decoded.

    Raises:
        RasterError: missing, not an image, too large, truncated; names the file and the cure.
    """
    bands = decode(source, _name(source, name), max_pixels)
    valid = _valid(bands)
    affine, crs = bands.affine, bands.crs
    if len(bands.planes) == 2:
        bands.planes.append(_difference(*bands.planes))
        bands.present.append(valid)
    pixels = np.empty((*valid.shape, 3), np.uint8)
    for i in range(len(bands.planes)):
        here, bands.planes[i] = bands.planes[i], np.empty(0)  # frees each band once it is used
        present = bands.present[i]
        pixels[..., i] = _to_8_bit(here, valid if present is None else valid & present)
    if len(bands.planes) == 1:
        pixels[..., 1:] = pixels[..., :1]
    return Raster(pixels, valid, affine, crs)


def read_masks(path: Path, *, max_pixels: int = MAX_PIXELS) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Read the mask of one class.

    Accepted: {0, 1}; {0, 255}, also with a few grey edge pixels, cut at 128; {0, 65535}; black and one
    colour. Negative values, NaN and a declared nodata other than 0 are not valid.

    Returns:
        (H, W) bool foreground, (H, W) bool valid. Foreground is False where not valid.

    Raises:
        RasterError: not readable, or not binary.
    """
    name = str(path)
    bands = decode(path, name, max_pixels)
    if not bands.opaque:
        raise RasterError(
            f"{name}: what transparency means in a mask is unclear; save it without alpha, "
            "0 background, 255 foreground"
        )
    if bands.nodata == 0:  # declared for display: 0 is the background
        bands.present = [None] * len(bands.planes)
    valid = _valid(bands)
    values = _single_plane(bands, name)
    if values.dtype.kind in "if":
        valid &= values >= 0
    return _foreground(values, valid, name), valid


def write_png(path: Path, pixels: NDArray[np.uint8]) -> None:
    """Write uint8 as PNG, whole or not at all: (H, W), (H, W, 3) or, with alpha, (H, W, 4).

    Raises:
        RasterError: the file cannot be written (full disk, no rights); nothing half stays.
    """
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(pixels)).save(buffer, "PNG")
    _write(path, buffer.getvalue())


def write_mask(path: Path, mask: NDArray[np.bool_], like: Raster | None = None) -> None:
    """Write a mask as 8-bit PNG, 0 and 255, whole or not at all.

    Where `like` is georeferenced, a world file (.pgw) and GDAL's .aux.xml with the CRS stand beside it, so
    that GIS programs and `open_raster` find it on Earth.

    Args:
        path: *.png; its folder is made.
        mask: (H, W) bool.
        like: the image that it belongs to.

    Raises:
        RasterError: the file cannot be written (full disk, no rights); nothing half stays.
    """
    write_png(path, mask.astype(np.uint8) * np.uint8(255))
    write_georeference(path, like.affine if like else None, like.crs if like else None)


def write_georeference(path: Path, affine: tuple[float, ...] | None, crs: str | None) -> None:
    """Write the world file and .aux.xml of a PNG, or remove stale ones where there is nothing to say.

    Raises:
        RasterError: a file cannot be written.
    """
    world, auxiliary = path.with_suffix(".pgw"), path.with_name(f"{path.name}.aux.xml")
    with contextlib.suppress(FileNotFoundError):
        world.unlink()
    with contextlib.suppress(FileNotFoundError):
        auxiliary.unlink()
    if affine is None:
        return
    a, b, c, d, e, f = affine
    centre = (c + (a + b) / 2, f + (d + e) / 2)  # a world file speaks of the middle of the first pixel
    _write(world, "".join(f"{v!r}\n" for v in (a, d, b, e, *centre)).encode())
    wkt = escape(CRS.from_user_input(crs).to_wkt()) if crs else ""
    terms = ", ".join(repr(v) for v in (c, a, b, f, d, e))
    srs = f"  <SRS>{wkt}</SRS>\n" if wkt else ""
    _write(auxiliary, f"<PAMDataset>\n{srs}  <GeoTransform>{terms}</GeoTransform>\n</PAMDataset>\n".encode())


def _name(source: Path | bytes, name: str | None) -> str:
    return name or (str(source) if isinstance(source, Path) else f"image of {len(source)} bytes")


def _valid(bands: Bands) -> NDArray[np.bool_]:
    """(H, W): floats must be there in every band; of integers one is enough: 0 can be nodata and dark."""
    floating = bands.planes[0].dtype.kind == "f"
    if floating or all(p is None for p in bands.present):
        valid = np.ones(bands.planes[0].shape, np.bool_)
        for plane, present in zip(bands.planes, bands.present, strict=True):
            if floating:
                valid &= np.abs(plane) < _ABSURD
            if present is not None:
                valid &= present
        return valid
    valid = np.zeros(bands.planes[0].shape, np.bool_)
    for present in bands.present:
        valid |= True if present is None else present
    return valid


def _difference(first: NDArray[Any], second: NDArray[Any]) -> NDArray[Any]:
    """First minus second; for 8-bit bands halved around mid-grey, so that it stays 8-bit."""
    with np.errstate(all="ignore"):  # not valid where it overflows
        difference = first.astype(np.float32) - second.astype(np.float32)
    if first.dtype == second.dtype == np.uint8:
        return np.rint(difference / 2 + 127.5).astype(np.uint8)
    return difference


def _to_8_bit(plane: NDArray[Any], present: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Stretch (H, W) to 0..255 unless it is 8-bit; 0 where nothing is present."""
    if plane.dtype == np.uint8:
        return np.where(present, plane, np.uint8(0))
    values = plane[present]
    if not values.size:
        return np.zeros(plane.shape, np.uint8)
    sample = values[:: max(1, values.size // _SAMPLE)]
    low, high = (float(v) for v in np.percentile(sample, _PERCENTILES))
    if high <= low:  # nearly constant: a rare foreground must not vanish
        low, high = float(values.min()), float(values.max())
    scale = 255 / (high - low) if high - low > _FLAT else 0.0
    result = np.zeros(plane.shape, np.uint8)
    rows = max(1, _SAMPLE // plane.shape[1])
    for top in range(0, len(plane), rows):  # float64, but never of the whole plane
        part = np.s_[top : top + rows]
        with np.errstate(all="ignore"):
            scaled = np.clip((plane[part].astype(np.float64) - low) * scale, 0, 255)
        result[part] = np.rint(np.where(present[part], scaled, 0))
    return result


def _single_plane(bands: Bands, name: str) -> NDArray[Any]:
    """(H, W) values of a grey mask; a mask of black and one colour becomes 0 and 255."""
    first, *others = bands.planes
    if all(np.array_equal(first, other) for other in others):
        return first
    stack = np.stack(bands.planes)
    coloured = stack.any(axis=0)
    bright = stack[:, coloured]
    if (bright != bright[:, :1]).any():
        raise RasterError(
            f"{name}: a mask of several colours; save one black-and-white mask per class "
            "(masks/CLASS/STEM.png)"
        )
    return np.where(coloured, np.uint8(255), np.uint8(0))


def _foreground(values: NDArray[Any], valid: NDArray[np.bool_], name: str) -> NDArray[np.bool_]:
    inside = values[valid]
    top = inside.max() if inside.size else 0
    if top <= 1:
        binary, cut = bool(np.isin(inside, (0, 1)).all()), 1
    elif values.dtype == np.uint8:
        soft = ((inside >= _SOFT[0]) & (inside < _SOFT[1])).mean()
        binary, cut = bool(top >= _SOFT[1] and soft <= _SOFT_SHARE), 128
    else:
        binary, cut = bool(top in (255, 65535) and np.isin(inside, (0, top)).all()), 128
    if not binary:
        some = ", ".join(f"{v:g}" for v in np.unique(inside)[:6])
        raise RasterError(
            f"{name}: not a binary mask (values {some}...); save it as 0 background, 255 foreground, "
            "one file per class"
        )
    return (values >= cut) & valid


def _write(path: Path, content: bytes) -> None:
    """Write into a neighbour, then rename: a reader sees the old file or the whole new one."""
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".part", dir=path.parent)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except OSError as error:
        raise RasterError(
            f"{path}: cannot be written ({error.strerror}); free space or check the folder's rights"
        ) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
