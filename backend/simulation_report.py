"""What `elnet simulate` leaves behind: rounds.csv, summary.json, and the curves as SVG and PNG."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict, fields
from pathlib import Path
from typing import Any

import altair as alt
from rich.table import Table

from active_learning.simulation import FULL, Round
from active_learning.simulation_summary import Summary
from backend.report import write_chart


def table_of(rows: Sequence[Summary]) -> Table:
    """The summary as a table for the terminal: medians over the seeds."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("strategy")
    for name in (
        "labels", "IoU", "lowest", "highest", "per image", "boundary F", "rank corr.", "AURC", "accepted",
        "bad of them", "kept", "rose", "corrected Mpx", "labels for 95 %",
    ):  # fmt: skip
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            row.strategy,
            str(row.labels),
            *(f"{v:.3f}" for v in (row.fg_iou, row.lowest, row.highest, row.fg_iou_per_image)),
            f"{row.boundary_f1:.3f}",
            "-" if row.spearman is None else f"{row.spearman:.2f}",
            f"{row.aurc:.3f}",
            f"{row.accepted:.0%}",
            "-" if row.realised_risk is None else f"{row.realised_risk:.0%}",
            f"{row.promise_kept:.0%}",
            "-" if row.rose is None else f"{row.rose:.0%}",
            f"{row.corrected_pixels:.2f}",
            "-" if row.labels_for_target is None else f"{row.labels_for_target:.0f}",
        )
    return table


def write_simulation(
    folder: Path, rounds: Sequence[Round], rows: Sequence[Summary], about: dict[str, Any]
) -> None:
    """Write everything.

    Args:
        folder: is there.
        rounds: every run's.
        rows: their summary.
        about: what was run on what; goes into summary.json as it is.
    """
    with (folder / "rounds.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, [f.name for f in fields(Round)])
        writer.writeheader()
        writer.writerows(asdict(row) for row in rounds)
    summary = {**about, "strategies": [asdict(row) for row in rows]}
    (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n")
    for name, chart in (("labels", _curves(rows, "labels")), ("pixels", _curves(rows, "corrected_pixels"))):
        write_chart(folder, f"iou-by-{name}", chart)
    accepting = [row for row in rows if row.strategy != FULL and row.realised_risk is not None]
    if accepting:
        write_chart(folder, "risk-by-labels", _risks(accepting, about["plan"]["promise"][1]))


def _curves(rows: Sequence[Summary], by: str) -> alt.LayerChart:
    """The strategies' IoU, median and range; what all labels reach is a dashed line."""
    values = [asdict(row) for row in rows if row.strategy != FULL]
    title = {"labels": "labelled images", "corrected_pixels": "corrected pixels, millions"}[by]
    base = alt.Chart(alt.Data(values=values), width=420, height=280).encode(
        x=alt.X(f"{by}:Q", title=title),
        color=alt.Color("strategy:N", title=None),
    )
    iou = alt.Y("fg_iou:Q", title="foreground IoU on the test images", scale=alt.Scale(zero=False))
    layers: list[alt.Chart] = [
        base.mark_area(opacity=0.12).encode(y=alt.Y("lowest:Q", title=""), y2="highest:Q"),
        base.mark_line(point=True).encode(y=iou),
    ]
    complete = [{"fg_iou": row.fg_iou} for row in rows if row.strategy == FULL]
    if complete:
        rule = alt.Chart(alt.Data(values=complete)).mark_rule(strokeDash=[4, 3], color="#666")
        layers.append(rule.encode(y="fg_iou:Q"))
    return alt.layer(*layers)


def _risks(rows: Sequence[Summary], promised: float) -> alt.LayerChart:
    """The share of bad masks among the accepted ones, beside the promised one as a dashed line."""
    values = [asdict(row) for row in rows]
    realised = (
        alt.Chart(alt.Data(values=values), width=420, height=280)
        .mark_line(point=True)
        .encode(
            x=alt.X("labels:Q", title="labelled images"),
            y=alt.Y("realised_risk:Q", title="bad masks among the accepted", axis=alt.Axis(format="%")),
            color=alt.Color("strategy:N", title=None),
        )
    )
    rule = alt.Chart(alt.Data(values=[{"realised_risk": promised}])).mark_rule(
        strokeDash=[4, 3], color="#666"
    )
    return alt.layer(realised, rule.encode(y="realised_risk:Q"))
