"""How good are automatic labels? Another model is trained on them, and judged on masks that people drew.

`python -m benchmarks.headline --data ../shared/data/sar_oil --out headline.jsonl --seeds 3`

The network learns from 30 % of the training labels and labels the other 70 %; the quality score drops the
worst fifth of those. Then another model, a U-Net from scratch at half the size, is trained on each set of
labels for the same number of steps, and measured on the test images. One of the sets are all labels, enhanced
by a network that learned from the same 30 %.

A line per set goes to `--out` when a seed is done; seeds that stand there are not repeated.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from active_learning.signals import measure
from active_learning.signals import score as quality_score
from benchmarks import classical
from benchmarks.accuracy import choose, kept_lines, link_pairs, median_and_range, network_input, score
from model.data import SegmentationData
from model.device import describe_machine
from model.enhance import enhance
from model.metrics import SegmentationMetrics
from model.pairs import Pair, find_pairs, read_pair
from model.predictor import CUT, Predictor
from model.raster import write_mask
from model.train_config import TrainConfig
from model.training import train

LABELLED = 0.3  # of the training images
KEPT = 0.8  # of the automatic labels, those with the highest score
DEFAULTS = {"mode": "cached", "epochs": 10}  # of the network that labels
FIGURES = ("fg_iou", "fg_iou_per_image", "boundary_f1")


def main() -> None:
    """Run the seeds that are missing and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.headline", description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, added to")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--share", type=float, default=1.0, help="of the training images, whole scenes")
    parser.add_argument("--config", type=Path, help="YAML of training settings for the network that labels")
    parser.add_argument("--unet-epochs", type=int, default=20, help="of the U-Net on all labels")
    given = parser.parse_args()
    settings = TrainConfig.read(given.config) if given.config else DEFAULTS
    plan = {
        "share": given.share,
        "settings": json.dumps(settings, sort_keys=True),
        "unet_epochs": given.unet_epochs,
    }
    for seed in range(given.seeds):
        run = {"data": given.data.name, "seed": seed, **plan}
        if any(run.items() <= line.items() for line in kept_lines(given.out)):
            continue
        found = run_seed(given.data, seed, given.share, settings, given.unet_epochs)
        lines = [json.dumps(run | line) + "\n" for line in found]
        with given.out.open("a") as file:
            file.writelines(lines)
    done = [
        line for line in kept_lines(given.out) if {"data": given.data.name, **plan}.items() <= line.items()
    ]
    print(table(done))


def run_seed(
    data: Path, seed: int, share: float, settings: Mapping[str, Any], unet_epochs: int
) -> list[dict[str, Any]]:
    """A line for each set of labels."""
    everything = choose(find_pairs(data / "train")[0], share, seed)
    labelled = choose(everything, LABELLED, seed)
    test, _ = find_pairs(data / "test")
    rest = [pair for pair in everything if pair not in labelled]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        link_pairs(labelled, folder / "labelled")
        started = time.monotonic()
        train(folder / "labelled", folder / "labeller", TrainConfig.from_mapping({**settings, "seed": seed}))
        automatic = _automatic(Predictor(folder / "labeller"), rest, folder / "automatic")
        print(f"seed {seed}: {len(rest)} images labelled in {time.monotonic() - started:.0f} s", flush=True)
        kept = sorted(automatic, key=lambda pair: -automatic[pair])[: round(KEPT * len(automatic))]
        prompted = TrainConfig.from_mapping({**settings, "seed": seed, "prompted": 0.5})
        train(folder / "labelled", folder / "enhancer", prompted)
        enhanced = _enhanced(Predictor(folder / "enhancer"), everything, folder / "enhanced")
        sets = {
            "all labels": everything,
            "30 % of them": labelled,
            "automatic": kept,
            "automatic, unfiltered": list(automatic),
            "30 % and automatic": labelled + kept,
            "all, enhanced": enhanced,
        }
        lines = []
        for name, pairs in sets.items():
            passes = max(1, round(unet_epochs * len(everything) / len(pairs)))
            crops = SegmentationData(pairs, 256, seed=seed)
            unet, seconds = classical.train_unet(crops, passes, seed, half=True)
            scores = score(lambda raster, m=unet: classical.network_mask(m, network_input(raster)), test)
            agreement = _agreement(pairs, everything)
            line = {"set": name, "images": len(pairs), "label_iou": round(agreement, 4), "seconds": seconds}
            line |= {figure: round(getattr(scores, figure), 4) for figure in FIGURES}
            print(line, flush=True)
            lines.append(line | {"machine": describe_machine()})
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """Medians and ranges over the seeds."""
    sets: dict[str, list[dict[str, Any]]] = {}
    for line in lines:
        sets.setdefault(line["set"], []).append(line)
    text = ["| labels | images | IoU of the labels | seeds | " + " | ".join(FIGURES) + " |"]
    text.append("|---" * (4 + len(FIGURES)) + "|")
    for name, runs in sets.items():
        cells = [median_and_range([run[figure] for run in runs]) for figure in ("label_iou", *FIGURES)]
        images = round(float(np.median([run["images"] for run in runs])))
        text.append(f"| {name} | {images} | {cells[0]} | {len(runs)} | " + " | ".join(cells[1:]) + " |")
    return "\n".join(text)


def _automatic(predictor: Predictor, pairs: Sequence[Pair], folder: Path) -> dict[Pair, float]:
    """Label images without a look at their masks: pair -> quality score."""
    found = {}
    for pair in pairs:
        raster, _, _ = read_pair(pair)
        [said] = predictor.predict([raster])
        quality = quality_score(measure(said, CUT, raster.valid))
        found[_write(pair, said.probability[0] > CUT, folder)] = quality
    return found


def _enhanced(predictor: Predictor, pairs: Sequence[Pair], folder: Path) -> list[Pair]:
    made = []
    for pair in pairs:
        raster, masks, _ = read_pair(pair)
        made.append(_write(pair, enhance(predictor, [raster], [masks])[0].masks[0], folder))
    return made


def _write(pair: Pair, mask: NDArray[np.bool_], folder: Path) -> Pair:
    """The same image with another mask."""
    folder.mkdir(exist_ok=True)
    path = folder / f"{pair.stem}.png"
    write_mask(path, mask)
    return replace(pair, masks=(path,))


def _agreement(pairs: Sequence[Pair], originals: Sequence[Pair]) -> float:
    """Pooled IoU of labels with the original ones of the same images."""
    original = {pair.stem: pair for pair in originals}
    metrics = SegmentationMetrics()
    for pair in pairs:
        _, masks, valid = read_pair(pair)
        metrics.update(masks[0], read_pair(original[pair.stem])[1][0], valid)
    return metrics.compute().fg_iou


if __name__ == "__main__":
    main()
