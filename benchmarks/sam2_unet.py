"""The peer: SAM2-UNet (arXiv 2408.08870), written after the paper and its released code, on our trunk.

Adapters around every block (Linear, GELU, Linear, GELU; not zero-initialised), receptive-field blocks of 64
channels, three up-stages, three heads. AdamW 1e-3, weight decay 5e-4, cosine to 1e-7 per epoch, batches of
12, flips, float32; weighted IoU + BCE, whose BCE is a plain mean, as the released code's legacy argument
makes it. Its test script's min-max normalisation of every prediction is left out: it invents foreground on
empty images.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.checkpoint import load_trunk
from model.data import SegmentationData
from model.hiera import trunk_spec
from model.losses import structure_weight

EPOCHS, BATCH = 6, 12  # epochs of the anchor; the paper trains for 20


class _Adapter(nn.Sequential):
    def __init__(self, dim: int):
        super().__init__(nn.Linear(dim, 32), nn.GELU(), nn.Linear(32, dim), nn.GELU())


def _conv(inputs: int, outputs: int, kernel: int | tuple[int, int], dilation: int = 1) -> nn.Sequential:
    kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
    padding = (dilation * (kh - 1) // 2, dilation * (kw - 1) // 2)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, (kh, kw), padding=padding, dilation=dilation, bias=False),
        nn.BatchNorm2d(outputs),
    )


class _ReceptiveField(nn.Module):
    def __init__(self, inputs: int, width: int = 64):
        super().__init__()
        self.near = _conv(inputs, width, 1)
        self.far = nn.ModuleList(
            nn.Sequential(
                _conv(inputs, width, 1),
                _conv(width, width, (1, k)),
                _conv(width, width, (k, 1)),
                _conv(width, width, 3, dilation=k),
            )
            for k in (3, 5, 7)
        )
        self.fuse = _conv(4 * width, width, 3)
        self.shortcut = _conv(inputs, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        seen = torch.cat([self.near(x), *(branch(x) for branch in self.far)], dim=1)
        return F.relu(self.fuse(seen) + self.shortcut(x))


class _Up(nn.Module):
    def __init__(self, width: int = 64):
        super().__init__()
        self.convs = nn.Sequential(
            _conv(2 * width, width, 3), nn.ReLU(inplace=True), _conv(width, width, 3), nn.ReLU(inplace=True)
        )

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)
        out: Tensor = self.convs(torch.cat([skip, x], dim=1))
        return out


class SAM2UNet(nn.Module):
    """(B, 3, H, W) -> three (B, 1, H, W) logits, of stride 4, 16 and 8."""

    def __init__(self) -> None:
        super().__init__()
        trunk: Any
        trunk, _ = load_trunk("sam2-hiera-tiny")
        self.trunk = trunk
        self.adapters = nn.ModuleList(_Adapter(block.dim) for block in trunk.blocks)
        self.fields = nn.ModuleList(_ReceptiveField(c) for c in trunk_spec("sam2-hiera-tiny").channels)
        self.ups = nn.ModuleList(_Up() for _ in range(3))
        self.heads = nn.ModuleList(nn.Conv2d(64, 1, 1) for _ in range(3))

    def forward(self, x: Tensor) -> list[Tensor]:
        size = x.shape[-2:]
        trunk = self.trunk
        x = trunk.patch_embed(x)
        x = x + trunk._get_pos_embed(x.shape[1:3])
        stages = []
        for i, (block, adapter) in enumerate(zip(trunk.blocks, self.adapters, strict=True)):
            x = block(x + adapter(x))
            if i in trunk.stage_ends:
                stages.append(x.permute(0, 3, 1, 2))
        y, *skips = reversed([field(stage) for field, stage in zip(self.fields, stages, strict=True)])
        maps = []
        for up, head, skip in zip(self.ups, self.heads, skips, strict=True):
            y = up(y, skip)
            maps.append(F.interpolate(head(y), size=size, mode="bilinear"))
        *sides, mask = maps
        return [mask, *sides]


def _loss(logits: Tensor, target: Tensor) -> Tensor:
    weight = structure_weight(target, torch.ones_like(target[:, :1]))
    bce = F.binary_cross_entropy_with_logits(logits, target)
    p = torch.sigmoid(logits)
    both = (weight * p * target).sum(dim=(2, 3))
    either = (weight * (p + target)).sum(dim=(2, 3))
    return (bce + 1 - (both + 1) / (either - both + 1)).mean()


def train(crops: SegmentationData, epochs: int, seed: int) -> Iterator[tuple[SAM2UNet, float]]:
    """Train, and give the network and the seconds spent after each epoch.

    Args:
        crops: made without augmentation; flips are drawn here.
        epochs: of the cosine.
        seed: of weights, order and flips.
    """
    torch.manual_seed(seed)
    random = np.random.default_rng(seed)
    model = SAM2UNet()
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-3, weight_decay=5e-4)
    seconds = 0.0
    for epoch in range(epochs):
        started = time.monotonic()
        for group in optimizer.param_groups:
            group["lr"] = 1e-7 + (1e-3 - 1e-7) * (1 + math.cos(math.pi * epoch / epochs)) / 2
        model.train()
        model.trunk.eval()
        order = random.permutation(len(crops))
        for batch in np.array_split(order, math.ceil(len(order) / BATCH)):
            image, target = _batch(crops, batch, random)
            loss = torch.stack([_loss(logits, target) for logits in model(image)]).sum()
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            optimizer.step()
        seconds += time.monotonic() - started
        yield model.eval(), seconds


def _batch(
    crops: SegmentationData, numbers: Sequence[int], random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    images, targets = [], []
    for number in numbers:
        sample = crops[int(number)]
        axes = [axis for axis in (-1, -2) if random.random() < 0.5]
        images.append(sample.image.flip(axes))
        targets.append(sample.masks.flip(axes))
    return torch.stack(images), torch.stack(targets)
