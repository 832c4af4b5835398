"""Where tensors live, and at which precision they are computed."""

from __future__ import annotations

import ctypes
import os
import platform
import sys
from collections.abc import Mapping
from functools import lru_cache
from typing import Final, Literal

import torch

from model.errors import ELNetError

Precision = Literal["auto", "fp32", "bf16"]

# M_MMAP_THRESHOLD (32 MiB is the most that glibc allows), M_TRIM_THRESHOLD and M_TOP_PAD of mallopt(3)
_MALLOC_OPTIONS: Final = {-3: 32 << 20, -1: 1 << 30, -2: 64 << 20}


class DeviceError(ELNetError):
    """A device that this machine does not have."""


def pick_device(name: str) -> torch.device:
    """Turn "auto", "cpu", "cuda" or "cuda:1" into a device; "auto" takes the first GPU, or else the CPU.

    Raises:
        DeviceError: unknown name, or no such GPU.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        device = torch.device("meta")
    if device.type not in ("cpu", "cuda"):
        raise DeviceError(f"unknown device {name!r}; choose one of auto, cpu, cuda")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise DeviceError(f"device {name!r} is not here: torch sees {count} GPUs; take --device cpu")
    return device


@lru_cache
def reuse_memory() -> None:
    """Let this process keep up to 1 GiB of what it frees, in blocks of up to 32 MiB, for its next tensors.

    On a CPU a network frees and takes as much again in every layer. By default glibc gives such blocks back
    to the system, which has to clear each page anew: kept, training and prediction are a fifth faster. Larger
    blocks, such as those of large images, are still given back at once. Without glibc nothing is changed.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for option, value in _MALLOC_OPTIONS.items():
            mallopt(option, value)


def describe_machine() -> str:
    """This machine in a few words, for reports."""
    return f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}"


def autocast(device: torch.device, precision: Precision = "auto") -> torch.autocast:
    """The context to run the network in: bfloat16 or float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=wants_bfloat16(device, precision))


def wants_bfloat16(device: torch.device, precision: Precision) -> bool:
    """Whether to compute in bfloat16: as told, and by "auto" on GPUs and CPUs that have it in hardware.

    float16 is not offered: its range is short, so gradients would need loss scaling.
    """
    if precision != "auto":
        return precision == "bf16"
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return _cpu_has_bfloat16()


@lru_cache
def _cpu_has_bfloat16() -> bool:
    try:
        capabilities: Mapping[str, object] = torch.cpu.get_capabilities()
    except AttributeError:  # torch before 2.12
        return False
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
