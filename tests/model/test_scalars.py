from __future__ import annotations

from pathlib import Path

import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from model import scalars
from model.scalars import Scalars, ScalarsError
from model.training import train
from tests.model.test_training import NANO, make_data


def read(folder: Path) -> dict[str, dict[int, float]]:
    found = EventAccumulator(str(folder)).Reload()
    return {name: {e.step: e.value for e in found.Scalars(name)} for name in found.Tags()["scalars"]}


def test_a_training_leaves_every_step(tmp_path: Path) -> None:
    card = train(make_data(tmp_path / "data"), tmp_path / "out", NANO, tensorboard=tmp_path / "course")
    found = read(tmp_path / "course")
    assert set(found) == {"loss", "lr", "gradient"}
    assert all(list(values) == [1, 2] for values in found.values())  # four images, two epochs
    assert found["loss"][2] == pytest.approx(card.metrics["loss"])
    assert max(found["lr"].values()) == pytest.approx(NANO.lr)


def test_what_is_done_again_replaces_what_was_there(tmp_path: Path) -> None:
    with Scalars(tmp_path) as before:
        before.begin(0)
        for step in range(1, 6):
            before.write(step, loss=9.0)
    with Scalars(tmp_path) as after:
        after.begin(3)
        for step in range(4, 8):
            after.write(step, loss=1.0)
    loss = read(tmp_path)["loss"]
    assert {step: value for step, value in loss.items() if step > 3} == dict.fromkeys(range(4, 8), 1.0)
    assert loss[1] == 9.0


def test_without_tensorboard_a_folder_is_refused_and_none_is_fine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scalars, "find_spec", lambda _name: None)
    with pytest.raises(ScalarsError, match=r"pip install 'elnet-loop\[tensorboard\]'"):
        Scalars(tmp_path)
    with Scalars(None) as nothing:
        nothing.begin(0)
        nothing.write(1, loss=1.0)
    assert not list(tmp_path.iterdir())
