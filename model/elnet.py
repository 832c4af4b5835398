"""SAM2-ELNet: image -> masks, their edges, and an embedding. Read `SAM2ELNet.forward` first.

Source: arXiv 2503.12404, as far as its text is public: a frozen SAM 2 Hiera trunk with an adapter before each
multi-scale block, and edge attention in the decoder's upsampling. Receptive-field blocks, the decoder's shape
and deep supervision follow its nearest public relative, SAM2-UNet (arXiv 2408.08870).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from model.blocks import DecoderStage, MaskPrompt, ReceptiveFieldBlock
from model.hiera import AdaptedTrunk, TrunkSpec, resample
from model.quality_head import QualityHead, pool


class ELNetOutput(NamedTuple):
    """What the network says of B images and N classes; the sigmoid of a logit is a class's own probability.

    Attributes:
        mask: (B, N, H, W) logits of N independent binary maps.
        edge: (B, N, H, W) logits of the masks' boundaries.
        sides: (B, N, H, W) mask logits of stride 16 and 8, for deep supervision; empty in eval mode.
        edge_sides: the same for boundaries.
        embedding: (B, C) mean of the trunk's last features.
        pooled: (B, N, 4, width + 1) decoder features summed under each mask, see `model.quality_head.pool`;
            None in training mode, and of a network without a quality head.
    """

    mask: Tensor
    edge: Tensor
    sides: list[Tensor]
    edge_sides: list[Tensor]
    embedding: Tensor
    pooled: Tensor | None = None


class SAM2ELNet(nn.Module):
    """The network. Only adapters, receptive-field blocks, decoder and heads are trained.

    Args:
        trunk: a Hiera as `model.hiera.build_trunk` makes it; it is shared, not copied.
        spec: the trunk's shape.
        classes: N, the number of binary maps.
        mode: where adapters stand, see `model.hiera.AdaptedTrunk`; "full": before each multi-scale block.
        adapter_dim: the adapters' bottleneck.
        width: channels of the decoder, a multiple of 8.
        prompt: whether the network also takes a coarse mask, to make it better.
        scale: the trunk sees the image so many times as large; masks keep the image's own size.
        quality: whether the network also foresees the IoU of its masks.
    """

    def __init__(
        self,
        trunk: nn.Module,
        spec: TrunkSpec,
        classes: int,
        *,
        mode: str = "full",
        adapter_dim: int = 32,
        width: int = 64,
        prompt: bool = False,
        scale: float = 1.0,
        quality: bool = False,
    ):
        super().__init__()
        self.architecture: dict[str, Any] = {
            "mode": mode,
            "adapter_dim": adapter_dim,
            "width": width,
            "prompt": prompt,
            "scale": scale,
            "quality": quality,
        }
        self.classes = classes
        self.mode = mode
        self.encoder = AdaptedTrunk(trunk, spec, mode=mode, adapter_dim=adapter_dim, scale=scale)
        self.receptive = nn.ModuleList(ReceptiveFieldBlock(c, width) for c in spec.channels)
        self.decoder = nn.ModuleList(DecoderStage(width, classes) for _ in range(3))
        self.prompt = MaskPrompt(width, classes) if prompt else None
        self.heads = nn.ModuleList(nn.Conv2d(width, classes, 1) for _ in range(3))
        self.quality = QualityHead(width, classes) if quality else None

    def forward(self, x: Tensor, prompt: Tensor | None = None) -> ELNetOutput:
        """Segment images.

        Args:
            x: (B, 3, H, W) image, normalised by the card's mean and standard deviation; H, W multiples of 32.
            prompt: (B, 2 N, H, W) coarse masks, see `model.prompts.encode`.
        """
        return self.decode(self.encoder(x), x.shape[-2:], prompt)

    def decode(self, stages: list[Tensor], size: torch.Size, prompt: Tensor | None = None) -> ELNetOutput:
        """Features of the adapted trunk -> output.

        Args:
            stages: 4 x (B, C_i, h/s, w/s), s = 4, 8, 16, 32, of the resampled image.
            size: H, W of the image itself.
            prompt: (B, 2 N, H, W) coarse masks; a network without prompts does not hear it.
        """
        embedding = stages[-1].mean(dim=(2, 3))  # (B, C_3)
        blocks = zip(self.receptive, stages, strict=True)
        y, *skips = reversed([block(f) for block, f in blocks])  # (B, width, h/s, w/s), s = 32; 16, 8, 4
        if self.prompt is not None and prompt is not None:
            seen = resample(prompt, self.encoder.scale)  # (B, 2 N, h, w)
            skips = [skip + said for skip, said in zip(skips, self.prompt(seen), strict=True)]

        masks, edges = [], []
        for stage, head, skip in zip(self.decoder, self.heads, skips, strict=True):
            y, edge = stage(y, skip)  # (B, width, h/s, w/s), (B, N, h/s, w/s), s = 16, 8, 4
            masks.append(head(y))  # (B, N, h/s, w/s)
            edges.append(edge)
        pooled = None
        if not self.training:  # the coarser maps serve the losses only
            masks, edges = masks[-1:], edges[-1:]
            pooled = pool(y, masks[-1], edges[-1]) if self.quality is not None else None
        *sides, mask = [_resize(m, size) for m in masks]  # (B, N, H, W)
        *edge_sides, edge = [_resize(e, size) for e in edges]  # (B, N, H, W)
        return ELNetOutput(mask, edge, sides, edge_sides, embedding.float(), pooled)

    def foresee_quality(self) -> None:
        """Add a quality head, still to be fitted, to a network that has none."""
        if self.quality is None:
            self.quality = QualityHead(self.architecture["width"], self.classes)
            self.architecture["quality"] = True

    def trainable_state(self) -> dict[str, Tensor]:
        """What a checkpoint holds: every tensor but the trunk's."""
        return {k: v for k, v in self.state_dict().items() if not k.startswith("encoder.trunk.")}

    def load_trainable_state(self, state: dict[str, Tensor]) -> None:
        """Load what `trainable_state` gave.

        Raises:
            RuntimeError: names or shapes are those of another network.
        """
        trunk = {k: v for k, v in self.state_dict().items() if k.startswith("encoder.trunk.")}
        self.load_state_dict(trunk | state)


def _resize(logits: Tensor, size: torch.Size) -> Tensor:
    # float32: at bfloat16's 8 bits, interpolated logits come in visible steps
    return F.interpolate(logits.float(), size=size, mode="bilinear", align_corners=False)
