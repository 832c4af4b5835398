from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.utils.data import DataLoader

from model.data import MEAN, STD, Sample, SegmentationData
from model.pairs import DataError, Pair, find_pairs
from model.raster import write_mask, write_png


def grey(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width), dtype=np.uint8)


def make_pair(folder: Path, stem: str, image: NDArray[np.uint8], *masks: NDArray[np.bool_]) -> Pair:
    write_png(folder / f"{stem}.png", image)
    paths = tuple(folder / f"{stem}-{i}.png" for i in range(len(masks)))
    for path, mask in zip(paths, masks, strict=True):
        write_mask(path, mask)
    return Pair(stem, folder / f"{stem}.png", paths, stem, 0.5)


@pytest.fixture
def pairs(tmp_path: Path) -> list[Pair]:
    """Three images whose mask is where they are brighter than 127: sizes above, at and below 32."""
    images = [grey(70, 50, 1), grey(32, 32, 2), grey(9, 40, 3)]
    return [make_pair(tmp_path, f"i{n}", image, image > 127) for n, image in enumerate(images)]


def denormalise(image: torch.Tensor) -> NDArray[Any]:
    values = image * torch.tensor(STD).view(3, 1, 1) + torch.tensor(MEAN).view(3, 1, 1)
    return (values * 255).numpy()


def everything(data: SegmentationData) -> list[Sample]:
    return [data[i] for i in range(len(data))]


def same(a: list[Sample], b: list[Sample]) -> bool:
    return all(torch.equal(x, y) for s, t in zip(a, b, strict=True) for x, y in zip(s, t, strict=True))


class TestPlain:
    def test_what_comes_out(self, pairs: list[Pair]) -> None:
        data = SegmentationData(pairs, 32, augment=False)
        assert len(data) == 3 * 2 + 1 + 2  # windows that cover each
        for sample in everything(data):
            assert sample.image.shape == (3, 32, 32)
            assert sample.image.dtype == torch.float32
            assert sample.masks.shape == (1, 32, 32)
            assert sample.masks.dtype == torch.float32
            assert sample.valid.shape == (32, 32)
            assert sample.valid.dtype == torch.bool
            assert sample.weight == 0.5

    def test_crops_are_no_larger_than_the_largest_image_needs(self, pairs: list[Pair]) -> None:
        data = SegmentationData(pairs, 256, augment=False)
        assert data.size == 96  # 70 px, rounded up to the trunk's stride
        assert len(data) == 3
        assert SegmentationData(pairs[1:2], 256).size == 32

    def test_pixels_are_normalised_and_in_their_place(self, pairs: list[Pair]) -> None:
        sample = SegmentationData(pairs, 32, augment=False)[6]
        expected = np.asarray(Image.open(pairs[1].image))
        np.testing.assert_allclose(denormalise(sample.image)[1], expected, atol=0.01)
        np.testing.assert_array_equal(sample.masks[0].numpy(), expected > 127)

    def test_small_images_are_reflected_and_not_valid_there(self, pairs: list[Pair]) -> None:
        sample = SegmentationData(pairs, 32, augment=False)[7]
        assert sample.valid[:9].all()
        assert not sample.valid[9:].any()
        np.testing.assert_allclose(sample.image[:, 9], sample.image[:, 7])
        np.testing.assert_allclose(sample.masks[:, 10], sample.masks[:, 6])

    def test_nodata_is_not_valid(self, tmp_path: Path) -> None:
        rgba = np.dstack([grey(40, 40, i) for i in range(3)] + [np.full((40, 40), 255, np.uint8)])
        rgba[:20, :, 3] = 0
        pair = make_pair(tmp_path, "a", rgba, rgba[..., 0] > 127)
        sample = SegmentationData([pair], 40, augment=False)[0]
        np.testing.assert_array_equal(sample.valid.numpy(), rgba[..., 3] > 0)


class TestAugmented:
    def test_masks_turn_with_their_image(self, pairs: list[Pair]) -> None:
        """The mask is where the image is bright: still so after every symmetry, crop, gain and offset."""
        data = SegmentationData(pairs, 32)
        for epoch in range(8):
            data.set_epoch(epoch)
            for sample in everything(data):
                inside, outside = sample.masks[0] > 0, sample.masks[0] == 0
                assert sample.image[0][inside].min() >= sample.image[0][outside].max()

    def test_all_eight_symmetries_come_up(self, tmp_path: Path) -> None:
        mask = np.zeros((16, 16), bool)
        mask[2, 3:9] = mask[2:5, 3] = True  # an L: no symmetry of its own
        data = SegmentationData([make_pair(tmp_path, "l", mask.astype(np.uint8) * 255, mask)], 16)
        seen = set()
        for epoch in range(80):
            data.set_epoch(epoch)
            seen.add(data[0].masks.numpy().tobytes())
        turned = [np.rot90(m, k) for k in range(4) for m in (mask, mask[:, ::-1])]
        assert seen == {np.ascontiguousarray(m, np.float32).tobytes() for m in turned}

    def test_nodata_turns_with_its_image(self, tmp_path: Path) -> None:
        rgba = np.full((50, 40, 4), 255, np.uint8)
        rgba[3:20, 5:9, 3] = 0  # becomes black
        data = SegmentationData([make_pair(tmp_path, "v", rgba, rgba[..., 0] > 0)], 32)
        for epoch in range(8):
            data.set_epoch(epoch)
            for sample in everything(data):
                np.testing.assert_array_equal(sample.valid.numpy(), denormalise(sample.image)[0] > 100)

    def test_crops_lie_anywhere(self, tmp_path: Path) -> None:
        ramp = np.tile(np.arange(100, dtype=np.uint8), (100, 1))
        ramp[:, -1] = 255
        data = SegmentationData([make_pair(tmp_path, "r", ramp, ramp > 50)], 20)
        shares = []
        for epoch in range(20):
            data.set_epoch(epoch)
            shares += [float(s.masks.mean()) for s in everything(data)]
        assert min(shares) == 0
        assert max(shares) == 1
        assert np.mean(shares) == pytest.approx(0.49, abs=0.06)

    def test_gain_and_offset_are_mild(self, tmp_path: Path) -> None:
        flat = np.full((16, 16), 128, np.uint8)
        data = SegmentationData([make_pair(tmp_path, "f", flat, flat > 0)], 16)
        values = []
        for epoch in range(100):
            data.set_epoch(epoch)
            values.append(float(denormalise(data[0].image)[0, 0, 0]))
        assert 128 * 0.85 - 0.08 * 255 - 1 <= min(values) < 115
        assert 140 < max(values) <= 128 * 1.15 + 0.08 * 255 + 1

    def test_a_crop_has_something_valid(self, tmp_path: Path) -> None:
        rgba = np.zeros((200, 200, 4), np.uint8)
        rgba[150, 20] = 255
        data = SegmentationData([make_pair(tmp_path, "v", rgba, np.zeros((200, 200), bool))], 16)
        assert all(sample.valid.any() for sample in everything(data))


class TestRepeatable:
    def test_by_seed_epoch_and_index(self, pairs: list[Pair]) -> None:
        a, b, c = (SegmentationData(pairs, 32, seed=seed) for seed in (1, 1, 2))
        first = everything(a)
        assert same(first, everything(b)[:])
        assert same([b[5], b[0]], [first[5], first[0]])  # in any order
        assert not same(first, everything(c))
        a.set_epoch(1)
        assert not same(first, everything(a))
        a.set_epoch(0)
        assert same(first, everything(a))

    def test_few_views_come_again_whatever_the_seed_and_the_company(self, pairs: list[Pair]) -> None:
        data = SegmentationData(pairs, 32, seed=1, views=3)
        epochs = []
        for epoch in range(6):
            data.set_epoch(epoch)
            epochs.append(everything(data))
        assert same(epochs[0] + epochs[1] + epochs[2], epochs[3] + epochs[4] + epochs[5])
        assert not same(epochs[0], epochs[1])
        plain = everything(SegmentationData(pairs, 32, augment=False))
        for index, sample in enumerate(plain):  # each crop as it is comes up once
            assert sum(same([sample], [epoch[index]]) for epoch in epochs[:3]) == 1
        alone = SegmentationData(pairs[:1], 32, seed=2, views=3)
        views = []
        for epoch in range(3):
            alone.set_epoch(epoch)
            views += everything(alone)
        in_company = [sample for epoch in epochs[:3] for sample in epoch[: len(alone)]]
        assert all(any(same([a], [b]) for b in in_company) for a in views)

    def test_the_cache_changes_nothing(self, pairs: list[Pair]) -> None:
        assert same(
            everything(SegmentationData(pairs, 32)), everything(SegmentationData(pairs, 32, cache_bytes=0))
        )

    def test_cached_images_need_no_file(self, pairs: list[Pair]) -> None:
        cached, uncached = (SegmentationData(pairs, 32, cache_bytes=n) for n in (10**6, 0))
        first = cached[0]
        for pair in pairs:
            pair.image.unlink()
        assert same([cached[0]], [first])
        with pytest.raises(DataError, match=r"i0\.png: no such file"):
            uncached[0]

    def test_a_spawned_worker_is_not_sent_the_cache(self, pairs: list[Pair]) -> None:
        data = SegmentationData(pairs, 32)
        sent = pickle.dumps(data)
        assert len(sent) < sum(array.nbytes for array in data._cache[0])
        assert same(everything(pickle.loads(sent)), everything(data))

    def test_workers_give_the_same_also_in_later_epochs(self, pairs: list[Pair]) -> None:
        data = SegmentationData(pairs, 32)
        loader = DataLoader(data, batch_size=2, num_workers=2, persistent_workers=True)
        for epoch in range(2):
            data.set_epoch(epoch)
            batches = list(loader)
            alone = everything(data)
            assert isinstance(batches[0], Sample)
            assert torch.equal(torch.cat([b.image for b in batches]), torch.stack([s.image for s in alone]))
            assert torch.equal(torch.cat([b.masks for b in batches]), torch.stack([s.masks for s in alone]))


class TestRefused:
    def test_before_training_begins(self, pairs: list[Pair], tmp_path: Path) -> None:
        with pytest.raises(DataError, match="no image to train on"):
            SegmentationData([], 32)
        two = make_pair(tmp_path, "two", grey(9, 9), grey(9, 9) > 9, grey(9, 9) > 99)
        with pytest.raises(DataError, match=r"two\.png: 2 masks, others have 1"):
            SegmentationData([*pairs, two], 32)
        void = make_pair(tmp_path, "void", np.zeros((9, 9, 4), np.uint8), np.zeros((9, 9), bool))
        with pytest.raises(DataError, match=r"void\.png: no valid pixel"):
            SegmentationData([*pairs, void], 32)
        pairs[2].image.write_bytes(b"\x89PNG\r\n\x1a\n half of it")
        with pytest.raises(DataError, match=r"i2\.png: truncated"):
            SegmentationData(pairs, 32)


@pytest.mark.data
@pytest.mark.parametrize(
    ("folder", "shape"), [("sar_oil/small", 80), ("road/small", 20 * 4 + 6 * 9), ("geotiff", 4 + 4 + 36)]
)
def test_real_folders(data_folder: Path, folder: str, shape: int) -> None:
    pairs, _ = find_pairs(data_folder / folder)
    data = SegmentationData(pairs, 256)
    assert len(data) == shape
    sample = data[len(data) - 1]
    assert torch.isfinite(sample.image).all()
    assert sample.valid.any()
