from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from model.coarsen import KINDS, LEAST, MOST, coarsen
from model.prompts import RANGE, encode, signed_distance

Mask = NDArray[np.bool_]


def disk(radius: float = 30, side: int = 96) -> Mask:
    y, x = np.mgrid[:side, :side] - side // 2
    return np.asarray(x * x + y * y <= radius * radius)


def blobs(seed: int, share: float = 0.3, side: int = 64) -> Mask:
    field = gaussian_filter(np.random.default_rng(seed).normal(size=(side, side)), 4)
    return np.asarray(field > np.quantile(field, 1 - share))


class TestSignedDistance:
    def test_by_hand(self) -> None:
        mask = np.zeros((1, 8), bool)
        mask[0, 3:5] = True
        assert signed_distance(mask).tolist() == [[-2.5, -1.5, -0.5, 0.5, 0.5, -0.5, -1.5, -2.5]]

    def test_without_a_boundary(self) -> None:
        none = np.zeros((4, 4), bool)
        assert (signed_distance(none) == -np.inf).all()
        assert (signed_distance(~none) == np.inf).all()

    def test_planes_of_a_prompt(self) -> None:
        masks = np.stack([disk(), np.zeros((96, 96), bool)])
        planes = encode(masks)
        assert planes.shape == (4, 96, 96)
        assert planes.dtype == np.float32
        assert np.array_equal(planes[0] > 0, masks[0])
        np.testing.assert_allclose(planes[1], np.clip(signed_distance(masks[0]) / RANGE, -1, 1))
        assert (planes[2] == 0).all()
        assert (planes[3] == -1).all()  # an empty mask is not the same as no mask


class TestKinds:
    """Each kind does what its name says, by 3 to 5 px."""

    @pytest.mark.parametrize("seed", range(5))
    def test_narrower_and_wider(self, seed: int) -> None:
        mask, random = disk(), np.random.default_rng(seed)
        distance = signed_distance(mask)
        narrow, wide = KINDS["eroded"](mask, random), KINDS["dilated"](mask, random)
        assert not (narrow & ~mask).any()
        assert not (mask & ~wide).any()
        assert LEAST <= distance[narrow].min() <= MOST + 1
        assert LEAST - 1 <= -distance[wide].min() <= MOST

    @pytest.mark.parametrize("seed", range(5))
    def test_beside_its_place(self, seed: int) -> None:
        mask = disk(20)
        moved = KINDS["shifted"](mask, np.random.default_rng(seed))
        assert moved.sum() == mask.sum()
        centres = [np.argwhere(m).mean(axis=0) for m in (mask, moved)]
        assert LEAST - 1 <= np.linalg.norm(centres[0] - centres[1]) <= MOST + 1
        full = np.ones((9, 9), bool)
        assert KINDS["shifted"](full, np.random.default_rng(seed)).all()  # no seam comes in

    def test_few_corners(self) -> None:
        ring = disk(40) & ~disk(20)
        rough = KINDS["simplified"](ring, np.random.default_rng(0))
        assert not np.array_equal(rough, ring)
        assert not rough[48, 48]  # the hole is a hole
        assert (np.abs(signed_distance(ring)[rough != ring]) <= MOST + 1).all()

    def test_parts_are_missing(self) -> None:
        for seed in range(10):
            left = KINDS["with losses"](disk(), np.random.default_rng(seed))
            assert 0 < left.sum() < disk().sum()
            assert not (left & ~disk()).any()
        speck = np.zeros((32, 32), bool)
        speck[4, 4] = True
        assert KINDS["with losses"](speck, np.random.default_rng(0)).any()  # never all of it


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.01, 0.99))
def test_a_coarse_mask_is_one_and_the_true_one_stays(seed: int, share: float) -> None:
    mask = blobs(seed % 100, share)
    before = mask.copy()
    made = coarsen(mask, np.random.default_rng(seed))
    assert made.shape == mask.shape
    assert made.dtype == np.bool_
    assert made.any()
    assert np.array_equal(mask, before)
    assert not np.shares_memory(made, mask)
    assert np.array_equal(made, coarsen(mask, np.random.default_rng(seed)))


def test_nothing_to_make_coarse() -> None:
    none = np.zeros((16, 16), bool)
    for seed in range(8):
        assert not coarsen(none, np.random.default_rng(seed)).any()
        assert coarsen(~none, np.random.default_rng(seed)).any()
