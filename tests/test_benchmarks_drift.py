"""The benchmark of drift, on clouds whose answers are known."""

from __future__ import annotations

import sys

import numpy as np
import pytest

from benchmarks import drift
from benchmarks.drift import Images, table


def images(kind: str, count: int, shift: float) -> Images:
    cloud = np.random.default_rng(len(kind)).normal(size=(count, 8)) + shift
    return Images(cloud.astype(np.float32), np.array([f"{kind}-{i // 2}" for i in range(count)]))


@pytest.fixture
def here() -> Images:
    one, two = images("near", 160, 0.0), images("farther", 80, 4.0)
    return Images(np.concatenate([one.embeddings, two.embeddings]), np.concatenate([one.scenes, two.scenes]))


def test_the_more_is_strange_the_more_often_it_alarms(here: Images) -> None:
    found = table(here, images("x", 60, 9.0), "near", 40, 20)
    rows = {name: (share, alarms) for name, share, alarms in found}
    assert rows["of the same kind"][1] == 0
    assert rows["of the same kind"][0] == pytest.approx(0.1, abs=0.05)
    assert rows["all of another kind"] == (pytest.approx(1, abs=0.05), 1)
    assert rows["half of another kind"][0] == pytest.approx(0.55, abs=0.07)
    assert rows["all from the other folder"] == (1, 1)
    assert rows["a fifth from the other folder"][0] == pytest.approx(0.28, abs=0.07)


def test_the_table(here: Images, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(drift, "Predictor", lambda path: path)
    monkeypatch.setattr(drift, "collect", lambda predictor, folder: here)
    arguments = "drift --checkpoint c --data a --known near --other b --draws 2"
    monkeypatch.setattr(sys, "argv", arguments.split())
    drift.main()
    said = capsys.readouterr().out
    assert "| of the same kind | 20 | " in said
    assert "| all from the other folder | 40 | " in said
