"""The training of a cycle: planned once, run in a child process, its checkpoint reused when it is whole."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

from active_learning import registry
from active_learning.context import CycleContext
from active_learning.journal import Journal, resumptions
from active_learning.ledger import Cycle, ModelVersion, Project, Snapshot
from active_learning.ledger.failures import LedgerError
from active_learning.training_process import run_training
from model.checkpoint import CheckpointError, ModelCard, load_checkpoint, read_card
from model.hiera import Mode
from model.scalars import can_write

MODE: Final[Mode] = "cached"  # of a project's first network: what a cycle changes is a small part of it


@dataclass(frozen=True, slots=True)
class Plan:
    """What is trained: fixed by the first attempt, so that later ones can use what it left.

    Attributes:
        data: the snapshot's training side.
        out: the checkpoint's folder.
        parent: the name of the model version that training starts from, and `parent_id` its id; None: from
            the trunk alone.
        version: the name of the model version to be.
        config: fields of `model.training.TrainConfig`.
    """

    data: str
    out: str
    parent: str | None
    parent_id: int | None
    version: str
    config: Mapping[str, Any]


def plan(context: CycleContext, cycle_id: int) -> Plan:
    """The plan of a cycle's training, as its first attempt made it; each resumption makes a new one."""
    with context.ledger.session(write=False) as session:
        cycle = session.get_one(Cycle, cycle_id)
        project, champion = cycle.project, cycle.project.champion
        sha256 = session.get_one(Snapshot, cycle.snapshot_id).sha256
        version = registry.next_name(session, project)
        resumed = resumptions(session, cycle_id)
    attempt = f"-{resumed}" if resumed else ""
    path = _folder(context, cycle_id) / f"plan{attempt}.json"
    data = str(context.folder / "snapshots" / sha256 / "train")
    kept = _read(path)
    if kept is not None and kept.data == data:
        return kept
    config = {**context.training, **project.training, "device": context.device}
    parent = None
    if champion is not None and _fits(read_card(context.checkpoints.local(champion)), project, config):
        parent = champion
    if parent is None and config.get("mode") is None:
        config["mode"] = MODE
    made = Plan(
        data=data,
        out=str(context.folder / "models" / f"cycle-{cycle_id}{attempt}"),
        parent=parent.name if parent else None,
        parent_id=parent.id if parent else None,
        version=version,
        config=config,
    )
    shutil.rmtree(made.out, ignore_errors=True)  # of another ledger that was kept in this folder before
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(".part")
    scratch.write_text(json.dumps(asdict(made), indent=1))
    scratch.replace(path)
    return made


def fine_tune(context: CycleContext, journal: Journal, planned: Plan) -> bool:
    """Train by the plan, from where an earlier attempt was stopped, unless that is done.

    Returns:
        Whether a whole checkpoint of an earlier attempt was found.

    Raises:
        TrainingFailedError: the training process did not end well.
        CycleEndedError: the cycle was cancelled; the process was stopped.
    """
    out = Path(planned.out)
    if out.exists():
        try:
            load_checkpoint(out)
        except CheckpointError as error:
            journal.note("train", f"An earlier attempt left {error}. Training again.")
            shutil.rmtree(out)
        else:
            return True
    arguments = ["--data", planned.data, "--out", planned.out, "--version", planned.version]
    arguments += ["--config", json.dumps(dict(planned.config))]
    arguments += ["--state", str(_folder(context, journal.cycle_id) / "training.state")]
    if can_write():
        arguments += ["--tensorboard", str(_folder(context, journal.cycle_id) / "tensorboard")]
    if planned.parent_id is not None:
        with context.ledger.session(write=False) as session:
            parent = session.get_one(ModelVersion, planned.parent_id)
        arguments += ["--init", str(context.checkpoints.local(parent))]

    def check() -> None:
        context.check()
        with suppress(LedgerError):  # a moment without the ledger is no reason to lose hours of training
            journal.check()

    def report(said: Mapping[str, Any]) -> None:
        with suppress(LedgerError):
            journal.note("train", _sentence(said), **said)

    run_training(
        arguments,
        log=_folder(context, journal.cycle_id) / "train.log",
        progress=report,
        check=check,
        allowance=context.allowance,
    )
    return False


def _folder(context: CycleContext, cycle_id: int) -> Path:
    return context.folder / "cycles" / str(cycle_id)


def _read(path: Path) -> Plan | None:
    """The plan that was kept; None if there is none, or it is of other code."""
    try:
        return Plan(**json.loads(path.read_text()))
    except (OSError, ValueError, TypeError):
        return None


def _fits(card: ModelCard, project: Project, config: Mapping[str, Any]) -> bool:
    """Whether training can start from a champion: the same classes, the same trunk, mode and scale.

    And it must take coarse masks where training is to show them.
    """
    if config.get("prompted") and not card.architecture.get("prompt"):
        return False
    asked = {name: config[name] for name in ("trunk", "mode", "scale") if config.get(name) is not None}
    known = {"scale": 1.0, **card.architecture, "trunk": card.trunk}
    return list(card.classes) == project.classes and asked == {name: known.get(name) for name in asked}


def _sentence(said: Mapping[str, Any]) -> str:
    """A line of the training process, for people."""
    if "resumed" in said:
        return str(said["resumed"])
    if not {"epoch", "epochs", "loss"} <= said.keys():
        return ", ".join(f"{key} {value}" for key, value in said.items())
    text = f"Epoch {said['epoch']} of {said['epochs']}: loss {said['loss']:.3f}"
    speed = said.get("images_per_s")
    return f"{text}, {speed:.1f} images/s." if speed is not None else f"{text}."
