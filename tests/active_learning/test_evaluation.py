"""A model judged on a folder."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from active_learning.evaluation import HEADLINE, EvaluationError, evaluate, fault_on_foreign
from model.pairs import DataError
from model.raster import write_mask, write_png


def write(folder: Path, stem: str, seen: slice, truth: slice, alpha: bool = False) -> None:
    """An image on which the fake model sees one square, and a mask that holds another one."""
    pixels = np.zeros((32, 32, 4 if alpha else 3), np.uint8)
    pixels[seen, seen, 0] = 255
    if alpha:
        pixels[:16, :, 3] = 255
    mask = np.zeros((32, 32), np.bool_)
    mask[truth, truth] = True
    for part in ("images", "masks"):
        (folder / part).mkdir(exist_ok=True)
    write_png(folder / "images" / f"{stem}.png", pixels)
    write_mask(folder / "masks" / f"{stem}.png", mask)


def test_figures_and_images(tmp_path: Path, make_predictor: Any) -> None:
    write(tmp_path, "a", slice(8, 16), slice(8, 16))
    write(tmp_path, "b", slice(8, 16), slice(8, 24))
    scores = evaluate(make_predictor(), tmp_path, ["oil"])
    assert set(HEADLINE) <= scores.keys()
    assert scores["n"] == 2
    assert scores["fg_iou"] == pytest.approx((64 + 64) / (64 + 256))
    assert scores["fg_iou_per_image"] == pytest.approx((1 + 0.25) / 2)
    assert [(s["image"], s["iou"]) for s in scores["per_image"]] == [("a", 1.0), ("b", 0.25)]
    assert scores["per_image"][1]["predicted_share"] == pytest.approx(64 / 1024)
    assert scores["per_image"][1]["truth_share"] == pytest.approx(256 / 1024)


def test_the_time_of_an_image_is_the_median(tmp_path: Path, make_predictor: Any) -> None:
    for stem in "abc":
        write(tmp_path, stem, slice(8, 16), slice(8, 16))
    predictor = make_predictor()
    predict, waits = predictor.predict, iter([0.5, 0.1, 0.1])  # the first one warms up

    def slow(images: Any) -> Any:
        time.sleep(next(waits))
        return predict(images)

    predictor.predict = slow
    assert 0.1 <= evaluate(predictor, tmp_path, ["oil"])["seconds"] < 0.4


@pytest.mark.parametrize(
    ("image", "value", "fault"),
    [
        (0, float("nan"), "its output on a black image is no probability"),
        (1, 1.5, "its output on a white image is no probability"),
        (2, -0.1, "its output on noise is no probability"),
        (3, 0.9, "it draws on an image without data"),
        (3, 0.4, None),
        (1, 0.0, None),
    ],
)
def test_foreign_images(make_predictor: Any, image: int, value: float, fault: str | None) -> None:
    predictor = make_predictor()
    predict, seen = predictor.predict, 0

    def odd(images: Any) -> Any:
        nonlocal seen
        [found] = predict(images)
        if seen == image:
            found.probability[:, 3, 5] = value
        seen += 1
        return [found]

    predictor.predict = odd
    assert fault_on_foreign(predictor) == fault


def test_what_is_not_valid_counts_nowhere(tmp_path: Path, make_predictor: Any) -> None:
    write(tmp_path, "a", slice(8, 16), slice(8, 24), alpha=True)
    scores = evaluate(make_predictor(), tmp_path, ["oil"])
    assert scores["fg_iou"] == pytest.approx(64 / (8 * 16))  # the lower half of the truth is not there


def test_masks_are_handed_out_as_they_were_drawn(tmp_path: Path, make_predictor: Any) -> None:
    write(tmp_path, "a", slice(8, 16), slice(8, 16))
    write(tmp_path, "b", slice(8, 20), slice(8, 24), alpha=True)
    drawn: dict[str, Any] = {}
    evaluate(make_predictor(), tmp_path, ["oil"], keep=drawn.__setitem__)
    assert list(drawn) == ["a", "b"]
    assert drawn["a"].shape == (1, 32, 32)
    assert np.argwhere(drawn["a"][0]).tolist() == [[y, x] for y in range(8, 16) for x in range(8, 16)]
    assert drawn["b"].sum() == 8 * 12  # nothing where the image holds no data


def test_a_model_of_other_classes(tmp_path: Path, make_predictor: Any) -> None:
    write(tmp_path, "a", slice(8, 16), slice(8, 16))
    with pytest.raises(EvaluationError, match="elnet-0001 predicts 2 classes"):
        evaluate(make_predictor(classes=2), tmp_path, ["oil"])


def test_an_empty_folder(tmp_path: Path, make_predictor: Any) -> None:
    with pytest.raises(DataError):
        evaluate(make_predictor(), tmp_path, ["oil"])


def test_it_can_be_ended_between_images(tmp_path: Path, make_predictor: Any) -> None:
    for stem in "abc":
        write(tmp_path, stem, slice(8, 16), slice(8, 16))
    asked: list[int] = []

    def each() -> None:
        asked.append(len(predictor.batches))
        if len(asked) == 2:
            raise KeyboardInterrupt

    predictor = make_predictor()
    with pytest.raises(KeyboardInterrupt):
        evaluate(predictor, tmp_path, ["oil"], each=each)
    assert asked == [0, 1]
