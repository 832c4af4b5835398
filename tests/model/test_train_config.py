from __future__ import annotations

from dataclasses import asdict
from typing import Any

import pytest

from model.train_config import TrainConfig, TrainingError


def test_defaults_and_a_round_trip() -> None:
    assert TrainConfig.from_mapping({}) == TrainConfig()
    config = TrainConfig(epochs=3, limit=7, device="cpu")
    assert TrainConfig.from_mapping(asdict(config)) == config


def test_a_whole_number_is_a_learning_rate_too() -> None:
    assert TrainConfig.from_mapping({"lr": 1}).lr == 1.0


@pytest.mark.parametrize(
    ("values", "named"),
    [
        ({"epoch": 3}, "epoch: Unexpected keyword"),
        ({"epochs": "3"}, "epochs: .*integer"),
        ({"epochs": True}, "epochs: .*integer"),
        ({"epochs": 0}, "epochs: .*greater than or equal to 1"),
        ({"size": 100}, "size: .*multiple of 32.*it is 100"),
        ({"size": 0}, "size: "),
        ({"lr": float("nan")}, "lr: "),
        ({"lr": 0.0}, "lr: .*greater than 0"),
        ({"lr": 3}, "lr: .*less than or equal to 1"),
        ({"lr": None}, "lr: "),
        ({"limit": 0}, "limit: "),
        ({"warmup": 1.0}, "warmup: "),
        ({"precision": "fp16"}, "precision: "),
        ({"width": 12}, "width: .*multiple of 8"),
        ({"seed": -1}, "seed: "),
        ({"size": 100, "epochs": 0}, "epochs: .*; size: "),
    ],
)
def test_what_cannot_be_is_named(values: dict[str, Any], named: str) -> None:
    with pytest.raises(TrainingError, match=f"training settings: {named}"):
        TrainConfig.from_mapping(values)


@pytest.mark.parametrize(
    ("epochs", "batches", "anew", "warm"),
    [(None, 1, 75, 75), (None, 3, 25, 25), (None, 6, 20, 13), (None, 302, 20, 10), (3, 1, 3, 3)],
)
def test_a_small_set_is_passed_over_more_often(
    epochs: int | None, batches: int, anew: int, warm: int
) -> None:
    config = TrainConfig(epochs=epochs)
    assert (config.epochs_of(batches), config.epochs_of(batches, warm=True)) == (anew, warm)


@pytest.mark.parametrize(("images", "views"), [(1, 16), (62, 16), (100, 10), (1206, 4)])
def test_a_small_set_has_more_views(images: int, views: int) -> None:
    assert TrainConfig().views_of(images, "cached") == views
    assert TrainConfig(views=3).views_of(images, "late") == 3
    assert TrainConfig(views=3).views_of(images, "full") is None
