"""Each step of a cycle by itself, on a real ledger, with a real (tiny) network."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sqlalchemy import func, select

from active_learning import fine_tuning, holdout_masks, registry, steps, triggers
from active_learning.checkpoints import Checkpoints
from active_learning.context import CycleContext
from active_learning.journal import CycleEndedError, Journal
from active_learning.ledger import (
    Calibration,
    Cycle,
    CycleEvent,
    CycleState,
    HoldoutMask,
    ModelState,
    ModelVersion,
    Prediction,
    Promotion,
    Snapshot,
    TaskStatus,
)
from active_learning.predictors import PredictorPool
from active_learning.snapshot import SnapshotError
from active_learning.snapshot_files import stem_of
from model.training_child import main

TRAINING = {"trunk": "random-nano", "size": 32, "epochs": 1, "batch_size": 4, "width": 8, "adapter_dim": 4}


class Rig:
    """A project with labelled and unlabelled images, and one requested cycle."""

    def __init__(self, loop: Any, folder: Path) -> None:
        self.loop = loop
        loop.configure(training=TRAINING)
        self.labelled = loop.add(*(loop.image(0.8, seed) for seed in range(8)))
        for task_id in self.labelled:
            loop.label(task_id)
        self.unlabelled = loop.add(*(loop.image(0.8, seed) for seed in range(20, 23)))
        self.context = CycleContext(
            loop.ledger, loop.images, loop.tool, PredictorPool("cpu"), folder, device="cpu", patience_s=0
        )
        self.journal = self.request()

    def request(self) -> Journal:
        with self.loop.ledger.session() as session:
            project = session.merge(self.loop.project(), load=True)
            return Journal(self.loop.ledger, triggers.request(session, project, "a test").id)

    def run(self, *names: str) -> steps.Outcome:
        for name in names:
            outcome = steps.STEPS[name](self.context, self.journal)
        return outcome

    def share(self, address: str, endpoint: str) -> None:
        """Keep checkpoints there from now on; forget those that are resident."""
        self.context.checkpoints = Checkpoints(address, endpoint)
        self.context.predictors = PredictorPool("cpu", locate=self.context.checkpoints.local)

    def next_cycle(self) -> None:
        self.journal.end(CycleState.PROMOTED, "done")
        self.journal = self.request()

    def get(self, kind: type[Any], row_id: int | None = None) -> Any:
        with self.loop.ledger.session(write=False) as session:
            return session.get_one(kind, self.journal.cycle_id if row_id is None else row_id)

    def count(self, kind: type[Any]) -> int:
        with self.loop.ledger.session(write=False) as session:
            return session.scalar(select(func.count()).select_from(kind)) or 0

    def holdout_masks(self) -> dict[tuple[int, int], Any]:
        """(version, task) -> masks."""
        with self.loop.ledger.session(write=False) as session:
            rows = session.scalars(select(HoldoutMask))
            return {(row.model_version_id, row.task_id): row.masks for row in rows}

    @staticmethod
    def shares(version: int, masks: dict[tuple[int, int], Any]) -> dict[str, float]:
        """Stem -> how much of the image the version's mask covers."""
        return {stem_of(task): float(one.mean()) for (by, task), one in masks.items() if by == version}

    @staticmethod
    def predicted_shares(metrics: dict[str, Any]) -> dict[str, float]:
        return {entry["image"]: entry["predicted_share"] for entry in metrics["per_image"]}

    @property
    def challenger(self) -> ModelVersion:
        found: ModelVersion = self.get(ModelVersion, self.get(Cycle).challenger_id)
        return found

    def events(self) -> list[str]:
        with self.loop.ledger.session(write=False) as session:
            return list(session.scalars(select(CycleEvent.message).order_by(CycleEvent.id)))


@pytest.fixture
def rig(loop: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Rig:
    """Training runs in this process: the child process has its own tests."""

    def train_here(arguments: list[str], **_: Any) -> None:
        assert main(arguments) == 0

    monkeypatch.setattr(fine_tuning, "run_training", train_here)
    return Rig(loop, tmp_path / "state")


def test_snapshot(rig: Rig) -> None:
    outcome = rig.run("snapshot")
    frozen: Snapshot = rig.get(Snapshot, rig.get(Cycle).snapshot_id)
    sides = {side: len(frozen.manifest[side]) for side in ("train", "holdout")}
    assert sum(sides.values()) == 8
    assert outcome.message == (
        f"Froze {sides['train']} images to train on and {sides['holdout']} to judge by."
    )
    for side, count in sides.items():
        images = rig.context.folder / "snapshots" / frozen.sha256 / side / "images"
        assert len(list(images.iterdir())) == count


def test_snapshot_names_what_could_not_be_used(rig: Rig) -> None:
    task = rig.loop.task(rig.labelled[0])
    rig.loop.images.known[task.image_uri] = "the storage is gone"
    outcome = rig.run("snapshot")
    assert outcome.data["left_out"] == 1
    assert "1 labelled image could not be used" in outcome.message


def test_snapshot_twice_is_one(rig: Rig) -> None:
    rig.run("snapshot", "snapshot")
    assert rig.count(Snapshot) == 1


def test_a_snapshot_of_too_few_labels_says_how_many_are_missing(loop: Any, tmp_path: Path) -> None:
    rig = Rig(loop, tmp_path / "state")
    for task_id in rig.labelled:
        for label in loop.labels(task_id):
            loop.bury(label.tool_annotation_id)
    with pytest.raises(SnapshotError, match="label at least 2 more"):
        rig.run("snapshot")


def test_train_registers_the_challenger(rig: Rig) -> None:
    outcome = rig.run("snapshot", "train")
    version = rig.challenger
    assert (version.name, version.state, version.parent_id) == ("elnet-0001", ModelState.TRAINED, None)
    assert version.snapshot_id == rig.get(Cycle).snapshot_id
    assert Path(version.path) == rig.context.folder / "models" / f"cycle-{rig.journal.cycle_id}"
    assert outcome.message == "Trained elnet-0001 from the trunk alone."


def test_train_twice_trains_and_registers_once(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    rig.run("snapshot", "train")

    def again(*_: Any, **__: Any) -> None:
        pytest.fail("trained again")

    monkeypatch.setattr(fine_tuning, "run_training", again)
    outcome = rig.run("train")
    assert rig.count(ModelVersion) == 1
    assert outcome.message.endswith("The checkpoint was finished before the worker was interrupted.")


def test_the_challenger_that_was_registered_first_stays(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when two workers train, because one of them was taken for dead."""
    rig.run("snapshot")
    tune = fine_tuning.fine_tune

    def overtaken(context: CycleContext, journal: Journal, plan: fine_tuning.Plan) -> bool:
        reused = tune(context, journal, plan)
        with rig.loop.ledger.session() as session:
            cycle = session.get_one(Cycle, journal.cycle_id)
            first = registry.register(session, cycle.project, "elsewhere", "1" * 64, name=plan.version)
            cycle.challenger_id = first.id
        return reused

    monkeypatch.setattr(fine_tuning, "fine_tune", overtaken)
    assert rig.run("train").message == "Trained elnet-0001 from the trunk alone."
    assert rig.count(ModelVersion) == 1
    assert rig.challenger.path == "elsewhere"


def test_evaluate_the_first(rig: Rig) -> None:
    outcome = rig.run("snapshot", "train", "evaluate")
    metrics = rig.challenger.metrics
    frozen = rig.get(Snapshot, rig.get(Cycle).snapshot_id)
    stems = sorted(entry["stem"] for entry in frozen.manifest["holdout"])
    assert [s["image"] for s in metrics["per_image"]] == stems
    assert metrics["champion"] is None
    assert metrics["snapshot"] == frozen.sha256
    assert outcome.data["fg_iou"] == metrics["fg_iou"]
    assert 0 <= metrics["fg_iou"] <= 1
    assert f"elnet-0001 reaches holdout IoU {metrics['fg_iou']:.3f}." == outcome.message


def test_evaluate_judges_both_on_the_same_holdout(rig: Rig) -> None:
    rig.run("snapshot", "train", "evaluate", "gate", "promote")
    before = rig.challenger.metrics
    rig.next_cycle()
    for task_id in rig.unlabelled:
        rig.loop.label(task_id)
    outcome = rig.run("snapshot", "train", "evaluate")
    metrics = rig.challenger.metrics
    assert rig.challenger.name == "elnet-0002"
    assert metrics["champion"]["name"] == "elnet-0001"
    assert [s["image"] for s in metrics["champion"]["per_image"]] == [
        s["image"] for s in metrics["per_image"]
    ]
    assert rig.get(ModelVersion, 1).metrics == before
    assert outcome.message.endswith(f"against {metrics['champion']['fg_iou']:.3f} of elnet-0001.")
    assert any(m.startswith("elnet-0001 reaches IoU") for m in rig.events())


def test_evaluate_keeps_the_masks_of_both(rig: Rig) -> None:
    rig.run("snapshot", "train", "evaluate", "gate", "promote")
    first = rig.holdout_masks()
    assert {version for version, _ in first} == {1}
    assert rig.shares(1, first) == pytest.approx(rig.predicted_shares(rig.challenger.metrics))
    rig.next_cycle()
    for task_id in rig.unlabelled:
        rig.loop.label(task_id)
    rig.run("snapshot", "train", "evaluate")
    both, metrics = rig.holdout_masks(), rig.challenger.metrics
    assert rig.shares(2, both) == pytest.approx(rig.predicted_shares(metrics))
    assert rig.shares(1, both) == pytest.approx(rig.predicted_shares(metrics["champion"]))


def test_evaluate_that_died_halfway_is_repeated(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdout_masks, "_ROWS", 1)
    rig.run("snapshot", "train")
    holdout = rig.get(Snapshot, rig.get(Cycle).snapshot_id).manifest["holdout"]
    assert len(holdout) > 1
    checks = 0

    def die_at_the_second(_: Journal) -> None:
        nonlocal checks
        checks += 1
        if checks == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Journal, "check", die_at_the_second)
        with pytest.raises(KeyboardInterrupt):
            rig.run("evaluate")
    assert list(rig.holdout_masks()) == [(1, holdout[0]["task_id"])]
    assert rig.challenger.metrics == {}
    rig.run("evaluate")
    done = rig.holdout_masks()
    assert set(done) == {(1, entry["task_id"]) for entry in holdout}
    rig.run("evaluate")
    assert {key: masks.tolist() for key, masks in rig.holdout_masks().items()} == {
        key: masks.tolist() for key, masks in done.items()
    }


def test_evaluate_forgets_the_masks_of_old_versions(rig: Rig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(holdout_masks, "KEPT", 0)
    rig.run("snapshot", "train", "evaluate")
    assert rig.holdout_masks() == {}


def test_evaluate_stops_when_the_cycle_is_cancelled(rig: Rig) -> None:
    rig.run("snapshot", "train")
    rig.journal.end(CycleState.CANCELLED, "cancelled by ada")
    with pytest.raises(CycleEndedError, match="by ada"):
        rig.run("evaluate")
    assert rig.challenger.metrics == {}


def test_training_goes_on_from_the_champion(rig: Rig) -> None:
    rig.run("snapshot", "train", "evaluate", "gate", "promote")
    rig.next_cycle()
    outcome = rig.run("snapshot", "train")
    assert rig.challenger.parent_id == 1
    assert outcome.message == "Trained elnet-0002 from elnet-0001."


@pytest.mark.parametrize(("ious", "promoted"), [((0.9, 0.8), True), ((0.1, 0.2), False)])
def test_the_gate_decides_and_remembers(rig: Rig, ious: tuple[float, float], promoted: bool) -> None:
    rig.run("snapshot", "train")
    judge(rig, ious, champion=(0.5, 0.5))
    assert steps.decision(rig.context, rig.journal.cycle_id) == ""
    outcome = rig.run("gate")
    said = rig.challenger.metrics["gate"]
    assert said["promote"] is promoted
    assert outcome.message == f"elnet-0001 is {said['reason']}."
    assert steps.decision(rig.context, rig.journal.cycle_id) == ("promote" if promoted else "reject")
    rig.run("gate")
    assert rig.challenger.metrics["gate"] == said


def test_the_gate_holds_back_what_takes_too_long_or_errs_on_foreign_images(rig: Rig) -> None:
    rig.run("snapshot", "train", "evaluate")
    metrics = rig.challenger.metrics
    assert metrics["seconds"] > 0
    assert metrics["fault"] is None
    rig.loop.configure(latency_s=metrics["seconds"] / 2)
    assert "s for an image, and the policy allows" in rig.run("gate").message
    rig.loop.configure(latency_s=None)
    with rig.context.ledger.session() as session:
        session.get_one(ModelVersion, rig.challenger.id).metrics = metrics | {"fault": "it draws on noise"}
    assert rig.run("gate").message == "elnet-0001 is not promoted: it draws on noise."


def judge(rig: Rig, ious: tuple[float, ...], champion: tuple[float, ...] | None) -> None:
    """Metrics as if challenger and champion had been evaluated."""

    def scores(ious: tuple[float, ...]) -> dict[str, Any]:
        images = [
            {
                "image": str(i),
                "iou": iou,
                "smoothed_iou": iou,
                "boundary_f1": iou,
                "predicted_share": 0.3,
                "truth_share": 0.3,
            }
            for i, iou in enumerate(ious)
        ]
        return {"per_image": images, "fg_iou": float(np.mean(ious))}

    metrics = {**scores(ious), "champion": {"name": "x", **scores(champion)} if champion else None}
    with rig.loop.ledger.session() as session:
        session.get_one(ModelVersion, rig.challenger.id).metrics = metrics


def test_promote_twice_is_once(rig: Rig) -> None:
    rig.run("snapshot", "train")
    judge(rig, (0.9,), None)
    rig.run("gate", "promote", "promote")
    assert rig.loop.project().champion_id == rig.challenger.id
    assert rig.count(Promotion) == 1
    state, reason = steps.ending(rig.context, rig.journal.cycle_id)
    assert state is CycleState.PROMOTED
    assert reason.startswith("elnet-0001, promoted: the first model")


def test_with_approval_the_gate_leaves_the_last_word_to_a_lead(rig: Rig) -> None:
    rig.loop.configure(approval=True)
    rig.run("snapshot", "train")
    judge(rig, (0.9,), None)
    outcome = rig.run("gate")
    assert outcome.message.startswith("elnet-0001 is fit to serve: the first model")
    assert steps.decision(rig.context, rig.journal.cycle_id) == "challenge"
    outcome = rig.run("challenge", "challenge")
    assert "elnet models promote elnet-0001" in outcome.message
    assert rig.challenger.state is ModelState.CHALLENGER
    assert rig.loop.project().champion_id is None
    state, reason = steps.ending(rig.context, rig.journal.cycle_id)
    assert state is CycleState.PASSED
    assert reason.endswith("it waits for a lead: `elnet models promote elnet-0001`")


def test_with_approval_a_worse_challenger_is_rejected_all_the_same(rig: Rig) -> None:
    rig.loop.configure(approval=True)
    rig.run("snapshot", "train")
    judge(rig, (0.0,), None)
    assert rig.run("gate").message.startswith("elnet-0001 is not promoted")
    assert steps.decision(rig.context, rig.journal.cycle_id) == "reject"


def test_reject_leaves_the_champion(rig: Rig) -> None:
    rig.loop.promote("elnet-0000")
    champion = rig.loop.project().champion_id
    rig.loop.configure(champion_id=None)  # its checkpoint is a fake: train without it
    rig.run("snapshot", "train")
    rig.loop.configure(champion_id=champion)
    judge(rig, (0.1,), (0.9,))
    rig.run("gate")
    outcome = rig.run("reject", "reject")
    assert outcome.message == "elnet-0001 is put aside; elnet-0000 goes on serving."
    assert rig.loop.project().champion_id == champion
    assert rig.challenger.state is ModelState.REJECTED
    assert steps.ending(rig.context, rig.journal.cycle_id)[0] is CycleState.REJECTED


def test_recalibrate(rig: Rig) -> None:
    assert rig.run("recalibrate").message == "There is no model to calibrate yet."
    rig.loop.promote()
    outcome = rig.run("recalibrate")
    assert outcome.message.startswith("0 audits are too few to calibrate elnet-0001 on")
    assert rig.count(Calibration) == 1


def test_prefill_predicts_routes_and_pushes_what_is_unlabelled(rig: Rig) -> None:
    rig.run("snapshot", "train")
    judge(rig, (0.9,), None)
    outcome = rig.run("gate", "promote", "prefill")
    assert outcome.message == "3 unlabelled images predicted and routed by the model that serves."
    assert rig.count(Prediction) == 3
    assert {rig.loop.task(i).status for i in rig.unlabelled} <= {TaskStatus.REVIEW, TaskStatus.ACCEPTED}
    assert sorted(rig.loop.tool.predictions) == sorted(rig.loop.task(i).tool_task_id for i in rig.unlabelled)
    assert "3 unlabelled images predicted so far." in rig.events()
    assert rig.run("prefill").data == {"predicted": 3, "pushed": 0}


def test_prefill_without_a_tool_is_left_to_the_worker(rig: Rig) -> None:
    rig.run("snapshot", "train")
    judge(rig, (0.9,), None)
    rig.loop.tool.down.add("push_prefills")
    outcome = rig.run("gate", "promote", "prefill")
    assert outcome.message.endswith("the worker goes on when it answers.")
    assert rig.count(Prediction) == 3


def test_prefill_before_the_first_model(rig: Rig) -> None:
    assert rig.run("prefill").data["predicted"] == 0
    assert {rig.loop.task(i).status for i in rig.unlabelled} == {TaskStatus.REVIEW}


def test_a_cycle_goes_on_with_another_state_folder(
    rig: Rig, s3: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on another machine, which shares the ledger and S3 alone."""
    monkeypatch.setenv("ELNET_HOME", str(tmp_path / "home"))
    rig.share(f"s3://{s3.bucket}/elnet", s3.endpoint)
    rig.run("snapshot", "train")
    assert rig.challenger.path.startswith(f"s3://{s3.bucket}/elnet/models/")
    frozen = files_of(rig.context.folder / "snapshots")

    rig.context.folder.rename(tmp_path / "gone")
    monkeypatch.setenv("ELNET_HOME", str(tmp_path / "another home"))
    rig.context.folder = tmp_path / "another state"
    rig.share(f"s3://{s3.bucket}/elnet", s3.endpoint)
    rig.run("evaluate", "gate", "promote")
    assert files_of(rig.context.folder / "snapshots") == frozen
    assert rig.count(Prediction) == 0
    rig.run("prefill")
    assert rig.count(Prediction) == 3

    rig.next_cycle()
    rig.run("snapshot", "train")  # from the champion, which was not trained here
    assert (rig.challenger.name, rig.challenger.parent_id) == ("elnet-0002", 1)


def files_of(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in found}


@pytest.mark.parametrize("change", ["gone", "other"])
def test_a_snapshot_is_not_written_again_from_other_images(rig: Rig, change: str) -> None:
    rig.run("snapshot", "train")
    shutil.rmtree(rig.context.folder / "snapshots")
    uri = rig.loop.task(rig.labelled[0]).image_uri
    rig.loop.images.known[uri] = f"{uri} is gone" if change == "gone" else rig.loop.image(0.1, 99)
    said = f"{uri} is gone" if change == "gone" else f"{uri} shows something else by now"
    with pytest.raises(SnapshotError, match=f"cannot be written again below .*{said}; ask for a new cycle"):
        rig.run("evaluate")
    assert list((rig.context.folder / "snapshots").iterdir()) == []


def test_every_step_has_its_beginning() -> None:
    assert steps.BEGINNINGS.keys() == steps.STEPS.keys()
