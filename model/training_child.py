"""The process in which a cycle trains: `python -m model.training_child --data DIR --out DIR --config JSON`.

It prints a JSON line per epoch, and one with "error" before it ends with exit code 1.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch

from model.errors import ELNetError
from model.train_config import TrainConfig, TrainingError
from model.training import train


def main(arguments: Sequence[str] | None = None) -> int:
    """Train in a process of its own."""
    parser = argparse.ArgumentParser(prog="python -m model.training_child", description=main.__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with images/ and masks/")
    parser.add_argument("--out", type=Path, required=True, help="the checkpoint's folder")
    parser.add_argument("--init", type=Path, help="checkpoint to start from")
    parser.add_argument("--config", default="{}", help="JSON object of TrainConfig's fields")
    parser.add_argument("--version", default="elnet", help="name of the model version")
    parser.add_argument("--state", type=Path, help="file that keeps the state of the training while it runs")
    parser.add_argument("--tensorboard", type=Path, help="folder for TensorBoard's files")
    given = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, _terminate)
    try:
        config = TrainConfig.from_mapping(_parse(given.config))
        train(
            given.data,
            given.out,
            config,
            init=given.init,
            version=given.version,
            progress=lambda report: _say(asdict(report)),
            state=given.state,
            resumed=lambda sentence: _say({"resumed": sentence}),
            tensorboard=given.tensorboard,
        )
    except ELNetError as error:
        _say({"error": str(error)})
        return 1
    except torch.OutOfMemoryError as error:
        _say({"error": f"the GPU's memory is full; lower batch_size or size ({str(error).splitlines()[0]})"})
        return 1
    return 0


def _parse(text: str) -> dict[str, object]:
    try:
        values = json.loads(text)
    except ValueError as error:
        raise TrainingError(f"--config is not JSON: {error}") from error
    if not isinstance(values, dict):
        raise TrainingError(f"--config should be a JSON object, it is {text[:80]}")
    return values


def _say(line: dict[str, object]) -> None:
    sys.stdout.write(json.dumps(line) + "\n")
    sys.stdout.flush()


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    """SIGTERM unwinds the stack, so that half a checkpoint is removed on the way."""
    raise SystemExit(128 + number)


if __name__ == "__main__":
    sys.exit(main())
