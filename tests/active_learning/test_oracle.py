from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from scipy.ndimage import binary_dilation, binary_erosion, shift

from active_learning.oracle import Effort, correct


def blob(top: int = 20, left: int = 20, size: int = 30) -> np.ndarray:
    mask = np.zeros((96, 96), np.bool_)
    mask[top : top + size, left : left + size] = True
    return mask


def test_without_a_prefill_the_truth_is_drawn():
    truth = blob()
    drawn = correct(None, truth)
    assert (drawn.mask == truth).all()
    assert drawn.touched
    assert drawn.corrected_pixels == truth.sum()
    # 3 s to look, one region, an outline of 4 x 30 - 4 pixels at 40 pixels a second
    assert drawn.seconds == pytest.approx(3 + 2 + 116 / 40)


def test_without_a_prefill_an_empty_truth_takes_a_look():
    drawn = correct(None, np.zeros((8, 8), np.bool_))
    assert not drawn.mask.any()
    assert (drawn.touched, drawn.corrected_pixels, drawn.seconds) == (False, 0, Effort().look_s)


def test_a_right_prefill_is_submitted_as_it_is():
    kept = correct(blob(), blob())
    assert (kept.mask == blob()).all()
    assert (kept.touched, kept.corrected_pixels) == (False, 0)


@pytest.mark.parametrize("spoil", [binary_dilation, binary_erosion])
def test_a_boundary_that_is_a_little_off_is_let_pass(spoil):
    prefill = spoil(blob(), np.ones((3, 3)), iterations=2)
    kept = correct(prefill, blob(), tolerance_px=2)
    assert not kept.touched
    assert (kept.mask == prefill).all()
    assert correct(prefill, blob(), tolerance_px=1).touched


def test_specks_are_let_pass_and_larger_errors_are_redrawn():
    speck, slick = blob(70, 70, size=2), blob(70, 10, size=12)
    prefill = blob() | speck | slick
    corrected = correct(prefill, blob())
    assert corrected.touched
    assert (corrected.mask == (blob() | speck)).all()
    assert corrected.corrected_pixels == slick.sum()


def test_a_missed_object_is_drawn_also_a_thin_one():
    road = np.zeros((96, 96), np.bool_)
    road[80:82, 5:90] = True
    corrected = correct(blob(), blob() | road)
    assert (corrected.mask == (blob() | road)).all()


def test_only_what_is_wrong_is_redrawn():
    truth = blob()
    prefill = shift(truth.astype(np.uint8), (1, 0), order=0).astype(np.bool_)  # a boundary one pixel off
    prefill[20:50, 20:30] = False  # and a third is missing
    corrected = correct(prefill, truth)
    assert (corrected.mask[:, :30] == truth[:, :30])[21:49].all()
    assert (corrected.mask[:, 40:] == prefill[:, 40:]).all()


def test_more_to_redraw_takes_longer():
    none = correct(blob(), blob()).seconds
    some = correct(blob() | blob(70, 70, 10), blob()).seconds
    all_of_it = correct(None, blob() | blob(70, 10, 20)).seconds
    assert none < some < all_of_it
    assert correct(None, blob(), effort=Effort(look_s=100)).seconds > 100


masks = array_shapes(min_dims=2, max_dims=2, max_side=12).flatmap(
    lambda shape: st.tuples(arrays(np.bool_, shape), arrays(np.bool_, shape))
)


@given(masks)
def test_with_a_tolerance_of_zero_the_result_is_the_truth(pair):
    prefill, truth = pair
    assert (correct(prefill, truth, tolerance_px=0).mask == truth).all()


@given(masks, st.integers(0, 4))
def test_a_correction_never_makes_it_worse_and_is_always_the_same(pair, tolerance):
    prefill, truth = pair
    before = prefill.copy()
    corrected = correct(prefill, truth, tolerance)
    assert ((corrected.mask != truth) <= (prefill != truth)).all()
    assert corrected.touched == (corrected.corrected_pixels > 0)
    again = correct(prefill, truth, tolerance)
    assert (again.mask == corrected.mask).all()
    assert again.seconds == corrected.seconds
    assert (prefill == before).all()


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="one size"):
        correct(np.zeros((3, 4), np.bool_), np.zeros((4, 3), np.bool_))
    with pytest.raises(ValueError, match="tolerance"):
        correct(None, blob(), tolerance_px=-1)
