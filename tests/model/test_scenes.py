from __future__ import annotations

import re
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy.signal import fftconvolve

from model.pairs import find_pairs
from model.scenes import SplitError, scene_of, split_by_scene


class TestSceneOf:
    @pytest.mark.parametrize(
        ("stem", "scene"),
        [
            ("sos_10001_palsar_v0", "sos_10001_palsar"),
            ("sos_12037_palsar_v4", "sos_10001_palsar"),
            ("sos_20001_sentinel1_v0", "sos_20001_sentinel1"),
            ("sos_21777_sentinel1_v4", "sos_20001_sentinel1"),
            ("sos_21777_sentinel1_v4x", "sos_21777_sentinel1_v4x"),
            ("epfl_satImage_002", "epfl_satImage_002"),
            ("vegas_10219_r0c1", "vegas_10219"),
            ("vegas__r00000_c00000", "vegas__b0_0"),
            ("vegas__r00511_c00512", "vegas__b0_1"),
            ("vegas__r01024_c00160", "vegas__b2_0"),
            ("sos_12037_palsar_v4__r0_c600", "sos_10001_palsar__b0_1"),
        ],
    )
    def test_worked_examples(self, stem: str, scene: str) -> None:
        assert scene_of(stem) == scene

    def test_tiles_of_two_by_two(self) -> None:
        scenes = defaultdict(list)
        for row in range(0, 1024, 256):
            for col in range(0, 1024, 256):
                scenes[scene_of(f"s__r{row:05d}_c{col:05d}", block=512)].append((row, col))
        assert sorted(map(len, scenes.values())) == [4, 4, 4, 4]
        assert scenes["s__b0_1"] == [(0, 512), (0, 768), (256, 512), (256, 768)]


@dataclass(frozen=True)
class Thing:
    scene: str
    number: int


class TestSplit:
    @given(
        sizes=st.lists(st.integers(1, 9), min_size=2, max_size=30),
        share=st.floats(0.05, 0.95),
        seed=st.integers(),
    )
    def test_whole_scenes_near_the_share(self, sizes: list[int], share: float, seed: int) -> None:
        things = [Thing(f"s{s}", n) for s, size in enumerate(sizes) for n in range(size)]
        rest, part = split_by_scene(things, share, seed)
        assert sorted(rest + part, key=things.index) == things
        assert {t.scene for t in rest}.isdisjoint(t.scene for t in part)
        assert rest
        assert part
        assert abs(len(part) - share * len(things)) <= max(sizes)
        assert (rest, part) == split_by_scene(things, share, seed)

    def test_the_nearer_side_of_the_share(self) -> None:
        things = [Thing(f"s{i // 4}", i) for i in range(16)]
        assert [len(split_by_scene(things, share)[1]) for share in (0.01, 0.35, 0.4, 0.99)] == [4, 4, 8, 12]

    def test_the_seed_draws_others(self) -> None:
        things = [Thing(f"s{i}", i) for i in range(40)]
        drawn = {tuple(split_by_scene(things, 0.3, seed)[1]) for seed in range(5)}
        assert len(drawn) == 5

    def test_refused(self) -> None:
        with pytest.raises(SplitError, match=r"3 images of 1 scene\(s\)"):
            split_by_scene([Thing("s", i) for i in range(3)], 0.5)
        with pytest.raises(ValueError, match="share of 1"):
            split_by_scene([Thing("s", 1), Thing("t", 2)], 1)


@pytest.mark.data
class TestRealSiblings:
    """The rule for SOS against the pixels: v0 is a turned crop (256 of 416 px) of what v4 shows whole."""

    def test_every_scene_of_the_training_set_has_its_two_versions(self, data_folder: Path) -> None:
        for folder, scenes in (("train", 603), ("test", 150)):
            versions = defaultdict(list)
            for pair in find_pairs(data_folder / "sar_oil" / folder)[0]:
                assert pair.scene == scene_of(pair.stem)
                versions[pair.scene].append(pair.stem[-2:])
            assert len(versions) == scenes
            assert all(sorted(v) == ["v0", "v4"] for v in versions.values())

    @pytest.mark.parametrize("sensor", ["palsar", "sentinel1"])
    def test_siblings_show_the_same_ground(self, data_folder: Path, sensor: str) -> None:
        images = data_folder / "sar_oil/train/images"
        by_scene: dict[str, dict[str, Path]] = defaultdict(dict)
        for path in sorted(images.glob(f"*_{sensor}_*")):
            found = re.search(r"v\d$", path.stem)
            assert found
            by_scene[scene_of(path.stem)][found[0]] = path
        scenes = list(by_scene.values())[::60]
        assert len(scenes) >= 4
        for i, scene in enumerate(scenes):
            other = scenes[(i + 1) % len(scenes)]
            crop = np.rot90(load(scene["v0"], round(128 * 256 / 416)), 3)
            assert match(load(scene["v4"], 128), crop) > 0.85
            assert match(load(other["v4"], 128), crop) < 0.8


def load(path: Path, side: int) -> NDArray[Any]:
    image = Image.open(path).convert("L").filter(ImageFilter.GaussianBlur(2))
    return np.asarray(image.resize((side, side), Image.Resampling.BOX), float)


def match(image: NDArray[Any], template: NDArray[Any]) -> float:
    """The best normalised cross-correlation of a template anywhere in an image."""
    template = template - template.mean()
    ones, n = np.ones_like(template), template.size
    total = fftconvolve(image, ones, "valid")
    spread = np.maximum(fftconvolve(image * image, ones, "valid") - total * total / n, 1e-3 * n)
    cross = fftconvolve(image, template[::-1, ::-1], "valid")
    return float((cross / np.sqrt(spread * (template * template).sum())).max())
