from __future__ import annotations

import numpy as np
import pytest
import torch

from model.quality_head import LEAST, POOLED, QualityHead, means, pool

WIDTH = 6


def maps(seed: int = 0, side: int = 8) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(seed)
    return torch.randn(3, WIDTH, side, side), torch.randn(3, 2, side, side), torch.randn(3, 2, side, side)


def samples(n: int = 120) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    x = random.normal(size=(n, POOLED * WIDTH))
    return x, np.clip(0.5 + 0.2 * x[:, 0] - 0.1 * x[:, 7], 0, 1)


def test_means_are_those_of_the_weighted_features() -> None:
    features, mask, edge = maps()
    found = means(pool(features, mask, edge)).reshape(3, 2, POOLED, WIDTH)
    p = mask[1, 0].sigmoid()
    torch.testing.assert_close(found[1, 0, 0], (features[1] * p).sum((1, 2)) / p.sum())
    torch.testing.assert_close(found[1, 0, 1], (features[1] * (1 - p)).sum((1, 2)) / (1 - p).sum())
    e = edge[2, 1].sigmoid()
    torch.testing.assert_close(found[2, 1, 3], (features[2] * e).sum((1, 2)) / e.sum())


def test_the_sums_of_an_image_are_those_of_its_tiles() -> None:
    features, mask, edge = maps(side=8)
    whole = pool(features, mask, edge)
    left, right = (pool(*(m[..., cols] for m in (features, mask, edge))) for cols in (slice(4), slice(4, 8)))
    torch.testing.assert_close(whole, left + right)


def test_half_precision_around_it_rounds_nothing() -> None:
    whole = pool(*maps())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(pool(*maps()), whole)


def test_what_has_no_weight_has_no_mean() -> None:
    features, mask, edge = maps()
    assert not means(pool(features, mask - 1000, edge - 1000))[..., :WIDTH].any()


def test_a_head_that_was_not_fitted_says_so() -> None:
    assert QualityHead(WIDTH, 2)(pool(*maps())).isnan().all()


def test_fitted_it_foresees_the_iou_of_what_it_was_fitted_on_and_the_other_class_stays_unknown() -> None:
    x, ious = samples()
    head = QualityHead(WIDTH, 2)
    head.fit(1, x, ious, np.ones(len(x)), [f"scene{i // 2}" for i in range(len(x))])
    sums = np.zeros((len(x), 2, POOLED, WIDTH + 1), np.float32)
    sums[..., -1] = 5
    sums[:, 1, :, :-1] = 5 * x.reshape(-1, POOLED, WIDTH)
    found = head(torch.from_numpy(sums))
    assert found[:, 0].isnan().all()
    assert np.abs(found[:, 1].numpy() - ious).mean() < 0.02
    assert 0 <= found[:, 1].min() <= found[:, 1].max() <= 1


def test_images_of_no_weight_do_not_count() -> None:
    x, ious = samples()
    wrong = np.arange(len(x)) % 3 == 0
    scenes = [str(i) for i in range(len(x))]
    told, plain = QualityHead(WIDTH, 1), QualityHead(WIDTH, 1)
    told.fit(0, x, np.where(wrong, 1 - ious, ious), np.where(wrong, 1e-9, 1), scenes)
    plain.fit(
        0,
        x[~wrong],
        ious[~wrong],
        np.ones((~wrong).sum()),
        [s for s, w in zip(scenes, wrong, strict=True) if not w],
    )
    torch.testing.assert_close(told.weight, plain.weight, atol=0.02, rtol=0)


@pytest.mark.parametrize(("n", "scenes"), [(LEAST - 1, LEAST - 1), (60, 1)])
def test_too_few_masks_or_a_single_scene_fit_nothing(n: int, scenes: int) -> None:
    x, ious = samples(n)
    head = QualityHead(WIDTH, 1)
    head.fit(0, x, ious, np.ones(n), [str(i % scenes) for i in range(n)])
    assert head.bias.isnan().all()


def test_masks_that_are_all_alike_foresee_their_iou() -> None:
    head = QualityHead(WIDTH, 1)
    head.fit(0, np.ones((40, POOLED * WIDTH)), np.full(40, 0.7), np.ones(40), [str(i) for i in range(40)])
    assert head.bias.item() == pytest.approx(0.7)
    assert not head.weight.any()
