"""Resident predictors."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from active_learning import predictors
from active_learning.ledger import ModelVersion
from active_learning.predictors import PredictorPool
from model.checkpoint import CheckpointError


class Loaded:
    """Stands for a predictor; remembers how it was made."""

    made: list[tuple[Path, str, int, int]] = []  # noqa: RUF012 - emptied by the fixture

    def __init__(self, checkpoint: Path, device: str, batch_size: int, flips: int) -> None:
        time.sleep(0.05)  # long enough for two threads to meet
        self.made.append((checkpoint, device, batch_size, flips))


@pytest.fixture
def pool(monkeypatch: pytest.MonkeyPatch) -> PredictorPool:
    Loaded.made.clear()
    monkeypatch.setattr(predictors, "Predictor", Loaded)
    return PredictorPool("cpu", 3, 2, lambda version: Path(version.path))


def version(number: int) -> ModelVersion:
    return ModelVersion(id=number, path=f"models/{number}")


def test_a_version_is_loaded_once(pool: PredictorPool) -> None:
    assert pool.get(version(1)) is pool.get(version(1))
    assert pool.get(version(2)) is not pool.get(version(1))
    assert Loaded.made == [(Path("models/1"), "cpu", 3, 2), (Path("models/2"), "cpu", 3, 2)]


def test_threads_share_it(pool: PredictorPool) -> None:
    got: list[object] = []
    threads = [threading.Thread(target=lambda: got.append(pool.get(version(1)))) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(Loaded.made) == 1
    assert len({id(one) for one in got}) == 1


def test_only_what_is_kept_stays(pool: PredictorPool) -> None:
    first, second = pool.get(version(1)), pool.get(version(2))
    pool.keep([2, 3])
    assert pool.get(version(2)) is second
    assert pool.get(version(1)) is not first


def test_a_checkpoint_that_is_gone_is_named_each_time(tmp_path: Path) -> None:
    pool = PredictorPool("cpu")
    with pytest.raises(CheckpointError, match="gone"):
        pool.get(ModelVersion(id=1, name="elnet-0001", path=str(tmp_path / "gone")))
    with pytest.raises(CheckpointError, match="gone"):
        pool.get(ModelVersion(id=1, name="elnet-0001", path=str(tmp_path / "gone")))
