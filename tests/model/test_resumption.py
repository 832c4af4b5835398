"""A training that was stopped goes on where it was, as if it had never been stopped."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch

from model import resumption, training
from model.checkpoint import read_card
from model.hiera import Mode
from model.losses import elnet_loss
from model.resumption import fingerprint
from model.training import TrainConfig, TrainProgress, train
from tests.model.test_training import NANO, make_data

STEPS = 4  # of an epoch: seven images in batches of two
CONFIG = replace(NANO, batch_size=2, epochs=2)


class StoppedError(Exception):
    pass


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return make_data(tmp_path / "data", 7)


@pytest.fixture(autouse=True)
def keep_every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resumption, "KEEP_S", 0)


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Let the loss of the nth step from now on raise; 0 never does. Returns how many there have been."""
    called = 0
    limit = 0

    def loss(*args: Any, **kwargs: Any) -> torch.Tensor:
        nonlocal called
        called += 1
        if called == limit:
            raise StoppedError
        return elnet_loss(*args, **kwargs)

    def stop(number: int) -> int:
        nonlocal called, limit
        before, called, limit = called, 0, number
        return before

    monkeypatch.setattr(training, "elnet_loss", loss)
    return stop


@pytest.mark.parametrize("mode", ["full", "cached"])
def test_stopped_at_every_step_it_ends_with_the_same_weights(
    mode: Mode, data: Path, tmp_path: Path, stop_at: Any
) -> None:
    config = replace(CONFIG, mode=mode)
    whole: list[TrainProgress] = []
    card = train(data, tmp_path / "whole", config, progress=whole.append)
    state, reports, said = tmp_path / "state" / "file", list[TrainProgress](), list[str]()
    for _ in range(2 * STEPS - 1):
        stop_at(2)
        with pytest.raises(StoppedError):
            train(data, tmp_path / "out", config, state=state, progress=reports.append, resumed=said.append)
    stop_at(0)
    resumed = train(data, tmp_path / "out", config, state=state, progress=reports.append, resumed=said.append)
    assert stop_at(0) == 1  # one step was left
    assert resumed.weights_sha256 == card.weights_sha256
    assert said[0] == "Going on in epoch 1 of 2, after step 1 of 4."
    assert said[-1] == "Going on in epoch 2 of 2, after step 3 of 4."
    assert {(r.epoch, r.loss) for r in reports} == {(r.epoch, r.loss) for r in whole}
    assert not list(state.parent.iterdir())


def test_stopped_after_the_last_step_only_the_rest_is_done(
    data: Path, tmp_path: Path, stop_at: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    card = train(data, tmp_path / "whole", CONFIG)
    with monkeypatch.context() as patch:
        patch.setattr(training, "fit_quality", Mock(side_effect=StoppedError))
        with pytest.raises(StoppedError):
            train(data, tmp_path / "out", CONFIG, state=tmp_path / "state")
    stop_at(0)
    resumed = train(data, tmp_path / "out", CONFIG, state=tmp_path / "state")
    assert stop_at(0) == 0
    assert resumed.weights_sha256 == card.weights_sha256


def test_settings_that_change_the_weights_start_anew(
    data: Path, tmp_path: Path, stop_at: Any, caplog: pytest.LogCaptureFixture
) -> None:
    stop_at(3)
    with pytest.raises(StoppedError):
        train(data, tmp_path / "out", CONFIG, state=tmp_path / "state")
    stop_at(0)
    with caplog.at_level(logging.WARNING):
        train(data, tmp_path / "out", replace(CONFIG, lr=1e-3), state=tmp_path / "state")
    assert stop_at(0) == 2 * STEPS
    assert "is of another training" in caplog.text


def test_what_a_state_belongs_to() -> None:
    def of(**changes: Any) -> str:
        return fingerprint("snapshot", None, asdict(replace(TrainConfig(), **changes)))

    assert of() == of(workers=3, cache_gb=0.0, device="cpu")
    assert of() not in {of(seed=1), of(epochs=3), of(mode="late"), of(precision="fp32")}
    config = asdict(TrainConfig())
    assert len({fingerprint(*given, config) for given in (("a", None), ("b", None), ("a", "b"))}) == 3


@pytest.mark.parametrize("spoil", [b"", b"not a state", None])
def test_a_damaged_state_starts_anew(
    spoil: bytes | None, data: Path, tmp_path: Path, stop_at: Any, caplog: pytest.LogCaptureFixture
) -> None:
    card = train(data, tmp_path / "whole", CONFIG)
    state = tmp_path / "state"
    stop_at(3)
    with pytest.raises(StoppedError):
        train(data, tmp_path / "out", CONFIG, state=state)
    state.write_bytes(state.read_bytes()[:-100] if spoil is None else spoil)
    stop_at(0)
    with caplog.at_level(logging.WARNING):
        assert train(data, tmp_path / "out", CONFIG, state=state).weights_sha256 == card.weights_sha256
    assert stop_at(0) == 2 * STEPS
    assert "training starts anew" in caplog.text


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")  # noqa: PTH110
def test_a_full_disk_does_not_stop_training(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = tmp_path / "state"
    Path(f"{state}.part").symlink_to("/dev/full")
    with caplog.at_level(logging.WARNING):
        card = train(data, tmp_path / "out", replace(CONFIG, epochs=1), state=state)
    assert "cannot be kept" in caplog.text
    assert card == read_card(tmp_path / "out")
    assert not state.exists()


def test_a_killed_process_goes_on(data: Path, tmp_path: Path) -> None:
    config = asdict(replace(CONFIG, epochs=4))
    code = (
        "import sys\nfrom model import resumption, training_child\n"
        "resumption.KEEP_S = 0\nsys.exit(training_child.main())"
    )

    def start(out: str) -> subprocess.Popen[bytes]:
        given = ["--data", str(data), "--out", str(tmp_path / out), "--state", str(tmp_path / f"{out}.state")]
        return subprocess.Popen(
            [sys.executable, "-c", code, *given, "--config", json.dumps(config)], stdout=subprocess.PIPE
        )

    with start("out") as killed:
        assert killed.stdout is not None
        assert json.loads(killed.stdout.readline())["epoch"] == 1
        killed.send_signal(signal.SIGKILL)
    assert not (tmp_path / "out").exists()
    with start("out") as again:
        assert again.stdout is not None
        lines = [json.loads(line) for line in again.stdout]
    assert again.returncode == 0
    assert lines[0]["resumed"].startswith("Going on in epoch ")
    assert lines[-1]["epoch"] == 4
    with start("whole") as whole:
        whole.communicate()
    assert read_card(tmp_path / "out").weights_sha256 == read_card(tmp_path / "whole").weights_sha256
