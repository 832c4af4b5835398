from __future__ import annotations

import errno
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from model.checkpoint import (
    CARD,
    WEIGHTS,
    CheckpointError,
    ModelCard,
    load_checkpoint,
    load_trunk,
    read_card,
    save_checkpoint,
)
from model.elnet import SAM2ELNet
from model.hiera import TrunkError, trunk_spec
from model.trunk_cache import WeightsError


def nano() -> tuple[SAM2ELNet, ModelCard]:
    torch.manual_seed(0)
    trunk, sha256 = load_trunk("random-nano")
    model = SAM2ELNet(trunk, trunk_spec("random-nano"), 2, adapter_dim=4, width=16)
    torch.nn.init.normal_(model.heads[-1].weight)  # type: ignore[arg-type]
    card = ModelCard(
        version="elnet-0007",
        trunk="random-nano",
        trunk_sha256=sha256,
        classes=("water", "oil"),
        size=64,
        architecture=model.architecture,
        snapshot="5e1f",
        metrics={"loss": 0.5},
        parent="elnet-0006",
    )
    return model, card


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    model, card = nano()
    save_checkpoint(tmp_path / "model", model, card)
    return tmp_path / "model"


def edit_card(folder: Path, **changes: Any) -> None:
    path = folder / CARD
    card = json.loads(path.read_text()) | changes
    path.write_text(json.dumps({k: v for k, v in card.items() if v is not ...}))


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    model, card = nano()
    sha256 = save_checkpoint(tmp_path / "deep" / "model", model, card)
    loaded, read = load_checkpoint(tmp_path / "deep" / "model")
    assert read == replace(card, weights_sha256=sha256)
    assert not loaded.training
    x = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        assert torch.equal(loaded(x).mask, model.eval()(x).mask)
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["model"]


def test_the_trunk_is_not_in_the_checkpoint(folder: Path) -> None:
    names = set(load_file(folder / WEIGHTS))
    assert names
    assert not any("trunk" in name for name in names)


def test_the_card_says_what_one_has_to_know(folder: Path) -> None:
    card = json.loads((folder / CARD).read_text())
    assert card["normalisation"] == {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
    assert card["classes"] == ["water", "oil"]
    assert card["architecture"] == {
        "mode": "full",
        "adapter_dim": 4,
        "width": 16,
        "prompt": False,
        "scale": 1.0,
        "quality": False,
    }
    assert len(card["weights_sha256"]) == len(card["trunk_sha256"]) == 64
    assert card["created_at"].endswith("+00:00")


def test_a_checkpoint_is_never_overwritten(folder: Path) -> None:
    before = (folder / WEIGHTS).read_bytes()
    with pytest.raises(CheckpointError, match="exists already"):
        save_checkpoint(folder, *nano())
    assert (folder / WEIGHTS).read_bytes() == before


def test_an_empty_folder_is_taken_and_what_a_killed_process_left_is_cleared(tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / ".model.part").mkdir()
    (tmp_path / ".model.part" / WEIGHTS).write_bytes(b"half")
    save_checkpoint(tmp_path / "model", *nano())
    load_checkpoint(tmp_path / "model")
    assert [p.name for p in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize("full_at", [1, 2])  # while the weights are written, and the card
def test_a_full_disk_leaves_nothing_half(
    full_at: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = 0
    real = os.fsync

    def fsync(handle: int) -> None:
        nonlocal calls
        calls += 1
        if calls == full_at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(handle)

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(CheckpointError, match=r"model: No space left on device; nothing is left.*Make room"):
        save_checkpoint(tmp_path / "model", *nano())
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("here")
    with pytest.raises(CheckpointError, match="cannot be written"):
        save_checkpoint(tmp_path / "file" / "model", *nano())
    with pytest.raises(CheckpointError, match="exists already"):
        save_checkpoint(tmp_path / "file", *nano())


def test_damaged_weights_are_refused(folder: Path) -> None:
    content = bytearray((folder / WEIGHTS).read_bytes())
    content[-1] ^= 1
    (folder / WEIGHTS).write_bytes(content)
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged: its sha256"):
        load_checkpoint(folder)


def test_missing_files(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"absent holds no checkpoint: card\.json is missing"):
        read_card(tmp_path / "absent")
    (folder / WEIGHTS).unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors cannot be read"):
        load_checkpoint(folder)


@pytest.mark.parametrize("text", ["{", "[]", "null", "\x00"])
def test_a_card_that_is_no_card(text: str, folder: Path) -> None:
    (folder / CARD).write_text(text)
    with pytest.raises(CheckpointError, match="is damaged"):
        read_card(folder)


def test_a_card_that_lacks_something(folder: Path) -> None:
    edit_card(folder, trunk=...)
    with pytest.raises(CheckpointError, match="it lacks trunk"):
        read_card(folder)


def test_a_card_of_newer_code(folder: Path) -> None:
    edit_card(folder, format=2)
    with pytest.raises(CheckpointError, match="has format 2, this code reads 1; update"):
        load_checkpoint(folder)


@pytest.mark.parametrize(
    "architecture",
    [{"mode": "full", "adapter_dim": 4, "width": 24}, {"mode": "full", "lora": 4}, {}],
)
def test_a_network_that_this_code_cannot_build(architecture: dict[str, Any], folder: Path) -> None:
    edit_card(folder, architecture=architecture, code_version="9.9")
    with pytest.raises(CheckpointError, match=r"cannot build: .*saved by version 9\.9"):
        load_checkpoint(folder)


def test_another_trunk_is_refused(folder: Path) -> None:
    edit_card(folder, trunk_sha256="0" * 64)
    with pytest.raises(TrunkError, match="random-nano has sha256"):
        load_checkpoint(folder)


def test_a_trunk_that_is_not_cached(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELNET_HOME", str(tmp_path / "home"))
    edit_card(folder, trunk="sam2-hiera-tiny")
    with pytest.raises(WeightsError, match="elnet weights --trunk sam2-hiera-tiny"):
        load_checkpoint(folder)


def test_a_trained_trunk_comes_from_the_cache(elnet_home: Path, nano_checkpoint: Path) -> None:
    from model import weights

    weights.fetch("sam2-hiera-nano", source=nano_checkpoint)
    trunk, sha256 = load_trunk("sam2-hiera-nano")
    again, same = load_trunk("sam2-hiera-nano", sha256)
    assert sha256 == same == weights.trunk_file("sam2-hiera-nano")[1]
    for key, value in trunk.state_dict().items():
        assert torch.equal(again.state_dict()[key], value)
