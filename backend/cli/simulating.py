"""`elnet simulate`: the loop replayed on labelled data, strategy against strategy."""

from __future__ import annotations

import json
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console

from backend.cli.common import JsonOption, split_names
from backend.cli.progress import progress_bar
from backend.tables import print_table
from model.errors import ELNetError


class SimulateError(ELNetError):
    """An option that cannot be read."""


def simulate(
    data: Annotated[Path, typer.Option(help="Folder with images/ and masks/ to choose from.")],
    out: Annotated[Path, typer.Option(help="Folder of the results; what is done there is not done again.")],
    test: Annotated[
        Path | None, typer.Option(help="Another such folder to measure on. Default: a share of --data.")
    ] = None,
    strategies: Annotated[
        str, typer.Option(help="Separated by commas; all: one training with every label.")
    ] = "hybrid,random,all",
    seeds: Annotated[int, typer.Option(min=1, help="Runs of each strategy.")] = 5,
    labels: Annotated[
        str, typer.Option(help="How many labels there are at each training, separated by commas.")
    ] = "8,16,32",
    test_share: Annotated[float, typer.Option(help="Of the scenes of --data, without --test.")] = 0.4,
    holdout_share: Annotated[
        float, typer.Option(help="Of the labels, for the gate; 0: every new version serves.")
    ] = 0.0,
    tolerance: Annotated[int, typer.Option(min=0, help="Boundary errors that pass, px.")] = 1,
    promise_iou: Annotated[
        float, typer.Option(help="A promise to rehearse: an accepted mask below this IoU is bad,")
    ] = 0.5,
    promise_risk: Annotated[float, typer.Option(help="and at most this share of them may be.")] = 0.2,
    training: Annotated[
        Path | None, typer.Option(help="YAML file with training settings, as in the settings file.")
    ] = None,
    device: Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")] = "auto",
    json_: JsonOption = False,
) -> None:
    """Replay the loop on labelled data with an oracle annotator: which strategy needs the fewest labels?"""
    from active_learning.simulation import SimulationPlan
    from active_learning.simulation import simulate as run
    from active_learning.simulation_summary import summarise
    from backend.simulation_report import table_of, write_simulation
    from model.device import describe_machine

    started = time.monotonic()
    plan = SimulationPlan(
        strategies=tuple(split_names(strategies)),
        seeds=tuple(range(seeds)),
        labels=tuple(_numbers(labels)),
        test_share=test_share,
        holdout_share=holdout_share,
        tolerance_px=tolerance,
        promise=(promise_iou, promise_risk),
        training={"device": device, **_settings(training)},
    )
    with progress_bar(hidden=json_) as report:
        rounds = run(data, out, plan, test=test, progress=lambda *said: report(f"runs: {said[0]}", *said[1:]))
    rows = summarise(rounds)
    about = {
        "data": str(data),
        "test": None if test is None else str(test),
        "plan": asdict(plan),
        "machine": describe_machine(),
        "seconds": round(time.monotonic() - started, 1),
    }
    write_simulation(out, rounds, rows, about)
    if json_:
        typer.echo(json.dumps({**about, "strategies": [asdict(row) for row in rows]}, indent=2))
        return
    print_table(Console(markup=False, emoji=False), table_of(rows))
    typer.echo(f"Medians over {seeds} seeds. Curves and every round: {out}")


def _numbers(text: str) -> list[int]:
    try:
        return [int(part) for part in split_names(text)]
    except ValueError as error:
        raise SimulateError(f"--labels takes whole numbers such as 8,16,32, not {text!r}") from error


def _settings(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    try:
        found = yaml.safe_load(path.read_text())
    except (OSError, yaml.YAMLError) as error:
        raise SimulateError(f"--training {path} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise SimulateError(f"--training {path} should hold settings such as `epochs: 10`")
    return found
