"""Real weights, real imagery: what a minute of fine-tuning is worth."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter

from model.data import Pair, find_pairs, read_pair, split_by_scene
from model.metrics import iou
from model.predictor import Predictor
from model.training import TrainConfig, train
from model.trunk_cache import WeightsError, trunk_file

TRUNK = "sam2-hiera-tiny"
CONFIG = TrainConfig(trunk=TRUNK, epochs=8, device="cpu")


@pytest.fixture(scope="module")
def real_trunk() -> str:
    try:
        trunk_file(TRUNK)
    except WeightsError as error:
        pytest.skip(f"no real weights: {error}")
    return TRUNK


@pytest.mark.weights
@pytest.mark.data
@pytest.mark.timeout(900)
def test_a_minute_of_fine_tuning_beats_the_best_dark_threshold(
    data_folder: Path, real_trunk: str, tmp_path: Path
) -> None:
    """Oil is dark in SAR: the baseline knows it, and takes the threshold that is best on the training images.

    Both learn from 24 images and are judged by the foreground IoU, pooled, on 40 images of other scenes.
    """
    rest, held_out = split_by_scene(find_pairs(data_folder / "sar_oil" / "small")[0], 0.5)
    chosen = [rest[i * len(rest) // 24] for i in range(24)]  # spread over the names: of both sensors
    _copy(chosen, tmp_path / "data")
    train(tmp_path / "data", tmp_path / "out", CONFIG)

    rasters, truth = zip(*((raster, masks[0]) for raster, masks, _ in map(read_pair, held_out)), strict=True)
    predicted = Predictor(tmp_path / "out", "cpu").predict(rasters)
    learnt = _pooled(np.stack([p.probability[0] > 0.5 for p in predicted]), np.stack(truth))

    greys, seen = _greys_and_masks(chosen)
    best = max(range(20, 200, 5), key=lambda cut: _pooled(greys < cut, seen))
    baseline = _pooled(_greys_and_masks(held_out)[0] < best, np.stack(truth))
    print(f"\nforeground IoU on held-out scenes: {learnt:.3f}; dark threshold {best}: {baseline:.3f}")
    assert learnt > baseline + 0.03


def _pooled(found: NDArray[np.bool_], truth: NDArray[np.bool_]) -> float:
    """Foreground IoU over the pixels of all images, which are (B, H, W)."""
    return iou(found.reshape(-1, found.shape[-1]), truth.reshape(-1, truth.shape[-1]))


def _copy(pairs: list[Pair], folder: Path) -> None:
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for pair in pairs:
        shutil.copy(pair.image, folder / "images")
        shutil.copy(pair.masks[0], folder / "masks")


def _greys_and_masks(pairs: list[Pair]) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Smoothed grey images against speckle, (B, H, W), and their masks."""
    read = [read_pair(pair) for pair in pairs]
    greys = [gaussian_filter(raster.pixels[..., 0].astype(np.float64), 2) for raster, _, _ in read]
    return np.stack(greys), np.stack([masks[0] for _, masks, _ in read])
