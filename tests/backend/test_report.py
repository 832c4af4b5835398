"""What the demo leaves behind."""

import json

import numpy as np
import pytest
from PIL import Image

from backend.report import CycleReport, Picture, outline, overlay, sheet, write_report


def _row(cycle: int, accepted_iou: float | None, serves: bool = True) -> CycleReport:
    return CycleReport(
        cycle=cycle,
        state="promoted",
        model_version=f"elnet-{cycle:04}",
        serving=f"elnet-{cycle:04}" if serves else None,
        labels=8 * cycle,
        holdout_images=5,
        holdout_iou=0.2 * cycle if serves else None,
        holdout_iou_per_image=0.3 * cycle if serves else None,
        gate_iou=0.2 * cycle,
        share_accepted=0.25,
        accepted_iou=accepted_iou,
        touched=8,
        corrected_pixels=1234,
        human_s=60.0,
        seconds=12.5,
    )


def _picture(height: int = 40, width: int = 60) -> Picture:
    prefill = np.zeros((height, width), dtype=bool)
    prefill[5:20, 5:20] = True
    truth = np.zeros_like(prefill)
    truth[8:22, 8:22] = True
    pixels = np.full((height, width, 3), 100, dtype=np.uint8)
    return Picture("tile <1>", pixels, truth, prefill, 0.5)


def test_outline_is_the_inner_boundary() -> None:
    mask = np.zeros((7, 7), dtype=bool)
    mask[1:6, 1:6] = True
    expected = mask.copy()
    expected[2:5, 2:5] = False
    np.testing.assert_array_equal(outline(mask), expected)


def test_outline_leaves_the_image_border_open() -> None:
    assert not outline(np.ones((5, 5), dtype=bool)).any()


def test_overlay_marks_truth_over_prefill_and_leaves_the_rest() -> None:
    picture = _picture()
    shown = overlay(picture)
    assert shown.shape == picture.pixels.shape
    assert (shown[8, 8] == 255).all()
    assert tuple(shown[5, 5]) == (255, 120, 0)
    assert (shown[30, 50] == 100).all()
    assert (picture.pixels == 100).all(), "the image itself is not painted on"


def test_sheet_of_different_sizes_has_a_column_each() -> None:
    assert sheet([_picture(40, 60), _picture(20, 30)]).shape == (2 * 40 + 6, 60 + 6 + 30, 3)


def test_sheet_shows_large_images_small() -> None:
    assert sheet([_picture(1300, 1300)]).shape[1] == 260


@pytest.mark.parametrize("accepted_iou", [0.9, None])
def test_report_is_whole_and_self_contained(tmp_path, accepted_iou) -> None:
    about = {
        "data": "a <folder>",
        "classes": ["oil"],
        "images": 40,
        "accept_threshold": 0.9,
        "seconds": 99.0,
        "machine": "2 cores",
    }
    page = write_report(
        tmp_path / "out", [_row(1, None), _row(2, accepted_iou)], {"elnet-0001": [_picture()]}, about
    )
    html = page.read_text()
    assert "a &lt;folder&gt;" in html
    assert "elnet-0002" in html
    assert "http://www.w3.org/2000/svg" in html
    assert 'src="http' not in html
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["holdout_iou"] for row in report["cycles"]] == [0.2, 0.4]
    assert report["cycles"][1]["accepted_iou"] == accepted_iou
    for name in ("iou.png", "effort.png", "prefills-elnet-0001.png"):
        with Image.open(tmp_path / "out" / name) as image:
            assert image.width > 50


def test_a_report_of_a_loop_in_which_nothing_serves_yet(tmp_path) -> None:
    about = {
        "data": "x",
        "classes": ["oil"],
        "images": 9,
        "accept_threshold": 0.9,
        "seconds": 9.0,
        "machine": "m",
    }
    page = write_report(tmp_path, [_row(1, None, serves=False)], {}, about)
    assert "<td>-</td>" in page.read_text()
    assert json.loads((tmp_path / "report.json").read_text())["cycles"][0]["holdout_iou"] is None
