"""A worker of a team in a process of its own: python prefill_process.py STATE all|prefill|standby.

The model is one that takes as long for an image as it is told, and sees the red channel.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from active_learning.ledger import Ledger, ModelVersion
from active_learning.predictors import PredictorPool
from backend.prefill_worker import PrefillWorker
from backend.settings import Settings
from backend.worker import Worker
from model.predictor import ImagePrediction
from model.raster import Raster
from tests.backend.worker_process import MirrorTool

SECONDS = 0.05  # an image
SIDE = 32


class SlowPredictor:
    def __init__(self, version: str) -> None:
        self.version = version

    def predict(self, images: Sequence[Raster]) -> list[ImagePrediction]:
        time.sleep(SECONDS * len(images))
        return [self._one(image) for image in images]

    def _one(self, image: Raster) -> ImagePrediction:
        probability = image.pixels[None, ..., 0].astype(np.float32) / 255
        return ImagePrediction(probability, np.zeros_like(probability), np.ones(8, np.float32))


class SlowPool(PredictorPool):
    def get(self, version: ModelVersion) -> SlowPredictor:  # type: ignore[override]
        return SlowPredictor(version.name)


class Squares:
    """Every image holds one square."""

    def open(self, image_uri: str) -> Raster:
        pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
        pixels[4:20, 4:20] = 200
        return Raster(pixels, np.ones((SIDE, SIDE), np.bool_))


def main(state: Path, kind: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(process)d %(message)s")
    settings = Settings(state=state, device="cpu", poll_s=0.05, batch_size=4)
    with Ledger(settings.ledger_url) as ledger:
        if kind == "prefill":
            PrefillWorker(settings, ledger, Squares(), SlowPool(batch_size=4)).run()
        else:
            worker = Worker(settings, ledger, MirrorTool(ledger), Squares(), SlowPool(batch_size=4))
            worker.run(standby=kind == "standby")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
