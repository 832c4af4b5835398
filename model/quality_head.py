"""The quality head: from the decoder's features under a mask to the IoU to expect of that mask.

Linear in four means of the last decoder features, over what the mask holds, over what it leaves out, over
where it is undecided, and over where an edge is seen. It is fitted after decoder and adapters, by ridge
regression on the training crops: a head that is trained along with them chases features that still move.

Each mean is kept as a sum and its weight, so those of an image are the sums over its tiles and views.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

POOLED: Final = 4  # means of each channel
LEAST: Final = 20  # masks below which nothing is fitted
FOLDS: Final = 5
_PENALTIES: Final = tuple(np.logspace(0, 5, 11).tolist())


class QualityHead(nn.Module):
    """The IoU to expect of each class's mask. Until it is fitted it says NaN.

    Args:
        width: channels of the decoder.
        classes: N.
    """

    weight: Tensor
    bias: Tensor

    def __init__(self, width: int, classes: int):
        super().__init__()
        self.register_buffer("weight", torch.zeros(classes, POOLED * width))
        self.register_buffer("bias", torch.full((classes,), torch.nan))

    def forward(self, pooled: Tensor) -> Tensor:
        """Sums as `pool` gives them, of a crop or of a whole image -> (B, N) IoU in [0, 1]."""
        return (torch.einsum("bnc,nc->bn", means(pooled), self.weight) + self.bias).clamp(0, 1)

    def fit(
        self, number: int, pooled: ArrayLike, ious: ArrayLike, weights: ArrayLike, scenes: Sequence[Hashable]
    ) -> None:
        """Fit one class by ridge regression, whose penalty cross-validation over scenes chooses.

        Nothing is fitted where there are fewer than `LEAST` masks, or all are of one scene.

        Args:
            number: of the class.
            pooled: (n, 4 width), as `means` gives them.
            ious: (n,) of the masks with the truth.
            weights: (n,) of the images in training.
            scenes: of the images.
        """
        # Imported here because it takes a second, which every prediction would pay.
        from sklearn.linear_model import RidgeCV
        from sklearn.model_selection import GroupKFold

        x, y = np.asarray(pooled, dtype=np.float64), np.asarray(ious, dtype=np.float64)
        w = np.asarray(weights, dtype=np.float64)
        names = {name: i for i, name in enumerate(dict.fromkeys(scenes))}
        groups = np.array([names[scene] for scene in scenes])
        if len(y) < LEAST or len(names) < 2:
            return
        mean, scale = x.mean(axis=0), x.std(axis=0)
        scale[scale < 1e-9] = 1
        z = (x - mean) / scale
        folds = list(GroupKFold(min(FOLDS, len(names))).split(z, y, groups))
        fitted = RidgeCV(_PENALTIES, cv=folds).fit(z, y, sample_weight=w)
        coefficients: NDArray[np.float64] = fitted.coef_ / scale
        self.weight[number] = torch.from_numpy(coefficients)
        self.bias[number] = float(fitted.intercept_ - mean @ coefficients)


def pool(features: Tensor, mask: Tensor, edge: Tensor) -> Tensor:
    """Sum decoder features under a mask in four ways.

    Args:
        features: (B, width, h, w), of the last stage.
        mask: (B, N, h, w) logits.
        edge: (B, N, h, w) logits of the boundaries.

    Returns:
        (B, N, 4, width + 1) float32: sums over the pixels of the weighted features, and of the weights.
    """
    with torch.autocast(features.device.type, enabled=False):  # sums of thousands of pixels
        p, e = mask.float().sigmoid(), edge.float().sigmoid()
        weights = torch.stack([p, 1 - p, p * (1 - p), e], dim=2)  # (B, N, 4, h, w)
        sums = torch.einsum("bnkhw,bchw->bnkc", weights, features.float())
        return torch.cat([sums, weights.sum(dim=(3, 4)).unsqueeze(-1)], dim=-1)


def means(pooled: Tensor) -> Tensor:
    """(B, N, 4, width + 1) sums -> (B, N, 4 width) means; 0 where there is no weight."""
    return (pooled[..., :-1] / pooled[..., -1:].clamp(min=1e-3)).flatten(2)
