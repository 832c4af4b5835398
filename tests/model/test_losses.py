from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from model.elnet import ELNetOutput
from model.losses import boundary_loss, boundary_of, elnet_loss, structure_loss, structure_weight


def square(size: int = 64) -> Tensor:
    mask = torch.zeros(1, 1, size, size)
    mask[..., 20:40, 20:44] = 1
    return mask


def sure(mask: Tensor) -> Tensor:
    """Logits of a nearly certain prediction of this mask."""
    return 20 * (2 * mask - 1)


def output(mask: Tensor, edge: Tensor) -> ELNetOutput:
    return ELNetOutput(mask, edge, [mask], [edge], torch.zeros(len(mask), 4))


def everywhere(mask: Tensor) -> Tensor:
    return torch.ones(mask.shape[0], *mask.shape[2:], dtype=torch.bool)


def test_structure_weight_is_the_formula() -> None:
    """In the middle of a large image, 1 + 5 |avgpool31(m) - m| as F3Net's code computes it in one pass."""
    mask = (torch.rand(2, 2, 80, 80, generator=torch.Generator().manual_seed(0)) > 0.5).float()
    expected = 1 + 5 * (F.avg_pool2d(mask, 31, stride=1, padding=15) - mask).abs()
    found = structure_weight(mask, torch.ones(2, 1, 80, 80))
    torch.testing.assert_close(found[..., 15:-15, 15:-15], expected[..., 15:-15, 15:-15])


def test_structure_weight_takes_the_images_border_for_no_edge() -> None:
    full = torch.ones(1, 1, 40, 40)
    torch.testing.assert_close(structure_weight(full, full), full)


def test_structure_weight_is_largest_at_the_boundary_and_zero_at_nodata() -> None:
    valid = torch.ones(1, 1, 64, 64)
    valid[..., :10] = 0
    weight = structure_weight(square(), valid)
    assert weight[..., :10].max() == 0
    assert weight[0, 0, 20, 30] > weight[0, 0, 30, 32] > 1
    assert weight[0, 0, 60, 60] == 1
    assert weight.max() <= 6


def test_bce_is_weighted_pixel_by_pixel() -> None:
    """Against a computation by hand; an unweighted mean (the legacy reduce='none') differs clearly."""
    logits = torch.randn(1, 1, 64, 64, generator=torch.Generator().manual_seed(0))
    mask = square()
    weight = structure_weight(mask, torch.ones_like(mask))
    p = logits.sigmoid().double()
    bce = -(mask * p.log() + (1 - mask) * (1 - p).log())
    both, either = (weight * p * mask).sum(), (weight * (p + mask - p * mask)).sum()
    iou = 1 - (both + 1) / (either + 1)
    expected = (weight * bce).sum() / weight.sum() + iou
    found = structure_loss(logits, mask, weight)
    torch.testing.assert_close(found.double(), expected.view(1, 1), rtol=1e-4, atol=1e-5)
    assert abs(found.item() - (bce.mean() + iou).item()) > 1e-3


def test_pixels_near_outlines_weigh_more_by_the_structure_asked_for() -> None:
    mask, valid = square(), everywhere(square())
    logits = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    even = structure_loss(logits, mask, torch.ones_like(mask))
    heavy = structure_loss(logits, mask, structure_weight(mask, torch.ones_like(mask), 3))
    plain = elnet_loss(output(logits, logits), mask, valid, edge_weight=0, structure=0)
    structured = elnet_loss(output(logits, logits), mask, valid, edge_weight=0, structure=3)
    torch.testing.assert_close(plain, even.mean())
    torch.testing.assert_close(structured, heavy.mean())
    assert (plain - structured).abs() > 1e-2


@pytest.mark.parametrize("mask", [square(), torch.zeros(1, 1, 64, 64), torch.ones(1, 1, 64, 64)])
def test_a_perfect_prediction_costs_nothing_and_its_opposite_much(mask: Tensor) -> None:
    boundary, _ = boundary_of(mask, torch.ones_like(mask))
    valid = everywhere(mask)
    assert elnet_loss(output(sure(mask), sure(boundary)), mask, valid) < 1e-3
    assert elnet_loss(output(-sure(mask), sure(boundary)), mask, valid) > 10
    assert elnet_loss(output(sure(mask), -sure(boundary)), mask, valid) > 10


def test_on_an_empty_mask_less_foreground_is_better() -> None:
    empty = torch.zeros(1, 1, 32, 32)
    weight = structure_weight(empty, torch.ones_like(empty))
    losses = [structure_loss(torch.full_like(empty, x), empty, weight).item() for x in (2.0, 0.0, -2.0, -6.0)]
    assert losses == sorted(losses, reverse=True)


def test_the_boundary_is_two_pixels_wide_and_leaves_out_the_border() -> None:
    mask = torch.zeros(1, 1, 12, 12)
    mask[..., :6] = 1  # touches three sides of the image
    boundary, certain = boundary_of(mask, torch.ones_like(mask))
    expected = torch.zeros(12, 12)
    expected[:, 5:7] = 1
    assert torch.equal(boundary[0, 0], expected)
    assert certain.all()


def test_the_boundary_beside_nodata_is_not_known() -> None:
    valid = torch.ones(1, 1, 12, 12)
    valid[..., 4, 4] = 0
    _, certain = boundary_of(torch.zeros(1, 1, 12, 12), valid)
    assert certain.sum() == 144 - 9


def test_nodata_counts_nowhere() -> None:
    mask = square()
    valid = everywhere(mask)
    valid[:, :30] = False
    logits = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0)).requires_grad_()
    edges = logits.detach().clone().requires_grad_()
    loss = elnet_loss(output(logits, edges), mask, valid)
    louder = torch.where(valid[:, None], logits, 50.0)
    assert elnet_loss(output(louder, louder), mask, valid) == loss
    loss.backward()  # type: ignore[no-untyped-call]
    for grad in (logits.grad, edges.grad):
        assert grad is not None
        assert not grad[..., :30, :].any()
        assert grad[..., 31:, :].any()


def test_without_a_valid_pixel_the_loss_is_zero_and_finite() -> None:
    mask = square()
    logits = sure(mask).requires_grad_()
    loss = elnet_loss(output(logits, logits), mask, torch.zeros(1, 64, 64, dtype=torch.bool))
    loss.backward()  # type: ignore[no-untyped-call]
    assert loss == 0
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


def test_dice_sees_a_boundary_that_bce_overlooks() -> None:
    """Predicting no boundary at all must cost much although only few pixels are boundary."""
    boundary, certain = boundary_of(square(256), torch.ones(1, 1, 256, 256))
    assert boundary.mean() < 0.01
    assert boundary_loss(torch.full_like(boundary, -5.0), boundary, certain) > 0.9


def test_importance_scales_an_images_loss() -> None:
    mask = square().repeat(2, 1, 1, 1)
    logits = torch.randn(mask.shape, generator=torch.Generator().manual_seed(0))
    both, valid = output(logits, logits), everywhere(mask)
    plain = elnet_loss(both, mask, valid)
    first = elnet_loss(both, mask, valid, torch.tensor([1.0, 0.0]))
    second = elnet_loss(both, mask, valid, torch.tensor([0.0, 1.0]))
    torch.testing.assert_close(first + second, plain)
    assert first > 0
    assert second > 0


def test_classes_count_equally_and_sides_are_supervised() -> None:
    mask = torch.cat([square(), torch.zeros(1, 1, 64, 64)], dim=1)
    boundary, _ = boundary_of(mask, torch.ones(1, 1, 64, 64))
    good = output(sure(mask), sure(boundary))
    side_wrong = good._replace(sides=[-sure(mask)])
    edge_side_wrong = good._replace(edge_sides=[-sure(boundary)])
    valid = everywhere(mask)
    assert elnet_loss(side_wrong, mask, valid) > 5
    assert elnet_loss(edge_side_wrong, mask, valid) > 5
    assert elnet_loss(edge_side_wrong, mask, valid, edge_weight=0.0) < 1e-3
    one_class_wrong = good._replace(mask=torch.cat([sure(mask[:, :1]), -sure(mask[:, 1:])], dim=1))
    all_wrong = good._replace(mask=-sure(mask))
    half = elnet_loss(one_class_wrong, mask, valid)
    assert 0.3 < half / elnet_loss(all_wrong, mask, valid) < 0.7
