"""`elnet simulate` from the command line to its files."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Elnet = Callable[..., Any]


@pytest.fixture
def data(own_settings: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Ten bright squares, and settings of a tiny network."""
    monkeypatch.setenv("COLUMNS", "300")
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (own_settings / "data" / name).mkdir(parents=True)
    for i in range(10):
        mask = np.zeros((32, 32), np.uint8)
        row, col = random.integers(2, 16, 2)
        mask[row : row + 12, col : col + 12] = 255
        pixels = np.clip(random.normal(60, 10, mask.shape) + 0.5 * mask, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(own_settings / "data" / "images" / f"s{i}.png")
        Image.fromarray(mask).save(own_settings / "data" / "masks" / f"s{i}.png")
    (own_settings / "nano.yaml").write_text(
        "{trunk: random-nano, size: 32, epochs: 1, batch_size: 4, width: 8, adapter_dim: 4}"
    )
    return own_settings / "data"


def simulate(elnet: Elnet, data: Path, *more: object) -> Any:
    out = ("--out", data.parent / "out", "--training", data.parent / "nano.yaml", "--device", "cpu")
    return elnet("simulate", "--data", data, *out, "--seeds", 2, "--labels", "3,5", *more)


def test_a_table_files_and_curves(elnet: Elnet, data: Path) -> None:
    said = simulate(elnet, data)
    assert said.code == 0, said.err
    lines = [line.split() for line in said.out.splitlines()]
    assert [(line[0], line[1]) for line in lines[1:6]] == [
        ("hybrid", "3"),
        ("hybrid", "5"),
        ("random", "3"),
        ("random", "5"),
        ("all", "6"),
    ]
    out = data.parent / "out"
    assert lines[-1][-1] == str(out)
    with (out / "rounds.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 10
    summary = json.loads((out / "summary.json").read_text())
    assert summary["plan"]["labels"] == [3, 5]
    assert [row["strategy"] for row in summary["strategies"]] == ["hybrid"] * 2 + ["random"] * 2 + ["all"]
    for name in ("iou-by-labels", "iou-by-pixels"):
        assert (out / f"{name}.svg").read_text().startswith("<svg")
        with Image.open(out / f"{name}.png") as curves:
            assert curves.width > 400

    again = simulate(elnet, data, "--json").json()  # everything is done already
    assert again["strategies"] == summary["strategies"]


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (("--strategies", "best"), "no such strategy: best"),
        (("--labels", "3,x"), "--labels takes whole numbers"),
        (("--labels", "3,99"), "99 labels are asked for, and there are 6 images"),
        (("--out", "/proc/no"), "/proc/no cannot be made"),
        (("--training", "/no.yaml"), "--training /no.yaml cannot be read"),
    ],
)
def test_what_cannot_be_run_is_named(elnet: Elnet, data: Path, more: tuple[str, str], said: str) -> None:
    answer = simulate(elnet, data, *more)
    assert (answer.code, answer.out) == (1, "")
    assert said in answer.err


def test_training_settings_are_a_mapping(elnet: Elnet, data: Path) -> None:
    (data.parent / "nano.yaml").write_text("- epochs")
    assert "should hold settings such as" in simulate(elnet, data).err
