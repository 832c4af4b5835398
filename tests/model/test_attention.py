from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model import attention as module
from model.attention import attention, attention_for
from model.device import autocast
from model.hiera import TRUNKS, AdaptedTrunk, build_trunk

CPU = torch.device("cpu")


def tokens(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


@pytest.mark.parametrize(("queries", "keys"), [(64, 64), (16, 64), (1, 4)])
def test_it_is_pytorchs_attention_and_so_are_its_gradients(queries: int, keys: int) -> None:
    found = []
    for attend in (attention, F.scaled_dot_product_attention):
        q, k, v = (tokens(3, 2, n, 8).requires_grad_() for n in (queries, keys, keys + 1))
        v = v[:, :, 1:]
        out = attend(q, k, v)
        out.square().sum().backward()  # type: ignore[no-untyped-call]
        assert q.grad is not None
        assert k.grad is not None
        found.append((out, q.grad, k.grad))
    for ours, theirs in zip(*found, strict=True):
        torch.testing.assert_close(ours, theirs)


@pytest.mark.parametrize(
    ("with_gradients", "dtype", "keys", "ours"),
    [
        (True, torch.bfloat16, 256, True),
        (True, torch.bfloat16, 257, False),
        (True, torch.float32, 64, False),
        (False, torch.bfloat16, 64, False),
    ],
)
def test_where_it_stands_in(
    with_gradients: bool, dtype: torch.dtype, keys: int, ours: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "attention", lambda q, k, v: q * 0)
    q, k, v = (tokens(1, 1, n, 4).to(dtype) for n in (4, keys, keys))
    with torch.set_grad_enabled(with_gradients), attention_for(q):
        out = F.scaled_dot_product_attention(q, k, v)
    assert bool((out == 0).all()) is ours
    assert F.scaled_dot_product_attention(q, k, v).any()  # and nowhere afterwards


def test_a_gpu_keeps_its_own() -> None:
    with attention_for(torch.zeros(1, device="meta")) as mode:
        assert mode is None


def test_bfloat16_trains_as_float32_does() -> None:
    found = []
    for precision in ("fp32", "bf16"):
        torch.manual_seed(0)
        trunk = AdaptedTrunk(build_trunk("random-nano", None), TRUNKS["random-nano"], adapter_dim=4)
        for adapter in trunk.adapters:
            torch.nn.init.normal_(adapter.up.weight, std=0.1)  # type: ignore[union-attr, arg-type]
        with autocast(CPU, precision):  # type: ignore[arg-type]
            stages = trunk(tokens(2, 3, 64, 96))
        sum(s.float().square().mean() for s in stages).backward()
        gradient = torch.cat([p.grad.flatten() for p in trunk.parameters() if p.grad is not None])
        found.append((stages[-1].detach().float().flatten(), gradient))
    for exact, rough in zip(*found, strict=True):
        assert F.cosine_similarity(exact, rough, dim=0) > 0.995
