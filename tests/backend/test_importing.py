"""Image files made fit for the editor."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import ExifTags, Image

from backend.importing import ImportFolderError, Prepared, find_images, identify, prepare
from model.raster import RasterError, open_raster

MANY = 10**9


def run(
    path: Path, media: Path, tile: int | None = None, known=(), max_pixels: int = 10**8
) -> list[Prepared]:
    image = identify(path, path.parent, MANY)
    return list(prepare(image, media, tile, max_pixels, known))


def picture(height: int = 30, width: int = 40, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def save(path: Path, pixels: np.ndarray, **options) -> Path:
    Image.fromarray(pixels).save(path, **options)
    return path


def shown(prepared: Prepared) -> np.ndarray:
    """(H, W, 3) as a browser shows it: upright, 8-bit."""
    with Image.open(prepared.path) as image:
        assert image.format in {"PNG", "JPEG"}
        assert image.mode in {"L", "RGB", "LA", "RGBA"}
        assert image.getexif().get(ExifTags.Base.Orientation, 1) == 1
        return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("suffix", [".png", ".jpg"])
def test_what_browsers_show_is_linked_as_it_is(tmp_path, suffix):
    source = save(tmp_path / f"a scene{suffix}", picture())
    (found,) = run(source, tmp_path / "media")
    assert found.path.name == f"a_scene{suffix}"
    assert found.path.samefile(source)
    assert (found.width, found.height, found.affine) == (40, 30, None)
    assert found.scene == "a scene"
    source.unlink()
    assert found.path.is_file()


def test_copied_where_links_do_not_go(tmp_path, monkeypatch):
    def refuse(*_: object) -> None:
        raise OSError(18, "Invalid cross-device link")

    monkeypatch.setattr(os, "link", refuse)
    source = save(tmp_path / "a.png", picture())
    (found,) = run(source, tmp_path / "media")
    assert not found.path.samefile(source)
    assert found.path.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("orientation", range(2, 9))
def test_what_is_rotated_by_exif_is_saved_upright(tmp_path, orientation):
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    source = save(tmp_path / "a.jpg", picture(), exif=exif, quality=95)
    (found,) = run(source, tmp_path / "media")
    assert found.path.suffix == ".png"
    assert np.array_equal(shown(found), open_raster(source).pixels)
    assert (found.width, found.height) == ((30, 40) if orientation > 4 else (40, 30))


def test_sixteen_bits_palettes_alpha_and_cmyk_are_rendered_as_the_model_sees_them(tmp_path):
    grey = (picture()[..., 0].astype(np.uint16) * 200) + 7
    sources = [
        save(tmp_path / "sixteen.png", grey),
        save(tmp_path / "palette.png", np.asarray(Image.fromarray(picture()).convert("P"))),
    ]
    Image.fromarray(picture()).convert("P").save(tmp_path / "palette.png")
    Image.fromarray(picture()).convert("CMYK").save(tmp_path / "cmyk.jpg")
    Image.fromarray(np.dstack([picture(), picture(seed=1)[..., :1]])).save(tmp_path / "alpha.png")
    sources += [tmp_path / "cmyk.jpg", tmp_path / "alpha.png"]
    for source in sources:
        (found,) = run(source, tmp_path / "media")
        again, raster = open_raster(found.path), open_raster(source)
        assert np.array_equal(again.valid, raster.valid), source
        assert np.array_equal(again.pixels[raster.valid], raster.pixels[raster.valid]), source
        shown(found)


def geotiff(path: Path, planes: np.ndarray, nodata: float | None = None) -> Path:
    """(bands, H, W) with a georeference."""
    bands, height, width = planes.shape
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        height=height,
        width=width,
        count=bands,
        dtype=planes.dtype,
        crs="EPSG:32633",
        transform=Affine(10, 0, 500000, 0, -10, 6000000),
        nodata=nodata,
    ) as out:
        out.write(planes)
    return path


def test_a_float_raster_with_nodata_keeps_place_and_validity(tmp_path):
    values = np.random.default_rng(0).normal(-12, 3, (1, 30, 40)).astype(np.float32)
    values[0, :5] = np.nan
    source = geotiff(tmp_path / "sar.tif", values)
    (found,) = run(source, tmp_path / "media")
    assert found.path.name == "sar.png"
    assert found.affine == (10, 0, 500000, 0, -10, 6000000)
    assert found.crs == "EPSG:32633"
    again = open_raster(found.path)
    assert not again.valid[:5].any()
    assert again.valid[5:].all()
    assert np.array_equal(again.pixels[5:], open_raster(source).pixels[5:])
    with Image.open(found.path) as image:
        assert image.mode == "LA"  # grey is kept as one band


def test_large_images_are_cut(tmp_path):
    source = geotiff(tmp_path / "large.tif", picture(100, 150).transpose(2, 0, 1).copy())
    tiles = run(source, tmp_path / "media", tile=64)
    assert [t.path.stem for t in tiles] == [
        f"large__r{row:05d}_c{col:05d}" for row in (0, 64) for col in (0, 64, 128)
    ]
    whole = open_raster(source).pixels
    for tile in tiles:
        row, col = (int(part[1:]) for part in tile.path.stem.rpartition("__")[2].split("_"))
        assert np.array_equal(shown(tile), whole[row : row + tile.height, col : col + tile.width])
        assert tile.affine == (10, 0, 500000 + 10 * col, 0, -10, 6000000 - 10 * row)
        assert tile.source == source
    assert len({tile.content for tile in tiles}) == 6
    assert sum(tile.width * tile.height for tile in tiles) == 100 * 150


def test_when_to_cut(tmp_path):
    source = save(tmp_path / "a.png", np.zeros((8, 2100), np.uint8))
    assert len(run(source, tmp_path / "m1")) == 2
    assert len(run(source, tmp_path / "m2", tile=0)) == 1
    assert len(run(source, tmp_path / "m3", tile=2100)) == 1
    small = save(tmp_path / "b.png", np.zeros((8, 2048), np.uint8))
    assert len(run(small, tmp_path / "m4")) == 1


def test_tiles_near_each_other_share_a_scene(tmp_path):
    source = save(tmp_path / "s.png", picture(512, 512))
    scenes = {t.path.stem[1:]: t.scene for t in run(source, tmp_path / "media", tile=128)}
    assert scenes["__r00000_c00000"] == scenes["__r00128_c00128"] != scenes["__r00000_c00256"]
    assert len(set(scenes.values())) == 4


def test_what_was_imported_is_not_made_again(tmp_path):
    source = save(tmp_path / "a.png", picture(40, 40))
    (first,) = run(source, tmp_path / "media")
    assert run(source, tmp_path / "media", known={first.content}) == []
    tiles = run(source, tmp_path / "media", tile=20)
    known = {tile.content for tile in tiles[:3]}
    assert [t.content for t in run(source, tmp_path / "media", tile=20, known=known)] == [tiles[3].content]


def test_subfolders_are_other_scenes(tmp_path):
    for folder in ("north", "south/deep"):
        (tmp_path / folder).mkdir(parents=True)
        save(tmp_path / folder / "1.png", picture())
    scenes = [identify(path, tmp_path, MANY).scene for path in find_images(tmp_path)]
    assert scenes == ["north/1", "south/deep/1"]


def test_which_files_are_looked_at(tmp_path):
    images = tmp_path / "images"
    images.mkdir()
    for name in ("b.PNG", "a.tif", "a.tif.aux.xml", "a.pgw", ".hidden.png", "notes.txt", "broken.jpg"):
        (images / name).write_text("")
    (tmp_path / "masks").mkdir()
    (tmp_path / "masks" / "a.png").write_text("")
    assert [path.name for path in find_images(tmp_path)] == ["a.tif", "b.PNG", "broken.jpg"]
    assert len(find_images(images)) == 3


def test_folders_without_images(tmp_path):
    with pytest.raises(ImportFolderError, match="is not a folder"):
        find_images(tmp_path / "nowhere")
    with pytest.raises(ImportFolderError, match="holds no images"):
        find_images(tmp_path)


def test_broken_files_say_why(tmp_path):
    whole = save(tmp_path / "whole.png", picture(200, 200)).read_bytes()
    (tmp_path / "truncated.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "text.png").write_text("no image")
    nothing = geotiff(tmp_path / "nothing.tif", np.zeros((1, 9, 9), np.uint8), nodata=0)
    for path in (tmp_path / "truncated.png", tmp_path / "text.png", nothing):
        with pytest.raises(RasterError, match=path.name):
            run(path, tmp_path / "media")
    with pytest.raises(RasterError, match=r"whole\.png"):
        run(tmp_path / "whole.png", tmp_path / "media", max_pixels=39_999)
    with pytest.raises(RasterError, match=r"more than media\.max_bytes allows"):
        identify(tmp_path / "whole.png", tmp_path, 1000)
    with pytest.raises(RasterError, match=r"gone\.png: cannot be read"):
        identify(tmp_path / "gone.png", tmp_path, MANY)


def test_a_full_disk_leaves_nothing_half(tmp_path, monkeypatch):
    source = save(tmp_path / "sixteen.png", picture()[..., 0].astype(np.uint16) * 9)

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(ImportFolderError, match="No space left"):
        run(source, tmp_path / "media")
    assert not [path for path in (tmp_path / "media").rglob("*") if path.is_file()]
