from __future__ import annotations

import errno
import logging
import multiprocessing
import os
import time
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from platformdirs import user_cache_path
from torch import Tensor

from model.feature_cache import FeatureCache, features_folder

IMAGES = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Trunk:
    """Two maps of an image; counts the images that it is asked for."""

    def __init__(self) -> None:
        self.asked = 0

    def __call__(self, images: Tensor) -> Sequence[Tensor]:
        self.asked += len(images)
        pooled = torch.nn.functional.avg_pool2d(images[:, :1], 2)
        return pooled, torch.nn.functional.avg_pool2d(pooled, 2)


def make(folder: Path, limit: int = 10**6, network: str = "trunk full fp32") -> FeatureCache:
    return FeatureCache(folder / "features", limit, network)


def files(folder: Path) -> list[Path]:
    return sorted((folder / "features").glob("*/*"))


def test_what_was_computed_is_read_the_next_time(tmp_path: Path) -> None:
    trunk = Trunk()
    first = make(tmp_path).features(IMAGES[:3], trunk)
    again = make(tmp_path).features(IMAGES, trunk)  # as another process would; the fourth is new
    assert trunk.asked == 4
    assert [tuple(m.shape) for m in again] == [(4, 1, 4, 4), (4, 1, 2, 2)]
    assert all(m.dtype is torch.float16 for m in again)
    for computed, read in zip(first, again, strict=True):
        assert torch.equal(computed, read[:3])
    for expected, found in zip(Trunk()(IMAGES), again, strict=True):
        torch.testing.assert_close(found.float(), expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("other", ["another-trunk full fp32", "trunk late fp32", "trunk full bf16"])
def test_another_network_finds_nothing(tmp_path: Path, other: str) -> None:
    trunk = Trunk()
    make(tmp_path).features(IMAGES, trunk)
    make(tmp_path, network=other).features(IMAGES, trunk)
    assert trunk.asked == 8


def test_one_pixel_makes_another_crop(tmp_path: Path) -> None:
    trunk, changed = Trunk(), IMAGES.clone()
    changed[0, 0, 0, 0] += 1e-3
    cache = make(tmp_path)
    cache.features(IMAGES, trunk)
    cache.features(changed, trunk)
    cache.features(IMAGES.transpose(2, 3), trunk)
    assert trunk.asked == 4 + 1 + 4


def test_a_damaged_file_is_computed_and_written_again(tmp_path: Path) -> None:
    trunk, cache = Trunk(), make(tmp_path)
    expected = cache.features(IMAGES, trunk)
    first, second, *_ = files(tmp_path)
    first.write_bytes(first.read_bytes()[:-7])
    second.write_bytes(b"")
    assert all(torch.equal(a, b) for a, b in zip(expected, cache.features(IMAGES, trunk), strict=True))
    assert trunk.asked == 6
    cache.features(IMAGES, trunk)
    assert trunk.asked == 6


def test_what_went_unused_makes_room(tmp_path: Path) -> None:
    make(tmp_path).features(IMAGES, Trunk())
    size = files(tmp_path)[0].stat().st_size
    long_ago = time.time() - 1000
    for age, path in enumerate(files(tmp_path)):
        os.utime(path, (long_ago + age, long_ago + age))
    oldest, *others = files(tmp_path)
    make(tmp_path, limit=4 * size).features(IMAGES[:1] + 1, Trunk())
    left = files(tmp_path)
    assert oldest not in left
    assert set(others) < set(left)
    assert len(left) == 4


def test_a_set_larger_than_the_limit_keeps_its_first_part(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    make(tmp_path).features(IMAGES[:1], Trunk())
    size = files(tmp_path)[0].stat().st_size
    cache, trunk = make(tmp_path, limit=2 * size), Trunk()
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            cache.features(IMAGES, trunk)
    assert len(files(tmp_path)) == 2
    assert trunk.asked == 3 + 2 + 2
    assert caplog.text.count("has reached its limit") == 1


def test_a_full_disk_costs_time_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(self: Path, target: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    cache, trunk = make(tmp_path), Trunk()
    cache.features(IMAGES[:1], trunk)
    monkeypatch.setattr(Path, "replace", full)
    with caplog.at_level(logging.WARNING):
        found = cache.features(IMAGES, trunk)
        cache.features(IMAGES, trunk)
    assert trunk.asked == 1 + 3 + 3
    assert len(found[0]) == 4
    assert len(files(tmp_path)) == 1  # nothing half
    assert caplog.text.count("cannot be used any more (No space left on device)") == 1


def test_halves_that_a_killed_process_left_are_removed(tmp_path: Path) -> None:
    cache = make(tmp_path)
    cache.features(IMAGES, Trunk())
    old, new = (files(tmp_path)[0].with_name(f"{name}.part") for name in ("old", "new"))
    for path in (old, new):
        path.write_bytes(b"half")
    os.utime(old, (0, 0))
    make(tmp_path)
    assert not old.exists()
    assert new.exists()  # another process may be writing it


def _use(folder: Path, index: int) -> None:
    cache = make(folder)
    for _ in range(20):
        found = cache.features(IMAGES, Trunk())
        assert torch.equal(found[0], Trunk()(IMAGES)[0].half()), index


def test_several_processes_share_a_folder(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_use, args=(tmp_path, index)) for index in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(files(tmp_path)) == 4


def test_where_it_is(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ELNET_HOME", str(tmp_path))
    assert features_folder() == tmp_path / "features"
    monkeypatch.delenv("ELNET_HOME")
    assert features_folder() == user_cache_path("elnet") / "features"
