from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from active_learning import simulation
from active_learning.simulation import FULL, Round, SimulationError, SimulationPlan, simulate

NANO = {"trunk": "random-nano", "size": 32, "epochs": 2, "batch_size": 4, "width": 8, "adapter_dim": 4}
PLAN = SimulationPlan(strategies=("hybrid", "random", FULL), seeds=(0, 1), labels=(4, 7), training=NANO)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty bright squares on a dark ground, and their masks."""
    folder = tmp_path_factory.mktemp("data")
    random = np.random.default_rng(0)
    for name in ("images", "masks"):
        (folder / name).mkdir()
    for i in range(20):
        mask = np.zeros((32, 32), np.uint8)
        row, col = random.integers(2, 16, 2)
        mask[row : row + 12, col : col + 12] = 255
        pixels = np.clip(random.normal(60, 10, mask.shape) + 0.5 * mask, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"scene{i}.png")
        Image.fromarray(mask).save(folder / "masks" / f"scene{i}.png")
    return folder


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELNET_HOME", str(tmp_path / "home"))


def figures(rounds: list[Round]) -> list[Round]:
    return [replace(row, seconds=0.0) for row in rounds]


def test_strategies_and_seeds_side_by_side(data: Path, tmp_path: Path) -> None:
    told: list[tuple[str, int, int]] = []
    rounds = simulate(data, tmp_path / "out", PLAN, progress=lambda *said: told.append(said))
    assert [(r.strategy, r.seed, r.labels) for r in rounds] == [
        *(
            (strategy, seed, labels)
            for strategy in ("hybrid", "random")
            for seed in (0, 1)
            for labels in (4, 7)
        ),
        (FULL, 0, 12),
        (FULL, 1, 12),
    ]
    assert told[-1][1:] == (6, 6)
    for row in rounds:
        assert 0 <= row.fg_iou <= 1
        assert 0 <= row.aurc <= 1
        assert row.promoted
    first = {(r.seed, r.strategy): r.fg_iou for r in rounds if r.labels == 4}
    assert first[0, "hybrid"] == first[0, "random"]  # the same first labels for every strategy
    assert first[0, "hybrid"] != first[1, "hybrid"]


def test_what_is_done_is_not_done_again(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    less = replace(PLAN, strategies=("random",), seeds=(0,))
    first = simulate(data, tmp_path / "out", less)
    kept = tmp_path / "out" / "runs.jsonl"
    kept.write_text(kept.read_text() + '{"plan": "torn off')
    with kept.open("a") as lines:
        lines.write("\n")

    ran: list[Any] = []
    run = simulation._run
    monkeypatch.setattr(simulation, "_run", lambda *a: (ran.append(a[:2]), run(*a))[1])
    again = simulate(data, tmp_path / "out", replace(less, seeds=(0, 1)))
    assert again[:2] == first
    assert ran == [("random", 1)]
    simulate(data, tmp_path / "out", replace(less, training={**NANO, "epochs": 1}))  # another plan
    assert ran == [("random", 1), ("random", 0)]


def test_the_same_plan_gives_the_same_figures(data: Path, tmp_path: Path) -> None:
    plan = replace(PLAN, strategies=("hybrid",), seeds=(3,))
    one, two = (simulate(data, tmp_path / name, plan) for name in ("one", "two"))
    assert figures(one) == figures(two)


def test_a_folder_to_measure_on_leaves_everything_to_choose_from(data: Path, tmp_path: Path) -> None:
    plan = replace(PLAN, strategies=(FULL,), seeds=(0,))
    [row] = simulate(data, tmp_path / "out", plan, test=data)
    assert row.labels == 20


def test_the_gate_may_keep_what_serves(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([True, False, True])
    monkeypatch.setattr(simulation, "_is_better", lambda *_, **__: next(answers))
    plan = replace(PLAN, strategies=("random",), seeds=(0,), labels=(4, 6, 9), holdout_share=0.4)
    first, second, third = simulate(data, tmp_path / "out", plan)
    assert [row.promoted for row in (first, second, third)] == [True, False, True]
    assert second.fg_iou == first.fg_iou
    assert third.fg_iou != first.fg_iou


def test_nothing_serves_when_the_gate_refuses_the_first(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(simulation, "_is_better", lambda *_, **__: False)
    plan = replace(PLAN, strategies=("hybrid",), seeds=(0,), holdout_share=0.4)
    for row in simulate(data, tmp_path / "out", plan):
        assert (row.fg_iou, row.spearman, row.promoted) == (0, None, False)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"strategies": ("best",)}, r"no such strategy: best.*hybrid"),
        ({"strategies": ()}, "none given"),
        ({"seeds": ()}, "seed"),
        ({"labels": (8, 8)}, "must rise"),
        ({"labels": (1, 8)}, "2 or more"),
        ({"labels": ()}, "must rise"),
        ({"labels": (4, 13)}, "13 labels are asked for, and there are 12 images"),
        ({"test_share": 1.0}, "between 0 and 1"),
        ({"holdout_share": 1.0}, "between 0 and 1"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(
    data: Path, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(SimulationError, match=said):
        simulate(data, tmp_path / "out", replace(PLAN, **change))
