from __future__ import annotations

import platform
import subprocess
import sys

import pytest
import torch

from model import device as device_module
from model.device import DeviceError, Precision, autocast, pick_device, wants_bfloat16


def test_auto_is_a_gpu_where_there_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert pick_device("auto") == torch.device("cuda")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert pick_device("auto") == torch.device("cpu")


def test_a_gpu_by_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert pick_device("cuda:1") == torch.device("cuda", 1)
    with pytest.raises(DeviceError, match=r"'cuda:2' is not here.*sees 2 GPUs"):
        pick_device("cuda:2")


def test_a_gpu_that_is_not_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    with pytest.raises(DeviceError, match="--device cpu"):
        pick_device("cuda")


@pytest.mark.parametrize("name", ["gpu", "", "meta", "cuda:x"])
def test_other_names(name: str) -> None:
    with pytest.raises(DeviceError, match="choose one of auto, cpu, cuda"):
        pick_device(name)


@pytest.mark.parametrize(("precision", "expected"), [("fp32", torch.float32), ("bf16", torch.bfloat16)])
def test_precision_on_the_cpu(precision: Precision, expected: torch.dtype) -> None:
    x = torch.ones(2, 2)
    with autocast(torch.device("cpu"), precision):
        assert (x @ x).dtype == expected


@pytest.mark.parametrize("able", [True, False])
def test_bfloat16_where_a_gpu_has_it(able: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: able)
    assert wants_bfloat16(torch.device("cuda"), "auto") is able
    assert not wants_bfloat16(torch.device("cuda"), "fp32")


@pytest.mark.parametrize(
    ("capabilities", "able"),
    [({"avx512_bf16": True}, True), ({"amx_bf16": True}, True), ({"avx512_f": True}, False), (None, False)],
)
def test_bfloat16_where_a_cpu_has_it(
    capabilities: dict[str, bool] | None, able: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ask() -> dict[str, bool]:
        if capabilities is None:
            raise AttributeError("torch before 2.12")
        return capabilities

    monkeypatch.setattr(torch.cpu, "get_capabilities", ask, raising=False)
    device_module._cpu_has_bfloat16.cache_clear()
    cpu = torch.device("cpu")
    assert wants_bfloat16(cpu, "auto") is able
    assert not wants_bfloat16(cpu, "fp32")
    assert wants_bfloat16(cpu, "bf16")
    device_module._cpu_has_bfloat16.cache_clear()


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="of glibc alone")
def test_freed_memory_is_taken_again() -> None:
    """A page that was given back to the system is a fault when it is taken again."""
    code = """
import resource, torch
from model.device import reuse_memory
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(50):
        torch.ones(4 << 20)  # 16 MiB
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
torch.set_num_threads(1)
torch.ones(4 << 20)
plain = faults()
reuse_memory()
torch.ones(4 << 20)
print(plain, faults())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    plain, reused = map(int, done.stdout.split())
    assert plain > 50 * 100
    assert reused < plain / 20
