from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from model.coarsen import coarsen
from model.enhance import EnhancementError, enhance
from model.metrics import iou
from model.pairs import find_pairs, read_pair
from model.predictor import ImagePrediction, PredictionError, Predictor
from model.raster import Raster, write_mask, write_png
from model.train_config import TrainConfig
from model.training import train

SIDE = 48
Mask = NDArray[np.bool_]


def box(top: int, bottom: int, left: int, right: int) -> Mask:
    mask = np.zeros((SIDE, SIDE), bool)
    mask[top:bottom, left:right] = True
    return mask


def image() -> Raster:
    return Raster(np.full((SIDE, SIDE, 3), 90, np.uint8), np.ones((SIDE, SIDE), bool))


def saying(*answers: Mask) -> Any:
    """A predictor whose network answers so, whatever it is shown."""

    def predict(images: list[Raster], coarse: list[Mask]) -> list[ImagePrediction]:
        probability = np.stack(answers).astype(np.float32) * 0.8 + 0.1
        return [ImagePrediction(probability, probability, np.zeros(4, np.float32)) for _ in images]

    return SimpleNamespace(card=SimpleNamespace(classes=("oil",) * len(answers)), predict=predict)


def one(answer: Mask, coarse: Mask, **bounds: Any) -> Mask:
    (found,) = enhance(saying(answer), [image()], [coarse[None]], **bounds)
    assert np.array_equal(found.added[0], found.masks[0] & ~coarse)
    assert np.array_equal(found.removed[0], coarse & ~found.masks[0])
    return found.masks[0]


def test_within_reach_the_network_decides() -> None:
    answer, coarse = box(10, 30, 10, 30), box(12, 32, 8, 28)
    assert np.array_equal(one(answer, coarse), answer)


def test_nothing_is_invented_far_from_what_was_drawn() -> None:
    coarse = box(10, 20, 10, 20)
    answer = coarse | box(34, 46, 34, 46)  # another object, 14 px away and more
    assert np.array_equal(one(answer, coarse, reach=12), coarse)
    assert (one(answer, coarse, reach=30) & ~coarse).any()
    everything = np.ones_like(coarse)
    assert np.array_equal(one(everything, coarse, reach=4), one(box(6, 24, 6, 24), coarse, reach=4))
    assert not one(everything, np.zeros_like(coarse)).any()


def test_nothing_is_taken_from_deep_inside() -> None:
    coarse = box(4, 44, 4, 44)
    left = one(np.zeros_like(coarse), coarse, reach=6)
    assert left.any()
    assert np.array_equal(left, box(10, 38, 10, 38))
    assert np.array_equal(one(coarse, coarse, reach=0), coarse)


def test_specks_and_holes_that_were_not_drawn_go() -> None:
    coarse = box(10, 30, 10, 30) | box(40, 42, 40, 42)  # the human has drawn a speck, too
    coarse[12:14, 12:14] = False  # and a hole
    answer = coarse | box(34, 36, 10, 12)
    answer[20:22, 20:22] = False
    assert np.array_equal(one(answer, coarse), coarse)
    assert np.array_equal(one(answer, coarse, smallest=0), answer)


def test_where_the_image_is_not_valid_the_label_stays() -> None:
    coarse = box(10, 30, 10, 30)
    valid = np.ones((SIDE, SIDE), bool)
    valid[:, :20] = False
    raster = Raster(image().pixels, valid)
    (found,) = enhance(saying(box(10, 30, 14, 26)), [raster], [coarse[None]], smallest=0)
    assert np.array_equal(found.masks[0][:, :20], coarse[:, :20])
    assert np.array_equal(found.masks[0][:, 20:], box(10, 30, 14, 26)[:, 20:])


def test_classes_are_enhanced_apart() -> None:
    answers = box(5, 20, 5, 20), box(25, 40, 25, 40)
    coarse = np.stack([box(6, 21, 6, 21), box(24, 39, 24, 39)])
    (found,) = enhance(saying(*answers), [image()], [coarse])
    assert np.array_equal(found.masks, np.stack(answers))


def test_a_mask_of_another_size_is_refused() -> None:
    for wrong in (np.zeros((1, SIDE, SIDE + 1), bool), np.zeros((2, SIDE, SIDE), bool)):
        with pytest.raises(EnhancementError, match="draw it on the image itself"):
            enhance(saying(box(0, 9, 0, 9)), [image()], [wrong])


@pytest.fixture(scope="module")
def squares(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Bright squares on a dark ground, and their masks."""
    folder = tmp_path_factory.mktemp("squares")
    random = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / part).mkdir()
    for number in range(8):
        top, left, size = (int(n) for n in random.integers((4, 4, 18), (24, 24, 34)))
        mask = np.zeros((64, 64), bool)
        mask[top : top + size, left : left + size] = True
        pixels = np.clip(random.normal(60, 10, mask.shape) + 120 * mask, 0, 255).astype(np.uint8)
        write_png(folder / "images" / f"{number}.png", pixels)
        write_mask(folder / "masks" / f"{number}.png", mask)
    return folder


NANO = TrainConfig(trunk="random-nano", epochs=40, size=64, width=16, adapter_dim=4, device="cpu", lr=1e-2)


def test_a_network_learns_to_enhance(squares: Path, tmp_path: Path) -> None:
    train(squares, tmp_path / "checkpoint", replace(NANO, prompted=0.6))
    predictor = Predictor(tmp_path / "checkpoint", "cpu")
    random = np.random.default_rng(5)
    before, after = [], []
    for pair in find_pairs(squares)[0]:
        raster, truth, _ = read_pair(pair)
        coarse = coarsen(truth[0], random)[None]
        (found,) = enhance(predictor, [raster], [coarse])
        before.append(iou(coarse, truth))
        after.append(iou(found.masks, truth))
    assert np.mean(after) > np.mean(before) + 0.05


def test_a_network_without_prompts_says_so(squares: Path, tmp_path: Path) -> None:
    train(squares, tmp_path / "checkpoint", replace(NANO, epochs=1, prompted=0.0))
    predictor = Predictor(tmp_path / "checkpoint", "cpu")
    raster, truth, _ = read_pair(find_pairs(squares)[0][0])
    with pytest.raises(PredictionError, match="without coarse masks and cannot enhance labels; train again"):
        enhance(predictor, [raster], [truth])
