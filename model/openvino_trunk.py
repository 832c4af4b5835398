"""The frozen trunk by OpenVINO, where that is installed: faster on a CPU than PyTorch (docs/benchmarks.md).

On trial: `pip install 'elnet-loop[openvino]'` and `ELNET_OPENVINO=1` switch it on (why it is off by default:
docs/decisions.md). It serves the modes whose adapters stand behind the trunk or its first stages
(`model.hiera.AdaptedTrunk`), so that one conversion serves every model version. It takes seconds and is kept
on disk.
"""

from __future__ import annotations

import logging
import os
import threading
import warnings
from collections.abc import Callable
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

import torch
from torch import Tensor, nn

from model.cache_root import cache_root
from model.device import Precision, wants_bfloat16
from model.hiera import AdaptedTrunk, resample

log = logging.getLogger(__name__)

_FORMAT: Final = 1
_KEPT: Final = 8  # conversions on disk, about 110 MB each for Hiera tiny


def converted_folder() -> Path:
    """`$ELNET_HOME/openvino`, or `openvino` in the user's cache folder; it need not exist."""
    return cache_root() / "openvino"


def is_available(device: torch.device) -> bool:
    """Whether OpenVINO is installed and wanted on this device."""
    wanted = os.environ.get("ELNET_OPENVINO") == "1"
    return wanted and device.type == "cpu" and find_spec("openvino") is not None


class OpenVinoTrunk:
    """`AdaptedTrunk.frozen` by OpenVINO, converted at the first call for images of a size.

    Where OpenVINO cannot do it, PyTorch does, and the log says so once. Safe under threads: they take turns.

    Args:
        encoder: of a mode that keeps maps, on the CPU.
        trunk_sha256: of its trunk's weights.
        precision: to compute in; "auto" is bfloat16 on CPUs that have it.
        otherwise: what computes where OpenVINO cannot.
    """

    def __init__(
        self,
        encoder: AdaptedTrunk,
        trunk_sha256: str,
        precision: Precision,
        otherwise: Callable[[Tensor], list[Tensor]],
    ) -> None:
        self._encoder = encoder
        self._otherwise = otherwise
        self._identity = f"{_FORMAT} {trunk_sha256} {encoder.mode}"
        self._hint = "bf16" if wants_bfloat16(torch.device("cpu"), precision) else "f32"
        self._requests: dict[tuple[int, int], Any] = {}
        self._lock = threading.Lock()
        self._has_failed = False

    def __call__(self, images: Tensor) -> list[Tensor]:
        """(B, 3, H, W) float32, normalised -> the maps, (B, C_i, h_i, w_i) float32, channels last."""
        if self._has_failed:
            return self._otherwise(images)
        try:
            with self._lock:
                return self._compute(images.float().cpu())
        except Exception as error:  # the border of another runtime: a missing operation, anything
            self._has_failed = True
            told = str(error).strip().splitlines() or [type(error).__name__]
            log.warning("OpenVINO cannot run the trunk (%s); PyTorch does it, more slowly", told[0])
            return self._otherwise(images)

    def _compute(self, images: Tensor) -> list[Tensor]:
        images = resample(images, self._encoder.scale)  # its antialiasing is PyTorch's own
        height, width = images.shape[-2:]
        if (height, width) not in self._requests:
            self._requests[height, width] = self._compile(height, width)
        found = self._requests[height, width].infer([images.contiguous().numpy()])
        return [torch.from_numpy(m).permute(0, 3, 1, 2) for m in found.values()]

    def _compile(self, height: int, width: int) -> Any:
        import openvino

        core = openvino.Core()
        path = self._path(openvino.__version__, height, width)
        if path.is_file():
            os.utime(path)  # used just now
            model = core.read_model(path)
        else:
            model = _convert(_Frozen(self._encoder), height, width)
            _keep(model, path)
        options = {"INFERENCE_PRECISION_HINT": self._hint, "PERFORMANCE_HINT": "LATENCY"}
        return core.compile_model(model, "CPU", options).create_infer_request()

    def _path(self, version: str, height: int, width: int) -> Path:
        digest = sha256(f"{self._identity} {version} {height}x{width}".encode()).hexdigest()
        return converted_folder() / digest[:32] / "trunk.xml"


class _Frozen(nn.Module):
    """(B, 3, H, W) -> the maps as the trunk makes them, (B, h_i, w_i, C_i)."""

    def __init__(self, encoder: AdaptedTrunk) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        return tuple(m.permute(0, 2, 3, 1) for m in self.encoder.frozen_maps(x))


def _convert(network: nn.Module, height: int, width: int) -> Any:
    """An OpenVINO model for batches of any number.

    By its front end for PyTorch, not by `convert_model`, which reports its use to Intel.
    """
    import openvino
    from openvino.frontend import FrontEndManager
    from openvino.frontend.pytorch.ts_decoder import TorchScriptPythonDecoder

    with warnings.catch_warnings(), torch.no_grad(), torch.autocast("cpu", enabled=False):
        warnings.simplefilter("ignore")  # of tracing: conditions hang on the size, which is fixed
        traced = TorchScriptPythonDecoder(network.eval(), example_input=(torch.zeros(2, 3, height, width),))
    front_end = FrontEndManager().load_by_framework("pytorch")
    model = front_end.convert(front_end.load(traced))
    model.reshape({model.inputs[0]: openvino.PartialShape([-1, 3, height, width])})
    return model


def _keep(model: Any, path: Path) -> None:
    """Save a conversion for the next process, whole or not at all; the oldest ones go."""
    import openvino

    folder = path.parent
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with TemporaryDirectory(dir=folder.parent, prefix="part-", ignore_cleanup_errors=True) as scratch:
            openvino.save_model(model, Path(scratch) / path.name, compress_to_fp16=False)
            Path(scratch).rename(folder)
    except (OSError, RuntimeError) as error:  # another process was quicker, or the disk is full
        log.info("the converted trunk is not kept in %s: %s", folder, error)
    saved = sorted(folder.parent.glob("*/trunk.xml"), key=lambda p: p.stat().st_mtime)
    for old in saved[:-_KEPT]:
        for part in old.parent.iterdir():
            part.unlink(missing_ok=True)
        old.parent.rmdir()
