"""Peers without a trunk: dark-Otsu, a random forest on filtered pixels, and a plain U-Net from scratch."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import ndimage
from skimage.filters import threshold_otsu
from sklearn.ensemble import RandomForestClassifier

from model.batches import Order
from model.data import SegmentationData
from model.device import autocast
from model.losses import structure_loss, structure_weight
from model.pairs import Pair, read_pair
from model.tiles import STRIDE

_PIXELS = 400_000  # that the forest learns from
_SIGMAS = (1, 2, 4, 8, 16)

Grey = NDArray[np.float32]
Mask = NDArray[np.bool_]


def grey(pixels: NDArray[np.uint8]) -> Grey:
    """(H, W, 3) uint8 -> (H, W) in [0, 1]."""
    return (pixels.mean(axis=-1) / 255).astype(np.float32)


def dark_otsu(pixels: NDArray[np.uint8]) -> Mask:
    """What is darker than Otsu's threshold after smoothing: oil dampens the waves that scatter radar back."""
    smooth = ndimage.gaussian_filter(grey(pixels), 2)
    return np.asarray(smooth < threshold_otsu(smooth))


def features(pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """(H, W, F): colours; smoothed grey, its gradient and its local deviation at five scales."""
    g = grey(pixels)
    maps = [*np.moveaxis(pixels / np.float32(255), -1, 0)]
    for sigma in _SIGMAS:
        smooth = ndimage.gaussian_filter(g, sigma)
        spread = ndimage.gaussian_filter(g * g, sigma) - smooth**2
        maps += [
            smooth,
            ndimage.gaussian_gradient_magnitude(g, sigma),
            np.sqrt(np.maximum(spread, 0)),
        ]
    return np.stack(maps, axis=-1).astype(np.float32)


def train_forest(pairs: Sequence[Pair], seed: int) -> RandomForestClassifier:
    """A forest on pixels drawn evenly from all images."""
    random = np.random.default_rng(seed)
    each = max(1, _PIXELS // len(pairs))
    xs, ys = [], []
    for pair in pairs:
        raster, masks, valid = read_pair(pair)
        places = random.choice(np.flatnonzero(valid), each)
        xs.append(features(raster.pixels).reshape(-1, 3 + 3 * len(_SIGMAS))[places])
        ys.append(masks[0].ravel()[places])
    forest = RandomForestClassifier(
        100, max_depth=18, min_samples_leaf=10, n_jobs=-1, random_state=seed, max_features="sqrt"
    )
    return forest.fit(np.concatenate(xs), np.concatenate(ys))


def forest_mask(forest: RandomForestClassifier, pixels: NDArray[np.uint8]) -> Mask:
    """(H, W) bool."""
    found = features(pixels)
    probability = forest.predict_proba(found.reshape(-1, found.shape[-1]))[:, 1]
    return np.asarray(probability.reshape(found.shape[:2]) >= 0.5)


class HalfSize(torch.nn.Module):
    """A network that sees images at half their size, for a quarter of the work; its map is enlarged again."""

    def __init__(self, network: torch.nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(N, C, H, W), sides even -> (N, 1, H, W)."""
        small = self.network(torch.nn.functional.avg_pool2d(images, 2))
        return torch.nn.functional.interpolate(small, scale_factor=2, mode="bilinear")


def train_unet(
    crops: SegmentationData, epochs: int, seed: int, *, half: bool = False
) -> tuple[torch.nn.Module, float]:
    """MONAI's BasicUNet (Falk et al. 2019) from random weights, with our loss, augmentation and schedule.

    Its instance normalisation, slow on CPUs, is group normalisation here; `half`: as in `HalfSize`. Precision
    is that of our network. Returns the model and the seconds that it took.
    """
    from monai.networks.nets import BasicUNet

    torch.manual_seed(seed)
    norm = ("group", {"num_groups": 4})
    unet = BasicUNet(spatial_dims=2, in_channels=3, out_channels=1, norm=norm)
    model = (HalfSize(unet) if half else unet).to(memory_format=torch.channels_last)
    order = Order(len(crops), 8, seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 2e-3, total_steps=epochs * len(order))
    started = time.monotonic()
    model.train()
    for epoch in range(1, epochs + 1):
        crops.set_epoch(epoch)
        order.set_epoch(epoch)
        for numbers in order:
            samples = [crops[i] for i in numbers]
            target = torch.stack([s.masks for s in samples])
            valid = torch.stack([s.valid for s in samples])[:, None].float()
            images = torch.stack([s.image for s in samples]).contiguous(memory_format=torch.channels_last)
            with autocast(torch.device("cpu")):
                logits = model(images)
            loss = structure_loss(logits.float(), target, structure_weight(target, valid)).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return model.eval(), time.monotonic() - started


def network_mask(model: torch.nn.Module, image: torch.Tensor) -> Mask:
    """One image (3, H, W), normalised, through a network that takes multiples of 32: (H, W) bool."""
    height, width = image.shape[-2:]
    padding = (0, -width % STRIDE, 0, -height % STRIDE)
    whole = torch.nn.functional.pad(image[None], padding, mode="reflect") if any(padding) else image[None]
    with torch.inference_mode():
        output = model(whole)
    logits = output[0] if isinstance(output, list) else output
    if not math.isfinite(float(logits.sum())):
        raise ValueError("the network's output is not finite")
    return (logits[0, 0, :height, :width] > 0).numpy()
