"""The last step of a training: the quality head learns from the masks that the trained network predicts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, cast

import torch
from torch import Tensor

from model.batches import Order, make_loader
from model.data import SegmentationData
from model.device import autocast
from model.distributed import Team
from model.elnet import SAM2ELNet
from model.quality_head import means
from model.train_config import TrainConfig

QUALITY_CROPS: Final = 1000  # that the head is fitted on, if so many can be had
QUALITY_PASSES: Final = 4  # over the training crops at most


def fit_quality(
    model: SAM2ELNet,
    crops: SegmentationData,
    config: TrainConfig,
    frozen: Callable[[Tensor], list[Tensor]],
    team: Team,
    *,
    after: int,
) -> None:
    """Fit the quality head on the masks that the trained network predicts of augmented training crops.

    Of masks with foreground: an empty one is judged by its likeliest pixels, see `active_learning.signals`.

    Args:
        model: trained; is left in eval mode. One without a quality head stays as it is.
        crops: those that it was trained on.
        config: how it was trained.
        frozen: what its frozen trunk says of images, see `model.feature_cache.keep_frozen`.
        team: the processes that share the crops.
        after: the last epoch of the training: the crops are augmented as in the next ones.
    """
    head = model.quality
    if head is None:
        return
    order = Order(len(crops), config.batch_size, config.seed)
    loader = make_loader(crops, order, team, config.workers)
    rows: list[list[tuple[Tensor, float, float, str]]] = [[] for _ in range(model.classes)]
    model.eval()
    passes = min(QUALITY_PASSES, -(-QUALITY_CROPS // len(crops)))
    for epoch in range(after + 1, after + 1 + passes):
        crops.set_epoch(epoch)
        order.set_epoch(epoch)
        for numbers, sample in zip(order, loader, strict=True):
            kept = frozen(sample.image)
            masks, valid, weight, prompt = (t.to(team.device, non_blocking=True) for t in sample[1:])
            with torch.no_grad(), autocast(team.device, config.precision):
                output = model.decode(model.encoder.adapted(kept), masks.shape[-2:], prompt)
            said, truth = (output.mask > 0) & valid[:, None], (masks > 0.5) & valid[:, None]
            foreground = said.flatten(2).sum(2)
            ious = (said & truth).flatten(2).sum(2) / (said | truth).flatten(2).sum(2).clamp(min=1)
            of_masks = means(cast("Tensor", output.pooled)).cpu()  # of a network with a head, in eval mode
            for i, crop in enumerate(team.part(numbers)):
                for n in range(model.classes):
                    if foreground[i, n]:
                        row = (of_masks[i, n], float(ious[i, n]), float(weight[i]), crops.scene(crop))
                        rows[n].append(row)
    of_processes = team.gathered(rows)
    for n in range(model.classes):
        found = [row for of_process in of_processes for row in of_process[n]]
        if found:
            pooled, of_images, weights, scenes = zip(*found, strict=True)
            head.fit(n, torch.stack(pooled), of_images, weights, scenes)
