"""Label enhancement side by side: coarse masks, GrabCut, an active contour, the plain prediction, and ours.

`python -m benchmarks.enhancement --data ../shared/data/sar_oil [--checkpoint DIR] [--share 0.25]
[--config configs/train-sar.yaml]`

The test masks are made coarse by each kind of `model.coarsen`; every method sees image and coarse mask.
Without a checkpoint one is trained on a share of the training images.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from skimage.segmentation import inverse_gaussian_gradient, morphological_geodesic_active_contour

from benchmarks.accuracy import choose, link_pairs
from model.coarsen import KINDS, MOST
from model.enhance import enhance
from model.metrics import SegmentationMetrics
from model.pairs import find_pairs, read_pair
from model.predictor import Predictor
from model.prompts import signed_distance
from model.raster import Raster
from model.train_config import TrainConfig
from model.training import train

DEFAULTS = {"mode": "cached", "epochs": 10, "prompted": 0.5}
Mask = NDArray[np.bool_]
Method = Callable[[Raster, Mask], Mask]


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.enhancement", description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with train/ and test/")
    parser.add_argument("--checkpoint", type=Path, help="of a network that takes coarse masks")
    parser.add_argument("--share", type=float, default=1.0, help="of the training images, whole scenes")
    parser.add_argument("--config", type=Path, help="YAML of training settings")
    parser.add_argument("--test", type=int, help="so many test images")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--flips", type=int, default=1, help="views that a prediction is the mean of")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = given.checkpoint or _train(given, Path(folder))
        methods = _methods(Predictor(checkpoint, flips=given.flips))
        pairs = [read_pair(pair) for pair in find_pairs(given.data / "test")[0][: given.test]]
        print("| coarse masks | method | IoU, pooled | boundary F at 2 px |")
        print("|---|---|---|---|")
        for kind, make in KINDS.items():
            random = np.random.default_rng(given.seed)
            coarse = [make(truth[0], random) for _, truth, _ in pairs]
            for name, method in methods.items():
                metrics = SegmentationMetrics()
                for (raster, truth, valid), mask in zip(pairs, coarse, strict=True):
                    metrics.update(method(raster, mask), truth[0], valid)
                scores = metrics.compute()
                print(f"| {kind} | {name} | {scores.fg_iou:.3f} | {scores.boundary_f1:.3f} |", flush=True)


def _train(given: argparse.Namespace, folder: Path) -> Path:
    pairs = choose(find_pairs(given.data / "train")[0], given.share, given.seed)
    link_pairs(pairs, folder / "data")
    started = time.monotonic()
    settings = {**DEFAULTS, **(TrainConfig.read(given.config) if given.config else {})}
    train(folder / "data", folder / "checkpoint", TrainConfig.from_mapping({**settings, "seed": given.seed}))
    print(f"trained on {len(pairs)} images with {settings}: {time.monotonic() - started:.0f} s\n")
    return folder / "checkpoint"


def _methods(predictor: Predictor) -> dict[str, Method]:
    return {
        "coarse, as it is": lambda raster, mask: mask,
        "GrabCut": grab_cut,
        "active contour": active_contour,
        "plain prediction": lambda raster, mask: predictor.predict([raster])[0].probability[0] > 0.5,
        "enhanced": lambda raster, mask: enhance(predictor, [raster], [mask[None]])[0].masks[0],
    }


def grab_cut(raster: Raster, mask: Mask) -> Mask:
    """GrabCut (Rother et al. 2004, OpenCV's) that decides within 2 x 5 px of the coarse outline."""
    distance = signed_distance(mask)
    if not mask.any() or mask.all():
        return mask
    labels = np.where(mask, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8, order="C")  # for OpenCV
    labels[distance > 2 * MOST] = cv2.GC_FGD
    labels[distance < -2 * MOST] = cv2.GC_BGD
    background, foreground = np.zeros((2, 1, 65))
    pixels = np.ascontiguousarray(raster.pixels[..., ::-1])
    try:
        cv2.grabCut(pixels, labels, None, background, foreground, 5, cv2.GC_INIT_WITH_MASK)
    except cv2.error:  # too few pixels of one kind for its mixture of Gaussians
        return mask
    return np.asarray((labels == cv2.GC_FGD) | (labels == cv2.GC_PR_FGD))


def active_contour(raster: Raster, mask: Mask) -> Mask:
    """A morphological geodesic active contour (Marquez-Neila et al. 2014) from the coarse mask on."""
    edges = inverse_gaussian_gradient(raster.pixels.mean(axis=-1) / 255, alpha=200, sigma=2)
    return morphological_geodesic_active_contour(edges, 20, init_level_set=mask, smoothing=1) > 0


if __name__ == "__main__":
    main()
