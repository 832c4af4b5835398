"""What each part of the network and its training brings: the default, and one thing changed at a time.

`python -m benchmarks.ablation --data ../shared/data/sar_oil --out ablation.jsonl --share 0.25 --seeds 3
--config configs/train-sar.yaml`

Adapters stand on the kept feature maps (mode cached), which is several times as fast, unless a line says
otherwise. Lines are kept as by `benchmarks.accuracy`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Final
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import accuracy
from model.blocks import Adapter, EdgeAttention, ReceptiveFieldBlock

SETTINGS: Final[dict[str, dict[str, Any]]] = {
    "default": {},
    "no weight near outlines": {"structure": 0.0},
    "five times the weight near outlines": {"structure": 5.0},
    "no edge supervision": {"edge_weight": 0.0},
    "trunk sees half the size": {"scale": 0.5},
    "trunk sees twice the size": {"scale": 2.0},
    "batches of 12": {"batch_size": 12},
    "half the decoder": {"width": 32},
    "mode late": {"mode": "late"},
    "mode full": {"mode": "full"},
}


@dataclass(frozen=True, slots=True)
class Without(accuracy.ELNet):
    """The network without one of its parts: its class, and the forward pass that stands in for it."""

    part: type[nn.Module]
    instead: Callable[..., Any]

    def __call__(self, task: accuracy.Task) -> Iterator[tuple[int, float, accuracy.Masks]]:
        """Train and predict without it; a `Method`."""
        with mock.patch.object(self.part, "forward", self.instead):
            yield from accuracy.ELNet.__call__(self, task)


def _nothing(adapter: Adapter, x: Tensor) -> Tensor:
    return torch.zeros_like(x)


def _unattended(attention: EdgeAttention, x: Tensor) -> tuple[Tensor, Tensor]:
    return x, attention.boundary(attention.extract(x))


def _shortcut(block: ReceptiveFieldBlock, x: Tensor) -> Tensor:
    return F.relu(block.reduce(x).split(block.split, dim=1)[0])


CACHED: Final = {"mode": "cached"}
VARIANTS: Final[dict[str, accuracy.Method]] = {
    **{name: accuracy.ELNet(CACHED | settings) for name, settings in SETTINGS.items()},
    "no adapters": Without(CACHED, Adapter, _nothing),
    "no edge attention": Without(CACHED, EdgeAttention, _unattended),
    "no receptive-field blocks": Without(CACHED, ReceptiveFieldBlock, _shortcut),
}


def main() -> None:
    """Run what is missing and print the table."""
    accuracy.main("ablation", VARIANTS)


if __name__ == "__main__":
    main()
