from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest
import rasterio
from affine import Affine
from PIL import Image

from model.errors import ELNetError
from model.pairs import DataError, Pair, find_pairs, read_pair
from model.raster import write_mask, write_png

SQUARE = np.zeros((8, 8), bool)
SQUARE[2:5, 2:5] = True


def fill(folder: Path, stems: str, classes: tuple[str, ...] = ()) -> Path:
    """images/ and masks/ for each letter of stems."""
    for stem in stems:
        write_png(folder / "images" / f"{stem}.png", np.zeros((8, 8, 3), np.uint8))
        for target in [folder / "masks" / name for name in classes] or [folder / "masks"]:
            write_mask(target / f"{stem}.png", SQUARE)
    return folder


class TestFindPairs:
    def test_one_class(self, tmp_path: Path) -> None:
        pairs, classes = find_pairs(fill(tmp_path, "ba"))
        assert classes == ["foreground"]
        assert [p.stem for p in pairs] == ["a", "b"]
        assert pairs[0] == Pair(
            "a", tmp_path / "images/a.png", (tmp_path / "masks/a.png",), scene="a", weight=1.0
        )
        assert find_pairs(tmp_path, ["oil"])[1] == ["oil"]

    def test_one_class_in_its_folder(self, tmp_path: Path) -> None:
        pairs, classes = find_pairs(fill(tmp_path, "a", ("oil",)))
        assert classes == ["oil"]
        assert pairs[0].masks == (tmp_path / "masks/oil/a.png",)

    def test_several_classes_in_the_order_given(self, tmp_path: Path) -> None:
        fill(tmp_path, "a", ("road", "building"))
        assert find_pairs(tmp_path)[1] == ["building", "road"]
        pairs, classes = find_pairs(tmp_path, ["road", "building"])
        assert classes == ["road", "building"]
        assert [m.parent.name for m in pairs[0].masks] == classes

    def test_manifest(self, tmp_path: Path) -> None:
        fill(tmp_path, "ab", ("road", "building"))
        manifest = {"classes": ["road", "building"], "scenes": {"a": "paris"}, "weights": {"b": 0.25}}
        (tmp_path / "manifest.json").write_text(json.dumps(manifest))
        pairs, classes = find_pairs(tmp_path)
        assert classes == ["road", "building"]
        assert [(p.scene, p.weight) for p in pairs] == [("paris", 1.0), ("b", 0.25)]

    def test_what_has_no_partner_is_left_out_and_told(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        fill(tmp_path, "abc")
        (tmp_path / "masks/a.png").unlink()
        (tmp_path / "images/b.png").unlink()
        (tmp_path / "images/c.pgw").write_text("1\n0\n0\n-1\n0\n0\n")
        (tmp_path / "images/.hidden.png").write_bytes(b"")
        with caplog.at_level(logging.WARNING):
            pairs, _ = find_pairs(tmp_path)
        assert [p.stem for p in pairs] == ["c"]
        assert "1 images without a mask and 1 masks without an image" in caplog.text

    def test_suffixes_may_differ(self, tmp_path: Path) -> None:
        fill(tmp_path, "a")
        Image.new("RGB", (8, 8)).save(tmp_path / "images/B.JPG")
        write_mask(tmp_path / "masks/B.png", SQUARE)
        assert [p.image.name for p in find_pairs(tmp_path)[0]] == ["B.JPG", "a.png"]


class TestRefused:
    def test_folders(self, tmp_path: Path) -> None:
        with pytest.raises(DataError, match="gone: no such folder"):
            find_pairs(tmp_path / "gone")
        (tmp_path / "images").mkdir()
        with pytest.raises(DataError, match="masks: no such folder"):
            find_pairs(tmp_path)
        (tmp_path / "masks").mkdir()
        with pytest.raises(DataError, match="images: no image in it"):
            find_pairs(tmp_path)
        write_png(tmp_path / "images/a.png", np.zeros((8, 8), np.uint8))
        with pytest.raises(DataError, match="masks: no mask in it"):
            find_pairs(tmp_path)
        write_mask(tmp_path / "masks/b.png", SQUARE)
        with pytest.raises(DataError, match="no image and mask with equal stems"):
            find_pairs(tmp_path)

    def test_twice_the_same_stem(self, tmp_path: Path) -> None:
        fill(tmp_path, "a")
        Image.new("L", (8, 8)).save(tmp_path / "images/a.jpg")
        with pytest.raises(DataError, match=r"a\.png: a\.jpg has the same stem"):
            find_pairs(tmp_path)

    def test_classes(self, tmp_path: Path) -> None:
        fill(tmp_path, "ab", ("road", "building"))
        with pytest.raises(DataError, match=r"no folder for river in it \(there are: building, road\)"):
            find_pairs(tmp_path, ["road", "river"])
        with pytest.raises(DataError, match="not distinct"):
            find_pairs(tmp_path, ["road", "road"])
        (tmp_path / "masks/road/b.png").unlink()
        with pytest.raises(DataError, match="road: no mask for b, other classes have one"):
            find_pairs(tmp_path)

    @pytest.mark.parametrize(
        ("text", "says"),
        [
            ("{", "not readable as JSON"),
            ("[]", "not a JSON object"),
            ('{"classes": "road"}', "classes is not a list"),
            ('{"scenes": []}', "scenes is not a dict"),
            ('{"weights": {"a": 0}}', "weight 0 of a"),
            ('{"weights": {"a": "much"}}', "weight 'much' of a"),
        ],
    )
    def test_manifest(self, tmp_path: Path, text: str, says: str) -> None:
        fill(tmp_path, "a")
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(DataError, match=rf"manifest\.json: .*{says}"):
            find_pairs(tmp_path)

    def test_the_error_is_one_that_people_see(self) -> None:
        assert issubclass(DataError, ELNetError)


class TestReadPair:
    def test_masks_in_order(self, tmp_path: Path) -> None:
        fill(tmp_path, "a", ("road", "building"))
        write_mask(tmp_path / "masks/building/a.png", ~SQUARE)
        pairs, _ = find_pairs(tmp_path, ["road", "building"])
        raster, masks, valid = read_pair(pairs[0])
        assert raster.pixels.shape == (8, 8, 3)
        np.testing.assert_array_equal(masks, [SQUARE, ~SQUARE])
        assert valid.all()

    def test_valid_in_image_and_mask(self, tmp_path: Path) -> None:
        fill(tmp_path, "a")
        rgba = np.full((8, 8, 4), 255, np.uint8)
        rgba[0, :, 3] = 0
        write_png(tmp_path / "images/a.png", rgba)
        raster, _, valid = read_pair(find_pairs(tmp_path)[0][0])
        assert not valid[0].any()
        assert valid[1:].all()
        assert raster.valid[1:].all()
        assert valid is not raster.valid

    def test_nodata_of_a_mask(self, tmp_path: Path) -> None:
        fill(tmp_path, "a")
        stored = SQUARE.astype(np.int16)
        stored[7] = -1
        (tmp_path / "masks/a.png").unlink()
        profile = {"driver": "GTiff", "count": 1, "height": 8, "width": 8, "dtype": "int16"}
        with rasterio.open(tmp_path / "masks/a.tif", "w", **profile, transform=Affine.scale(2)) as file:
            file.write(stored, 1)
        raster, masks, valid = read_pair(find_pairs(tmp_path)[0][0])
        assert raster.valid.all()
        np.testing.assert_array_equal(valid, stored >= 0)
        np.testing.assert_array_equal(masks, SQUARE[None])

    def test_sizes_differ(self, tmp_path: Path) -> None:
        fill(tmp_path, "a")
        write_mask(tmp_path / "masks/a.png", np.zeros((8, 9), bool))
        with pytest.raises(DataError, match=r"masks/a\.png: 9 x 8 pixels, but its image .*a\.png has 8 x 8"):
            read_pair(find_pairs(tmp_path)[0][0])

    def test_not_binary(self, tmp_path: Path) -> None:
        fill(tmp_path, "a")
        write_png(tmp_path / "masks/a.png", np.arange(64, dtype=np.uint8).reshape(8, 8))
        with pytest.raises(DataError, match=r"masks/a\.png: not a binary mask"):
            read_pair(find_pairs(tmp_path)[0][0])

    def test_limit(self, tmp_path: Path) -> None:
        fill(tmp_path, "a")
        with pytest.raises(DataError, match="more than the limit of 63"):
            read_pair(find_pairs(tmp_path)[0][0], max_pixels=63)
