"""The benchmark of several workers, on a few tiles."""

from __future__ import annotations

from pathlib import Path

import pytest

from active_learning.ledger import Ledger
from benchmarks import workers as benchmark


def test_a_team_works(postgresql_url: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Ledger(postgresql_url) as ledger:
        ledger.upgrade()
        benchmark.team(ledger, postgresql_url, [1, 2], seconds=0.01, tiles=40)
        assert benchmark.alive(ledger) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| 1", "| 2"]


def test_tiles_alone_and_with_everything(
    ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Quick:
        version = "any"

        def predict(self, images: list[object]) -> list[object]:
            return benchmark.SleepingPredictor("any", 0).predict(images)  # type: ignore[arg-type]

    monkeypatch.setattr(benchmark, "make_checkpoint", lambda folder, mode: folder / mode)
    monkeypatch.setattr(benchmark, "Predictor", lambda *_, **__: Quick())
    benchmark.tile(ledger, tmp_path, rounds=2)
    said = capsys.readouterr().out
    assert "| 64 tiles, batch 32, median of 2 |" in said
    assert "| with queue, ledger and push |" in said
