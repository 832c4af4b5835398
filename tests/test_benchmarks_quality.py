"""The benchmark of quality scores, on samples whose answers are known."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from active_learning.rehearsal import Graded
from benchmarks import quality
from benchmarks.quality import Sample, calibration_error, ranks
from model.checkpoint import ModelCard, load_trunk, save_checkpoint
from model.elnet import SAM2ELNet
from model.hiera import trunk_spec


def sample(n: int = 200) -> Sample:
    """Two siblings a scene; the first score tells the IoU up to a little noise, the other nothing."""
    random = np.random.default_rng(0)
    ious = random.uniform(0, 1, n)
    told = np.clip(ious + random.normal(0, 0.05, n), 0, 1)
    scores = {"score (ours)": told, "mean confidence": random.uniform(0, 1, n)}
    graded = Graded(told.tolist(), ious.tolist(), [f"scene-{i // 2}" for i in range(n)], [None] * n)
    return Sample(graded, scores)


def test_a_score_that_tells_the_iou_beats_one_that_does_not() -> None:
    (ours, rank, area, share, general), (other, no_rank, no_area, whole, no_general) = ranks(sample())
    assert (ours, other) == ("score (ours)", "mean confidence")
    assert rank > 0.95 > 0.3 > abs(no_rank)
    assert area < no_area
    assert general < no_general
    assert share == pytest.approx(area / no_area)
    assert whole == 1
    error, kinds = calibration_error(sample().graded, 5)
    assert error < 0.1
    assert kinds == {"isotonic": 5}


def test_the_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (tmp_path / name).mkdir()
    for i in range(6):
        mask = np.zeros((32, 32), np.uint8)
        mask[4 * i :, : 5 + i] = 255
        Image.fromarray(random.integers(0, 255, (32, 32), np.uint8)).save(tmp_path / "images" / f"s{i}.png")
        Image.fromarray(mask).save(tmp_path / "masks" / f"s{i}.png")
    trunk, sha256 = load_trunk("random-nano")
    torch.manual_seed(0)
    model = SAM2ELNet(trunk, trunk_spec("random-nano"), 1, width=8)
    card = ModelCard("nano", "random-nano", sha256, ("foreground",), 32, model.architecture)
    save_checkpoint(tmp_path / "nano", model, card)
    arguments = [
        "quality",
        "--checkpoint",
        tmp_path / "nano",
        "--data",
        tmp_path,
        "--splits",
        2,
        "--flips",
        2,
    ]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    quality.main()
    said = capsys.readouterr().out
    assert "6 images of 6 scenes" in said
    assert "| mean confidence | " in said
    assert "| flip agreement | " in said
    assert "| quality head | " not in said  # this network has none
    assert "| at most 10% below IoU 0.5 | " in said
