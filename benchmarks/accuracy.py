"""Accuracy side by side: the network in its modes, SAM2-UNet, a U-Net, a forest and Otsu, on one split.

`python -m benchmarks.accuracy --data ../shared/data/sar_oil --out accuracy.jsonl --seeds 3`

A line per run goes to `--out` when the run ends; runs that stand there are not repeated, so a long table can
be made in pieces. The table is printed at the end from all lines of this data.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from random import Random
from typing import Any
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks import classical, sam2_unet
from model.data import MEAN, STD, SegmentationData
from model.metrics import Scores, SegmentationMetrics
from model.pairs import Pair, find_pairs, read_pair
from model.predictor import Predictor
from model.raster import Raster
from model.train_config import TrainConfig
from model.training import train

FIGURES = ("fg_iou", "fg_iou_per_image", "miou_2class", "boundary_f1", "boundary_iou", "cl_dice")
Masks = Callable[[Raster], NDArray[np.bool_]]


@dataclass(frozen=True, slots=True)
class Task:
    """What is trained on what: the pairs, and the settings of the run.

    `config` and `keep`, where its checkpoint is to stay, are of our network.
    """

    pairs: list[Pair]
    seed: int
    epochs: int
    size: int
    config: Mapping[str, Any]
    keep: Path | None = None


Method = Callable[[Task], Iterator[tuple[int, float, Masks]]]  # epoch, seconds since the start, what it says


def main(name: str = "accuracy", methods: Mapping[str, Method] | None = None) -> None:
    """Run what is missing and print the table."""
    methods = METHODS if methods is None else methods
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, added to")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the training images, whole scenes")
    parser.add_argument("--epochs", type=int, default=sam2_unet.EPOCHS)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument(
        "--config", type=Path, help="YAML of training settings for our network; its epochs go before --epochs"
    )
    parser.add_argument("--keep", type=Path, help="folder for our network's checkpoints; without it they go")
    parser.add_argument("--methods", default=",".join(methods))
    given = parser.parse_args()
    wanted = given.methods.split(",")
    if unknown := [name for name in wanted if name not in methods]:
        parser.error(f"no method {', '.join(unknown)}; there are {', '.join(methods)}")
    config = TrainConfig.read(given.config) if given.config else {}
    pairs, _ = find_pairs(given.data / "train")
    test, _ = find_pairs(given.data / "test")
    for seed in range(given.seeds):
        chosen = choose(pairs, given.share, seed)
        for method in wanted:
            ours = isinstance(methods[method], ELNet)
            epochs = config.get("epochs", given.epochs) if ours else given.epochs
            run = {
                "data": given.data.name,
                "method": f"{method}, {given.config.stem}" if ours and given.config else method,
                "seed": seed,
                "images": len(chosen),
                "epochs": epochs,
                "size": given.size,
            }
            if any(run.items() <= done.items() for done in kept_lines(given.out)):
                continue
            keep = given.keep / f"{method}-{len(chosen)}-{seed}" if given.keep else None
            task = Task(chosen, seed, epochs, given.size, config, keep)
            lines = []  # written together: half a run would stand for a whole one the next time
            for epoch, seconds, masks in methods[method](task):
                scores = score(masks, test)
                figures = {name: round(getattr(scores, name), 4) for name in FIGURES}
                line = {**run, "epoch": epoch, "seconds": round(seconds, 1), **figures, **_machine()}
                lines.append(json.dumps(line) + "\n")
                print(line, flush=True)
            with given.out.open("a") as file:
                file.writelines(lines)
    print(table(kept_lines(given.out), given.data.name))


def choose(pairs: list[Pair], share: float, seed: int) -> list[Pair]:
    """About so large a share of the pairs, whole scenes, drawn by the seed."""
    if share >= 1:
        return pairs
    scenes = sorted({pair.scene for pair in pairs})
    Random(seed).shuffle(scenes)
    wanted, taken = share * len(pairs), set()
    for scene in scenes:
        if sum(pair.scene in taken for pair in pairs) >= wanted:
            break
        taken.add(scene)
    return [pair for pair in pairs if pair.scene in taken]


def score(masks: Masks, pairs: list[Pair]) -> Scores:
    """The figures of a method on the test images."""
    metrics = SegmentationMetrics()
    for pair in pairs:
        raster, truth, valid = read_pair(pair)
        metrics.update(masks(raster), truth[0], valid)
    return metrics.compute()


def table(lines: list[dict[str, Any]], data: str) -> str:
    """Medians and ranges over the seeds, of each method's last epoch."""
    rows: dict[tuple[str, int, int], dict[int, dict[str, Any]]] = {}
    for line in lines:
        if line["data"] == data:
            of_seed = rows.setdefault((line["method"], line["images"], line["epochs"]), {})
            before = of_seed.get(line["seed"])
            if before is None or line["epoch"] >= before["epoch"]:
                of_seed[line["seed"]] = line
    text = ["| method | images | epochs | seeds | seconds | " + " | ".join(FIGURES) + " |"]
    text.append("|---" * (5 + len(FIGURES)) + "|")
    for (method, images, epochs), of_seed in rows.items():
        runs = list(of_seed.values())
        cells = [median_and_range([run[name] for run in runs]) for name in FIGURES]
        seconds = f"{statistics.median(run['seconds'] for run in runs):.0f}"
        text.append(
            f"| {method} | {images} | {epochs} | {len(runs)} | {seconds} | " + " | ".join(cells) + " |"
        )
    return "\n".join(text)


def median_and_range(values: list[float]) -> str:
    """E.g. "0.612 (0.598 to 0.630)"; a single value alone."""
    middle = f"{statistics.median(values):.3f}"
    return middle if len(values) == 1 else f"{middle} ({min(values):.3f} to {max(values):.3f})"


def kept_lines(path: Path) -> list[dict[str, Any]]:
    """The lines of a file of runs; none if it is not there."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def _machine() -> dict[str, str]:
    return {
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "torch": torch.__version__,
    }


def _otsu(task: Task) -> Iterator[tuple[int, float, Masks]]:
    yield 0, 0.0, lambda raster: classical.dark_otsu(raster.pixels)


def _forest(task: Task) -> Iterator[tuple[int, float, Masks]]:
    started = time.monotonic()
    forest = classical.train_forest(task.pairs, task.seed)
    yield 0, time.monotonic() - started, lambda raster: classical.forest_mask(forest, raster.pixels)


def _unet(task: Task) -> Iterator[tuple[int, float, Masks]]:
    crops = SegmentationData(task.pairs, task.size, seed=task.seed)
    model, seconds = classical.train_unet(crops, task.epochs, task.seed)
    yield task.epochs, seconds, lambda raster: classical.network_mask(model, network_input(raster))


def _sam2_unet(task: Task) -> Iterator[tuple[int, float, Masks]]:
    crops = SegmentationData(task.pairs, task.size, augment=False)
    for epoch, (model, seconds) in enumerate(sam2_unet.train(crops, task.epochs, task.seed), start=1):
        yield epoch, seconds, lambda raster, m=model: classical.network_mask(m, network_input(raster))


@dataclass(frozen=True, slots=True)
class ELNet:
    """The network as `elnet train` trains it; these settings of `TrainConfig` go before those of the task."""

    settings: Mapping[str, Any]

    def __call__(self, task: Task) -> Iterator[tuple[int, float, Masks]]:
        """Train it; a `Method`."""
        given = {**task.config, **self.settings, "epochs": task.epochs, "size": task.size, "seed": task.seed}
        with tempfile.TemporaryDirectory() as folder:
            data, out = Path(folder) / "data", task.keep or Path(folder) / "checkpoint"
            link_pairs(task.pairs, data)
            started = time.monotonic()  # from raw images: what is cached is part of it
            with mock.patch("model.feature_cache.features_folder", return_value=Path(folder) / "features"):
                train(data, out, TrainConfig.from_mapping(given))
            seconds = time.monotonic() - started
            predictor = Predictor(out)
            yield task.epochs, seconds, lambda raster: predictor.predict([raster])[0].probability[0] >= 0.5


def link_pairs(pairs: list[Pair], folder: Path) -> None:
    """A folder of just these pairs."""
    for part, paths in (("images", [p.image for p in pairs]), ("masks", [p.masks[0] for p in pairs])):
        (folder / part).mkdir(parents=True)
        for path in paths:
            (folder / part / path.name).symlink_to(path.resolve())


def network_input(raster: Raster) -> torch.Tensor:
    """An image as networks take it: (3, H, W) float32, normalised."""
    image = torch.from_numpy(np.ascontiguousarray(raster.pixels)).permute(2, 0, 1).float() / 255
    return (image - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)


METHODS: dict[str, Method] = {
    "dark-otsu": _otsu,
    "random-forest": _forest,
    "u-net": _unet,
    "sam2-unet": _sam2_unet,
    "elnet-cached": ELNet({"mode": "cached"}),
    "elnet-late": ELNet({"mode": "late"}),
    "elnet": ELNet({"mode": "full"}),
}

if __name__ == "__main__":
    main()
