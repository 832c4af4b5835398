"""What a simulation leaves behind."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from active_learning.simulation import Round, SimulationPlan
from active_learning.simulation_summary import summarise
from backend.simulation_report import write_simulation


def rounds(risk: float | None) -> list[Round]:
    return [
        Round("hybrid", 0, n, True, 0.5, 0.5, 0.5, 0.7, 0.3, 0.4, risk, 0.9, n / 10, n, 1.0) for n in (8, 16)
    ]


def test_realised_risk_is_drawn_beside_the_promised_one_where_anything_was_accepted(tmp_path: Path) -> None:
    about = {"plan": asdict(SimulationPlan())}
    write_simulation(tmp_path, rounds(None), summarise(rounds(None)), about)
    assert not (tmp_path / "risk-by-labels.svg").exists()
    write_simulation(tmp_path, rounds(0.15), summarise(rounds(0.15)), about)
    drawn = (tmp_path / "risk-by-labels.svg").read_text()
    assert drawn.startswith("<svg")
    assert "bad masks among the accepted" in drawn
