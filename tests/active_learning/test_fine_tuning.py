"""The training of a cycle: planned once, its checkpoint reused when it is whole."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from active_learning import fine_tuning, registry, triggers
from active_learning.context import CycleContext
from active_learning.fine_tuning import Plan, fine_tune, plan
from active_learning.journal import CycleEndedError, Journal
from active_learning.ledger import Cycle, CycleEvent, CycleState, ModelVersion, Project, Snapshot
from active_learning.ledger.failures import LedgerError
from active_learning.predictors import PredictorPool
from active_learning.training_process import TrainingFailedError
from model.checkpoint import read_card
from model.raster import write_mask, write_png
from model.training import TrainConfig, train
from model.training_child import main

NANO = {
    "trunk": "random-nano",
    "size": 32,
    "epochs": 2,
    "batch_size": 4,
    "width": 8,
    "adapter_dim": 4,
    "cache_gb": 0.0,
}


class Rig:
    """A cycle with a snapshot of four images."""

    def __init__(self, loop: Any, folder: Path) -> None:
        self.ledger = loop.ledger
        self.project_id = loop.project_id
        self.folder = folder
        loop.configure(training=NANO)
        self.context = CycleContext(
            loop.ledger, loop.images, loop.tool, PredictorPool("cpu"), folder, device="cpu"
        )
        with self.ledger.session() as session:
            project = session.get_one(Project, self.project_id)
            self.journal = Journal(self.ledger, triggers.request(session, project, "a test").id)
        self.freeze("a" * 64)

    def freeze(self, sha256: str, classes: tuple[str, ...] = ("oil",)) -> None:
        """Make a snapshot and give it to the cycle."""
        data = self.folder / "snapshots" / sha256 / "train"
        for number in range(4):
            pixels = np.zeros((32, 32, 3), np.uint8)
            pixels[8:24, 8:24] = 200
            for path in [data / "images", *(data / "masks" / name for name in classes)]:
                path.mkdir(parents=True, exist_ok=True)
            write_png(data / "images" / f"{number}.png", pixels)
            for name in classes:
                write_mask(data / "masks" / name / f"{number}.png", pixels[..., 0] > 0)
        with self.ledger.session() as session:
            snapshot = Snapshot(
                project_id=self.project_id, sha256=sha256, manifest={"train": [{}], "holdout": [{}]}
            )
            session.add(snapshot)
            session.flush()
            session.get_one(Cycle, self.journal.cycle_id).snapshot_id = snapshot.id

    def plan(self) -> Plan:
        return plan(self.context, self.journal.cycle_id)

    def fine_tune(self) -> bool:
        return fine_tune(self.context, self.journal, self.plan())

    def champion(self, **changes: Any) -> ModelVersion:
        """Train and promote a model outside of any cycle."""
        out = self.folder / "models" / "champion"
        data = Path(self.plan().data)
        (self.folder / "cycles" / "1" / "plan.json").unlink()
        card = train(data, out, TrainConfig.from_mapping({**NANO, "epochs": 1, **changes}))
        with self.ledger.session() as session:
            project = session.get_one(Project, self.project_id)
            version = registry.register(session, project, out, card.weights_sha256)
            registry.promote(session, version)
            return version

    def events(self) -> list[CycleEvent]:
        with self.ledger.session(write=False) as session:
            return list(session.query(CycleEvent).order_by(CycleEvent.id))


@pytest.fixture
def rig(loop: Any, tmp_path: Path) -> Rig:
    return Rig(loop, tmp_path / "state")


@pytest.fixture
def _in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """Spares a test the seconds in which a process of its own would start."""

    def train_here(arguments: list[str], **_: Any) -> None:
        assert main(arguments) == 0

    monkeypatch.setattr(fine_tuning, "run_training", train_here)


def test_a_cycle_trains_in_a_child_process(rig: Rig) -> None:
    assert not rig.fine_tune()
    card = read_card(rig.folder / "models" / "cycle-1")
    assert (card.version, card.trunk, card.classes) == ("elnet-0001", "random-nano", ("oil",))
    first, second = rig.events()
    assert first.message.startswith("Epoch 1 of 2: loss ")
    assert first.message.endswith(" images/s.")
    assert second.data["epoch"] == 2
    assert (rig.folder / "cycles" / "1" / "train.log").is_file()


@pytest.mark.usefixtures("_in_this_process")
def test_a_whole_checkpoint_is_reused(rig: Rig) -> None:
    rig.fine_tune()
    stamp = (rig.folder / "models" / "cycle-1" / "model.safetensors").stat().st_mtime_ns
    assert rig.fine_tune()
    assert (rig.folder / "models" / "cycle-1" / "model.safetensors").stat().st_mtime_ns == stamp


@pytest.mark.usefixtures("_in_this_process")
def test_a_damaged_checkpoint_is_trained_again(rig: Rig) -> None:
    rig.fine_tune()
    weights = rig.folder / "models" / "cycle-1" / "model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-10])
    assert not rig.fine_tune()
    assert hashlib.sha256(weights.read_bytes()).hexdigest() == hashlib.sha256(whole).hexdigest()
    assert any("is damaged" in e.message and "Training again" in e.message for e in rig.events())


def test_the_plan_is_kept_from_the_first_attempt(rig: Rig) -> None:
    first = rig.plan()
    rig.champion()
    assert rig.plan().parent is not None  # a first attempt from now on would begin with the champion
    (rig.folder / "cycles" / "1" / "plan.json").write_text(json.dumps(_as_json(first)))
    assert rig.plan() == first


def test_a_resumed_cycle_is_planned_with_the_settings_of_today(rig: Rig) -> None:
    first = rig.plan()
    with rig.context.ledger.session() as session:
        cycle = session.get_one(Cycle, 1)
        cycle.state = CycleState.FAILED
        cycle.project.training = {**cycle.project.training, "batch_size": 1}
        triggers.resume(session, cycle, "ada")
    second = rig.plan()
    assert second == rig.plan()
    assert second.config == {**first.config, "batch_size": 1}
    assert second.out == f"{first.out}-1"  # what the first attempt left may be a version already


@pytest.mark.usefixtures("_in_this_process")
def test_a_plan_of_other_data_is_dropped_with_its_checkpoint(rig: Rig) -> None:
    """As when the ledger was made anew and the folder of models was kept."""
    rig.fine_tune()
    rig.freeze("b" * 64)
    planned = rig.plan()
    assert "b" * 64 in planned.data
    assert not Path(planned.out).exists()


@pytest.mark.parametrize("text", ["", "{", "[]", '{"data": "x"}'])
def test_a_plan_that_cannot_be_read_is_made_anew(rig: Rig, text: str) -> None:
    path = rig.folder / "cycles" / "1" / "plan.json"
    path.parent.mkdir(parents=True)
    path.write_text(text)
    assert rig.plan().version == "elnet-0001"


@pytest.mark.usefixtures("_in_this_process")
def test_training_begins_with_the_champion(rig: Rig) -> None:
    champion = rig.champion()
    planned = rig.plan()
    assert (planned.parent_id, planned.parent, planned.version) == (champion.id, "elnet-0001", "elnet-0002")
    rig.fine_tune()
    assert read_card(Path(planned.out)).parent == "elnet"  # the name on the champion's own card


def test_training_begins_anew_when_the_classes_changed(rig: Rig) -> None:
    rig.champion()
    with rig.ledger.session() as session:
        session.get_one(Project, rig.project_id).classes = ["oil", "ship"]
    assert rig.plan().parent is None


@pytest.mark.parametrize(
    ("change", "goes_on"),
    [
        ({"trunk": "sam2-hiera-tiny"}, False),
        ({"mode": "late"}, False),
        ({"mode": "full"}, True),
        ({"scale": 0.5}, False),
        ({"scale": 1.0}, True),
        ({"prompted": 0.5}, False),  # the champion takes no coarse masks
        ({"prompted": 0.0}, True),
    ],
)
def test_training_begins_anew_where_the_champion_does_not_fit_the_settings(
    rig: Rig, change: dict[str, Any], goes_on: bool
) -> None:
    rig.champion()
    with rig.ledger.session() as session:
        session.get_one(Project, rig.project_id).training = {**NANO, **change}
    assert (rig.plan().parent is not None) is goes_on


def test_the_projects_settings_go_before_the_workers(rig: Rig) -> None:
    rig.context.training = {"trunk": "sam2-hiera-tiny", "seed": 7}
    assert rig.plan().config == {**NANO, "seed": 7, "device": "cpu", "mode": "cached"}


def test_a_first_network_keeps_the_trunk_as_it_is_and_a_champions_mode_stays(rig: Rig) -> None:
    assert rig.plan().config["mode"] == "cached"
    shutil.rmtree(rig.folder / "cycles")
    rig.context.training = {"mode": "late"}
    assert rig.plan().config["mode"] == "late"
    shutil.rmtree(rig.folder / "cycles")
    rig.context.training = {}
    rig.champion()
    goes_on = rig.plan()
    assert goes_on.parent is not None
    assert "mode" not in goes_on.config


def test_an_error_of_training_names_thing_and_log(rig: Rig) -> None:
    with rig.ledger.session() as session:
        session.get_one(Project, rig.project_id).training = {**NANO, "epoch": 3}
    with pytest.raises(TrainingFailedError, match=r"training failed: .*epoch.*train\.log"):
        rig.fine_tune()
    assert not (rig.folder / "models" / "cycle-1").exists()


def test_a_moment_without_the_ledger_does_not_stop_training(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: Any, **__: Any) -> None:
        raise LedgerError("the ledger is locked")

    went_on: list[bool] = []

    def train_here(arguments: list[str], *, check: Any, progress: Any, **_: Any) -> None:
        with monkeypatch.context() as patched:
            patched.setattr(Journal, "check", away)
            patched.setattr(Journal, "note", away)
            check()
            progress({"epoch": 1, "epochs": 1, "loss": 0.1})
        went_on.append(True)

    monkeypatch.setattr(fine_tuning, "run_training", train_here)
    rig.fine_tune()
    assert went_on


def test_a_cancelled_cycle_stops_its_training(rig: Rig) -> None:
    with rig.ledger.session() as session:
        session.get_one(Project, rig.project_id).training = {**NANO, "epochs": 100_000}
    rig.context.check = _cancels_after_an_epoch(rig)  # type: ignore[method-assign]
    with pytest.raises(CycleEndedError, match="by ada"):
        rig.fine_tune()
    assert not (rig.folder / "models" / "cycle-1").exists()


def _cancels_after_an_epoch(rig: Rig) -> Any:
    def check() -> None:
        if rig.events():
            rig.journal.end(CycleState.CANCELLED, "cancelled by ada")

    return check


def _as_json(planned: Plan) -> dict[str, Any]:
    return {name: getattr(planned, name) for name in Plan.__dataclass_fields__}
