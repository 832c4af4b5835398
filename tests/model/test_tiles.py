from __future__ import annotations

import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from rasterio.transform import Affine, xy

from model.raster import Raster
from model.tiles import Window, cut, extract, parse_tile, stitch, windows

sides = st.integers(1, 90)


@st.composite
def size_and_halo(draw: st.DrawFn) -> tuple[int, int]:
    halo = draw(st.integers(0, 9))
    return draw(st.integers(2 * halo + 1, 48)), halo


def random_image(*shape: int, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


class TestWindows:
    @settings(deadline=None)
    @given(height=sides, width=sides, sizes=size_and_halo())
    def test_inside_covering_and_overlapping(self, height: int, width: int, sizes: tuple[int, int]) -> None:
        size, halo = sizes
        covered = np.zeros((height, width), int)
        core = np.zeros((height, width), int)
        for w in windows(height, width, size, halo):
            assert w.row >= 0 <= w.col
            assert w.row + w.height <= height
            assert w.col + w.width <= width
            assert w.height == min(size, height)
            assert w.width == min(size, width)
            covered[w.row : w.row + w.height, w.col : w.col + w.width] += 1
            top = w.row + (halo if w.row else 0)
            left = w.col + (halo if w.col else 0)
            bottom = w.row + w.height - (halo if w.row + w.height < height else 0)
            right = w.col + w.width - (halo if w.col + w.width < width else 0)
            core[top:bottom, left:right] += 1
        assert covered.min() >= 1
        assert core.min() >= 1  # every pixel has its full context in some window

    def test_worked_example(self) -> None:
        assert [w.col for w in windows(1, 100, 40, 5)] == [0, 30, 60]
        assert [w.col for w in windows(1, 101, 40, 5)] == [0, 30, 60, 61]
        assert windows(3, 4, 32, 8) == [Window(0, 0, 3, 4)]

    @pytest.mark.parametrize(
        ("height", "width", "size", "halo"), [(0, 5, 8, 1), (5, 0, 8, 1), (5, 5, 8, 4), (5, 5, 8, -1)]
    )
    def test_refused(self, height: int, width: int, size: int, halo: int) -> None:
        with pytest.raises(ValueError, match="no windows"):
            windows(height, width, size, halo)


class TestStitch:
    @settings(deadline=None, max_examples=200)
    @given(height=sides, width=sides, sizes=size_and_halo(), seed=st.integers(0, 1000))
    def test_identity_is_exact(self, height: int, width: int, sizes: tuple[int, int], seed: int) -> None:
        size, halo = sizes
        image = random_image(height, width, 2, seed=seed) * np.float32(10.0) ** (seed % 9)

        def tiles() -> Iterator[tuple[Window, NDArray[Any]]]:
            for window in windows(height, width, size, halo):
                tile = extract(image, window, size)
                assert tile.shape == (size, size, 2)
                yield window, np.moveaxis(tile, -1, 0)

        result = stitch(tiles(), 2, height, width, halo)
        assert result.dtype == np.float32
        np.testing.assert_array_equal(result, np.moveaxis(image, -1, 0))

    def test_weights_are_the_mean_that_they_claim(self) -> None:
        size, halo = 40, 6
        places = windows(70, 90, size, halo)
        values = np.random.default_rng(0).normal(size=len(places))
        result = stitch(((w, np.full((1, size, size), v)) for w, v in zip(places, values, strict=True)),
                        1, 70, 90, halo)  # fmt: skip
        top, bottom = np.zeros((70, 90)), np.zeros((70, 90))
        for w, v in zip(places, values, strict=True):
            distance = np.minimum(np.arange(size), np.arange(size)[::-1]) + 1
            ramp = np.clip(distance / (2 * halo + 1), 0, 1)
            here = np.s_[w.row : w.row + size, w.col : w.col + size]
            top[here] += v * np.outer(ramp, ramp)
            bottom[here] += np.outer(ramp, ramp)
        np.testing.assert_allclose(result[0], top / bottom, atol=1e-5)

    def test_no_seam(self) -> None:
        """Two tiles that disagree by 1 are blended in steps of no more than 1 / (2 halo + 1)."""
        size, halo = 64, 8
        places = windows(64, 112, size, halo)
        assert len(places) == 2
        tiles = ((w, np.full((1, size, size), float(i))) for i, w in enumerate(places))
        row = stitch(tiles, 1, 64, 112, halo)[0, 30]
        steps = np.diff(row)
        assert (steps >= 0).all()
        assert steps.max() <= 1 / (2 * halo + 1) + 1e-6
        assert row[0] == 0
        assert row[-1] == 1

    def test_one_tile_at_a_time(self) -> None:
        alive: list[weakref.ref[NDArray[Any]]] = []

        def tiles() -> Iterator[tuple[Window, NDArray[Any]]]:
            for window in windows(64, 64, 16, 2):
                assert sum(ref() is not None for ref in alive) <= 1
                tile = np.ones((1, 16, 16), np.float32)
                alive.append(weakref.ref(tile))
                yield window, tile
                del tile

        assert (stitch(tiles(), 1, 64, 64, 2) == 1).all()
        assert len(alive) > 20


class TestExtract:
    @settings(deadline=None)
    @given(height=st.integers(1, 20), width=st.integers(1, 20), size=st.integers(20, 70))
    def test_small_images_are_reflected_to_and_fro(self, height: int, width: int, size: int) -> None:
        image = random_image(height, width)
        tile = extract(image, Window(0, 0, height, width), size)

        def source(n: int) -> NDArray[Any]:
            if n == 1:
                return np.zeros(size, np.intp)
            period = 2 * (n - 1)
            place = np.arange(size) % period
            return np.where(place < n, place, period - place)

        np.testing.assert_array_equal(tile, image[np.ix_(source(height), source(width))])

    def test_no_copy_without_padding(self) -> None:
        image = random_image(50, 50, 3)
        assert np.shares_memory(extract(image, Window(3, 5, 32, 32), 32), image)


class TestAffine:
    def test_the_same_place_on_earth(self) -> None:
        affine = (0.5, 0.1, 600_000.0, -0.2, -0.6, 4_000_000.0)
        window = Window(17, 23, 10, 10)
        shifted = window.affine(affine)
        assert shifted is not None
        np.testing.assert_allclose(xy(Affine(*shifted), 3, 4), xy(Affine(*affine), 20, 27))
        assert window.affine(None) is None


class TestCut:
    @settings(deadline=None)
    @given(height=st.integers(1, 200), width=st.integers(1, 200), size=st.integers(9, 64))
    def test_a_partition_without_slivers(self, height: int, width: int, size: int) -> None:
        valid = np.ones((height, width), bool)
        pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
        seen = np.zeros((height, width), int)
        for name, tile, here in cut(Raster(pixels, valid), size, "scene__x"):
            parsed = parse_tile(name)
            assert parsed is not None
            stem, row, col = parsed
            assert stem == "scene__x"
            h, w = tile.valid.shape
            np.testing.assert_array_equal(tile.pixels, pixels[row : row + h, col : col + w])
            np.testing.assert_array_equal(tile.pixels, pixels[here])
            seen[here] += 1
            for have, whole in ((h, height), (w, width)):
                assert have <= 1.25 * size
                assert 4 * have >= min(size, 4 * whole)
        assert (seen == 1).all()

    def test_worked_example(self) -> None:
        raster = Raster(
            np.zeros((1300, 600, 3), np.uint8),
            np.ones((1300, 600), bool),
            (1, 0, 10, 0, -1, 20),
            "EPSG:32631",
        )
        tiles = {name: tile for name, tile, _ in cut(raster, 256, "s")}
        assert sorted(tiles)[:3] == ["s__r00000_c00000", "s__r00000_c00256", "s__r00000_c00512"]
        assert tiles["s__r01024_c00512"].pixels.shape == (276, 88, 3)
        assert tiles["s__r01024_c00512"].affine == pytest.approx((1, 0, 522, 0, -1, -1004))
        assert tiles["s__r01024_c00512"].crs == "EPSG:32631"

    def test_tiles_of_nodata_are_left_out(self) -> None:
        valid = np.zeros((64, 64), bool)
        valid[40, 40] = True
        names = [name for name, *_ in cut(Raster(np.zeros((64, 64, 3), np.uint8), valid), 32, "s")]
        assert names == ["s__r00032_c00032"]

    @pytest.mark.parametrize("stem", ["scene", "vegas_10247_r1c0", "scene__r1_cx", "__r1_c2"])
    def test_other_names_are_not_tiles(self, stem: str) -> None:
        assert parse_tile(stem) is None
