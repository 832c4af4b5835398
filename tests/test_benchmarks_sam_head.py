"""SAM's IoU head as a rival, with a decoder whose answers are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.sam_head import PROMPT_SIDE, SIDE, SamHead, image_input, mask_prompt
from model.raster import Raster


class Encoder:
    def run(self, names: list[str] | None, inputs: dict[str, NDArray[np.float32]]) -> list[Any]:
        assert inputs["image"].shape == (1, 3, SIDE, SIDE)
        return [np.full(1, float(i), np.float32) for i, _ in enumerate(names or [])]


class Decoder:
    """Answers with nothing, with what it was prompted with, and with everything."""

    def run(self, names: list[str] | None, inputs: dict[str, NDArray[np.float32]]) -> list[Any]:
        assert inputs["high_res_feats_0"] == 1
        assert (inputs["has_mask_input"], inputs["point_labels"]) == (1, -1)
        prompt = inputs["mask_input"]
        masks = np.concatenate([-np.ones_like(prompt), prompt, np.ones_like(prompt)], axis=1)
        return [masks, np.array([[0.9, 0.6, 0.3]], np.float32)]


def test_the_mask_nearest_to_ours_tells_and_the_surest_one() -> None:
    raster = Raster(np.zeros((64, 64, 3), np.uint8), np.ones((64, 64), np.bool_))
    probability = np.zeros((64, 64), np.float32)
    probability[:32] = 0.9
    highest, nearest = SamHead(Encoder(), Decoder())(raster, probability)
    assert highest == pytest.approx(0.9)
    assert nearest == pytest.approx(0.6, abs=0.02)


def test_inputs_have_sams_sizes_and_a_prompt_is_a_logit() -> None:
    pixels = np.full((30, 50, 3), 124, np.uint8)
    image = image_input(Raster(pixels, np.ones((30, 50), np.bool_)))
    assert image.shape == (1, 3, SIDE, SIDE)
    assert image[0, 0].mean() == pytest.approx((124 / 255 - 0.485) / 0.229, abs=1e-3)
    prompt = mask_prompt(np.array([[0.0, 0.0], [1.0, 1.0]], np.float32))
    assert prompt.shape == (1, 1, PROMPT_SIDE, PROMPT_SIDE)
    assert (prompt[0, 0, 0] < -7).all()
    assert (prompt[0, 0, -1] > 7).all()
