"""Which crops make a batch, in which order, and who reads them."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from random import Random

from torch.utils.data import DataLoader

from model.data import Sample, SegmentationData
from model.distributed import Team, processes_here


class Order:
    """Batches of crop numbers, shuffled anew each epoch by the seed.

    All batches are nearly equally large: a last one of a single crop would weigh as much as a whole one.
    """

    def __init__(self, count: int, batch_size: int, seed: int):
        self._count = count
        self._seed = seed
        self._epoch = 0
        self._skipped = 0
        self._batches = math.ceil(count / batch_size)

    def set_epoch(self, epoch: int, skip: int = 0) -> None:
        """Choose the shuffle, and how many of its batches to leave out: those that are done already."""
        self._epoch, self._skipped = epoch, skip

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[list[int]]:
        numbers = list(range(self._count))
        Random(f"{self._seed} {self._epoch}").shuffle(numbers)
        return (numbers[step :: self._batches] for step in range(self._skipped, self._batches))


@dataclass(frozen=True, slots=True)
class _Shares:
    """One process's part of every batch."""

    order: Order
    team: Team

    def __len__(self) -> int:
        return len(self.order)

    def __iter__(self) -> Iterator[list[int]]:
        return (self.team.share(numbers) for numbers in self.order)


def make_loader(
    crops: SegmentationData, order: Order, team: Team, workers: int | None = None
) -> DataLoader[Sample]:
    """Crops in batches, on the CPU.

    Args:
        crops: to take from; `set_epoch` is the caller's.
        order: of the crops.
        team: whose share of each batch is taken; they will go to its device.
        workers: processes that make crops; by default none beside a CPU, where they would take cores from the
            network, and up to 8 beside a GPU.
    """
    on_gpu = team.device.type == "cuda"
    if workers is None:
        workers = min(8, max(1, (os.cpu_count() or 1) // processes_here())) if on_gpu else 0
    return DataLoader(
        crops,
        batch_sampler=_Shares(order, team),
        num_workers=workers,
        pin_memory=on_gpu,
        persistent_workers=workers > 0,
    )
