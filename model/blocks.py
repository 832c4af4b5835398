"""The network's small parts: adapter, receptive-field block, edge attention, decoder stage.

Normalisation is GroupNorm throughout: it does not depend on the batch, so one image trains and predicts the
same alone or among others, and there are no running statistics that a short fine-tuning would leave stale.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Adapter(nn.Module):
    """A bottleneck whose output is added to the tokens: Linear, GELU, Linear.

    The second layer starts at zero, so the adapted trunk starts as the trunk itself: training departs from
    SAM 2's features instead of first having to undo a random disturbance of them in every block.
    """

    def __init__(self, dim: int, bottleneck: int):
        super().__init__()
        self.down = nn.Linear(dim, bottleneck)
        self.up = nn.Linear(bottleneck, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(..., C) -> (..., C)."""
        out: Tensor = self.up(F.gelu(self.down(x)))
        return out


class ConvNorm(nn.Sequential):
    """Convolution that keeps H and W, GroupNorm, and ReLU unless `activate` is False."""

    def __init__(
        self,
        channels_in: int,
        channels_out: int,
        kernel: int | tuple[int, int] = 1,
        *,
        dilation: int = 1,
        activate: bool = True,
    ):
        kh, kw = (kernel, kernel) if isinstance(kernel, int) else kernel
        padding = (dilation * (kh - 1) // 2, dilation * (kw - 1) // 2)
        layers: list[nn.Module] = [
            nn.Conv2d(channels_in, channels_out, (kh, kw), padding=padding, dilation=dilation, bias=False),
            nn.GroupNorm(max(1, channels_out // 8), channels_out),
        ]
        if activate:
            layers.append(nn.ReLU(inplace=True))
        super().__init__(*layers)


class ReceptiveFieldBlock(nn.Module):
    """RFB (arXiv 1711.07767): four branches see 1, 9, 15 and 21 pixels, and are fused into `width` channels.

    As in SAM2-UNet, but each branch has `width / 4` channels instead of `width`: at stride 4 the block would
    otherwise cost more than the trunk's first stage.
    """

    def __init__(self, channels: int, width: int):
        super().__init__()
        part = width // 4
        self.reduce = nn.Conv2d(channels, width + 4 * part, 1)  # the shortcut and every branch's first layer
        self.branches = nn.ModuleList(
            nn.Sequential(
                ConvNorm(part, part, (1, k)),
                ConvNorm(part, part, (k, 1)),
                ConvNorm(part, part, 3, dilation=k, activate=False),
            )
            for k in (3, 5, 7)
        )
        self.fuse = ConvNorm(4 * part, width, 3, activate=False)
        self.split = [width, part, part, part, part]

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) -> (B, width, h, w)."""
        # (B, width, h, w) and 4 x (B, width/4, h, w)
        shortcut, near, *far = self.reduce(x).split(self.split, dim=1)
        seen = [near, *(branch(f) for branch, f in zip(self.branches, far, strict=True))]
        return F.relu(shortcut + self.fuse(torch.cat(seen, dim=1)))


class EdgeAttention(nn.Module):
    """Edge attention (arXiv 2503.12404): boundary features weight the feature map element by element.

    One convolution extracts boundary features. They give both a weight for every element of the feature map
    and the boundary map, which is supervised: that is what makes them boundary features. The weight is
    1 + sigmoid, so that attention strengthens what lies on an edge and never erases what does not.
    """

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.extract = ConvNorm(width, width // 2, 3)
        self.weight = nn.Conv2d(width // 2, width, 1)
        self.boundary = nn.Conv2d(width // 2, classes, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, width, h, w) -> the weighted map of the same shape, boundary logits (B, N, h, w)."""
        edge = self.extract(x)  # (B, width/2, h, w)
        return x * (1 + torch.sigmoid(self.weight(edge))), self.boundary(edge)


class DecoderStage(nn.Module):
    """Double the resolution, join the skip connection, attend to edges."""

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.join = nn.Sequential(ConvNorm(2 * width, width, 3), ConvNorm(width, width, 3))
        self.attend = EdgeAttention(width, classes)

    def forward(self, x: Tensor, skip: Tensor) -> tuple[Tensor, Tensor]:
        """Decode one stage.

        Args:
            x: (B, width, h, w), the deeper map.
            skip: (B, width, 2h, 2w), from the trunk.

        Returns:
            Features (B, width, 2h, 2w) and boundary logits (B, N, 2h, 2w).
        """
        x = F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)  # (B, width, 2h, 2w)
        x = self.join(torch.cat((x, skip), dim=1))
        features, edge = self.attend(x)
        return features, edge


class MaskPrompt(nn.Module):
    """A coarse mask -> what is added to the decoder's skip connections: the image says where it is wrong.

    The last layers start at zero, so a network begins by not listening. Source: SAM's dense prompt
    (arXiv 2304.02643) adds an encoded mask to the image's embedding in the same way, at one stride.
    """

    def __init__(self, width: int, classes: int):
        super().__init__()
        part = width // 2
        self.patch = nn.Conv2d(2 * classes, part, 4, stride=4)  # a pixel's place inside the patch is kept
        self.mix = nn.Sequential(ConvNorm(part, part, 3), ConvNorm(part, part, 3))
        self.out = nn.ModuleList(nn.Conv2d(part, width, 1) for _ in range(3))
        for layer in self.out:
            nn.init.zeros_(layer.weight)  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]

    def forward(self, prompt: Tensor) -> list[Tensor]:
        """Encode prompts.

        Args:
            prompt: (B, 2 N, H, W) as `model.prompts.encode` makes it; all zero where an image has none.

        Returns:
            3 x (B, width, H/s, W/s), s = 16, 8, 4; zero where an image has no prompt.
        """
        given = (prompt != 0).flatten(1).any(dim=1).to(prompt.dtype)[:, None, None, None]  # (B, 1, 1, 1)
        x = self.mix(self.patch(prompt))  # (B, width/2, H/4, W/4)
        maps = []
        for layer in self.out:
            maps.append(layer(x) * given)
            x = F.avg_pool2d(x, 2)
        return maps[::-1]
