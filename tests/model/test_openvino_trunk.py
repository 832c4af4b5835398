from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from model import openvino_trunk
from model.checkpoint import ModelCard, load_trunk, save_checkpoint
from model.elnet import SAM2ELNet
from model.feature_cache import keep_frozen
from model.hiera import AdaptedTrunk, trunk_spec
from model.openvino_trunk import OpenVinoTrunk, converted_folder, is_available
from model.predictor import Predictor
from model.raster import Raster

pytest.importorskip("openvino", reason="the trunk by OpenVINO is an extra: pip install '.[openvino]'")

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def _switched_on(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ELNET_OPENVINO", "1")
    monkeypatch.setenv("ELNET_HOME", str(tmp_path / "home"))


def make(mode: str, scale: float = 1.0) -> tuple[AdaptedTrunk, str]:
    trunk, sha256 = load_trunk("random-nano")
    return AdaptedTrunk(trunk, trunk_spec("random-nano"), mode=mode, adapter_dim=4, scale=scale), sha256


def never(images: Tensor) -> list[Tensor]:
    raise AssertionError("PyTorch was asked")


def images(count: int, height: int = 64, width: int = 64) -> Tensor:
    return torch.randn(count, 3, height, width, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("mode", ["late", "cached"])
@pytest.mark.parametrize("scale", [1.0, 0.5])
def test_the_maps_are_the_trunks(mode: str, scale: float) -> None:
    encoder, sha256 = make(mode, scale)
    trunk = OpenVinoTrunk(encoder, sha256, "fp32", never)
    for count, height, width in ((3, 64, 64), (1, 64, 64), (2, 64, 128)):
        batch = images(count, height, width)
        expected = encoder.frozen(batch)
        found = trunk(batch)
        assert len(found) == len(expected)
        for a, b in zip(found, expected, strict=True):
            assert (a.shape, a.dtype) == (b.shape, torch.float32)
            assert a.is_contiguous(memory_format=torch.channels_last)
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)


def test_one_answer_does_not_overwrite_another() -> None:
    encoder, sha256 = make("cached")
    trunk = OpenVinoTrunk(encoder, sha256, "fp32", never)
    first = trunk(images(1))
    kept = [m.clone() for m in first]
    trunk(torch.zeros(1, 3, 64, 64))
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_a_conversion_is_kept_for_the_next_process(monkeypatch: pytest.MonkeyPatch) -> None:
    encoder, sha256 = make("cached")
    expected = OpenVinoTrunk(encoder, sha256, "fp32", never)(images(2))
    [folder] = converted_folder().iterdir()
    assert {path.name for path in folder.iterdir()} == {"trunk.xml", "trunk.bin"}

    def refuse(*_: object) -> None:
        raise AssertionError("converted again")

    monkeypatch.setattr(openvino_trunk, "_convert", refuse)
    again = OpenVinoTrunk(encoder, sha256, "fp32", never)(images(2))
    assert all(torch.equal(a, b) for a, b in zip(again, expected, strict=True))


def test_only_the_newest_conversions_are_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(openvino_trunk, "_KEPT", 2)
    encoder, sha256 = make("cached")
    trunk = OpenVinoTrunk(encoder, sha256, "fp32", never)
    for number, width in enumerate((32, 64, 96)):
        trunk(images(1, 64, width))
        for folder in converted_folder().iterdir():
            path = folder / "trunk.xml"
            os.utime(path, (path.stat().st_atime, path.stat().st_mtime - 10 * (3 - number)))
    assert len(list(converted_folder().iterdir())) == 2


def test_what_openvino_cannot_do_pytorch_does(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("no such operation\nand much more")

    monkeypatch.setattr(openvino_trunk, "_convert", fail)
    encoder, sha256 = make("cached")
    trunk = OpenVinoTrunk(encoder, sha256, "fp32", encoder.frozen)
    with caplog.at_level(logging.WARNING):
        for _ in range(2):
            found = trunk(images(1))
            assert all(torch.equal(a, b) for a, b in zip(found, encoder.frozen(images(1)), strict=True))
    assert caplog.messages == [
        "OpenVINO cannot run the trunk (no such operation); PyTorch does it, more slowly"
    ]


def test_a_cache_that_cannot_be_written_costs_only_the_next_conversion(tmp_path: Path) -> None:
    (tmp_path / "home").write_text("a file where the folder should be")
    encoder, sha256 = make("cached")
    assert len(OpenVinoTrunk(encoder, sha256, "fp32", never)(images(1))) == 4


def test_it_serves_cpus_where_it_is_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_available(CPU)
    assert not is_available(torch.device("cuda"))
    monkeypatch.setenv("ELNET_OPENVINO", "0")
    assert not is_available(CPU)


def test_features_on_disk_say_what_made_them(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    encoder, sha256 = make("cached")
    keep_frozen(encoder, sha256, CPU, "fp32", 1.0)(images(1))
    monkeypatch.setenv("ELNET_OPENVINO", "0")
    keep_frozen(encoder, sha256, CPU, "fp32", 1.0)(images(1))
    assert len(list((tmp_path / "home" / "features").glob("*/*"))) == 2


@pytest.mark.parametrize("mode", ["late", "cached", "full"])
def test_predictions_agree_with_pytorchs(mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trunk, sha256 = load_trunk("random-nano")
    torch.manual_seed(1)
    model = SAM2ELNet(trunk, trunk_spec("random-nano"), 1, mode=mode, width=8)
    for head in model.heads:
        torch.nn.init.normal_(head.weight, std=3)
    save_checkpoint(
        tmp_path / "c", model, ModelCard("c", "random-nano", sha256, ("oil",), 64, model.architecture)
    )
    pixels = np.random.default_rng(0).integers(0, 255, (90, 150, 3), dtype=np.uint8)
    image = Raster(pixels, np.ones((90, 150), np.bool_))
    [fast] = Predictor(tmp_path / "c").predict([image])
    assert converted_folder().is_dir() is (mode != "full")
    monkeypatch.setenv("ELNET_OPENVINO", "0")
    [slow] = Predictor(tmp_path / "c").predict([image])
    assert np.abs(fast.probability - slow.probability).mean() < 0.02
    assert ((fast.probability > 0.5) == (slow.probability > 0.5)).mean() > 0.97
