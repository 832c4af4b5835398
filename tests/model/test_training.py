from __future__ import annotations

import errno
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from model import checkpoint, training
from model.checkpoint import (
    CheckpointError,
    ModelCard,
    load_checkpoint,
    load_trunk,
    save_checkpoint,
)
from model.data import DataError, SegmentationData, find_pairs
from model.elnet import SAM2ELNet
from model.hiera import AdaptedTrunk, Mode, TrunkError, build_trunk, trunk_spec
from model.losses import elnet_loss
from model.predictor import Predictor
from model.quality_fit import QUALITY_PASSES
from model.raster import open_raster
from model.training import TrainConfig, TrainingError, TrainProgress, train

NANO = TrainConfig(trunk="random-nano", epochs=2, size=32, width=16, adapter_dim=4, device="cpu")


def make_data(folder: Path, count: int = 4, classes: tuple[str, ...] = (), side: int = 32) -> Path:
    """Bright squares on a dark ground, and their masks."""
    random = np.random.default_rng(0)
    (folder / "images").mkdir(parents=True)
    for name in classes or ("",):
        (folder / "masks" / name).mkdir(parents=True)
    for i in range(count):
        mask = np.zeros((side, side), np.uint8)
        row, col = random.integers(2, side // 2, 2)
        mask[row : row + side // 3, col : col + side // 3] = 255
        pixels = np.clip(random.normal(60, 10, mask.shape) + 0.5 * mask, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"scene{i}.png")
        for name in classes or ("",):
            Image.fromarray(mask).save(folder / "masks" / name / f"scene{i}.png")
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


def test_training_writes_a_checkpoint_that_loads(data: Path, tmp_path: Path) -> None:
    reports: list[TrainProgress] = []
    card = train(data, tmp_path / "out", NANO, version="elnet-0001", progress=reports.append)
    model, stored = load_checkpoint(tmp_path / "out")
    assert stored == card
    assert card.version == "elnet-0001"
    assert card.classes == ("foreground",)
    assert card.size == 32
    assert card.parent is None
    assert card.metrics["images"] == 4
    assert card.metrics["config"]["epochs"] == 2
    assert [(r.epoch, r.epochs) for r in reports] == [(1, 2), (2, 2)]
    assert reports[-1].loss == card.metrics["loss"]
    assert all(r.images_per_s > 0 for r in reports)
    assert not model.training


def test_training_learns(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", side=64)
    reports: list[TrainProgress] = []
    train(data, tmp_path / "out", replace(NANO, size=64, epochs=25, lr=1e-2), progress=reports.append)
    model, _ = load_checkpoint(tmp_path / "out")
    crops = SegmentationData(find_pairs(data)[0], 64, augment=False)
    images, truth = (torch.stack(t) for t in zip(*(crops[i][:2] for i in range(4)), strict=True))
    with torch.no_grad():
        found = model(images).mask > 0
    truth = truth > 0
    assert (found & truth).sum() / (found | truth).sum() > 0.75
    assert reports[-1].loss < 0.7 * reports[0].loss


def test_the_trunk_is_untouched_by_training(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    used: list[torch.nn.Module] = []

    def load_trunk(name: str, digest: str | None = None) -> tuple[torch.nn.Module, str]:
        trunk, found = checkpoint.load_trunk(name, digest)
        used.append(trunk)
        return trunk, found

    monkeypatch.setattr(training, "load_trunk", load_trunk)
    train(data, tmp_path / "out", NANO)
    fresh = build_trunk("random-nano", None).state_dict()
    (trunk,) = used
    assert all(torch.equal(value, fresh[key]) for key, value in trunk.state_dict().items())
    assert all(p.grad is None for p in trunk.parameters())


def test_the_same_seed_gives_the_same_weights_and_leaves_the_callers_random_state(
    data: Path, tmp_path: Path
) -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first = train(data, tmp_path / "first", NANO)
    assert torch.equal(torch.rand(2), expected)
    second = train(data, tmp_path / "second", NANO)
    other = train(data, tmp_path / "other", replace(NANO, seed=1))
    assert first.weights_sha256 == second.weights_sha256
    assert first.snapshot == second.snapshot == other.snapshot
    assert first.weights_sha256 != other.weights_sha256


def test_a_training_set_of_one(tmp_path: Path) -> None:
    card = train(make_data(tmp_path / "data", 1), tmp_path / "out", NANO)
    assert card.metrics["images"] == 1
    assert math.isfinite(card.metrics["loss"])


def test_the_limit_draws_images_by_the_seed(data: Path, tmp_path: Path) -> None:
    cards = [
        train(data, tmp_path / f"{i}", replace(NANO, limit=2, seed=seed, epochs=1))
        for i, seed in enumerate((0, 0, 1, 2, 3))
    ]
    assert {c.metrics["images"] for c in cards} == {2}
    assert cards[0].snapshot == cards[1].snapshot
    assert len({c.snapshot for c in cards}) > 1
    assert train(data, tmp_path / "all", replace(NANO, limit=99, epochs=1)).metrics["images"] == 4


def test_several_classes_in_their_order(tmp_path: Path) -> None:
    folder = make_data(tmp_path / "data", classes=("water", "oil"))
    (folder / "manifest.json").write_text('{"classes": ["water", "oil"]}')
    card = train(folder, tmp_path / "out", NANO)
    model, _ = load_checkpoint(tmp_path / "out")
    assert card.classes == ("water", "oil")
    assert model(torch.zeros(1, 3, 32, 32)).mask.shape == (1, 2, 32, 32)


def test_a_weight_of_a_pair_matters(data: Path, tmp_path: Path) -> None:
    plain = train(data, tmp_path / "plain", NANO)
    (data / "manifest.json").write_text('{"weights": {"scene0": 0.01}}')
    light = train(data, tmp_path / "light", NANO)
    assert light.weights_sha256 != plain.weights_sha256
    assert light.metrics["loss"] < plain.metrics["loss"]


def test_a_warm_start_goes_on_from_its_parent(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "parent", replace(NANO, epochs=10, lr=1e-2, width=24), version="elnet-0001")
    reports: list[TrainProgress] = []
    card = train(data, tmp_path / "child", NANO, init=tmp_path / "parent", progress=reports.append)
    assert card.parent == "elnet-0001"
    assert card.architecture["width"] == 24  # the parent's, not the setting's
    assert reports[0].loss < 0.9 * _first_loss(data, tmp_path / "fresh")


@pytest.mark.parametrize("mode", ["late", "cached"])
def test_what_is_frozen_is_computed_once(
    mode: Mode, tmp_path: Path, elnet_home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[int] = []
    compute = AdaptedTrunk.frozen

    def counted(self: AdaptedTrunk, x: torch.Tensor) -> list[torch.Tensor]:
        seen.append(len(x))
        return compute(self, x)

    monkeypatch.setattr(AdaptedTrunk, "frozen", counted)
    data = make_data(tmp_path / "data", side=64)
    config = replace(NANO, mode=mode, views=3, epochs=12, size=64, lr=1e-2)
    first = train(data, tmp_path / "first", config)
    assert sum(seen) == 4 * 3  # images x views
    assert first.architecture["mode"] == mode
    again = train(data, tmp_path / "again", config)
    child = train(data, tmp_path / "child", replace(NANO, views=3, size=64), init=tmp_path / "first")
    assert sum(seen) == 4 * 3  # nor for another training
    assert child.architecture["mode"] == mode
    without = train(data, tmp_path / "without", replace(config, cache_gb=0.0))
    uncached = 4 * 12 + 4 * QUALITY_PASSES
    assert sum(seen) == 4 * 3 + uncached
    train(data, tmp_path / "half", replace(config, scale=0.5))
    assert sum(seen) == 4 * 3 + uncached + 4 * 3  # its features are others
    assert first.weights_sha256 == again.weights_sha256
    assert without.metrics["loss"] == pytest.approx(first.metrics["loss"], rel=0.05)  # float16 lies between
    assert (elnet_home / "features").is_dir()


def test_a_checkpoint_of_another_mode_is_no_start(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "parent", NANO)
    with pytest.raises(TrainingError, match="of mode full, not late; set mode: full"):
        train(data, tmp_path / "child", replace(NANO, mode="late"), init=tmp_path / "parent")


def test_the_trunk_sees_images_at_the_scale_of_the_settings(data: Path, tmp_path: Path) -> None:
    card = train(data, tmp_path / "parent", replace(NANO, scale=2.0))
    assert card.architecture["scale"] == 2.0
    child = train(data, tmp_path / "child", NANO, init=tmp_path / "parent")
    assert child.architecture["scale"] == 2.0
    with pytest.raises(TrainingError, match=r"at scale 2, not 0\.5; set scale: 2"):
        train(data, tmp_path / "other", replace(NANO, scale=0.5), init=tmp_path / "parent")


def test_coarse_masks_for_a_checkpoint_that_takes_none_are_refused(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "parent", NANO)
    with pytest.raises(TrainingError, match=r"takes no coarse masks, so prompted: 0\.5 means nothing"):
        train(data, tmp_path / "child", replace(NANO, prompted=0.5), init=tmp_path / "parent")
    train(data, tmp_path / "hears", replace(NANO, prompted=0.5))
    card = train(data, tmp_path / "child", replace(NANO, prompted=0.5), init=tmp_path / "hears")
    assert card.architecture["prompt"] is True


def test_a_warm_start_has_its_own_learning_rate(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "parent", NANO)
    still = replace(NANO, epochs=1, warm_lr=1e-12)
    train(data, tmp_path / "child", replace(still, lr=1e-2), init=tmp_path / "parent")
    train(data, tmp_path / "moved", replace(still, warm_lr=1e-2), init=tmp_path / "parent")
    before, after, moved = (
        load_checkpoint(tmp_path / name)[0].trainable_state() for name in ("parent", "child", "moved")
    )
    trained = [name for name in before if not name.startswith("quality.")]
    assert all(torch.allclose(before[name], after[name], atol=1e-6) for name in trained)
    assert not all(torch.allclose(before[name], moved[name], atol=1e-6) for name in trained)


def test_training_ends_with_a_head_that_foresees_the_masks_quality(tmp_path: Path) -> None:
    data = make_data(tmp_path / "data", 8)
    config = replace(NANO, epochs=20, lr=1e-2)
    train(data, tmp_path / "out", config)
    images = [open_raster(path) for path in sorted((data / "images").iterdir())]
    for flips in (1, 8):
        for found in Predictor(tmp_path / "out", "cpu", flips=flips).predict(images):
            assert found.learned_iou is not None
            assert 0 <= found.learned_iou[0] <= 1
    train(data, tmp_path / "again", config)
    one, other = (load_checkpoint(tmp_path / name)[0].quality for name in ("out", "again"))
    assert one is not None
    assert other is not None
    assert torch.equal(one.weight, other.weight)


def test_a_checkpoint_without_a_quality_head_goes_on_with_one(data: Path, tmp_path: Path) -> None:
    trunk, sha256 = load_trunk("random-nano")
    model = SAM2ELNet(trunk, trunk_spec("random-nano"), 1, width=16, adapter_dim=4)
    card = ModelCard("early", "random-nano", sha256, ("foreground",), 32, model.architecture)
    save_checkpoint(tmp_path / "early", model, card)
    [found] = Predictor(tmp_path / "early", "cpu").predict([open_raster(next((data / "images").iterdir()))])
    assert found.learned_iou is None
    card = train(data, tmp_path / "child", NANO, init=tmp_path / "early")
    assert card.architecture["quality"] is True
    assert load_checkpoint(tmp_path / "child")[0].quality is not None


def _first_loss(data: Path, out: Path) -> float:
    reports: list[TrainProgress] = []
    train(data, out, replace(NANO, epochs=1, width=24), progress=reports.append)
    return reports[0].loss


def test_a_warm_start_with_other_classes_is_refused(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "parent", NANO)
    other = make_data(tmp_path / "other", classes=("road",))
    with pytest.raises(TrainingError, match="knows the classes foreground, the data has road"):
        train(other, tmp_path / "out", NANO, init=tmp_path / "parent")
    assert not (tmp_path / "out").exists()


def test_a_warm_start_with_another_trunk_is_refused(data: Path, tmp_path: Path) -> None:
    train(data, tmp_path / "parent", NANO)
    with pytest.raises(
        TrainingError, match="has the trunk random-nano, not sam2-hiera-tiny; set trunk: random-nano"
    ):
        train(data, tmp_path / "out", replace(NANO, trunk="sam2-hiera-tiny"), init=tmp_path / "parent")


def test_a_taken_folder_is_refused_before_any_work(data: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="out exists already"):
        train(data, tmp_path / "out", NANO, progress=lambda _: pytest.fail("it trained"))


def test_missing_data_and_unknown_trunk(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        train(tmp_path / "absent", tmp_path / "out", NANO)
    with pytest.raises(TrunkError, match="no trunk 'sam9'"):
        train(data, tmp_path / "out", replace(NANO, trunk="sam9"))


def test_a_loss_that_is_not_finite_stops_and_says_where(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = elnet_loss
    calls = 0

    def loss(*arguments: Any, **named: Any) -> torch.Tensor:
        nonlocal calls
        calls += 1
        return real(*arguments, **named) * (math.nan if calls == 3 else 1)

    monkeypatch.setattr(training, "elnet_loss", loss)
    with pytest.raises(TrainingError, match=r"epoch 2, step 1 of 2: the loss is nan .* scene\d, scene\d$"):
        train(data, tmp_path / "out", replace(NANO, batch_size=2))
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


def test_a_last_step_that_spoils_the_weights_is_caught(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No loss is computed after it."""

    class Spoiling(torch.optim.AdamW):
        def step(self, closure: Any = None) -> None:  # type: ignore[override]
            super().step(closure)
            with torch.no_grad():
                self.param_groups[0]["params"][-1].fill_(math.inf)

    monkeypatch.setattr(torch.optim, "AdamW", Spoiling)
    with pytest.raises(TrainingError, match="stopped in the last step"):
        train(data, tmp_path / "out", replace(NANO, epochs=1))
    assert not (tmp_path / "out").exists()


def test_nodata_is_not_learnt_from(tmp_path: Path) -> None:
    """Crops reach beyond small images: what is padded must not count. The loss of it is that of the image."""
    card = train(make_data(tmp_path / "data", side=24), tmp_path / "out", NANO)
    assert math.isfinite(card.metrics["loss"])


def test_warm_up_and_cosine() -> None:
    factor = training._warmup_cosine(100, 0.1)
    factors = [factor(step) for step in range(100)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == factors[10] == pytest.approx(1.0)
    assert factors[10:] == sorted(factors[10:], reverse=True)
    assert factors[55] == pytest.approx(0.505, abs=1e-3)
    assert 0.01 <= factors[-1] < 0.02
    assert training._warmup_cosine(1, 0.1)(0) == 1.0


def test_a_full_disk_at_the_end_is_an_error_and_leaves_nothing(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(CheckpointError, match="No space left on device"):
        train(data, tmp_path / "out", NANO)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]
