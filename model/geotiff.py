"""What GDAL decodes for us: TIFF, 16-bit colour PNG, and the georeference beside any PNG or JPEG."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
from PIL.TiffImagePlugin import ImageFileDirectory_v2
from rasterio.enums import ColorInterp, Interleaving, MaskFlags
from rasterio.io import MemoryFile

from model.bands import ORIENTATION_TAG, Affine6, Bands, RasterError, check_size, quiet


def read_bands(source: Path | bytes, driver: str, name: str, max_pixels: int) -> Bands:
    """Read a file with one GDAL driver, which alone may touch it.

    Raises:
        RasterError: complex, or too large.
        rasterio.errors.RasterioError: damaged.
    """
    if isinstance(source, bytes):
        with MemoryFile(source, filename="image") as memory:
            with quiet():
                dataset = memory.open(driver=driver)
            with dataset:
                return _read(dataset, name, max_pixels)
    with quiet():
        dataset = rasterio.open(source, driver=driver)
    with dataset:
        return _read(dataset, name, max_pixels)


def read_sidecar(source: Path, driver: str) -> tuple[Affine6 | None, str | None]:
    """Affine and CRS from a world file or GDAL's .aux.xml beside a PNG or JPEG."""
    world = [source.with_suffix(s) for s in (f".{driver[0].lower()}gw", f"{source.suffix}w", ".wld")]
    if not any(p.is_file() for p in [*world, source.with_name(f"{source.name}.aux.xml")]):
        return None, None
    with quiet():
        dataset = rasterio.open(source, driver=driver)
    with dataset:
        return _georeference(dataset)


def tiff_orientation(source: Path | bytes) -> int:
    """The orientation tag of the first directory, which GDAL ignores; 1 where there is none.

    Raises:
        Whatever Pillow raises on a damaged directory.
    """
    with source.open("rb") if isinstance(source, Path) else io.BytesIO(source) as file, quiet():
        header = file.read(8)
        header += file.read(8) if 43 in header[2:4] else b""  # BigTIFF
        directory = ImageFileDirectory_v2(header)
        file.seek(directory.next)
        directory.load(file)
        return int(directory.get(ORIENTATION_TAG, 1))


def _read(dataset: Any, name: str, max_pixels: int) -> Bands:
    _check(dataset, name, max_pixels)
    interpretation = list(dataset.colorinterp)
    indexes = _picture_bands(interpretation)
    bands = Bands([], [], nodata=dataset.nodata)
    bands.affine, bands.crs = _georeference(dataset)
    for index in indexes:
        bands.planes.append(dataset.read(index))
        declared = MaskFlags.all_valid not in dataset.mask_flag_enums[index - 1]
        bands.present.append(dataset.read_masks(index) > 0 if declared else None)
    if ColorInterp.alpha in interpretation:
        bands.opaque = all(p is None or bool(p.all()) for p in bands.present)
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


def _check(dataset: Any, name: str, max_pixels: int) -> None:
    check_size(dataset.height, dataset.width, name, max_pixels)
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


def _picture_bands(interpretation: list[ColorInterp]) -> list[int]:
    """Band numbers, from 1: red, green, blue where they are named, else the first three besides alpha."""
    rgb = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
    if all(colour in interpretation for colour in rgb):
        return [interpretation.index(colour) + 1 for colour in rgb]
    plain = [i + 1 for i, kind in enumerate(interpretation) if kind is not ColorInterp.alpha]
    return plain[:3] or [1]


def _georeference(dataset: Any) -> tuple[Affine6 | None, str | None]:
    a, b, c, d, e, f = (float(x) for x in tuple(dataset.transform)[:6])
    affine = None if dataset.transform.is_identity else (a, b, c, d, e, f)
    return affine, dataset.crs.to_string() if dataset.crs else None
