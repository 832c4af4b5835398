from __future__ import annotations

import errno
import io
import os
import resource
import struct
import threading
import time
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageOps
from rasterio.crs import CRS
from rasterio.enums import ColorInterp
from rasterio.errors import NotGeoreferencedWarning
from rasterio.transform import Affine

from model.raster import Raster, RasterError, open_raster, read_masks, write_mask, write_png

GENEVA = Affine(0.001, 0.0, 6.1, 0.0, -0.002, 46.2)


def tiff(
    path: Path, planes: NDArray[Any], *, colours: list[ColorInterp] | None = None, **profile: Any
) -> Path:
    """(C, H, W) as GeoTIFF."""
    profile.setdefault("transform", GENEVA)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=planes.shape[0],
        height=planes.shape[1],
        width=planes.shape[2],
        dtype=planes.dtype,
        **profile,
    ) as file:
        if colours:
            file.colorinterp = colours
        file.write(planes)
    return path


def plain_tiff(path: Path, planes: NDArray[Any], **profile: Any) -> Path:
    with pytest.warns(NotGeoreferencedWarning):
        return tiff(path, planes, transform=None, **profile)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def noise(*shape: int, seed: int = 0, top: int = 256) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, top, shape, dtype=np.uint8)


def png(header: tuple[int, int, int, int], *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG from width, height, bit depth and colour type, and its further chunks."""
    ihdr = (b"IHDR", struct.pack(">IIBBBBB", *header, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        for kind, body in (ihdr, *chunks, (b"IEND", b""))
    )


def big_png_header(width: int, height: int) -> bytes:
    return png((width, height, 8, 0), (b"IDAT", zlib.compress(bytes(1000))))


class TestEightBit:
    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "LA", "CMYK"])
    def test_every_mode_equals_pillows_own_conversion(self, mode: str) -> None:
        image = Image.fromarray(noise(13, 17, 3)).convert(mode)
        content = encoded(image, "TIFF" if mode == "CMYK" else "PNG")
        if mode == "CMYK":
            content = encoded(image, "JPEG", quality=95)
        expected = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        raster = open_raster(content)
        np.testing.assert_array_equal(raster.pixels, expected)
        assert raster.pixels.dtype == np.uint8
        assert raster.valid.all()
        assert raster.affine is None
        assert raster.crs is None

    def test_a_dark_image_stays_dark(self, tmp_path: Path) -> None:
        values = noise(3, 20, 20, top=30)
        raster = open_raster(tiff(tmp_path / "a.tif", values))
        np.testing.assert_array_equal(raster.pixels, np.moveaxis(values, 0, -1))

    def test_transparent_pixels_are_not_valid(self) -> None:
        rgba = noise(8, 9, 4)
        rgba[..., 3] = np.where(np.arange(9) < 4, 0, 200)
        raster = open_raster(encoded(Image.fromarray(rgba), "PNG"))
        assert not raster.valid[:, :4].any()
        assert raster.valid[:, 4:].all()
        np.testing.assert_array_equal(raster.pixels[:, 4:], rgba[:, 4:, :3])

    def test_palette_with_a_transparent_entry(self) -> None:
        image = Image.fromarray(noise(8, 8, top=4)).convert("P")
        raster = open_raster(encoded(image, "PNG", transparency=int(np.asarray(image)[0, 0])))
        np.testing.assert_array_equal(raster.valid, np.asarray(image) != np.asarray(image)[0, 0])

    def test_tiff_palette_is_expanded(self, tmp_path: Path) -> None:
        path = tmp_path / "p.tif"
        index = noise(6, 7, top=3)
        table = {0: (1, 2, 3, 255), 1: (40, 50, 60, 255), 2: (255, 0, 9, 255)}
        with rasterio.open(
            path, "w", driver="GTiff", count=1, height=6, width=7, dtype="uint8", transform=GENEVA
        ) as file:
            file.write(index, 1)
            file.write_colormap(1, table)
        expected = np.array([table[i][:3] for i in range(3)], np.uint8)[index]
        np.testing.assert_array_equal(open_raster(path).pixels, expected)

    def test_bilevel_tiff_is_black_and_white(self, tmp_path: Path) -> None:
        bits = noise(1, 9, 9, top=2)
        raster = open_raster(tiff(tmp_path / "b.tif", bits, nbits=1))
        np.testing.assert_array_equal(raster.pixels[..., 1], bits[0] * 255)


class TestBands:
    def test_two_bands_get_their_difference(self, tmp_path: Path) -> None:
        rng = np.random.default_rng(1)
        planes = rng.normal(-15, 4, (2, 40, 40)).astype(np.float32)
        pixels = open_raster(tiff(tmp_path / "vv_vh.tif", planes)).pixels
        ratio = planes[0] - planes[1]
        low, high = np.percentile(ratio, (2, 98))
        np.testing.assert_allclose(
            pixels[..., 2], np.clip((ratio - low) / (high - low), 0, 1) * 255, atol=0.51
        )
        assert np.corrcoef(pixels[..., 0].ravel(), planes[0].ravel())[0, 1] > 0.95

    def test_two_8_bit_bands_keep_their_values(self, tmp_path: Path) -> None:
        planes = noise(2, 11, 12)
        pixels = open_raster(tiff(tmp_path / "two.tif", planes)).pixels
        np.testing.assert_array_equal(pixels[..., :2], np.moveaxis(planes, 0, -1))
        expected = 127.5 + (planes[0] / 2 - planes[1] / 2)
        np.testing.assert_allclose(pixels[..., 2], expected, atol=0.51)

    def test_more_than_three_take_the_first_three(self, tmp_path: Path) -> None:
        planes = noise(7, 5, 6)
        path = tiff(tmp_path / "seven.tif", planes, photometric="minisblack")
        np.testing.assert_array_equal(open_raster(path).pixels, np.moveaxis(planes[:3], 0, -1))

    def test_named_colours_go_before_their_order(self, tmp_path: Path) -> None:
        planes = noise(4, 5, 6)
        names = [ColorInterp.blue, ColorInterp.green, ColorInterp.red, ColorInterp.undefined]
        path = tiff(tmp_path / "bgrn.tif", planes, colours=names, photometric="minisblack")
        np.testing.assert_array_equal(open_raster(path).pixels, np.moveaxis(planes[[2, 1, 0]], 0, -1))

    def test_an_alpha_band_is_validity_not_colour(self, tmp_path: Path) -> None:
        planes = noise(2, 6, 6)
        planes[1] = np.where(np.arange(6) < 2, 0, 255)
        path = tiff(tmp_path / "ga.tif", planes, colours=[ColorInterp.gray, ColorInterp.alpha])
        raster = open_raster(path)
        np.testing.assert_array_equal(raster.valid, planes[1] > 0)
        np.testing.assert_array_equal(raster.pixels[:, 2:, 2], planes[0][:, 2:])
        with pytest.raises(RasterError, match="transparency"):
            read_masks(path)
        planes[0] = planes[0] > 127
        planes[1] = 255
        foreground, valid = read_masks(tiff(path, planes, colours=[ColorInterp.gray, ColorInterp.alpha]))
        np.testing.assert_array_equal(foreground, planes[0])
        assert valid.all()

    def test_16_bit_colour_png_is_stretched_not_cut(self, tmp_path: Path) -> None:
        path = tmp_path / "deep.png"
        planes = np.random.default_rng(0).integers(0, 2048, (3, 30, 30), dtype=np.uint16)  # 11-bit sensor
        with (
            pytest.warns(NotGeoreferencedWarning),
            rasterio.open(path, "w", driver="PNG", count=3, height=30, width=30, dtype="uint16") as file,
        ):
            file.write(planes)
        pixels = open_raster(path).pixels
        assert pixels.max() == 255  # the high byte alone would be at most 7
        assert np.corrcoef(pixels[..., 1].ravel(), planes[1].ravel())[0, 1] > 0.99


class TestStretch:
    @pytest.mark.parametrize("kind", ["int8", "uint16", "int16", "uint32", "int32", "float32", "float64"])
    def test_percentiles_over_valid_pixels(self, tmp_path: Path, kind: str) -> None:
        values = np.random.default_rng(0).integers(-100, 100, (1, 64, 64))
        values = values if np.dtype(kind).kind != "u" else values + 100
        planes = values.astype(kind)
        pixels = open_raster(tiff(tmp_path / "x.tif", planes)).pixels
        low, high = np.percentile(values, (2, 98))
        expected = np.clip((values[0] - low) / (high - low), 0, 1) * 255
        np.testing.assert_allclose(pixels[..., 0], expected, atol=0.51)
        np.testing.assert_array_equal(pixels[..., 0], pixels[..., 2])

    def test_16_bit_grey_png(self) -> None:
        values = np.arange(10_000, dtype=np.uint16).reshape(100, 100)
        pixels = open_raster(encoded(Image.fromarray(values), "PNG")).pixels
        assert pixels[0, 0, 0] == 0
        assert pixels[-1, -1, 0] == 255
        assert (np.diff(pixels[..., 0].ravel().astype(int)) >= 0).all()

    def test_rare_foreground_survives(self, tmp_path: Path) -> None:
        values = np.zeros((1, 50, 50), np.uint16)
        values[0, 3, 4] = 1000
        pixels = open_raster(tiff(tmp_path / "rare.tif", values)).pixels
        assert pixels[3, 4, 0] == 255
        assert pixels.sum() == 3 * 255

    def test_a_range_too_small_to_scale(self, tmp_path: Path) -> None:
        values = np.array([[[0.0, 1e-310], [5e-311, 0.0]]])
        assert not open_raster(tiff(tmp_path / "tiny.tif", values)).pixels.any()

    def test_a_constant_image_is_zero(self, tmp_path: Path) -> None:
        raster = open_raster(tiff(tmp_path / "flat.tif", np.full((1, 5, 5), 7.5, np.float32)))
        assert not raster.pixels.any()
        assert raster.valid.all()


class TestNodata:
    @pytest.mark.parametrize("hole", [np.nan, np.inf, -np.inf, -3.4028234e38])
    def test_what_no_sensor_measures_is_not_valid(self, tmp_path: Path, hole: float) -> None:
        planes = np.random.default_rng(0).normal(size=(2, 30, 30)).astype(np.float32)
        clean = open_raster(tiff(tmp_path / "clean.tif", planes[:, :15])).pixels
        planes[0, 15:] = hole
        raster = open_raster(tiff(tmp_path / "holes.tif", planes))
        assert raster.valid[:15].all()
        assert not raster.valid[15:].any()
        np.testing.assert_array_equal(raster.pixels[:15], clean)  # the holes do not move the stretch
        assert not raster.pixels[15:, :, 0].any()

    def test_declared_nodata(self, tmp_path: Path) -> None:
        planes = np.random.default_rng(0).integers(100, 200, (3, 20, 20)).astype(np.uint16)
        planes[:, :5] = 0
        planes[0, 10, 10] = 0  # one dark band of three is data
        raster = open_raster(tiff(tmp_path / "n.tif", planes, nodata=0))
        expected = np.ones((20, 20), bool)
        expected[:5] = False
        np.testing.assert_array_equal(raster.valid, expected)

    def test_nothing_valid_at_all(self, tmp_path: Path) -> None:
        raster = open_raster(tiff(tmp_path / "void.tif", np.full((1, 4, 4), np.nan, np.float32)))
        assert not raster.valid.any()
        assert not raster.pixels.any()


class TestGeoreference:
    def test_affine_and_crs_are_kept(self, tmp_path: Path) -> None:
        raster = open_raster(tiff(tmp_path / "g.tif", noise(1, 4, 4), crs="EPSG:32631"))
        assert raster.affine == tuple(GENEVA)[:6]
        assert raster.crs == "EPSG:32631"

    def test_a_tiff_without_georeference_is_quiet(self, tmp_path: Path) -> None:
        path = plain_tiff(tmp_path / "plain.tif", noise(1, 4, 4))
        assert open_raster(path).affine is None
        assert open_raster(path.read_bytes()).affine is None

    def test_mask_files_are_found_on_earth_by_gdal_and_by_us(self, tmp_path: Path) -> None:
        affine = (0.5, 0.1, 600_000.0, -0.1, -0.5, 4_000_000.0)
        mask = noise(7, 9, top=2).astype(bool)
        like = Raster(noise(7, 9, 3), np.ones((7, 9), bool), affine, "EPSG:32631")
        path = tmp_path / "m.png"
        write_mask(path, mask, like)
        with rasterio.open(path) as file:
            assert file.transform.almost_equals(Affine(*affine))
            assert file.crs == CRS.from_epsg(32631)
        (tmp_path / "m.png.aux.xml").unlink()
        with rasterio.open(path) as file:  # the world file alone
            assert file.transform.almost_equals(Affine(*affine))
        write_mask(path, mask, like)
        again = open_raster(path)
        assert again.affine == pytest.approx(affine)
        assert again.crs == "EPSG:32631"
        write_mask(path, mask, None)
        assert [p.name for p in tmp_path.iterdir()] == ["m.png"]  # nothing stale stays
        assert open_raster(path).affine is None


class TestOrientation:
    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_as_pillow_turns_it(self, orientation: int, kind: str) -> None:
        image = Image.fromarray(noise(16, 24))
        exif = Image.Exif()
        exif[274] = orientation
        content = encoded(image, kind, exif=exif)
        expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))).convert("RGB"))
        np.testing.assert_array_equal(open_raster(content).pixels, expected)

    @pytest.mark.parametrize("orientation", range(1, 9))
    def test_a_mask_with_the_same_tag_stays_on_its_image(self, tmp_path: Path, orientation: int) -> None:
        mask = np.zeros((16, 24), np.uint8)
        mask[2:9, 3:20] = 255
        exif = Image.Exif()
        exif[274] = orientation
        (tmp_path / "image.jpg").write_bytes(encoded(Image.fromarray(mask), "JPEG", quality=100, exif=exif))
        (tmp_path / "mask.png").write_bytes(encoded(Image.fromarray(mask), "PNG", exif=exif))
        foreground, valid = read_masks(tmp_path / "mask.png")
        np.testing.assert_array_equal(foreground, open_raster(tmp_path / "image.jpg").pixels[..., 0] > 127)
        assert valid.shape == foreground.shape

    def test_16_bit_colour_png(self) -> None:
        values = np.random.default_rng(0).integers(0, 65536, (6, 9, 3)).astype(">u2")
        rows = b"".join(b"\0" + row.tobytes() for row in values)
        exif = Image.Exif()
        exif[274] = 6
        pixels = (b"IDAT", zlib.compress(rows))
        plain = open_raster(png((9, 6, 16, 2), pixels)).pixels
        turned = open_raster(png((9, 6, 16, 2), (b"eXIf", exif.tobytes()[6:]), pixels)).pixels
        np.testing.assert_array_equal(turned, np.rot90(plain, 3))

    def test_a_georeferenced_tiff_stays_as_gdal_sees_it(self, tmp_path: Path) -> None:
        path, values = tmp_path / "g.tif", noise(6, 9)
        Image.fromarray(values).save(path, tiffinfo={274: 6, 33550: (2.0, 2.0, 0.0), 33922: (0.0,) * 6})
        raster = open_raster(path)
        np.testing.assert_array_equal(raster.pixels[..., 0], values)
        assert raster.affine == (2, 0, 0, 0, -2, 0)

    def test_a_turned_jpeg_has_no_place_on_earth(self, tmp_path: Path) -> None:
        """Its world file may mean the frame that is stored or the one that is shown."""
        for orientation, affine in ((1, (1, 0, -0.5, 0, -1, 0.5)), (6, None)):
            exif = Image.Exif()
            exif[274] = orientation
            Image.fromarray(noise(8, 16)).save(tmp_path / "drone.jpg", exif=exif)
            (tmp_path / "drone.jgw").write_text("1\n0\n0\n-1\n0\n0\n")
            raster = open_raster(tmp_path / "drone.jpg")
            assert raster.affine == affine
            assert raster.valid.shape == ((8, 16) if orientation == 1 else (16, 8))

    def test_a_damaged_exif_block_is_ignored(self) -> None:
        image = Image.fromarray(noise(8, 8))
        content = encoded(image, "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\x7fgarbage")
        assert open_raster(content).pixels.shape == (8, 8, 3)


class TestRefused:
    @pytest.mark.parametrize(
        ("content", "says"),
        [
            (b"", "empty"),
            (b"%PDF-1.4 nothing here", "not a PNG, JPEG or TIFF"),
            (b"<VRTDataset rasterXSize='1'></VRTDataset>", "not a PNG, JPEG or TIFF"),
            (b"\x89PNG\r\n\x1a\n", "truncated, damaged"),
            (b"\xff\xd8\xff\xe0", "truncated, damaged"),
            (b"II*\0", "truncated, damaged"),
        ],
    )
    def test_not_an_image(self, tmp_path: Path, content: bytes, says: str) -> None:
        path = tmp_path / "thing.png"
        path.write_bytes(content)
        for source in (path, content):
            with pytest.raises(RasterError, match=says):
                open_raster(source)
        with pytest.raises(RasterError, match=r"thing\.png"):
            open_raster(path)

    def test_missing_or_folder(self, tmp_path: Path) -> None:
        with pytest.raises(RasterError, match="no such file"):
            open_raster(tmp_path / "gone.png")
        with pytest.raises(RasterError, match="cannot be read"):
            open_raster(tmp_path)

    @pytest.mark.parametrize("kind", ["complex64", "complex_int16"])
    def test_complex(self, tmp_path: Path, kind: str) -> None:
        path = tmp_path / "slc.tif"
        with rasterio.open(
            path, "w", driver="GTiff", count=1, height=4, width=4, dtype=kind, transform=GENEVA
        ):
            pass
        with pytest.raises(RasterError, match=r"slc\.tif: complex pixels"):
            open_raster(path)

    @pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
    def test_the_limit_is_on_pixels(self, kind: str) -> None:
        content = encoded(Image.fromarray(noise(10, 12)), kind)
        assert open_raster(content, max_pixels=120).pixels.shape == (10, 12, 3)
        with pytest.raises(RasterError, match="pic: 12 x 10 pixels, more than the limit of 119"):
            open_raster(content, name="pic", max_pixels=119)

    def test_bombs_are_refused_from_the_header(self, tmp_path: Path) -> None:
        bomb = tmp_path / "bomb.tif"
        with rasterio.open(
            bomb, "w", driver="GTiff", count=4, height=100_000, width=100_000, dtype="float64",
            tiled=True, blockxsize=512, blockysize=512, compress="deflate", sparse_ok=True, transform=GENEVA,
            bigtiff="yes",
        ):  # fmt: skip
            pass
        for source in (bomb, big_png_header(60_000, 60_000), big_png_header(2**31 - 1, 2**31 - 1)):
            start = time.monotonic()
            with pytest.raises(RasterError, match="more than the limit of 400000000"):
                open_raster(source)
            assert time.monotonic() - start < 20  # decoding would take minutes

    def test_absurd_blocks(self, tmp_path: Path) -> None:
        path = tmp_path / "blocks.tif"
        with rasterio.open(
            path, "w", driver="GTiff", count=1, height=8, width=8, dtype="uint8", tiled=True,
            blockxsize=32_768, blockysize=32_768, sparse_ok=True, compress="deflate", transform=GENEVA,
        ):  # fmt: skip
            pass
        with pytest.raises(RasterError, match=r"blocks\.tif: stored in blocks of 32768 x 32768"):
            open_raster(path, max_pixels=1_000_000)

    def test_pillows_own_limit_does_not_speak(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
        assert open_raster(encoded(Image.fromarray(noise(9, 9)), "PNG")).pixels.shape == (9, 9, 3)


SAMPLES = {
    "png": encoded(Image.fromarray(noise(40, 50, 3)), "PNG"),
    "jpeg": encoded(Image.fromarray(noise(40, 50, 3)), "JPEG"),
    "tiff": encoded(Image.fromarray(noise(40, 50, 3)), "TIFF", compression="tiff_deflate"),
}


class TestDamaged:
    @settings(max_examples=60, deadline=None)
    @given(kind=st.sampled_from(sorted(SAMPLES)), share=st.floats(0, 1, exclude_max=True))
    def test_a_truncated_file_is_named_or_whole(self, kind: str, share: float) -> None:
        content = SAMPLES[kind]
        whole = open_raster(content).pixels
        try:
            raster = open_raster(content[: int(share * len(content))])
        except RasterError:
            return
        np.testing.assert_array_equal(raster.pixels, whole)  # only the trailer was cut off

    # rasterio cannot log GDAL messages that quote bytes of the file
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @settings(max_examples=150, deadline=None)
    @given(
        kind=st.sampled_from(sorted(SAMPLES)),
        place=st.floats(0, 1, exclude_max=True),
        value=st.integers(0, 255),
        early=st.booleans(),
    )
    def test_a_flipped_byte_gives_an_image_or_our_error(
        self, kind: str, place: float, value: int, early: bool
    ) -> None:
        content = bytearray(SAMPLES[kind])
        content[int(place * (64 if early else len(content)))] = value
        try:
            raster = open_raster(bytes(content), max_pixels=10_000_000)
        except RasterError:
            return
        assert raster.valid.shape == raster.pixels.shape[:2]

    def test_half_a_file(self, tmp_path: Path) -> None:
        for kind, content in SAMPLES.items():
            path = tmp_path / f"half.{kind}"
            path.write_bytes(content[: len(content) // 2])
            with pytest.raises(RasterError, match=r"half\.\w+: truncated, damaged .* again"):
                open_raster(path)
            with pytest.raises(RasterError, match=r"^upload: truncated, damaged") as caught:
                open_raster(path.read_bytes(), name="upload")
            assert "vsimem" not in str(caught.value)


class TestReadMasks:
    @pytest.mark.parametrize("scale", [1, 237, 255])
    def test_8_bit(self, tmp_path: Path, scale: int) -> None:
        mask = noise(9, 8, top=2)
        write_png(tmp_path / "m.png", mask * np.uint8(scale))
        foreground, valid = read_masks(tmp_path / "m.png")
        np.testing.assert_array_equal(foreground, mask == 1)
        assert valid.all()

    @pytest.mark.parametrize("value", [0, 1, 255])
    def test_all_one_value(self, tmp_path: Path, value: int) -> None:
        write_png(tmp_path / "m.png", np.full((5, 5), value, np.uint8))
        foreground, _ = read_masks(tmp_path / "m.png")
        assert foreground.all() == (value > 0)
        assert foreground.any() == (value > 0)

    def test_16_bit_colour_and_palette(self, tmp_path: Path) -> None:
        mask = noise(9, 8, top=2)
        Image.fromarray(mask.astype(np.uint16) * 65535).save(tmp_path / "deep.png")
        Image.fromarray(mask[..., None] * np.array([255, 120, 80], np.uint8)).save(tmp_path / "orange.png")
        voc = Image.fromarray(mask).convert("P")
        voc.putpalette([0, 0, 0, 128, 0, 0])
        voc.save(tmp_path / "voc.png")
        inverted = Image.fromarray(1 - mask).convert("P")
        inverted.putpalette([255, 255, 255, 0, 0, 0])  # index 0 is white: the colour counts, not the index
        inverted.save(tmp_path / "inverted.png")
        for name in ("deep", "orange", "voc", "inverted"):
            np.testing.assert_array_equal(read_masks(tmp_path / f"{name}.png")[0], mask == 1, err_msg=name)

    def test_a_few_grey_edges_are_cut_at_128(self, tmp_path: Path) -> None:
        values = np.zeros((40, 40), np.uint8)
        values[10:30, 10:30] = 255
        values[10, 10:30] = 127
        values[29, 10:30] = 128
        write_png(tmp_path / "m.png", values)
        np.testing.assert_array_equal(read_masks(tmp_path / "m.png")[0], values >= 128)

    @pytest.mark.parametrize(
        "values",
        [
            np.arange(256, dtype=np.uint8).reshape(16, 16),  # a picture
            np.arange(16, dtype=np.uint8).reshape(4, 4) % 4,  # class indexes
            np.arange(16, dtype=np.uint8).reshape(4, 4) % 2 * 100,  # grey, neither white nor black
            np.arange(16, dtype=np.uint16).reshape(4, 4) * 1000,
        ],
    )
    def test_not_binary(self, tmp_path: Path, values: NDArray[Any]) -> None:
        Image.fromarray(values).save(tmp_path / "m.png")
        with pytest.raises(RasterError, match=r"m\.png: not a binary mask .* one file per class"):
            read_masks(tmp_path / "m.png")

    def test_several_colours_and_transparency(self, tmp_path: Path) -> None:
        colours = np.array([[0, 0, 0], [255, 0, 0], [0, 255, 0]], np.uint8)[noise(9, 9, top=3)]
        Image.fromarray(colours).save(tmp_path / "classes.png")
        with pytest.raises(RasterError, match=r"classes\.png: a mask of several colours"):
            read_masks(tmp_path / "classes.png")
        Image.fromarray(noise(9, 9, 4)).save(tmp_path / "alpha.png")
        with pytest.raises(RasterError, match=r"alpha\.png: what transparency means"):
            read_masks(tmp_path / "alpha.png")

    def test_negative_and_nan_are_not_valid(self, tmp_path: Path) -> None:
        values = np.array([[[-1, 0, 1], [1, 1, 0]]])
        floats = np.where(values < 0, np.nan, values).astype(np.float32)
        declared = np.where(values < 0, 255, values).astype(np.uint8)
        paths = [
            tiff(tmp_path / "int.tif", values.astype(np.int16)),
            tiff(tmp_path / "nan.tif", floats),
            tiff(tmp_path / "declared.tif", declared, nodata=255),
        ]
        for path in paths:
            foreground, valid = read_masks(path)
            np.testing.assert_array_equal(valid, values[0] >= 0, err_msg=path.name)
            np.testing.assert_array_equal(foreground, values[0] == 1, err_msg=path.name)

    def test_a_nodata_of_0_is_the_background(self, tmp_path: Path) -> None:
        mask = noise(1, 6, 6, top=2)
        foreground, valid = read_masks(tiff(tmp_path / "m.tif", mask, nodata=0))
        assert valid.all()
        np.testing.assert_array_equal(foreground, mask[0] == 1)

    def test_fractions_are_refused(self, tmp_path: Path) -> None:
        path = tiff(tmp_path / "soft.tif", np.linspace(0, 1, 16, dtype=np.float32).reshape(1, 4, 4))
        with pytest.raises(RasterError, match="not a binary mask"):
            read_masks(path)

    @settings(max_examples=30, deadline=None)
    @given(height=st.integers(1, 40), width=st.integers(1, 40), seed=st.integers(0, 99))
    def test_write_then_read(
        self, tmp_path_factory: pytest.TempPathFactory, height: int, width: int, seed: int
    ) -> None:
        path = tmp_path_factory.mktemp("mask") / "deep" / "m.png"
        mask = noise(height, width, seed=seed, top=2).astype(bool)
        write_mask(path, mask, None)
        np.testing.assert_array_equal(read_masks(path)[0], mask)
        assert set(np.unique(np.asarray(Image.open(path)))) <= {0, 255}


class TestWriting:
    def test_a_full_disk_leaves_the_old_file(self, tmp_path: Path) -> None:
        path = tmp_path / "m.png"
        old, new = noise(64, 64, seed=1, top=2).astype(bool), noise(600, 600, seed=2, top=2).astype(bool)
        write_mask(path, old, None)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2000, hard))
        try:
            with pytest.raises(RasterError, match=r"m\.png: cannot be written .* free space"):
                write_mask(path, new, None)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        np.testing.assert_array_equal(read_masks(path)[0], old)
        assert [p.name for p in tmp_path.iterdir()] == ["m.png"]

    def test_no_space_at_the_rename(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr(os, "replace", full)
        monkeypatch.setattr(Path, "replace", full)
        with pytest.raises(RasterError, match="No space left"):
            write_mask(tmp_path / "m.png", np.ones((4, 4), bool), None)
        assert list(tmp_path.iterdir()) == []

    def test_the_folder_is_a_file(self, tmp_path: Path) -> None:
        (tmp_path / "out").write_text("in the way")
        with pytest.raises(RasterError, match="cannot be written"):
            write_mask(tmp_path / "out" / "m.png", np.ones((4, 4), bool), None)


def test_many_threads(tmp_path: Path) -> None:
    """Warnings stay silent and results right when images are opened side by side."""
    planes = noise(3, 30, 30)
    path = plain_tiff(tmp_path / "a.tif", planes)
    wrong: list[str] = []

    def work() -> None:
        try:
            for _ in range(20):
                np.testing.assert_array_equal(open_raster(path).pixels, np.moveaxis(planes, 0, -1))
        except Exception as error:  # a thread's boundary: the main one reports
            wrong.append(repr(error))

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


@pytest.mark.data
class TestRealData:
    @pytest.mark.parametrize("stem", ["s1f11_India_900498", "s1f11_Spain_7370579"])
    def test_sen1floods(self, data_folder: Path, stem: str) -> None:
        raster = open_raster(data_folder / f"geotiff/images/{stem}.tif")
        assert raster.pixels.shape == (512, 512, 3)
        assert raster.crs == "EPSG:4326"
        assert raster.affine is not None
        assert raster.affine[0] > 0 > raster.affine[4]
        assert 60 < raster.pixels.mean() < 200
        foreground, valid = read_masks(data_folder / f"geotiff/masks/{stem}.tif")
        with rasterio.open(data_folder / f"geotiff/masks/{stem}.tif") as file:
            stored = file.read(1)
        np.testing.assert_array_equal(valid, stored >= 0)
        np.testing.assert_array_equal(foreground, stored == 1)
        # water is dark in VV: the picture and its mask lie on each other
        vv = raster.pixels[..., 0]
        assert vv[foreground].mean() < vv[valid & ~foreground].mean() - 30

    def test_spacenet_is_16_bit(self, data_folder: Path) -> None:
        raster = open_raster(data_folder / "geotiff/images/spacenet_vegas_road_pan.tif")
        assert raster.pixels.shape == (1300, 1300, 3)
        assert 0.01 < (raster.pixels == 255).mean() < 0.03

    @pytest.mark.parametrize("folder", ["sar_oil/small", "road/small", "road/test"])
    def test_every_mask_reads_as_its_readme_says(self, data_folder: Path, folder: str) -> None:
        for path in sorted((data_folder / folder / "masks").iterdir()):
            stored = np.asarray(Image.open(path))
            grey = stored if stored.ndim == 2 else stored.max(axis=2)
            np.testing.assert_array_equal(read_masks(path)[0], grey >= 128, err_msg=path.name)
