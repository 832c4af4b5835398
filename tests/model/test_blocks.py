from __future__ import annotations

import pytest
import torch
from torch import Tensor

from model.blocks import Adapter, DecoderStage, EdgeAttention, ReceptiveFieldBlock


def noise(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_an_adapter_starts_silent_and_can_learn() -> None:
    adapter = Adapter(24, 8)
    out = adapter(noise(2, 4, 4, 24))
    assert out.shape == (2, 4, 4, 24)
    assert not out.any()
    (out - 1).square().mean().backward()
    assert adapter.up.weight.grad is not None
    assert adapter.up.weight.grad.any()


@pytest.mark.parametrize("side", [1, 3, 16])
def test_receptive_field_block_keeps_the_side(side: int) -> None:
    assert ReceptiveFieldBlock(24, 16)(noise(2, 24, side, side + 1)).shape == (2, 16, side, side + 1)


def test_receptive_field_block_sees_far_but_not_everything() -> None:
    block = ReceptiveFieldBlock(8, 16).eval()
    for module in block.modules():  # GroupNorm looks at the whole image by its statistics
        for name, child in module.named_children():
            if isinstance(child, torch.nn.GroupNorm):
                setattr(module, name, torch.nn.Identity())
    x = noise(1, 8, 61, 61).requires_grad_()
    block(x)[0, :, 30, 30].sum().backward()
    assert x.grad is not None
    rows = x.grad.abs().sum(dim=(0, 1, 3)).nonzero().flatten()
    # 7 x 1 before 3 x 3 dilated by 7, before the fusing 3 x 3: 3 + 7 + 1 pixels to each side
    assert (int(rows.min()), int(rows.max())) == (30 - 11, 30 + 11)


def test_edge_attention_weights_every_element_between_one_and_two() -> None:
    x = noise(2, 16, 8, 8)
    weighted, boundary = EdgeAttention(16, 3)(x)
    assert boundary.shape == (2, 3, 8, 8)
    weight = weighted / x
    assert weight.shape == x.shape
    assert 1 < weight.min() < weight.max() < 2
    assert weight.std(dim=(2, 3)).min() > 0  # by place
    assert weight.std(dim=1).min() > 0  # and by channel


def test_the_boundary_map_teaches_the_attention_its_features() -> None:
    attention = EdgeAttention(16, 1)
    attention(noise(1, 16, 8, 8))[1].sum().backward()
    grads = [p.grad for p in attention.extract.parameters()]
    assert all(g is not None and g.any() for g in grads)


def test_a_decoder_stage_doubles_the_resolution() -> None:
    features, edge = DecoderStage(16, 2)(noise(2, 16, 3, 5), noise(2, 16, 6, 10))
    assert features.shape == (2, 16, 6, 10)
    assert edge.shape == (2, 2, 6, 10)


def test_an_image_is_computed_the_same_alone_and_among_others() -> None:
    stage = DecoderStage(16, 1).train()
    x, skip = noise(3, 16, 4, 4), noise(3, 16, 8, 8) + torch.arange(3).view(3, 1, 1, 1)
    among, _ = stage(x, skip)
    alone, _ = stage(x[1:2], skip[1:2])
    torch.testing.assert_close(among[1:2], alone, rtol=1e-4, atol=1e-5)
