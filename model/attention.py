"""Attention for training on CPUs, in the place of PyTorch's fused one."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Final

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_TOKENS: Final = 256  # of a window; above, the matrix of weights would outgrow what its speed is worth


def attention_for(x: Tensor) -> AbstractContextManager[object]:
    """The context to run a trunk's blocks in, on tokens such as these.

    PyTorch's fused attention forgets its weights and computes them anew in its backward pass, which on CPUs
    takes ten times as long in bfloat16 as the forward pass: half of a training step on the windows of Hiera.
    Where gradients flow, sam2's blocks therefore get a plain one of matrix products, equal but for rounding.
    """
    return _PlainAttention() if x.device.type == "cpu" and torch.is_grad_enabled() else nullcontext()


class _PlainAttention(TorchFunctionMode):
    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        if func is F.scaled_dot_product_attention and not kwargs:
            q, k, v = args
            if q.dtype == torch.bfloat16 and k.shape[-2] <= _TOKENS:
                return attention(q, k, v)
        return func(*args, **(kwargs or {}))


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """softmax(q k^T / sqrt(d)) v (arXiv 1706.03762), the softmax in float32.

    Args:
        q: (B, heads, n, d).
        k: (B, heads, m, d).
        v: (B, heads, m, d).

    Returns:
        (B, heads, n, d), in the type of `v`.
    """
    weights = torch.softmax((q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2), dim=-1, dtype=torch.float32)
    return weights.to(v.dtype) @ v
