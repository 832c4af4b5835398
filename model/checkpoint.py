"""Checkpoints: the trained part of a network as safetensors, and a model card beside it.

A checkpoint is a folder with `model.safetensors` and `card.json`. It is immutable: written once, under its
final name only when it is whole. The frozen trunk is not in it; the card names it with its sha256.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from hashlib import sha256
from importlib.metadata import PackageNotFoundError
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any, Final

import torch
from safetensors.torch import load, save
from torch import nn

from model.data import MEAN, STD
from model.elnet import SAM2ELNet
from model.errors import ELNetError
from model.hiera import TrunkError, build_trunk, trunk_digest, trunk_spec
from model.trunk_cache import trunk_file

FORMAT: Final = 1
WEIGHTS: Final = "model.safetensors"
CARD: Final = "card.json"


class CheckpointError(ELNetError):
    """A checkpoint that cannot be written, or is missing, damaged, or of another trunk or code."""


def _code_version() -> str:
    try:
        return distribution_version("elnet-loop")
    except PackageNotFoundError:  # run from a source tree that is not installed
        return "unknown"


@dataclass(frozen=True, slots=True)
class ModelCard:
    """What one has to know to use a checkpoint, and where it came from.

    Attributes:
        version: the model version's name.
        trunk: a key of `model.hiera.TRUNKS`.
        trunk_sha256: of the trunk's weights that it was trained on.
        classes: names of the N maps, in their order.
        size: pixels of the square crops that it was trained on.
        architecture: keyword arguments of `SAM2ELNet`.
        normalisation: "mean" and "std" of the three channels, for pixels in [0, 1].
        snapshot: digest of the training set.
        metrics: what training measured.
        parent: version that training started from.
        weights_sha256: of `model.safetensors`; filled in when it is saved.
    """

    version: str
    trunk: str
    trunk_sha256: str
    classes: tuple[str, ...]
    size: int
    architecture: Mapping[str, Any]
    snapshot: str | None = None
    metrics: Mapping[str, Any] = field(default_factory=dict)
    parent: str | None = None
    normalisation: Mapping[str, list[float]] = field(
        default_factory=lambda: {"mean": list(MEAN), "std": list(STD)}
    )
    code_version: str = field(default_factory=_code_version)
    created_at: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    weights_sha256: str = ""
    format: int = FORMAT


def load_trunk(name: str, digest: str | None = None) -> tuple[nn.Module, str]:
    """Build a frozen trunk from the cache, or a random one from nothing.

    Args:
        name: a key of `model.hiera.TRUNKS`.
        digest: sha256 of the weights wanted; without it, those that the cache points to.

    Returns:
        The trunk and the sha256 of its weights.

    Raises:
        TrunkError: unknown name, or a random trunk that differs from the one wanted.
        WeightsError: the weights are not in the cache, or damaged.
    """
    if trunk_spec(name).seed is None:
        path, found = trunk_file(name, digest)
        return build_trunk(name, path), found
    trunk = build_trunk(name, None)
    found = trunk_digest(trunk)
    if digest not in (None, found):
        raise TrunkError(f"the trunk {name} has sha256 {found[:16]} here, but {digest[:16]} is wanted")
    return trunk, found


def check_vacant(folder: Path) -> None:
    """Make sure that a checkpoint may be written here.

    Raises:
        CheckpointError: the folder holds something, or its name is a file's.
    """
    if folder.is_dir() and not any(folder.iterdir()):
        return
    if folder.exists():
        raise CheckpointError(f"{folder} exists already and is not overwritten; name another folder")


def save_checkpoint(folder: Path, model: SAM2ELNet, card: ModelCard) -> str:
    """Write a checkpoint: all of it or nothing.

    Args:
        folder: must not exist, or be empty.
        model: the network; its trunk is left out.
        card: its `weights_sha256` is filled in.

    Returns:
        The sha256 of the weights, as the stored card gives it.

    Raises:
        CheckpointError: the folder is taken, the disk is full, or it cannot be written.
    """
    check_vacant(folder)
    state = {k: v.detach().cpu().contiguous() for k, v in model.trainable_state().items()}
    weights = save(state)
    card = replace(card, weights_sha256=sha256(weights).hexdigest())
    scratch = folder.with_name(f".{folder.name}.part")  # beside it, so that the rename stays on one disk
    try:
        shutil.rmtree(scratch, ignore_errors=True)  # left by a killed predecessor
        scratch.mkdir(parents=True)
        _write(scratch / WEIGHTS, weights)
        _write(scratch / CARD, (json.dumps(asdict(card), indent=2) + "\n").encode())
        scratch.replace(folder)
        _sync(folder.parent)
    except OSError as error:
        raise CheckpointError(
            f"the checkpoint cannot be written to {folder}: {error.strerror or error}; "
            "nothing is left of it. Make room there, or name another folder"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return card.weights_sha256


def _write(path: Path, content: bytes) -> None:
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def _sync(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def read_card(folder: Path) -> ModelCard:
    """Read a checkpoint's card alone.

    Raises:
        CheckpointError: no checkpoint is there, or its card is damaged or of newer code.
    """
    path = folder / CARD
    try:
        content = json.loads(path.read_text())
    except FileNotFoundError as error:
        raise CheckpointError(f"{folder} holds no checkpoint: {CARD} is missing") from error
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is damaged: {error}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} is damaged: not a JSON object")
    found = content.get("format")
    if found != FORMAT:
        raise CheckpointError(f"{path} has format {found}, this code reads {FORMAT}; update elnet-loop")
    names = {f.name for f in fields(ModelCard)}
    if missing := names - content.keys():
        raise CheckpointError(f"{path} is damaged: it lacks {', '.join(sorted(missing))}")
    known = {k: v for k, v in content.items() if k in names}
    return ModelCard(**known | {"classes": tuple(content["classes"])})


def load_checkpoint(folder: Path, device: torch.device | str = "cpu") -> tuple[SAM2ELNet, ModelCard]:
    """Load a network, in eval mode, on a device.

    Raises:
        CheckpointError: missing, damaged, or of a network that this code does not have.
        WeightsError: the trunk that it was trained on is not in the cache.
    """
    card = read_card(folder)
    path = folder / WEIGHTS
    try:
        weights = path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    found = sha256(weights).hexdigest()
    if found != card.weights_sha256:
        raise CheckpointError(
            f"{path} is damaged: its sha256 is {found[:16]}..., the card says {card.weights_sha256[:16]}...; "
            "restore it from a copy, or train again"
        )
    trunk, _ = load_trunk(card.trunk, card.trunk_sha256)
    try:
        model = SAM2ELNet(trunk, trunk_spec(card.trunk), len(card.classes), **card.architecture)
        model.load_trainable_state(load(weights))
    except (TypeError, RuntimeError) as error:
        raise CheckpointError(
            f"{folder} holds a network that this code (version {_code_version()}) cannot build: "
            f"{' '.join(str(error).split())[:200]}; it was saved by version {card.code_version}"
        ) from error
    return model.to(device).eval(), card
