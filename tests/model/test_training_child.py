"""The process in which a cycle trains: what it prints, and how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from model import training_child
from model.checkpoint import read_card
from tests.model.test_training import make_data


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data")


def child(*arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "model.training_child", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def settings(**changes: Any) -> str:
    return json.dumps(
        {"trunk": "random-nano", "epochs": 2, "size": 32, "width": 16, "device": "cpu"} | changes
    )


def test_the_child_prints_a_line_for_each_epoch(data: Path, tmp_path: Path) -> None:
    process = child(
        "--data", str(data), "--out", str(tmp_path / "out"), "--config", settings(), "--version", "elnet-0003"
    )
    said, complaints = process.communicate(timeout=120)
    assert process.returncode == 0, complaints
    lines = [json.loads(line) for line in said.splitlines()]
    assert [set(line) for line in lines] == [{"epoch", "epochs", "loss", "images_per_s"}] * 2
    assert read_card(tmp_path / "out").version == "elnet-0003"


def test_sigterm_stops_the_child_and_leaves_nothing(data: Path, tmp_path: Path) -> None:
    process = child("--data", str(data), "--out", str(tmp_path / "out"), "--config", settings(epochs=100_000))
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["epoch"] == 1  # flushed while it goes on
    process.send_signal(signal.SIGTERM)
    _, complaints = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "Traceback" not in complaints
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data"]


@pytest.mark.parametrize(
    ("config", "error"),
    [
        ("{", "--config is not JSON"),
        ("[1]", "should be a JSON object"),
        (settings(epoch=1), "epoch: Unexpected keyword"),
        (settings(trunk="sam9"), "there is no trunk 'sam9'"),
        (settings(device="cuda:77"), "'cuda:77' is not here"),
    ],
)
def test_an_error_is_one_line_of_json(
    config: str, error: str, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    try:
        code = training_child.main(["--data", str(data), "--out", str(tmp_path / "out"), "--config", config])
    finally:
        signal.signal(signal.SIGTERM, before)
    assert code == 1
    assert error in json.loads(capsys.readouterr().out)["error"]
    assert not (tmp_path / "out").exists()
