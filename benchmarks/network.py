"""Images a second at 256 x 256 with the real weights: the bare trunk, prefilling, and fine-tuning."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from active_learning.signals import score, signals
from backend.label_config import parse_label_config
from backend.regions import masks_to_regions
from benchmarks.timing import in_turn
from model.checkpoint import load_checkpoint
from model.losses import elnet_loss
from model.predictor import Predictor
from model.raster import Raster, write_mask, write_png
from model.train_config import TrainConfig
from model.training import train

_SIDE, _BATCH, _ROUNDS = 256, 16, 5
_INTERFACE = (
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="brush" toName="image"><Label value="foreground"/></BrushLabels></View>'
)


def main() -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = _checkpoint(Path(folder))
        ways = _ways(checkpoint)
        seconds = in_turn(ways, _ROUNDS)
    print(f"| {_SIDE} x {_SIDE}, batch {_BATCH}, median of {_ROUNDS} | images/s | share of the bare trunk |")
    print("|---|---|---|")
    for name, value in seconds.items():
        print(f"| {name} | {_BATCH / value:.1f} | {seconds['trunk, forward'] / value:.2f} |")


def _checkpoint(folder: Path) -> Path:
    """A checkpoint of the default network, trained for one epoch on two made-up images."""
    random = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / "data" / part).mkdir(parents=True)
    for number in range(2):
        pixels = random.integers(0, 255, (_SIDE, _SIDE, 3), dtype=np.uint8)
        mask = np.zeros((_SIDE, _SIDE), dtype=np.bool_)
        mask[60:160, 40:200] = True
        write_png(folder / "data" / "images" / f"{number}.png", pixels)
        write_mask(folder / "data" / "masks" / f"{number}.png", mask)
    train(folder / "data", folder / "checkpoint", TrainConfig(epochs=1))
    return folder / "checkpoint"


def _ways(checkpoint: Path) -> dict[str, Callable[[], object]]:
    model, card = load_checkpoint(checkpoint)
    random = np.random.default_rng(1)
    pixels = random.integers(0, 255, (_BATCH, _SIDE, _SIDE, 3), dtype=np.uint8)
    rasters = [Raster(image, np.ones((_SIDE, _SIDE), dtype=np.bool_), None, None) for image in pixels]
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).sub(0.45).div(0.22)
    truth = torch.zeros(_BATCH, 1, _SIDE, _SIDE)
    truth[:, :, 60:160, 40:200] = 1
    valid = torch.ones(_BATCH, _SIDE, _SIDE, dtype=torch.bool)
    predictor = Predictor(checkpoint, device="cpu", batch_size=_BATCH)
    control = parse_label_config(_INTERFACE).control

    def trunk() -> None:
        with torch.inference_mode():
            model.encoder.trunk(tensor)

    def network() -> None:
        model.eval()
        with torch.inference_mode():
            model(tensor)

    def prefill() -> None:
        for prediction in predictor.predict(rasters):
            score(signals(prediction.probability, prediction.edge))
            masks_to_regions(prediction.probability >= 0.5, card.classes, control, 1.0)

    def fine_tuning() -> None:
        model.train()
        model.zero_grad()
        elnet_loss(model(tensor), truth, valid).backward()

    return {
        "trunk, forward": trunk,
        "SAM2-ELNet, forward": network,
        "prefill: image to signals and encoded region": prefill,
        "fine-tuning step: forward and backward": fine_tuning,
    }
