"""Regions as Label Studio stores them <-> masks."""

from __future__ import annotations

import base64

import numpy as np
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from label_studio_sdk.converter.brush import encode_rle as encode_rgba

from backend.regions import (
    Control,
    PolygonError,
    RegionError,
    RleError,
    encode_rle,
    image_size,
    masks_to_regions,
    regions_to_masks,
    unknown_labels,
)

CLASSES = ["oil", "ship"]
BRUSH = Control("brush", "image", "brush", ("ship", "oil"))
POLYGON = Control("poly", "image", "polygon", ("oil", "ship"))


def region(mask: np.ndarray, label: str = "oil", **changes: object) -> dict:
    height, width = mask.shape
    return {
        "id": "r1",
        "type": "brushlabels",
        "from_name": "brush",
        "to_name": "image",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {"format": "rle", "rle": encode_rle(mask), "brushlabels": [label]},
        **changes,
    }


def half(height: int = 4, width: int = 6) -> np.ndarray:
    mask = np.zeros((height, width), dtype=np.bool_)
    mask[:, : width // 2] = True
    return mask


@given(arrays(np.bool_, (2, 7, 5)))
def test_masks_to_brush_regions_and_back_is_exact(masks):
    regions = masks_to_regions(masks, CLASSES, BRUSH, 0.8)
    assert len(regions) == sum(mask.any() for mask in masks)
    back, soft = regions_to_masks(regions, CLASSES, 7, 5)
    assert np.array_equal(back, masks)
    assert not soft


def test_a_brush_region_is_of_the_recorded_form():
    [found] = masks_to_regions(np.stack([np.zeros((4, 6), np.bool_), half()]), CLASSES, BRUSH, 0.31)
    assert found.pop("id")
    assert found == {
        "from_name": "brush",
        "to_name": "image",
        "type": "brushlabels",
        "original_width": 6,
        "original_height": 4,
        "image_rotation": 0,
        "score": 0.31,
        "value": {"format": "rle", "rle": encode_rle(half()), "brushlabels": ["ship"]},
    }


def test_polygon_control_gives_one_region_an_object():
    masks = np.zeros((2, 30, 30), dtype=np.bool_)
    masks[0, 2:10, 2:10] = masks[0, 15:25, 15:28] = True
    regions = masks_to_regions(masks, CLASSES, POLYGON, 0.5)
    assert [r["type"] for r in regions] == ["polygonlabels"] * 2
    assert len({r["id"] for r in regions}) == 2
    assert np.array_equal(regions_to_masks(regions, CLASSES, 30, 30)[0], masks)  # rectangles survive it


def test_regions_of_one_class_are_united_and_brush_meets_polygon():
    left, right = half(), ~half()
    right[0] = False
    square = region(left, type="polygonlabels")
    square["value"] = {"points": [[0, 0], [50, 0], [50, 100], [0, 100]], "polygonlabels": ["oil"]}
    masks, _ = regions_to_masks([square, region(right), region(left, "ship")], CLASSES, 4, 6)
    assert np.array_equal(masks[0], left | right)
    assert np.array_equal(masks[1], left)


def test_prompts_and_relations_are_passed_over():
    keypoint = {"id": "k", "type": "keypointlabels", "value": {"x": 1, "y": 2, "keypointlabels": ["oil"]}}
    relation = {"type": "relation", "from_id": "a", "to_id": "b"}
    masks, _ = regions_to_masks([keypoint, region(half()), relation], CLASSES, 4, 6)
    assert np.array_equal(masks[0], half())
    assert not regions_to_masks([keypoint], CLASSES, 4, 6)[0].any()


def test_soft_alpha_is_cut_above_127_and_told():
    rgba = np.zeros((1, 4, 4), dtype=np.uint8)
    rgba[0, :, 3] = [0, 127, 128, 255]
    soft = region(np.zeros((1, 4), np.bool_))
    soft["value"]["rle"] = encode_rgba(rgba.ravel())
    masks, soft_edges = regions_to_masks([soft], CLASSES, 1, 4)
    assert masks[0, 0].tolist() == [False, False, True, True]
    assert soft_edges


def test_a_code_as_base64_text():
    packed = region(half())
    packed["value"]["rle"] = base64.b64encode(bytes(packed["value"]["rle"])).decode()
    assert np.array_equal(regions_to_masks([packed], CLASSES, 4, 6)[0][0], half())
    packed["value"]["rle"] = "no base64!"
    with pytest.raises(RleError, match="base64"):
        regions_to_masks([packed], CLASSES, 4, 6)


def test_a_rotated_image_is_refused():
    with pytest.raises(RegionError, match="rotated by 90"):
        regions_to_masks([region(half(), image_rotation=90)], CLASSES, 4, 6)


def test_unknown_labels_are_passed_over_unless_there_is_nothing_else():
    other = region(half(), "unsure")
    masks, _ = regions_to_masks([other, region(~half(), "ship")], CLASSES, 4, 6)
    assert not masks[0].any()
    assert np.array_equal(masks[1], ~half())
    assert unknown_labels([other, region(half())], CLASSES) == ["unsure"]
    with pytest.raises(RegionError, match="'unsure', no class of the project"):
        regions_to_masks([other], CLASSES, 4, 6)


def test_no_region_means_nothing_here():
    masks, soft = regions_to_masks([], CLASSES, 4, 6)
    assert masks.shape == (2, 4, 6)
    assert not masks.any()
    assert not soft


def test_image_size():
    assert image_size([]) is None
    assert image_size([{"type": "keypointlabels"}]) is None
    assert image_size([region(half()), region(half())]) == (4, 6)
    with pytest.raises(RegionError, match="several image sizes"):
        image_size([region(half()), region(half(5))])
    with pytest.raises(RegionError, match="must name"):
        image_size([region(half(), original_width=None)])
    with pytest.raises(RegionError, match="not one that can be labelled"):
        image_size([region(half(), original_width=10**9)])


@pytest.mark.parametrize(
    ("result", "error"),
    [
        (["x"], RegionError),
        ([{"type": "brushlabels"}], RegionError),
        ([region(half(), value={"rle": [1], "brushlabels": "oil"})], RegionError),
        ([region(half(), original_width=7)], RegionError),
        ([region(half(), value={"rle": [1, 2], "brushlabels": ["oil"]})], RleError),
        ([region(half(), value={"brushlabels": ["oil"]})], RleError),
        ([region(half(), type="polygonlabels", value={"polygonlabels": ["oil"]})], PolygonError),
    ],
)
def test_malformed_regions_are_refused(result, error):
    with pytest.raises(error):
        regions_to_masks(result, CLASSES, 4, 6)


def test_masks_that_do_not_fit_are_refused():
    with pytest.raises(RegionError, match="must be"):
        masks_to_regions(half()[None], CLASSES, BRUSH, 0.5)
    with pytest.raises(RegionError, match="no label 'oil'"):
        masks_to_regions(half()[None], ["oil"], Control("b", "image", "brush", ("ship",)), 0.5)
