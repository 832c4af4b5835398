"""The training settings in configs/ are settings, and each file begins with the command that uses it."""

from __future__ import annotations

from pathlib import Path

import pytest

from model.train_config import TrainConfig

FOLDER = Path(__file__).parents[2] / "configs"


@pytest.mark.parametrize("path", sorted(FOLDER.glob("train-*.yaml")), ids=lambda path: path.stem)
def test_a_training_config_is_one(path: Path) -> None:
    TrainConfig.from_mapping(TrainConfig.read(path))
    command = path.read_text().splitlines()[0]
    assert command.startswith("# elnet train ")
    assert command.endswith(f"--config configs/{path.name}")
