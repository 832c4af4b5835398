"""`elnet enhance` on folders, with a network that was really made for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from backend.cli.enhancing import ADDED, KEPT, REMOVED
from model.checkpoint import ModelCard, load_trunk, save_checkpoint
from model.elnet import SAM2ELNet
from model.hiera import trunk_spec
from model.prompts import signed_distance
from model.raster import read_masks

Elnet = Callable[..., Any]  # the fixture: code, out, err, json()
SIZES = {"a": (64, 64), "b": (40, 90), "c": (130, 70)}  # height, width


def make_checkpoint(folder: Path, *, prompt: bool = True, classes: tuple[str, ...] = ("oil",)) -> Path:
    trunk, sha256 = load_trunk("random-nano")
    torch.manual_seed(1)
    model = SAM2ELNet(trunk, trunk_spec("random-nano"), len(classes), width=8, prompt=prompt)
    for head in model.heads:  # untrained logits hover around 0: spread them, so that masks are not trivial
        torch.nn.init.normal_(head.weight, std=3)
    card = ModelCard("nano-0001", "random-nano", sha256, classes, 64, model.architecture)
    save_checkpoint(folder, model, card)
    return folder


def rows_of(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "enhanced.jsonl").read_text().splitlines()]


def enhanced(elnet: Elnet, checkpoint: Path, data: Path, out: Path, *more: str) -> Any:
    return elnet(
        "enhance",
        "--checkpoint",
        checkpoint,
        "--data",
        data,
        "--out",
        out,
        "--device",
        "cpu",
        "--json",
        *more,
    )


def test_masks_changes_and_lines(elnet: Elnet, data: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in (data / "masks").iterdir()}
    checkpoint, out = make_checkpoint(tmp_path / "net"), tmp_path / "out"
    answer = enhanced(elnet, checkpoint, data, out, "--reach", "6")
    assert answer.code == 0, answer.err
    summary = answer.json()
    assert (summary["n"], summary["failed"], summary["model_version"]) == (3, 0, "nano-0001")
    rows = rows_of(out)
    assert [Path(row["image"]).stem for row in rows] == list(SIZES)
    assert summary["added"] == sum(row["added"] for row in rows)
    assert summary["removed"] == sum(row["removed"] for row in rows)
    assert summary["added"] + summary["removed"] > 0
    for row in rows:
        stem = Path(row["image"]).stem
        coarse, _ = read_masks(data / "masks" / f"{stem}.png")
        mask, _ = read_masks(Path(row["mask"]))
        assert mask.shape == SIZES[stem]
        assert (np.abs(signed_distance(coarse)[mask != coarse]) <= 6).all()
        assert 0 <= row["quality"] <= 1
        changes = np.asarray(Image.open(row["change"]))
        assert np.array_equal((changes == ADDED).all(-1), mask & ~coarse)
        assert np.array_equal((changes == REMOVED).all(-1), coarse & ~mask)
        assert np.array_equal((changes == KEPT).all(-1), coarse & mask)
    assert {path.name: path.read_bytes() for path in (data / "masks").iterdir()} == before


def test_several_classes_have_a_folder_each(elnet: Elnet, data: Path, tmp_path: Path) -> None:
    for name in ("oil", "ship"):
        (data / "masks" / name).mkdir()
    for path in list((data / "masks").glob("*.png")):
        (data / "masks" / "ship" / path.name).write_bytes(path.read_bytes())
        path.rename(data / "masks" / "oil" / path.name)
    checkpoint = make_checkpoint(tmp_path / "net", classes=("oil", "ship"))
    assert enhanced(elnet, checkpoint, data, tmp_path / "out").code == 0
    for row in rows_of(tmp_path / "out"):
        for kind in ("mask", "change"):
            assert list(row[kind]) == ["oil", "ship"]
            assert all(Path(path).is_file() for path in row[kind].values())


def test_a_broken_pair_spoils_only_itself(elnet: Elnet, data: Path, tmp_path: Path) -> None:
    Image.fromarray(np.zeros((9, 9), np.uint8)).save(data / "masks" / "b.png")
    answer = enhanced(elnet, make_checkpoint(tmp_path / "net"), data, tmp_path / "out")
    assert answer.code == 1
    assert "1 of 3 images could not be enhanced" in answer.err
    assert "9 x 9 pixels" in answer.err
    assert [("error" in row) for row in rows_of(tmp_path / "out")] == [False, True, False]


def test_the_coarse_masks_are_never_overwritten(elnet: Elnet, data: Path, tmp_path: Path) -> None:
    answer = enhanced(elnet, make_checkpoint(tmp_path / "net"), data, data)
    assert answer.code == 1
    assert "are not overwritten; name another folder" in answer.err


def test_a_network_without_prompts_and_a_folder_that_cannot_be_written(
    elnet: Elnet, data: Path, tmp_path: Path
) -> None:
    answer = enhanced(elnet, make_checkpoint(tmp_path / "old", prompt=False), data, tmp_path / "out")
    assert answer.code == 1
    assert "was trained without coarse masks" in answer.err
    (tmp_path / "file").touch()
    answer = enhanced(elnet, make_checkpoint(tmp_path / "net"), data, tmp_path / "file" / "out")
    assert answer.code == 1
    assert "cannot be written to" in answer.err
