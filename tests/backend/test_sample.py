from __future__ import annotations

import hashlib
import subprocess
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import rasterio

from backend import sample
from backend.sample import SampleError, sample_folder
from model.pairs import find_pairs
from model.raster import open_raster, read_masks

HEIGHT, WIDTH = 270, 520  # of the little scene: 2 x 4 tiles and a little more


def wheel_of(folder: Path) -> bytes:
    """A wheel like the real one, with a little scene and its mask; roads are bright."""
    random = np.random.default_rng(0)
    road = np.zeros((HEIGHT, WIDTH), np.uint16)
    road[100:120, :250] = 1  # the two upper left tiles
    road[200, 0] = 1  # a corner that a road just touches
    scene = random.integers(200, 900, (HEIGHT, WIDTH), np.uint16) + 3000 * road
    folder.mkdir()
    for name, band in (
        ("road_mask_input.tif", scene),
        ("sample_road_raster_mask.tif", (255 * road).astype(np.uint8)),
    ):
        with rasterio.open(
            folder / name, "w", driver="GTiff", height=HEIGHT, width=WIDTH, count=1, dtype=band.dtype,
            crs="EPSG:32611", transform=rasterio.Affine(0.3, 0, 100, 0, -0.3, 200),
        ) as file:  # fmt: skip
            file.write(band, 1)
    with zipfile.ZipFile(folder / "w.whl", "w") as archive:
        for name in ("road_mask_input.tif", "sample_road_raster_mask.tif"):
            archive.write(folder / name, f"solaris/data/{name}")
    return (folder / "w.whl").read_bytes()


class Pip:
    """Stands for the pip that is called; it downloads `wheel`, or fails with `complaint`."""

    def __init__(self, wheel: bytes) -> None:
        self.wheel = wheel
        self.complaint = ""
        self.fails_at = 0
        self.commands: list[list[str]] = []
        self.meanwhile: Callable[[], None] = lambda: None

    def run(self, command: list[str], **_: object) -> subprocess.CompletedProcess[str]:
        self.commands.append(command)
        if self.complaint and len(self.commands) > self.fails_at:
            return subprocess.CompletedProcess(command, 1, "", self.complaint)
        if "download" in command:
            folder = Path(command[command.index("--dest") + 1])
            (folder / "solaris-0.4.0-py3-none-any.whl").write_bytes(self.wheel)
            self.meanwhile()
        return subprocess.CompletedProcess(command, 0, "", "")


@pytest.fixture
def pip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Pip:
    wheel = wheel_of(tmp_path / "wheel")
    pip = Pip(wheel)
    monkeypatch.setattr(sample.subprocess, "run", pip.run)
    monkeypatch.setattr(sample, "_WHEEL_SHA256", hashlib.sha256(wheel).hexdigest())
    return pip


def test_the_scene_is_cut_into_pairs_once(pip: Pip, tmp_path: Path) -> None:
    folder = sample_folder(tmp_path / "cache")
    pairs, classes = find_pairs(folder, [sample.CLASS])
    assert classes == ["road"]
    chosen = {pair.stem: pair for pair in pairs}
    assert set(chosen) == {"vegas-0-0__r00000_c00000", "vegas-0-0__r00000_c00128", "vegas-0-1__r00000_c00256"}
    assert len({pair.scene for pair in pairs}) == 2
    sizes = {open_raster(pair.image).valid.shape for pair in pairs}
    assert sizes == {(256, 256)}
    ending = chosen["vegas-0-0__r00000_c00128"]
    mask, valid = read_masks(ending.masks[0])
    expected = np.zeros((256, 256), np.bool_)
    expected[200:240, :244] = True
    assert np.array_equal(mask, expected)
    assert valid.all()
    pixels = open_raster(ending.image).pixels[..., 0]
    assert pixels[mask].mean() > 2 * pixels[~mask].mean()  # image and mask are of one place
    assert [path.name for path in (tmp_path / "cache").iterdir()] == [folder.name]  # nothing half

    assert len(pip.commands) == 2
    assert sample_folder(tmp_path / "cache") == folder
    assert len(pip.commands) == 2


def test_an_old_pip_fetches_the_wheel_and_nothing_is_installed_here(pip: Pip, tmp_path: Path) -> None:
    sample_folder(tmp_path / "cache")
    old, download = pip.commands
    target = old[old.index("--target") + 1]
    assert old[-1] == "pip==24.0"
    assert "--no-deps" in old
    assert download[1] == f"{target}/pip"
    assert download[2] == "download"
    assert "--no-deps" in download


@pytest.mark.parametrize("fails_at", [0, 1])
def test_without_a_network_the_way_out_is_named(pip: Pip, fails_at: int, tmp_path: Path) -> None:
    pip.fails_at = fails_at
    pip.complaint = (
        "WARNING: Retrying\nERROR: No matching distribution found.\n[notice] A new release of pip\n"
    )
    with pytest.raises(SampleError) as refused:
        sample_folder(tmp_path / "cache")
    text = str(refused.value)
    assert "could not be fetched: ERROR: No matching distribution found. Give a folder" in text
    assert "--data DIR" in text
    assert list((tmp_path / "cache").iterdir()) == []

    pip.complaint = ""  # and nothing stands in the way of the next try
    assert sample_folder(tmp_path / "cache").is_dir()


def test_a_pip_that_says_nothing(pip: Pip, tmp_path: Path) -> None:
    pip.complaint = "\n"
    with pytest.raises(SampleError, match=r"could not be fetched: no message\. Give"):
        sample_folder(tmp_path / "cache")


def test_another_file_is_refused(pip: Pip, tmp_path: Path) -> None:
    pip.wheel += b"!"
    with pytest.raises(SampleError, match=r"whl has sha256 [0-9a-f]{64}, not [0-9a-f]{64}: it was refused"):
        sample_folder(tmp_path / "cache")
    assert list((tmp_path / "cache").iterdir()) == []


def test_another_process_may_be_first(pip: Pip, tmp_path: Path) -> None:
    theirs = tmp_path / "cache" / f"spacenet-vegas-roads-{sample.TILE * sample.SCALE}"

    def meanwhile() -> None:
        theirs.mkdir()
        (theirs / "images").mkdir()

    pip.meanwhile = meanwhile
    assert sample_folder(tmp_path / "cache") == theirs
    assert [path.name for path in theirs.iterdir()] == ["images"]


def test_a_cache_that_cannot_be_written_is_named(pip: Pip, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SampleError, match=r"cannot be kept in .*file/cache: .*ELNET_HOME"):
        sample_folder(tmp_path / "file" / "cache")
