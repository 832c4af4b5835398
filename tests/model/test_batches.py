from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model.batches import Order, make_loader
from model.data import SegmentationData, find_pairs
from model.distributed import Team


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"), [(1, 4, [1]), (9, 4, [3, 3, 3]), (8, 4, [4, 4]), (5, 1, [1] * 5)]
)
def test_batches_hold_every_crop_once_and_are_equally_large(
    count: int, batch_size: int, sizes: list[int]
) -> None:
    order = Order(count, batch_size, seed=0)
    batches = list(order)
    assert len(order) == len(batches)
    assert [len(b) for b in batches] == sizes
    assert sorted(i for b in batches for i in b) == list(range(count))


def test_the_shuffle_changes_with_seed_and_epoch_and_with_nothing_else() -> None:
    def shuffled(seed: int, epoch: int) -> list[list[int]]:
        order = Order(20, 4, seed)
        order.set_epoch(epoch)
        return list(order)

    assert shuffled(0, 1) == shuffled(0, 1)
    assert shuffled(0, 1) != shuffled(0, 2)
    assert shuffled(0, 1) != shuffled(1, 1)


@pytest.mark.parametrize("workers", [None, 1])
def test_the_loader_follows_the_order(workers: int | None, tmp_path: Path) -> None:
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for grey in range(0, 250, 50):
        Image.fromarray(np.full((32, 32), grey, np.uint8)).save(tmp_path / "images" / f"{grey:03}.png")
        Image.fromarray(np.zeros((32, 32), np.uint8)).save(tmp_path / "masks" / f"{grey:03}.png")
    crops = SegmentationData(find_pairs(tmp_path)[0], 32, augment=False)
    order = Order(len(crops), 2, seed=0)
    loader = make_loader(crops, order, Team(0, 1, torch.device("cpu")), workers)
    for epoch in (1, 2):
        order.set_epoch(epoch)
        for numbers, batch in zip(order, loader, strict=True):
            greys = (batch.image[:, 0, 0, 0] * 0.229 + 0.485) * 255
            assert [round(g) for g in greys.tolist()] == [int(crops.stem(i)) for i in numbers]
