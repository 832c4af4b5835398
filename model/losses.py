"""Losses: IoU + BCE on every mask map, BCE + Dice on every boundary map. Nodata counts nowhere.

`valid` is (B, H, W) bool, False at nodata. Targets are (B, N, H, W) float in {0, 1}.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from model.elnet import ELNetOutput


def elnet_loss(
    output: ELNetOutput,
    target: Tensor,
    valid: Tensor,
    importance: Tensor | None = None,
    *,
    edge_weight: float = 1.0,
    structure: float = 5.0,
) -> Tensor:
    """The training loss: deep supervision with equal weights over the stages, of masks and of boundaries.

    Args:
        output: of a network in training mode.
        target: (B, N, H, W) in {0, 1}.
        valid: (B, H, W) bool.
        importance: (B,) factor of each image's loss; default 1.
        edge_weight: of the boundaries' part.
        structure: how much more pixels near a mask's outline weigh, see `structure_weight`; 0: none does.

    Returns:
        () float32.
    """
    importance = target.new_ones(len(target)) if importance is None else importance
    v = valid[:, None].to(target.dtype)  # (B, 1, H, W)
    weight = structure_weight(target, v, structure) if structure else v.expand_as(target)
    masks = [output.mask, *output.sides]
    mask_losses = [structure_loss(m, target, weight) for m in masks]
    boundary, certain = boundary_of(target, v)
    edges = [output.edge, *output.edge_sides]
    edge_losses = [boundary_loss(e, boundary, certain) for e in edges]
    each = torch.stack(mask_losses).mean(0) + edge_weight * torch.stack(edge_losses).mean(0)  # (B, N)
    return (importance[:, None] * each).mean()


def structure_weight(target: Tensor, valid: Tensor, strength: float = 5.0) -> Tensor:
    """Weight of each pixel: 1 + strength |avgpool31(m) - m|, 0 at nodata (F3Net, arXiv 1911.11445, sec. 3.4).

    Pixels whose neighbourhood differs from them weigh up to 1 + strength times: where outlines were drawn
    coarsely, that is a heavy weight on the labels' own errors. The mean is taken over valid pixels only:
    counting the padding as background would make every object at the image border look like an edge.

    Args:
        target: (B, N, H, W) in {0, 1}.
        valid: (B, 1, H, W) in {0, 1}.
        strength: F3Net's 5.

    Returns:
        (B, N, H, W).
    """
    mean = _box_sum(target * valid) / _box_sum(valid).clamp(min=1)
    return (1 + strength * (mean - target).abs()) * valid


def _box_sum(x: Tensor, size: int = 31) -> Tensor:
    # Two passes of `size` additions a pixel instead of one of size * size: 8 times as fast on a CPU.
    x = F.avg_pool2d(x, (size, 1), stride=1, padding=(size // 2, 0), divisor_override=1)
    return F.avg_pool2d(x, (1, size), stride=1, padding=(0, size // 2), divisor_override=1)


def structure_loss(logits: Tensor, target: Tensor, weight: Tensor) -> Tensor:
    """BCE + IoU of each map, weighted (F3Net, eqs. 5 to 8), (B, N); 0 for one without valid pixels.

    The BCE is reduced per pixel: SAM2-UNet's released code passes the legacy `reduce="none"`, which averages
    first and so loses the weights.
    """
    total = weight.sum(dim=(2, 3))  # (B, N)
    bce = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    bce = (weight * bce).sum(dim=(2, 3)) / total.clamp(min=1)
    p = torch.sigmoid(logits)
    both = (weight * p * target).sum(dim=(2, 3))
    either = (weight * (p + target - p * target)).sum(dim=(2, 3))
    iou = 1 - (both + 1) / (either + 1)  # the 1 keeps empty masks defined: there every foreground pixel costs
    return bce + iou


def boundary_of(target: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """The boundary of a mask: dilation minus erosion, 3 x 3, so two pixels wide.

    The image's border is no boundary. Where a pixel's neighbourhood holds nodata, the boundary is not known.

    Args:
        target: (B, N, H, W) in {0, 1}.
        valid: (B, 1, H, W) in {0, 1}.

    Returns:
        (B, N, H, W) in {0, 1}, and (B, 1, H, W) in {0, 1} where it is known.
    """
    boundary = _dilate(target) + _dilate(-target)  # erosion is minus the dilation of minus
    return boundary, -_dilate(-valid)


def _dilate(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 3, stride=1, padding=1)


def boundary_loss(logits: Tensor, boundary: Tensor, certain: Tensor) -> Tensor:
    """BCE + soft Dice of each map on thin boundaries, (B, N); 0 for one without known pixels.

    Dice answers for the imbalance of a few per cent of boundary pixels. The BCE is left unbalanced, so that
    the edge map stays a probability that a later quality signal can use.
    """
    pixels = certain.sum(dim=(2, 3))  # (B, 1)
    bce = F.binary_cross_entropy_with_logits(logits, boundary, reduction="none")
    bce = (certain * bce).sum(dim=(2, 3)) / pixels.clamp(min=1)
    p = torch.sigmoid(logits) * certain
    both = (p * boundary).sum(dim=(2, 3))
    dice = 1 - (2 * both + 1) / (p.sum(dim=(2, 3)) + (boundary * certain).sum(dim=(2, 3)) + 1)
    return bce + dice
