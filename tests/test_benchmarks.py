"""The benchmarks can be run; what they measure is never looked at here."""

from __future__ import annotations

import runpy
import sys

import numpy as np
import pytest

from benchmarks import network, rle
from benchmarks.timing import in_turn


def test_ways_are_run_in_turn_and_the_first_round_does_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    # What each call takes, by round: the first is slow (it warms up), and one later round is disturbed.
    takes = {"a": [100.0, 1.0, 3.0, 2.0], "b": [100.0, 5.0, 5.0, 500.0]}
    order: list[str] = []

    def way(name: str) -> None:
        clock[0] += takes[name][order.count(name)]
        order.append(name)

    monkeypatch.setattr("benchmarks.timing.time.perf_counter", lambda: clock[0])
    seconds = in_turn({"a": lambda: way("a"), "b": lambda: way("b")}, rounds=3)
    assert seconds == {"a": 2.0, "b": 5.0}
    assert order == ["a", "b"] * 4


def test_ragged_masks_are_the_same_for_a_seed_and_have_many_runs() -> None:
    mask = rle.ragged(128, 12)
    assert mask.shape == (128, 128)
    assert mask.dtype == np.bool_
    assert 0.02 < mask.mean() < 0.9
    assert np.array_equal(mask, rle.ragged(128, 12))
    assert not np.array_equal(mask, rle.ragged(128, 12, seed=1))
    runs = np.count_nonzero(np.diff(mask.ravel()))
    assert runs > 200  # a row through a smooth blob has two ends, a frayed one has more


def test_the_table_of_the_brush_codes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rle, "_CASES", ((32, 2, 1),))
    rle.main()
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[2].startswith("| 32 x 32, 2 objects | ")


def test_codes_that_differ_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rle, "_CASES", ((32, 2, 1),))
    monkeypatch.setattr(rle, "encode_rle", lambda mask: [0])
    with pytest.raises(SystemExit, match="the comparison would mean nothing"):
        rle.main()


def run(monkeypatch: pytest.MonkeyPatch, *names: str) -> object:
    monkeypatch.setattr(sys, "argv", ["benchmarks", *names])
    monkeypatch.delitem(sys.modules, "benchmarks.__main__", raising=False)
    with pytest.raises(SystemExit) as end:
        runpy.run_module("benchmarks", run_name="__main__", alter_sys=False)
    return end.value.code


def test_named_benchmarks_are_run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    ran: list[str] = []
    monkeypatch.setattr(rle, "main", lambda: ran.append("rle"))
    monkeypatch.setattr(network, "main", lambda: ran.append("network"))
    assert run(monkeypatch, "rle") == 0
    assert ran == ["rle"]
    assert "command: python -m benchmarks rle" in capsys.readouterr().out
    assert run(monkeypatch) == 0
    assert ran == ["rle", "rle", "network"]


def test_an_unknown_benchmark_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "nonsense") == 2
    assert "There is no benchmark nonsense; there are rle, network." in capsys.readouterr().err
