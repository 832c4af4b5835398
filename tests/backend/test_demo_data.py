from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from backend import demo_data
from backend.demo_data import DemoDataError, prepare
from model.raster import open_raster, write_mask, write_png
from model.scenes import scene_of


def add(
    folder: Path, stem: str, height: int = 20, width: int = 24, *, mask: tuple[int, int] | None = None
) -> None:
    random = np.random.default_rng(len(stem) + height)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    write_png(folder / "images" / f"{stem}.png", random.integers(0, 255, (height, width, 3), dtype=np.uint8))
    write_mask(folder / "masks" / f"{stem}.png", random.random(mask or (height, width)) > 0.5)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Ten scenes of two tiles each."""
    for scene in range(10):
        for tile in range(2):
            add(tmp_path / "data", f"s{scene}__r00000_c{tile:05d}")
    return tmp_path / "data"


def test_images_and_truth_come_together(data: Path, tmp_path: Path) -> None:
    images, classes, origin = prepare(data, tmp_path / "out", limit=100, seed=0)
    assert (classes, origin) == (["foreground"], str(data))
    assert len(images) == 20
    assert {path.stem for path in (tmp_path / "out").iterdir()} == {image.stem for image in images}
    for image in images:
        assert image.truth.shape == (1, 20, 24)
        assert image.truth.dtype == np.bool_
    for image in images:
        written = open_raster(tmp_path / "out" / f"{image.stem}.png").pixels
        assert np.array_equal(written, image.raster.pixels)
        assert np.array_equal(written, open_raster(data / "images" / f"{image.stem}.png").pixels)


def test_whole_scenes_are_chosen_by_the_seed(data: Path, tmp_path: Path) -> None:
    def chosen(seed: int, name: str, limit: int = 12) -> list[str]:
        found = prepare(data, tmp_path / name, limit, seed)
        return [image.stem for image in found.images]

    first = chosen(1, "a")
    assert len(first) == 12
    assert len({scene_of(stem) for stem in first}) == 6
    assert chosen(1, "b") == first
    assert chosen(2, "c") != first
    assert len(chosen(1, "d", limit=13)) == 13


def test_large_images_are_cut_with_their_masks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_data, "_LARGEST", 40)
    add(tmp_path / "data", "big", 60, 80)
    add(tmp_path / "data", "small", 40, 40)
    images, _, _ = prepare(tmp_path / "data", tmp_path / "out", limit=100, seed=0)
    names = {image.stem for image in images}
    assert names == {
        "small",
        *(f"big__r{row:05d}_c{col:05d}" for row in (0, 20, 40) for col in (0, 20, 40, 60)),
    }
    whole = open_raster(tmp_path / "data" / "images" / "big.png").pixels
    truth = np.random.default_rng(3 + 60)
    truth.integers(0, 255, (60, 80, 3), dtype=np.uint8)
    mask = truth.random((60, 80)) > 0.5
    (tile,) = [image for image in images if image.stem == "big__r00020_c00060"]
    assert np.array_equal(tile.raster.pixels, whole[20:40, 60:])
    assert np.array_equal(tile.truth[0], mask[20:40, 60:])


def test_several_classes_keep_their_order(tmp_path: Path) -> None:
    for number in range(12):
        add(tmp_path / "data", f"s{number}")
        for name in ("road", "building"):
            (tmp_path / "data" / "masks" / name).mkdir(exist_ok=True)
            value = np.zeros((20, 24), np.bool_)
            value[: 5 if name == "road" else 15] = True
            write_mask(tmp_path / "data" / "masks" / name / f"s{number}.png", value)
        (tmp_path / "data" / "masks" / f"s{number}.png").unlink()
    images, classes, _ = prepare(tmp_path / "data", tmp_path / "out", limit=100, seed=0)
    rows = {"road": 5, "building": 15}
    assert sorted(classes) == ["building", "road"]
    assert [int(plane[:, 0].sum()) for plane in images[0].truth] == [rows[name] for name in classes]


def test_too_few_images_are_refused(tmp_path: Path) -> None:
    for number in range(11):
        add(tmp_path / "data", f"s{number}")
    with pytest.raises(DemoDataError, match=r"gives 11 images .* needs 12 or more"):
        prepare(tmp_path / "data", tmp_path / "out", limit=100, seed=0)


def test_a_mask_of_another_size_is_named(tmp_path: Path) -> None:
    for number in range(8):
        add(tmp_path / "data", f"s{number}", mask=(20, 23) if number == 3 else None)
    with pytest.raises(DemoDataError, match=r"s3.png is 24 x 20 px, but its mask is 23 x 20 px"):
        prepare(tmp_path / "data", tmp_path / "out", limit=100, seed=0)


def test_without_a_folder_the_sample_is_taken(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Path] = []
    monkeypatch.setenv("ELNET_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(demo_data, "sample_folder", lambda cache: asked.append(cache) or data)
    images, classes, origin = prepare(None, tmp_path / "out", limit=12, seed=0)
    assert (len(images), classes) == (12, ["road"])
    assert "SpaceNet" in origin
    assert asked == [tmp_path / "cache" / "samples"]
