"""Images a second at 256 x 256 with the real weights, on this machine's CPU, in float32 and bfloat16.

The bare trunk is Meta's own forward pass. Prefilling and kept fine-tuning run as the product runs them: in
bfloat16 where the CPU has it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import torch

from active_learning.signals import measure, score
from backend.label_config import parse_label_config
from backend.regions import masks_to_regions
from benchmarks.timing import in_turn
from model.checkpoint import load_checkpoint
from model.device import Precision, autocast
from model.elnet import SAM2ELNet
from model.hiera import Mode, trunk_spec
from model.losses import elnet_loss
from model.predictor import CUT, Predictor
from model.raster import Raster, write_mask, write_png
from model.train_config import TrainConfig
from model.training import train

_SIDE, _BATCH, _ROUNDS = 256, 16, 5
_PRECISIONS: tuple[Precision, ...] = ("fp32", "bf16")
INTERFACE = (
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="brush" toName="image"><Label value="foreground"/></BrushLabels></View>'
)


def main() -> None:
    """Print a table."""
    with tempfile.TemporaryDirectory() as folder:
        ways = _ways(Path(folder))
        seconds = in_turn(ways, _ROUNDS)
    print(
        f"| {_SIDE} x {_SIDE}, batch {_BATCH}, median of {_ROUNDS} | images/s | of the bare trunk in fp32 |"
    )
    print("|---|---|---|")
    bare = seconds["bare trunk, forward, fp32"]
    for name, value in seconds.items():
        print(f"| {name} | {_BATCH / value:.1f} | {bare / value:.2f} |")


def make_checkpoint(folder: Path, mode: Mode) -> Path:
    """A checkpoint, trained for one epoch on two made-up images."""
    random = np.random.default_rng(0)
    for part in ("images", "masks"):
        (folder / "data" / part).mkdir(parents=True, exist_ok=True)
    for number in range(2):
        pixels = random.integers(0, 255, (_SIDE, _SIDE, 3), dtype=np.uint8)
        mask = np.zeros((_SIDE, _SIDE), dtype=np.bool_)
        mask[60:160, 40:200] = True
        write_png(folder / "data" / "images" / f"{number}.png", pixels)
        write_mask(folder / "data" / "masks" / f"{number}.png", mask)
    train(folder / "data", folder / mode, TrainConfig(epochs=1, mode=mode, cache_gb=0.0))
    return folder / mode


def _ways(folder: Path) -> dict[str, Callable[[], object]]:
    checkpoints: dict[str, Path] = {mode: make_checkpoint(folder, mode) for mode in ("full", "cached")}
    model, card = load_checkpoint(checkpoints["full"])
    spec = trunk_spec(card.trunk)
    cached = SAM2ELNet(model.encoder.trunk, spec, len(card.classes), mode="cached")
    random = np.random.default_rng(1)
    pixels = random.integers(0, 255, (_BATCH, _SIDE, _SIDE, 3), dtype=np.uint8)
    rasters = [Raster(image, np.ones((_SIDE, _SIDE), dtype=np.bool_), None, None) for image in pixels]
    tensor = torch.from_numpy(pixels).permute(0, 3, 1, 2).float().div(255).sub(0.45).div(0.22)
    truth = torch.zeros(_BATCH, 1, _SIDE, _SIDE)
    truth[:, :, 60:160, 40:200] = 1
    valid = torch.ones(_BATCH, _SIDE, _SIDE, dtype=torch.bool)
    control = parse_label_config(INTERFACE).control

    with torch.inference_mode():
        kept = [m.clone() for m in cached.encoder.frozen(tensor)]
    cpu = torch.device("cpu")

    def trunk(precision: Precision) -> None:
        with torch.inference_mode(), autocast(cpu, precision):
            model.encoder.trunk(tensor)

    def network(precision: Precision) -> None:
        model.eval()
        with torch.inference_mode(), autocast(cpu, precision):
            model(tensor)

    def prefill(predictor: Predictor) -> None:
        for prediction in predictor.predict(rasters):
            score(measure(prediction, CUT))
            masks_to_regions(prediction.probability >= 0.5, card.classes, control, 1.0)

    def fine_tuning(precision: Precision) -> None:
        model.train()
        model.zero_grad()
        with autocast(cpu, precision):
            output = model(tensor)
        elnet_loss(output, truth, valid).backward()

    def fine_tuning_kept() -> None:
        cached.train()
        cached.zero_grad()
        with autocast(cpu):
            output = cached.decode(cached.encoder.adapted([m.float() for m in kept]), tensor.shape[-2:])
        elnet_loss(output, truth, valid).backward()

    ways: dict[str, Callable[[], object]] = {}
    for precision in _PRECISIONS:
        ways |= {
            f"bare trunk, forward, {precision}": partial(trunk, precision),
            f"SAM2-ELNet, forward, {precision}": partial(network, precision),
            f"fine-tuning step, mode full, {precision}": partial(fine_tuning, precision),
        }
    ways["fine-tuning step, mode cached, from kept features"] = fine_tuning_kept
    for mode, checkpoint in checkpoints.items():
        predictor = Predictor(checkpoint, device="cpu", batch_size=_BATCH)
        ways[f"prefill, mode {mode}: image to signals and encoded region"] = partial(prefill, predictor)
    return ways
