"""What the frozen trunk computes, kept on disk: a crop seen again costs a read instead of a forward pass.

A file per crop, named by the sha256 of its pixels as the network sees them (so of the image and of what was
done to it), of the trunk's weights, of the mode and of the precision. Values are float16, also when they are
computed afresh: a crop's features are the same from the disk and from the trunk. Several processes may share
a folder: a file appears whole or not at all.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Final

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor

from model.cache_root import cache_root
from model.device import Precision, autocast, wants_bfloat16
from model.hiera import AdaptedTrunk

log = logging.getLogger(__name__)

_FORMAT: Final = 1
_PART: Final = ".part"
_STALE_S: Final = 86_400.0  # half-written files older than this were left by a killed process
_RECOUNT: Final = 256  # files written between two looks at the whole folder


def features_folder() -> Path:
    """`$ELNET_HOME/features`, or `features` in the user's cache folder; it need not exist."""
    return cache_root() / "features"


def keep_frozen(
    encoder: AdaptedTrunk, trunk_sha256: str, device: torch.device, precision: Precision, cache_gb: float
) -> Callable[[Tensor], list[Tensor]]:
    """A network's `AdaptedTrunk.frozen`, with its results kept on disk where keeping them pays.

    In mode "full" it does not: what never changes there is next to nothing.

    Args:
        encoder: on the device.
        trunk_sha256: of its trunk's weights.
        device: of the encoder.
        precision: that it computes in.
        cache_gb: of disk; 0: nothing is kept.

    Returns:
        (B, 3, H, W) float32, normalised -> the maps, float32 on the device.
    """

    def compute(images: Tensor) -> list[Tensor]:
        with autocast(device, precision):
            return [m.float() for m in encoder.frozen(images.to(device, non_blocking=True))]

    if encoder.mode == "full" or not cache_gb:
        return compute
    digits = "bf16" if wants_bfloat16(device, precision) else "fp32"
    network = f"{trunk_sha256} {encoder.mode} {digits} x{encoder.scale:g}"
    cache = FeatureCache(features_folder(), int(cache_gb * 1e9), network)

    def kept(images: Tensor) -> list[Tensor]:
        return [m.to(device, non_blocking=True).float() for m in cache.features(images, compute)]

    return kept


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    size: int
    used: float


class FeatureCache:
    """Features by crop, within a limit of disk space.

    When the limit is reached, what was not used since this object was made goes first, the longest unused
    before the others; when nothing of that is left, nothing more is stored: a set that is larger than the
    limit keeps its first part, rather than drive itself out in every epoch.

    Args:
        folder: is made if it is not there.
        limit_bytes: of all files in it.
        network: what computes the features: the trunk's sha256, the mode, the precision.
    """

    def __init__(self, folder: Path, limit_bytes: int, network: str) -> None:
        self._folder = folder
        self._limit = limit_bytes
        self._network = f"{_FORMAT} {network}".encode()
        self._began = time.time()
        self._written = 0
        self._total = sum(entry.size for entry in self._entries())
        self._is_full = False

    def features(self, images: Tensor, compute: Callable[[Tensor], Sequence[Tensor]]) -> list[Tensor]:
        """The features of a batch of crops.

        Args:
            images: (B, 3, H, W) float32, normalised.
            compute: the same for crops that are not stored: (b, 3, H, W) -> maps (b, C_i, h_i, w_i) on any
                device.

        Returns:
            Maps (B, C_i, h_i, w_i) float16 on the CPU, channels last in memory.
        """
        paths = [self._path(image) for image in images.cpu()]
        found = [self._read(path) for path in paths]
        missing = [i for i, maps in enumerate(found) if maps is None]
        if missing:
            maps = [m.permute(0, 2, 3, 1).half().cpu() for m in compute(images[missing])]  # (b, h, w, C)
            for n, i in enumerate(missing):
                found[i] = of_crop = [m[n] for m in maps]
                self._store(paths[i], of_crop)
        whole = [maps for maps in found if maps is not None]
        with torch.autocast("cpu", enabled=False):  # it takes no float16 on a CPU
            return [torch.stack(level).permute(0, 3, 1, 2) for level in zip(*whole, strict=True)]

    def _path(self, image: Tensor) -> Path:
        digest = sha256(self._network)
        digest.update(repr(tuple(image.shape)).encode())
        digest.update(image.contiguous().numpy().data)
        name = digest.hexdigest()
        return self._folder / name[:2] / name

    def _read(self, path: Path) -> list[Tensor] | None:
        try:
            maps = load_file(path)
            os.utime(path)  # used just now
        except (FileNotFoundError, SafetensorError):  # damaged files are computed and written again
            return None
        except OSError as error:
            self._give_up(error)
            return None
        return [maps[key] for key in sorted(maps)]

    def _store(self, path: Path, maps: Sequence[Tensor]) -> None:
        if self._is_full:
            return
        content = save({f"{i:02}": m.contiguous() for i, m in enumerate(maps)})
        if not self._make_room(len(content)):
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with NamedTemporaryFile(dir=path.parent, suffix=_PART, delete=False) as file:
                try:
                    file.write(content)
                    file.close()
                    Path(file.name).replace(path)
                except OSError:
                    Path(file.name).unlink(missing_ok=True)
                    raise
        except OSError as error:
            self._give_up(error)
            return
        self._total += len(content)
        self._written += 1

    def _make_room(self, needed: int) -> bool:
        """Whether so many bytes may be added; removes what has gone unused."""
        if self._total + needed <= self._limit and self._written % _RECOUNT:
            return True
        entries = sorted(self._entries(), key=lambda entry: entry.used)
        self._total = sum(entry.size for entry in entries)
        for entry in entries:
            if self._total + needed <= self._limit or entry.used >= self._began:
                break
            entry.path.unlink(missing_ok=True)
            self._total -= entry.size
        if self._total + needed <= self._limit:
            return True
        self._is_full = True
        log.warning(
            "the feature cache %s has reached its limit of %.1f GB; the rest is computed each time",
            self._folder,
            self._limit / 1e9,
        )
        return False

    def _give_up(self, error: OSError) -> None:
        if not self._is_full:
            log.warning(
                "the feature cache %s cannot be used any more (%s); features are computed each time",
                self._folder,
                error.strerror or error,
            )
        self._is_full = True

    def _entries(self) -> list[_Entry]:
        """All files that are whole; removes halves that a killed process left."""
        found = []
        for path in self._folder.glob("*/*"):
            try:
                status = path.stat()
                if path.suffix != _PART:
                    found.append(_Entry(path, status.st_size, status.st_mtime))
                elif time.time() - status.st_mtime > _STALE_S:
                    path.unlink()
            except FileNotFoundError:  # another process removed it
                continue
        return found
