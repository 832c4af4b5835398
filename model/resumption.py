"""The state of an unfinished training, kept in a file: it goes on at the step where it was stopped."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from model.distributed import Team
from model.elnet import SAM2ELNet

FORMAT: Final = 1  # of the file; what trains and how belongs to it, so raise it with every change of the loop
KEEP_S: Final = 30.0  # between two writes: so much is done again after a crash, at most
_PASSING = ("workers", "cache_gb", "device")  # settings that a training may change on its way

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Place:
    """Where a training stands.

    Attributes:
        epoch: counted from 1.
        step: so many steps of this epoch are done.
        total: the sum of the losses of these steps' crops.
        seconds: that these steps took.
    """

    epoch: int = 1
    step: int = 0
    total: float = 0.0
    seconds: float = 0.0


def fingerprint(snapshot: str, init: str | None, config: Mapping[str, Any]) -> str:
    """What a kept state must agree on with the training that goes on from it.

    Args:
        snapshot: digest of the training set.
        init: sha256 of the weights that it starts from, if any.
        config: fields of `model.train_config.TrainConfig`.
    """
    held = {name: value for name, value in config.items() if name not in _PASSING}
    return sha256(json.dumps([FORMAT, snapshot, init, held], sort_keys=True).encode()).hexdigest()


class KeptState:
    """The state of one training, in a file that is whole at any time.

    Nothing in the network or in the drawing of crops hangs on what was drawn before (crops are drawn by seed,
    epoch and number), so weights, optimiser, schedule and place are all that there is.
    """

    def __init__(self, path: Path | None, of: str, team: Team) -> None:
        """Make it; nothing is read or written here.

        Args:
            path: the file; None: nothing is kept.
            of: the training's `fingerprint`.
            team: whose first process reads and writes it for all.
        """
        self._team = team
        self._path = path if team.leads else None
        self._of = of
        self._kept_at = time.monotonic()

    def restore(self, model: SAM2ELNet, optimizer: Optimizer, schedule: LRScheduler) -> Place | None:
        """Go back to what was kept; None, and nothing is changed, if there is nothing of this training."""
        kept = self._team.told(self._read() if self._team.leads else None)
        if kept is None:
            return None
        model.load_trainable_state(kept["model"])
        optimizer.load_state_dict(kept["optimizer"])
        schedule.load_state_dict(kept["schedule"])
        return Place(**kept["place"])

    def _read(self) -> dict[str, Any] | None:
        if self._path is None or not self._path.exists():
            return None
        try:
            kept: dict[str, Any] = torch.load(self._path, map_location="cpu", weights_only=True)
            if kept["of"] != self._of:
                log.warning("%s is of another training and is not gone on from", self._path)
                return None
            Place(**kept["place"])
        except Exception as error:  # torch.load has no error of its own; whatever is wrong, start anew
            log.warning("%s cannot be gone on from, training starts anew: %s", self._path, error)
            return None
        return kept

    def keep(self, place: Place, model: SAM2ELNet, optimizer: Optimizer, schedule: LRScheduler) -> None:
        """Write the state, if the last time is `KEEP_S` ago. A full disk does not stop training."""
        if self._path is None or time.monotonic() - self._kept_at < KEEP_S:
            return
        scratch = self._path.with_name(f"{self._path.name}.part")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with scratch.open("wb") as file:
                torch.save(
                    {
                        "of": self._of,
                        "place": asdict(place),
                        "model": model.trainable_state(),
                        "optimizer": optimizer.state_dict(),
                        "schedule": schedule.state_dict(),
                    },
                    file,
                )
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self._path)
        except (OSError, RuntimeError) as error:  # torch.save says RuntimeError where the disk is full
            log.warning("the state of the training cannot be kept in %s: %s", self._path, error)
            scratch.unlink(missing_ok=True)
        self._kept_at = time.monotonic()

    def drop(self) -> None:
        """Remove the file: the training is done."""
        if self._path is not None:
            self._path.unlink(missing_ok=True)
