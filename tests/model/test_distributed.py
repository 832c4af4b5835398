"""Several processes train the network that one would have trained."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from model import resumption, training
from model.checkpoint import load_checkpoint
from model.distributed import DistributedError, Team, joined, torchrun_command
from model.training import train
from tests.model.test_training import NANO, make_data

CONFIG = replace(NANO, batch_size=2, precision="fp32")  # seven images: in one step a process has none


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data", 7)


def start(processes: int, data: Path, out: Path, *more: str, **changes: Any) -> subprocess.Popen[str]:
    given = {k: v for k, v in asdict(replace(CONFIG, **changes)).items() if v is not None}
    arguments = ["--data", str(data), "--out", str(out), "--config", json.dumps(given), *more]
    return subprocess.Popen(
        torchrun_command(processes, "model.training_child", arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )


def test_they_train_what_one_process_trains(data: Path, tmp_path: Path) -> None:
    said, errors = start(2, data, tmp_path / "team").communicate(timeout=200)
    assert (tmp_path / "team").exists(), errors
    alone = train(data, tmp_path / "alone", CONFIG)
    lines = [json.loads(line) for line in said.splitlines()]
    assert [line["epoch"] for line in lines] == [1, 2]  # one of them speaks
    assert lines[-1]["loss"] == pytest.approx(alone.metrics["loss"], rel=1e-4)
    model, card = load_checkpoint(tmp_path / "team")
    other, _ = load_checkpoint(tmp_path / "alone")
    assert card.metrics["images"] == 7
    assert card.snapshot == alone.snapshot
    images = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        ours, its = model(images), other(images)
    torch.testing.assert_close(ours.mask, its.mask, atol=1e-2, rtol=1e-3)
    assert model.quality is not None


class StoppedError(Exception):
    pass


def test_they_go_on_from_what_was_kept(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumption, "KEEP_S", 0)
    real, steps = training.elnet_loss, 0

    def loss(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal steps
        steps += 1
        if steps > 2:
            raise StoppedError
        return real(*args, **kwargs)

    monkeypatch.setattr(training, "elnet_loss", loss)
    state = tmp_path / "state"
    with pytest.raises(StoppedError):
        train(data, tmp_path / "out", CONFIG, state=state)
    said, errors = start(2, data, tmp_path / "out", "--state", str(state)).communicate(timeout=200)
    assert said, errors
    assert json.loads(said.splitlines()[0])["resumed"].startswith(
        "Going on in epoch 1 of 2, after step 2 of 4"
    )
    assert (tmp_path / "out").exists()
    assert not state.exists()


def test_an_error_ends_all(data: Path, tmp_path: Path) -> None:
    process = start(2, data, tmp_path / "out", lr=1.0, clip=1e30, epochs=400, weight_decay=1e30)
    said, _ = process.communicate(timeout=200)
    assert process.returncode == 1
    assert any("the loss is" in json.loads(line).get("error", "") for line in said.splitlines())
    assert not (tmp_path / "out").exists()


def test_they_end_with_a_launcher_that_is_killed(data: Path, tmp_path: Path) -> None:
    process = start(2, data, tmp_path / "out", epochs=10_000)
    assert process.stdout is not None
    with process:
        process.stdout.readline()  # they train
        ranks = [int(pid) for pid in _children(process.pid)]
        assert len(ranks) == 2
        process.send_signal(signal.SIGKILL)
        process.wait()
        until = time.monotonic() + 20
        while any(Path(f"/proc/{pid}").exists() for pid in ranks):
            assert time.monotonic() < until
            time.sleep(0.1)
    assert not (tmp_path / "out").exists()


def _children(pid: int) -> list[str]:
    return Path(f"/proc/{pid}/task/{pid}/children").read_text().split()


@pytest.mark.parametrize("size", [1, 2, 3, 5])
def test_parts_cover_a_batch_once_and_weigh_it(size: int) -> None:
    numbers = [4, 7, 1]
    teams = [Team(rank, size, torch.device("cpu")) for rank in range(size)]
    assert sorted(n for team in teams for n in team.part(numbers)) == sorted(numbers)
    assert sum(team.weight(numbers) for team in teams) == pytest.approx(1)
    assert all(team.share(numbers) for team in teams)


def test_several_processes_on_one_gpu_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    monkeypatch.setenv("LOCAL_RANK", "1")
    with pytest.raises(DistributedError, match="cuda:0 is one GPU, and there are 2 processes"):
        joined(torch.device("cuda:0")).__enter__()
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(DistributedError, match="2 processes on a machine with 1 GPU"):
        joined(torch.device("cuda")).__enter__()


def test_the_command_line_refuses_what_it_can_before_it_starts_them(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "backend.cli", "train", "--processes", "2"]
    command += ["--data", str(tmp_path / "nowhere"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=200)
    assert done.returncode == 1
    assert done.stderr.startswith("elnet: error: ")
    assert "Traceback" not in done.stderr


def test_the_command_line_starts_them_itself(data: Path, tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "backend.cli",
        "train",
        "--data",
        str(data),
        "--out",
        str(tmp_path / "out"),
    ]
    settings = tmp_path / "nano.yaml"
    settings.write_text("trunk: random-nano\nepochs: 1\nsize: 32\nwidth: 16\n")
    command += ["--config", str(settings), "--device", "cpu", "--processes", "2", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[2], timeout=200)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 7
