"""A resident model: images of any size -> probabilities, edges and an embedding each."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from model.checkpoint import load_checkpoint
from model.device import autocast, pick_device, reuse_memory
from model.elnet import ELNetOutput
from model.errors import ELNetError
from model.feature_cache import keep_frozen
from model.prompts import encode
from model.raster import Raster
from model.symmetry import FLIPS, SYMMETRIES
from model.tiles import STRIDE, Window, extract, stitch, windows

CUT = 0.5  # of the probability: foreground is above
HALO_SHARE = 8  # a tile's halo is this part of its side


class PredictionError(ELNetError):
    """The model cannot be run as it is asked to."""


@dataclass(frozen=True, slots=True)
class ImagePrediction:
    """What the model says of one image.

    Attributes:
        probability: (N, H, W) float32 in [0, 1], of each class by itself; 0 where the image is not valid.
        edge: (N, H, W) float32 in [0, 1], of the classes' boundaries; 0 where the image is not valid.
        embedding: (C,) float32, the mean of the tiles' embeddings, weighted by their valid pixels; 0 for an
            image without any.
        votes: (N, H, W) float32 in [0, 1], the share of the flipped views in which a pixel is foreground; 0
            where the image is not valid. None where the image was seen in one view.
        learned_iou: (N,) float32 in [0, 1], the IoU that the network's quality head foresees of each class's
            mask, NaN where it was not fitted; None of a network without one.
    """

    probability: NDArray[np.float32]
    edge: NDArray[np.float32]
    embedding: NDArray[np.float32]
    votes: NDArray[np.float32] | None = None
    learned_iou: NDArray[np.float32] | None = None


@dataclass(frozen=True, slots=True)
class _Tile:
    """One window of one image. `maps` is (C, size, size): N probabilities, N edges, and N votes if any."""

    image: int
    window: Window
    maps: NDArray[np.float32]
    embedding: NDArray[np.float32]
    pooled: NDArray[np.float32]


class _Seen(NamedTuple):
    """What the network says of B tiles.

    Attributes:
        maps: (B, 2 N, H, W) probabilities and edges; where there are views, N votes behind them.
        embedding: (B, C).
        pooled: (B, N, 4, width + 1), see `model.quality_head.pool`; (B, 0) without a quality head.
    """

    maps: NDArray[np.float32]
    embedding: NDArray[np.float32]
    pooled: NDArray[np.float32]


class Predictor:
    """Holds one model version and predicts with it. Safe under threads: they take turns tile batch by batch.

    Args:
        checkpoint: a folder as `model.checkpoint.save_checkpoint` writes it.
        device: "auto", "cpu" or "cuda".
        batch_size: tiles that go through the network, and are held, at a time.
        cache_gb: of disk for what the frozen trunk makes of each tile, see `model.feature_cache`: worth it
            where the same images are predicted by version after version; 0: none.
        flips: in how many views each tile is seen: 1 as it is, 2 also mirrored, 4 upside down too, 8 turned
            as well. Probabilities and edges are their mean, the time is so many times as long.

    Raises:
        PredictionError: no such number of flips.
        ELNetError: the checkpoint, its trunk or the device is not there, or damaged.
    """

    def __init__(
        self,
        checkpoint: Path,
        device: str = "auto",
        batch_size: int = 8,
        cache_gb: float = 0.0,
        flips: int = 1,
    ) -> None:
        if flips not in FLIPS:
            raise PredictionError(f"{flips} flips do not make a group: take 1, 2, 4 or 8")
        self._views = SYMMETRIES[:flips]
        self.device = pick_device(device)
        if self.device.type == "cpu":
            reuse_memory()
        self.batch_size = max(1, batch_size)
        self._model, self.card = load_checkpoint(checkpoint, self.device)
        self._model.eval()
        self._lock = threading.Lock()
        encoder, trunk_sha256 = self._model.encoder, self.card.trunk_sha256
        self._kept = None
        if cache_gb:
            self._kept = keep_frozen(encoder, trunk_sha256, self.device, "auto", cache_gb)
        self._mean, self._std = (
            torch.tensor(self.card.normalisation[name], device=self.device).view(1, -1, 1, 1)
            for name in ("mean", "std")
        )
        self.tile = -(-self.card.size // STRIDE) * STRIDE
        self.halo = self.tile // HALO_SHARE

    @property
    def version(self) -> str:
        """The model version that every prediction of this object carries."""
        return self.card.version

    def predict(
        self, images: Sequence[Raster], coarse: Sequence[NDArray[np.bool_]] | None = None
    ) -> list[ImagePrediction]:
        """Predict images.

        The tiles of all images go through the network in common batches. Besides the results, no more than
        `batch_size` tiles are in memory. Windows without a valid pixel are left out.

        Args:
            images: of any sizes.
            coarse: a coarse mask (N, H, W) for each image, to be made better; None: there are none.

        Returns:
            One prediction per image, in their order.

        Raises:
            PredictionError: not even one tile fits into the GPU's memory, or the network takes no coarse
                masks.
        """
        if coarse is not None and not self.card.architecture.get("prompt"):
            raise PredictionError(
                f"{self.version} was trained without coarse masks and cannot enhance labels; train again "
                "with prompted above 0"
            )
        found = {}
        for index, tiles in groupby(self._predict_tiles(images, coarse), key=lambda tile: tile.image):
            found[index] = self._assemble(images[index], tiles)
        return [found[i] if i in found else self._nothing(image) for i, image in enumerate(images)]

    def _predict_tiles(
        self, images: Sequence[Raster], coarse: Sequence[NDArray[np.bool_]] | None
    ) -> Iterator[_Tile]:
        """Every window with a valid pixel, image by image, predicted in batches."""
        places = (
            (index, window)
            for index, image in enumerate(images)
            for window in self._windows(image)
            if _inside(image.valid, window).any()
        )
        while batch := list(islice(places, self.batch_size)):
            pixels = np.stack([extract(images[index].pixels, window, self.tile) for index, window in batch])
            prompt = None
            if coarse is not None:
                planes = (coarse[index].transpose(1, 2, 0) for index, _ in batch)
                cut = (extract(p, window, self.tile) for p, (_, window) in zip(planes, batch, strict=True))
                prompt = np.stack([encode(mask.transpose(2, 0, 1)) for mask in cut])
            seen = self._look(pixels, prompt)
            for (index, window), *of_tile in zip(batch, *seen, strict=True):
                yield _Tile(index, window, *of_tile)

    def _windows(self, image: Raster) -> list[Window]:
        height, width = image.valid.shape
        return windows(height, width, self.tile, self.halo)

    def _look(self, pixels: NDArray[np.uint8], prompt: NDArray[np.float32] | None) -> _Seen:
        """Tiles (B, H, W, 3), and prompts (B, 2 N, H, W), in all views; so many at a time as in one.

        An embedding is of the tile as it is: whether views are added must not make an image another one.
        """
        if len(self._views) == 1:
            return self._forward(pixels, prompt)
        classes, size = len(self.card.classes), pixels.shape[1:3]
        maps = np.zeros((len(pixels), 3 * classes, *size), np.float32)
        embedding: dict[int, NDArray[np.float32]] = {}
        pooled: list[NDArray[np.float32] | float] = [0.0] * len(pixels)
        looks = [(tile, view) for view in self._views for tile in range(len(pixels))]
        for start in range(0, len(looks), self.batch_size):
            part = looks[start : start + self.batch_size]
            said = None if prompt is None else np.stack([v.apply(prompt[t], (1, 2)) for t, v in part])
            seen = self._forward(np.stack([v.apply(pixels[t]) for t, v in part]), said)
            for (tile, view), turned, *rest in zip(part, *seen, strict=True):
                again = view.undo(turned, (1, 2))
                maps[tile] += np.concatenate([again, again[:classes] > CUT])
                embedding.setdefault(tile, rest[0])
                pooled[tile] = pooled[tile] + rest[1]
        maps /= len(self._views)
        return _Seen(maps, np.stack([embedding[t] for t in range(len(pixels))]), np.stack(pooled))

    def _forward(self, pixels: NDArray[np.uint8], prompt: NDArray[np.float32] | None) -> _Seen:
        """Tiles (B, H, W, 3), and prompts (B, 2 N, H, W), as they are.

        Where a GPU's memory runs out (a training may share it), the batch is halved.
        """
        try:
            with self._lock, torch.inference_mode(), autocast(self.device):
                x = self._tensor(pixels).permute(0, 3, 1, 2).float() / 255  # (B, 3, H, W)
                said = self._tensor(prompt) if prompt is not None else None
                output = self._network((x - self._mean) / self._std, said)
                maps = torch.cat([output.mask, output.edge], dim=1).float().sigmoid()  # (B, 2 N, H, W)
                pooled = torch.zeros(len(x), 0) if output.pooled is None else output.pooled
                return _Seen(*(part.float().cpu().numpy() for part in (maps, output.embedding, pooled)))
        except torch.OutOfMemoryError as error:
            if len(pixels) == 1:
                raise PredictionError(
                    f"the memory of {self.device} does not hold one tile of {self.tile} px; "
                    "free it or take --device cpu"
                ) from error
        torch.cuda.empty_cache()
        prompts = np.array_split(prompt, 2) if prompt is not None else (None, None)
        halves = [self._forward(*half) for half in zip(np.array_split(pixels, 2), prompts, strict=True)]
        return _Seen(*map(np.concatenate, zip(*halves, strict=True)))

    def _tensor(self, array: NDArray[Any]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self.device)

    def _network(self, x: torch.Tensor, prompt: torch.Tensor | None) -> ELNetOutput:
        """As `SAM2ELNet.forward`; the frozen part may be read from disk."""
        if self._kept is None:
            output: ELNetOutput = self._model(x, prompt)
            return output
        return self._model.decode(self._model.encoder.adapted(self._kept(x)), x.shape[-2:], prompt)

    def _assemble(self, image: Raster, tiles: Iterator[_Tile]) -> ImagePrediction:
        """One image's tiles -> its prediction."""
        height, width = image.valid.shape
        classes = len(self.card.classes)
        embedding, area = np.zeros(self._embedding_size, np.float64), 0
        pooled: NDArray[np.float64] = np.zeros(())

        def maps() -> Iterator[tuple[Window, NDArray[np.float32]]]:
            nonlocal embedding, area, pooled
            for tile in tiles:
                pooled = pooled + tile.pooled
                valid = int(np.count_nonzero(_inside(image.valid, tile.window)))
                embedding += valid * tile.embedding.astype(np.float64)
                area += valid
                yield tile.window, tile.maps

        parts = 2 if len(self._views) == 1 else 3
        whole = stitch(maps(), parts * classes, height, width, self.halo)
        np.clip(whole, 0, 1, out=whole)  # the running mean may leave the range by a rounding
        whole[:, ~image.valid] = 0
        probability, edge, *votes = np.split(whole, parts)
        return ImagePrediction(
            probability,
            edge,
            (embedding / area).astype(np.float32),
            votes[0] if votes else None,
            self._foreseen(pooled),
        )

    def _foreseen(self, pooled: NDArray[np.float64]) -> NDArray[np.float32] | None:
        """An image's sums (N, 4, width + 1) -> IoU of each class (N,), NaN of one that was not fitted."""
        if self._model.quality is None:
            return None
        sums = torch.from_numpy(pooled[None]).float().to(self.device)
        found: NDArray[np.float32] = self._model.quality(sums)[0].cpu().numpy()
        return found

    def _nothing(self, image: Raster) -> ImagePrediction:
        """Empty masks for an image without a valid pixel."""
        parts = 2 if len(self._views) == 1 else 3
        probability, edge, *votes = np.zeros((parts, len(self.card.classes), *image.valid.shape), np.float32)
        return ImagePrediction(probability, edge, np.zeros(self._embedding_size, np.float32), *votes)

    @property
    def _embedding_size(self) -> int:
        return self._model.encoder.channels[-1]


def _inside(valid: NDArray[np.bool_], window: Window) -> NDArray[np.bool_]:
    return valid[window.row : window.row + window.height, window.col : window.col + window.width]
