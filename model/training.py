"""Fine-tuning: image-mask pairs -> a checkpoint of adapters and decoder. One readable loop, `_fit`."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from random import Random

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from model.batches import Order, make_loader
from model.checkpoint import ModelCard, check_vacant, load_checkpoint, load_trunk, read_card, save_checkpoint
from model.data import Pair, SegmentationData, find_pairs
from model.device import autocast, pick_device, reuse_memory
from model.distributed import Team, joined
from model.elnet import SAM2ELNet
from model.feature_cache import keep_frozen
from model.hiera import trunk_spec
from model.losses import elnet_loss
from model.quality_fit import fit_quality
from model.resumption import KeptState, Place, fingerprint
from model.scalars import Scalars
from model.train_config import MODE, TrainConfig, TrainingError

__all__ = ["TrainConfig", "TrainProgress", "TrainingError", "train"]


@dataclass(frozen=True, slots=True)
class TrainProgress:
    """What is reported after each epoch. `loss` is the epoch's mean."""

    epoch: int
    epochs: int
    loss: float
    images_per_s: float


@dataclass(frozen=True, slots=True)
class Reports:
    """Who is told of a training's course."""

    scalars: Scalars
    progress: Callable[[TrainProgress], None] | None
    resumed: Callable[[str], None] | None


def train(
    data: Path,
    out: Path,
    config: TrainConfig,
    *,
    init: Path | None = None,
    version: str = "elnet",
    progress: Callable[[TrainProgress], None] | None = None,
    state: Path | None = None,
    resumed: Callable[[str], None] | None = None,
    tensorboard: Path | None = None,
) -> ModelCard:
    """Fine-tune a network and write its checkpoint.

    Started by torchrun, the processes work on it together and the first one writes, see `model.distributed`.

    Args:
        data: folder with images/ and masks/, as `model.data.find_pairs` reads it.
        out: the checkpoint's folder; must not exist, or be empty. Nothing is written before the end.
        config: how to train.
        init: checkpoint to start from; its trunk and architecture hold.
        version: name of the model version to be.
        progress: called after each epoch.
        state: file in which the state of the training is kept while it runs. One that an earlier run of the
            same training left there is gone on from; on a CPU the weights come out as if it had never been
            stopped, bit for bit.
        resumed: called with a sentence when that happens.
        tensorboard: folder for TensorBoard's files; several trainings may share its parent.

    Returns:
        The card as stored; for all processes but the first without the weights' checksum.

    Raises:
        TrainingError: `init` does not fit, or the loss is not finite.
        DataError, CheckpointError, TrunkError, WeightsError, DeviceError: each names its thing and the cure.
    """
    started = time.monotonic()
    check_vacant(out)
    pairs, classes = find_pairs(data)
    pairs = _choose(pairs, config)
    with joined(pick_device(config.device)) as team, _own_random_state(team.device):
        device = team.device
        if not team.leads:
            progress = resumed = tensorboard = None
        if device.type == "cpu":
            reuse_memory()
        torch.manual_seed(config.seed)
        model, origin = _start(init, classes, config)
        views = config.views_of(len(pairs), model.mode)
        prompted = config.prompted if model.prompt is not None else None
        crops = SegmentationData(pairs, config.size, seed=config.seed, views=views, prompted=prompted)
        snapshot = _digest(pairs)
        frozen = keep_frozen(
            model.to(device).encoder, origin.trunk_sha256, device, config.precision, config.cache_gb
        )
        given = read_card(init).weights_sha256 if init else None
        kept = KeptState(state, fingerprint(snapshot, given, asdict(config)), team)
        with Scalars(tensorboard) as scalars:
            reports = Reports(scalars, progress, resumed)
            last = _fit(model, crops, config, frozen, team, kept, reports, warm=init is not None)
    measured = {
        "images": len(pairs),
        "crops": len(crops),
        "epochs": last.epochs,
        "loss": last.loss,
        "images_per_s": last.images_per_s,
    }
    card = replace(
        origin,
        version=version,
        size=crops.size,
        snapshot=snapshot,
        metrics=measured | {"seconds": time.monotonic() - started, "config": asdict(config)},
    )
    if not team.leads:
        return card
    saved = replace(card, weights_sha256=save_checkpoint(out, model, card))
    kept.drop()
    return saved


def _own_random_state(device: torch.device) -> AbstractContextManager[None]:
    """The caller's random state stays as it was."""
    return torch.random.fork_rng([device] if device.type == "cuda" else [])


def _choose(pairs: list[Pair], config: TrainConfig) -> list[Pair]:
    """As many pairs as the limit allows, drawn by the seed, in their old order."""
    if config.limit is None or config.limit >= len(pairs):
        return pairs
    chosen = Random(config.seed).sample(range(len(pairs)), config.limit)
    return [pairs[i] for i in sorted(chosen)]


def _start(init: Path | None, classes: Sequence[str], config: TrainConfig) -> tuple[SAM2ELNet, ModelCard]:
    """The network to begin with, and its card as far as it is known."""
    if init is None:
        trunk, digest = load_trunk(config.trunk)
        model = SAM2ELNet(
            trunk,
            trunk_spec(config.trunk),
            len(classes),
            mode=config.mode or MODE,
            adapter_dim=config.adapter_dim,
            width=config.width,
            prompt=config.prompted > 0,
            scale=config.scale or 1.0,
            quality=True,
        )
        card = ModelCard("", config.trunk, digest, tuple(classes), config.size, model.architecture)
        return model, card
    model, parent = load_checkpoint(init)
    if list(parent.classes) != list(classes):
        raise TrainingError(
            f"{init} knows the classes {', '.join(parent.classes)}, the data has {', '.join(classes)}; "
            "start from another checkpoint, or from none"
        )
    if parent.trunk != config.trunk:
        raise TrainingError(
            f"{init} has the trunk {parent.trunk}, not {config.trunk}; set trunk: {parent.trunk}"
        )
    if config.mode not in (None, model.mode):
        raise TrainingError(
            f"the adapters of {init} are of mode {model.mode}, not {config.mode}; set mode: {model.mode}, or "
            "start from no checkpoint"
        )
    if config.scale not in (None, scale := model.encoder.scale):
        raise TrainingError(
            f"{init} sees images at scale {scale:g}, not {config.scale:g}; set scale: {scale:g}, or start "
            "from no checkpoint"
        )
    if config.prompted and model.prompt is None:
        raise TrainingError(
            f"{init} takes no coarse masks, so prompted: {config.prompted:g} means nothing to it; set it to "
            "0, or start from no checkpoint"
        )
    model.foresee_quality()  # a checkpoint of before there were quality heads gets one
    card = ModelCard(
        "", parent.trunk, parent.trunk_sha256, parent.classes, config.size, model.architecture,
        parent=parent.version,
    )  # fmt: skip
    return model, card


def _digest(pairs: Sequence[Pair]) -> str:
    """The sha256 over stems and files of a training set."""
    digest = sha256()
    for pair in pairs:
        digest.update(f"{pair.stem}\0{pair.weight}\0".encode())
        for path in (pair.image, *pair.masks):
            digest.update(sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _fit(
    model: SAM2ELNet,
    crops: SegmentationData,
    config: TrainConfig,
    frozen: Callable[[Tensor], list[Tensor]],
    team: Team,
    kept: KeptState,
    reports: Reports,
    *,
    warm: bool,
) -> TrainProgress:
    """Optimise the network in place. Returns the last epoch's progress."""
    lr = config.warm_lr if warm else config.lr
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=lr, weight_decay=config.weight_decay)
    order = Order(len(crops), config.batch_size, config.seed)
    epochs = config.epochs_of(len(order), warm=warm)
    schedule = LambdaLR(optimizer, _warmup_cosine(epochs * len(order), config.warmup))
    loader = make_loader(crops, order, team, config.workers)
    model.train()
    place = kept.restore(model, optimizer, schedule)
    if place is not None and reports.resumed is not None:
        reports.resumed(
            f"Going on in epoch {place.epoch} of {epochs}, after step {place.step} of {len(order)}."
        )
    place = place or Place()
    reports.scalars.begin((place.epoch - 1) * len(order) + place.step)
    value, norm, numbers = math.nan, math.nan, list[int]()
    for epoch in range(place.epoch, epochs + 1):
        crops.set_epoch(epoch)
        order.set_epoch(epoch, skip=place.step)
        begun, total = time.monotonic() - place.seconds, place.total
        for step, (numbers, sample) in enumerate(zip(order, loader, strict=True), place.step + 1):
            features = frozen(sample.image)
            masks, valid, weight, prompt = (t.to(team.device, non_blocking=True) for t in sample[1:])
            with autocast(team.device, config.precision):
                output = model.decode(model.encoder.adapted(features), masks.shape[-2:], prompt)
            loss = team.weight(numbers) * elnet_loss(
                output, masks, valid, weight, edge_weight=config.edge_weight, structure=config.structure
            )
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            team.add_gradients(trained)
            norm = nn.utils.clip_grad_norm_(trained, config.clip).item()
            value = team.add(loss.item())
            if not (math.isfinite(value) and math.isfinite(norm)):
                where = f"epoch {epoch}, step {step} of {len(order)}"
                raise _diverged(value, norm, where, {crops.stem(i) for i in numbers})
            at = (epoch - 1) * len(order) + step
            reports.scalars.write(at, loss=value, gradient=norm, lr=float(schedule.get_last_lr()[0]))
            optimizer.step()
            schedule.step()
            total += value * len(numbers)
            place = Place(epoch, step, total, time.monotonic() - begun)
            kept.keep(place, model, optimizer, schedule)
        report = TrainProgress(epoch, epochs, place.total / len(crops), len(crops) / place.seconds)
        if reports.progress is not None:
            reports.progress(report)
        place = Place(epoch + 1)
    if not all(p.isfinite().all() for p in trained):  # the last step's own doing, which no loss has seen
        raise _diverged(value, norm, "the last step", {crops.stem(i) for i in numbers})
    fit_quality(model, crops, config, frozen, team, after=epochs)
    return report


def _diverged(loss: float, norm: float, where: str, stems: set[str]) -> TrainingError:
    return TrainingError(
        f"training stopped in {where}: the loss is {loss:g} and the gradient's norm {norm:g}; nothing was "
        f"written. Lower lr, set precision to fp32, or look at these images: {', '.join(sorted(stems))}"
    )


def _warmup_cosine(steps: int, warmup: float, floor: float = 0.01) -> Callable[[int], float]:
    """The learning rate's factor at a step: up in a line, then down in a cosine."""
    rise = max(1, round(steps * warmup))

    def factor(step: int) -> float:
        if step < rise:
            return (step + 1) / rise
        done = min(1.0, (step - rise) / max(1, steps - rise))
        return floor + (1 - floor) * (1 + math.cos(math.pi * done)) / 2

    return factor
