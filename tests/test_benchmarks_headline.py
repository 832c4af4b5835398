"""The headline benchmark runs on made-up squares and remembers what is done; its figures are not judged."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import headline

SETS = [
    "all labels",
    "30 % of them",
    "automatic",
    "automatic, unfiltered",
    "30 % and automatic",
    "all, enhanced",
]


@pytest.fixture
def data(squares: Callable[[int], Path]) -> Path:
    return squares(10)


def test_a_line_for_each_set_of_labels_and_none_twice(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "headline.jsonl"
    config = tmp_path / "nano.yaml"
    config.write_text(
        "{trunk: random-nano, mode: cached, epochs: 1, width: 8, adapter_dim: 4, cache_gb: 0, size: 64}"
    )
    arguments = ["headline", "--data", data, "--out", out, "--config", config, "--seeds", 1]
    arguments += ["--unet-epochs", 1]
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    headline.main()
    lines = [json.loads(line) for line in out.read_text().splitlines()]
    assert [line["set"] for line in lines] == SETS
    assert [line["images"] for line in lines] == [10, 3, 6, 7, 9, 10]
    by_set = {line["set"]: line for line in lines}
    assert by_set["all labels"]["label_iou"] == by_set["30 % of them"]["label_iou"] == 1.0
    assert by_set["automatic"]["label_iou"] < 1.0
    assert by_set["30 % and automatic"]["label_iou"] > by_set["automatic"]["label_iou"]
    assert all(0 <= line["fg_iou"] <= 1 and line["seconds"] > 0 for line in lines)
    shown = capsys.readouterr().out.splitlines()[-8:]
    assert shown[0].startswith("| labels | images | IoU of the labels | seeds | fg_iou |")
    assert shown[2].startswith("| all labels | 10 | 1.000 | 1 | ")

    before = out.read_text()
    headline.main()
    assert out.read_text() == before
