"""The enhancement benchmark runs, and its peers are no straw men; its figures are not judged."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks import enhancement
from model.checkpoint import ModelCard, load_trunk, save_checkpoint
from model.coarsen import KINDS
from model.elnet import SAM2ELNet
from model.hiera import trunk_spec
from model.metrics import iou
from model.raster import Raster, write_mask, write_png


def square() -> tuple[Raster, np.ndarray]:
    mask = np.zeros((96, 96), bool)
    mask[28:70, 30:66] = True
    pixels = np.clip(np.random.default_rng(0).normal(60, 6, mask.shape) + 120 * mask, 0, 255)
    return Raster(np.repeat(pixels.astype(np.uint8)[..., None], 3, axis=-1), np.ones_like(mask)), mask


@pytest.mark.parametrize("method", [enhancement.grab_cut, enhancement.active_contour])
def test_the_peers_snap_to_a_plain_edge(method: enhancement.Method) -> None:
    raster, mask = square()
    wide = KINDS["dilated"](mask, np.random.default_rng(1))
    assert iou(method(raster, wide), mask) > iou(wide, mask) + 0.05
    moved = KINDS["shifted"](mask, np.random.default_rng(1))  # not contiguous in memory
    assert iou(method(raster, moved), mask) > iou(moved, mask)
    none = np.zeros_like(mask)
    assert not enhancement.grab_cut(raster, none).any()


def test_the_table(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for part in ("train", "test"):
        for kind in ("images", "masks"):
            (tmp_path / "data" / part / kind).mkdir(parents=True)
        raster, mask = square()
        write_png(tmp_path / "data" / part / "images" / "a.png", raster.pixels)
        write_mask(tmp_path / "data" / part / "masks" / "a.png", mask)
    trunk, sha256 = load_trunk("random-nano")
    torch.manual_seed(0)
    model = SAM2ELNet(trunk, trunk_spec("random-nano"), 1, width=8, prompt=True)
    card = ModelCard("nano", "random-nano", sha256, ("foreground",), 96, model.architecture)
    save_checkpoint(tmp_path / "net", model, card)
    arguments = ["enhancement", "--data", tmp_path / "data", "--checkpoint", tmp_path / "net"]
    monkeypatch.setattr(sys, "argv", [str(argument) for argument in arguments])
    enhancement.main()
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| coarse masks | method | IoU, pooled | boundary F at 2 px |"
    assert len(lines) == 2 + 5 * len(KINDS)
    assert [line.split("|")[2].strip() for line in lines[2:7]] == [
        "coarse, as it is", "GrabCut", "active contour", "plain prediction", "enhanced",
    ]  # fmt: skip
