"""What `elnet demo` leaves behind: report.json, report.html and pictures."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import altair as alt
import jinja2
import numpy as np
import vl_convert
from numpy.typing import NDArray
from rich.table import Table
from scipy import ndimage

from model.raster import write_png

TRUTH = (255, 255, 255)
PREFILL = (255, 120, 0)
_GAP = 6  # px between the pictures of a sheet
_TALLEST = 320  # px: pictures are shown at most this high


@dataclass(frozen=True, slots=True)
class CycleReport:
    """One row of the table: a cycle and what the loop did until the next one.

    Attributes:
        model_version: what the cycle trained.
        serving: what serves after it; another one, or none yet, if the gate rejected what the cycle trained.
        labels: that the cycle trained on.
        holdout_images: drawn at random before the loop began, labelled first, and never trained on.
        holdout_iou: pooled foreground IoU of what serves, on these; None when nothing serves.
        holdout_iou_per_image: the same, but the mean over the images: one huge mask counts like a small one.
        gate_iou: of what the cycle trained, on the holdout as it was when the gate decided.
        share_accepted: accepted images of all that no human had labelled, after prefilling.
        accepted_iou: mean IoU of the accepted masks with the truth; None when nothing was accepted.
        touched: images that a human had to open before this cycle (since the one before).
        corrected_pixels: pixels that the human changed in them.
        human_s: seconds that the annotator would have taken, as `active_learning.oracle.Effort` assumes.
        seconds: wall time of the cycle itself, from snapshot to routed prefills.
    """

    cycle: int
    state: str
    model_version: str
    serving: str | None
    labels: int
    holdout_images: int
    holdout_iou: float | None
    holdout_iou_per_image: float | None
    gate_iou: float
    share_accepted: float
    accepted_iou: float | None
    touched: int
    corrected_pixels: int
    human_s: float
    seconds: float


@dataclass(frozen=True, slots=True)
class Picture:
    """One image as a version sees it. `pixels` (H, W, 3) uint8, `truth` and `prefill` (H, W) bool."""

    name: str
    pixels: NDArray[np.uint8]
    truth: NDArray[np.bool_]
    prefill: NDArray[np.bool_]
    iou: float


def outline(mask: NDArray[np.bool_], width: int = 1) -> NDArray[np.bool_]:
    """The inner boundary of a mask, `width` pixels thick: (H, W) bool."""
    eroded: NDArray[np.bool_] = ndimage.binary_erosion(mask, iterations=width, border_value=1)
    return mask & ~eroded


def overlay(picture: Picture) -> NDArray[np.uint8]:
    """The image with the prefill as an orange veil and outline, and the truth as a white outline.

    Returns:
        (H, W, 3) uint8.
    """
    canvas = picture.pixels.astype(np.float32)
    canvas[picture.prefill] = 0.65 * canvas[picture.prefill] + 0.35 * np.array(PREFILL, dtype=np.float32)
    canvas[outline(picture.prefill)] = PREFILL
    canvas[outline(picture.truth)] = TRUTH
    return canvas.astype(np.uint8)


def sheet(pictures: Sequence[Picture]) -> NDArray[np.uint8]:
    """Pictures side by side, plain above, overlaid below: (H, W, 3) uint8."""
    columns = [
        np.vstack([p.pixels, _gap(_GAP, p.pixels.shape[1]), overlay(p)]) for p in map(_shrunk, pictures)
    ]
    height = max(column.shape[0] for column in columns)
    spaced: list[NDArray[np.uint8]] = []
    for column in columns:
        spaced += [np.vstack([column, _gap(height - column.shape[0], column.shape[1])]), _gap(height, _GAP)]
    return np.hstack(spaced[:-1])


def _gap(height: int, width: int) -> NDArray[np.uint8]:
    return np.full((height, width, 3), 255, dtype=np.uint8)


def _shrunk(picture: Picture) -> Picture:
    """Every n-th pixel of a picture that is too high to stand on a sheet."""
    step = -(-picture.pixels.shape[0] // _TALLEST)
    every = np.s_[::step, ::step]
    return Picture(
        picture.name, picture.pixels[every], picture.truth[every], picture.prefill[every], picture.iou
    )


def table_of(rows: Sequence[CycleReport]) -> Table:
    """The rows as a table for the terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in (
        "cycle",
        "trained",
        "outcome",
        "serves",
        "labels",
        "holdout IoU",
        "per image",
        "accepted",
        "IoU of accepted",
    ):
        table.add_column(name)
    for name in ("opened by a human", "corrected px", "seconds"):
        table.add_column(name, justify="right")
    for row in rows:
        table.add_row(
            str(row.cycle),
            row.model_version,
            row.state,
            row.serving or "-",
            str(row.labels),
            _figure(row.holdout_iou),
            _figure(row.holdout_iou_per_image),
            f"{row.share_accepted:.0%}",
            _figure(row.accepted_iou),
            str(row.touched),
            f"{row.corrected_pixels:,}",
            f"{row.seconds:.0f}",
        )
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def write_report(
    folder: Path, rows: Sequence[CycleReport], sheets: Mapping[str, Sequence[Picture]], about: dict[str, Any]
) -> Path:
    """Write everything.

    Args:
        folder: is made if it is not there.
        rows: in the order of the cycles.
        sheets: model version -> the pictures of its sheet, the same images for each version.
        about: what was run on what; goes into the report as it is.

    Returns:
        The path of report.html.
    """
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.json").write_text(
        json.dumps({**about, "cycles": [asdict(row) for row in rows]}, indent=2) + "\n"
    )
    charts = {name: write_chart(folder, name, chart) for name, chart in _charts(rows).items()}
    images = {}
    for version, pictures in sheets.items():
        path = folder / f"prefills-{version}.png"
        write_png(path, sheet(pictures))
        images[version] = base64.b64encode(path.read_bytes()).decode("ascii")
    page = folder / "report.html"
    environment = jinja2.Environment(loader=jinja2.PackageLoader("backend"), autoescape=True)
    page.write_text(
        environment.get_template("report.html").render(
            rows=rows, charts=charts, images=images, sheets=sheets, about=about
        )
    )
    return page


def write_chart(folder: Path, name: str, chart: alt.TopLevelMixin) -> str:
    """Write a chart as NAME.svg and NAME.png; returns the SVG."""
    svg: str = vl_convert.vegalite_to_svg(chart.to_json())
    (folder / f"{name}.svg").write_text(svg)
    (folder / f"{name}.png").write_bytes(vl_convert.svg_to_png(svg, scale=2))
    return svg


def _charts(rows: Sequence[CycleReport]) -> dict[str, alt.Chart]:
    cycles = [f"{row.cycle}" for row in rows]
    iou = [
        {"cycle": row.cycle, "IoU": value, "of": name}
        for row in rows
        for name, value in (
            ("holdout", row.holdout_iou),
            ("holdout, per image", row.holdout_iou_per_image),
            ("accepted masks", row.accepted_iou),
        )
    ]  # a None leaves a gap in the line; without any value at all the chart could not be drawn
    effort = [{"cycle": row.cycle, "images": row.touched} for row in rows]
    x = alt.X("cycle:O", title="cycle", sort=cycles, axis=alt.Axis(labelAngle=0))
    return {
        "iou": alt.Chart(alt.Data(values=iou), width=320, height=220)
        .mark_line(point=True)
        .encode(
            x=x,
            y=alt.Y("IoU:Q", title="IoU with the truth", scale=alt.Scale(domain=[0, 1])),
            color=alt.Color("of:N", title=None, scale=alt.Scale(range=["#2b6cb0", "#e86c00", "#f6ad6b"])),
        ),
        "effort": alt.Chart(alt.Data(values=effort), width=320, height=220)
        .mark_bar(color="#2b6cb0")
        .encode(x=x, y=alt.Y("images:Q", title="images that a human had to open")),
    }
