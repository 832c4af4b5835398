from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from sqlalchemy import select
from sqlalchemy.exc import IntegrityError

from active_learning import labels, snapshot_files
from active_learning.ledger import (
    HoldoutScene,
    Ledger,
    Project,
    Scene,
    Snapshot,
    Task,
    TaskStatus,
    TrainScene,
)
from active_learning.ports import ImageUnavailableError, ToolAnnotation, ToolUnavailableError
from active_learning.snapshot import Export, SnapshotError, export, take
from active_learning.split import assign
from model.pairs import find_pairs, read_pair
from model.raster import Raster, RasterError, read_masks

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)
SHAPE = (12, 16)
SIDES = ("train", "holdout")


@dataclass
class Images:
    """uri -> an image, or what is raised instead."""

    known: dict[str, Raster | Exception] = field(default_factory=dict)
    on_open: Callable[[], None] = lambda: None

    def open(self, image_uri: str) -> Raster:
        self.on_open()
        found = self.known[image_uri]
        if isinstance(found, Exception):
            raise found
        return found


def an_image(seed: int, invalid: slice | None = None) -> Raster:
    random = np.random.default_rng(seed)
    pixels = random.integers(0, 256, (*SHAPE, 3), dtype=np.uint8)
    valid = np.ones(SHAPE, np.bool_)
    if invalid is not None:
        valid[invalid] = False
        pixels[~valid] = 0
    return Raster(pixels, valid)


def masks_of(seed: int, classes: int = 1) -> NDArray[np.bool_]:
    return np.random.default_rng(seed).random((classes, *SHAPE)) > 0.5


class Studio:
    """A project whose tasks are labelled one by one."""

    def __init__(self, ledger: Ledger, folder: Path, classes: Sequence[str] = ("oil",)) -> None:
        self.ledger = ledger
        self.folder = folder
        self.images = Images()
        self.numbers: dict[str, int] = {}
        with ledger.session() as session:
            project = Project(
                name="spills",
                tool_url="http://tool",
                tool_project_id=1,
                classes=list(classes),
                holdout_share=0.25,
            )
            session.add(project)
            session.flush()
            self.project_id, self.classes = project.id, list(classes)

    def add(self, name: str, *, scene: str | None = None, image: Raster | Exception | None = None) -> None:
        number = self.numbers[name] = len(self.numbers) + 1
        self.images.known[name] = an_image(number) if image is None else image
        with self.ledger.session() as session:
            session.add(
                Task(
                    project_id=self.project_id,
                    tool_task_id=1000 + number,
                    image_uri=name,
                    scene=scene or name,
                )
            )

    def label(
        self, name: str, masks: NDArray[np.bool_] | None = None, *, minutes: float = 0, **rest: Any
    ) -> None:
        number = self.numbers[name]
        given = {"id": number, "annotator": "ada", "machine": False, "cancelled": False}
        said = ToolAnnotation(
            task_id=1000 + number,
            masks=masks_of(number, len(self.classes)) if masks is None else masks,
            updated_at=NOON + timedelta(minutes=minutes),
            **{**given, **rest},
        )
        with self.ledger.session() as session:
            labels.record(session, session.get_one(Project, self.project_id), said)

    def fill(self, names: str, **rest: Any) -> None:
        for name in names.split():
            self.add(name, **rest)
            self.label(name)

    def take(self) -> Snapshot:
        with self.ledger.session() as session:
            project = session.get_one(Project, self.project_id)
            return take(session, project, self.images, self.folder)

    def export(self, folder: Path) -> Export:
        with self.ledger.session(write=False) as session:
            return export(session, session.get_one(Project, self.project_id), self.images, folder)

    def sides(self, snapshot: Snapshot) -> dict[str, set[str]]:
        return {
            side: {entry["image_uri"] for entry in snapshot.manifest[side]}
            for side in ("train", "holdout", "left_out")
        }

    def read(self, snapshot: Snapshot) -> dict[str, tuple[Raster, NDArray[np.bool_], NDArray[np.bool_]]]:
        """image uri -> what training would read."""
        names = {
            entry["stem"]: entry["image_uri"]
            for side in ("train", "holdout")
            for entry in snapshot.manifest[side]
        }
        found = {}
        for side in ("train", "holdout"):
            pairs, classes = find_pairs(self.folder / snapshot.sha256 / side)
            assert classes == self.classes
            found |= {names[pair.stem]: read_pair(pair) for pair in pairs}
        return found


@pytest.fixture
def studio(ledger: Ledger, tmp_path: Path) -> Studio:
    return Studio(ledger, tmp_path / "snapshots")


def everything(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


def test_training_reads_what_people_said(studio: Studio) -> None:
    studio.fill("a b c d e f g h")
    snapshot = studio.take()
    found = studio.read(snapshot)
    assert sorted(found) == list("abcdefgh")
    for name, (raster, masks, valid) in found.items():
        number = studio.numbers[name]
        assert np.array_equal(raster.pixels, an_image(number).pixels)
        assert np.array_equal(masks, masks_of(number))
        assert valid.all()
    sides = studio.sides(snapshot)
    assert not sides["train"] & sides["holdout"]
    assert min(len(sides["train"]), len(sides["holdout"])) >= 2


def test_masks_are_0_and_255_and_images_png(studio: Studio) -> None:
    studio.fill("a b")
    folder = studio.folder / studio.take().sha256
    for path in folder.glob("*/masks/*.png"):
        assert set(np.unique(np.asarray(Image.open(path)))) == {0, 255}
    assert {path.name for path in folder.glob("*/images/*")} == {"00000001.png", "00000002.png"}


def test_several_classes_have_a_folder_each(ledger: Ledger, tmp_path: Path) -> None:
    studio = Studio(ledger, tmp_path, ["road", "wet soil"])
    studio.fill("a b")
    snapshot = studio.take()
    for name, (_, masks, _) in studio.read(snapshot).items():
        assert np.array_equal(masks, masks_of(studio.numbers[name], 2))
    road = next((tmp_path / snapshot.sha256).glob("*/masks/road/00000001.png"))
    assert np.array_equal(read_masks(road)[0], masks_of(1, 2)[0])


def test_pixels_without_data_stay_without_data(studio: Studio) -> None:
    image = an_image(1, invalid=slice(0, 5))
    studio.add("a", image=image)
    studio.label("a")
    studio.fill("b")
    raster, masks, valid = studio.read(studio.take())["a"]
    assert np.array_equal(valid, image.valid)
    assert np.array_equal(raster.pixels, image.pixels)
    assert np.array_equal(masks, masks_of(1))


def test_nothing_there_is_a_label(studio: Studio) -> None:
    studio.fill("a")
    studio.add("b")
    studio.label("b", np.zeros((1, 0, 0), np.bool_))
    _, masks, _ = studio.read(studio.take())["b"]
    assert masks.shape == (1, *SHAPE)
    assert not masks.any()


def test_only_the_latest_living_label_of_a_person_is_in_it(studio: Studio) -> None:
    studio.fill("a b")
    for name in ["machine", "skipped", "deleted", "gone"]:
        studio.add(name)
    studio.label("machine", machine=True)
    studio.label("skipped", cancelled=True)
    studio.label("deleted")
    studio.label("gone")
    with studio.ledger.session() as session:
        labels.bury(session, session.get_one(Project, studio.project_id), [studio.numbers["deleted"]])
        session.scalars(select(Task).where(Task.image_uri == "gone")).one().status = TaskStatus.GONE
    studio.label("a", masks_of(77), minutes=5)
    studio.label("a", masks_of(78), minutes=9, id=500, machine=True)
    found = studio.read(studio.take())
    assert sorted(found) == ["a", "b"]
    assert np.array_equal(found["a"][1], masks_of(77))


def test_the_manifest_tells_where_everything_came_from(studio: Studio) -> None:
    studio.fill("a b")
    studio.label("a", masks_of(9), minutes=1, soft_edges=True)
    snapshot = studio.take()
    entries = {e["image_uri"]: e for side in ("train", "holdout") for e in snapshot.manifest[side]}
    entry = entries["a"]
    with studio.ledger.session(write=False) as session:
        task = session.scalars(select(Task).where(Task.image_uri == "a")).one()
        label = labels.current_label(session, task)
    assert label is not None
    assert entry == {
        "stem": f"{task.id:08d}",
        "task_id": task.id,
        "tool_task_id": 1001,
        "image_uri": "a",
        "scene": "a",
        "label_id": label.id,
        "content": label.content,
        "source": "human",
        "soft_edges": True,
        "weight": 1.0,
        "height": SHAPE[0],
        "width": SHAPE[1],
        "image_sha256": entry["image_sha256"],
    }
    assert len({e["image_sha256"] for e in entries.values()}) == 2
    folder = studio.folder / snapshot.sha256
    on_disk = json.loads((folder / "manifest.json").read_text())
    assert on_disk == {"sha256": snapshot.sha256, **snapshot.manifest}
    train = json.loads((folder / "train" / "manifest.json").read_text())
    assert train["scenes"] == {e["stem"]: e["scene"] for e in snapshot.manifest["train"]}


def test_the_same_state_gives_the_same_snapshot(studio: Studio) -> None:
    studio.fill("a b c")
    first = studio.take()
    files = everything(studio.folder)
    studio.label("a", minutes=30)  # saved again, unchanged
    assert studio.take().id == first.id
    assert everything(studio.folder) == files
    assert sorted(p.name for p in studio.folder.iterdir()) == [first.sha256]


def test_another_label_image_or_scene_gives_another_snapshot(studio: Studio) -> None:
    studio.fill("a b c")
    found = {studio.take().sha256}
    studio.label("a", masks_of(50), minutes=1)
    found.add(studio.take().sha256)
    studio.images.known["a"] = an_image(50)
    found.add(studio.take().sha256)
    half_black = an_image(50, invalid=slice(0, 3))
    for valid in (half_black.valid, np.ones(SHAPE, np.bool_)):
        studio.images.known["a"] = Raster(half_black.pixels, valid)
        found.add(studio.take().sha256)
    studio.fill("d")
    found.add(studio.take().sha256)
    assert len(found) == 6
    assert {p.name for p in studio.folder.iterdir()} == found


def test_a_snapshot_that_lost_files_is_written_again(studio: Studio) -> None:
    studio.fill("a b c")
    first = studio.take()
    files = everything(studio.folder)
    next((studio.folder / first.sha256).glob("*/images/*")).unlink()
    assert studio.take().id == first.id
    assert everything(studio.folder) == files
    shutil.rmtree(studio.folder)
    assert studio.take().id == first.id
    assert everything(studio.folder) == files


def test_a_snapshot_is_never_changed(studio: Studio) -> None:
    studio.fill("a b")
    studio.take()
    with pytest.raises(IntegrityError, match="append-only"), studio.ledger.session() as session:
        session.scalars(select(Snapshot)).one().manifest = {}


def test_scenes_stay_whole_and_on_their_side(studio: Studio) -> None:
    names = [f"{scene}{i}" for scene in "abcdefgh" for i in range(3)]
    for name in names:
        studio.add(name, scene=name[0])
    for name in names[::3]:
        studio.label(name)
    first = studio.take()
    for name in names:
        studio.label(name, minutes=1)
    studio.fill("i j k l m n o p q r s t")
    second = studio.take()
    before, after = ({s: {e["scene"] for e in x.manifest[s]} for s in SIDES} for x in (first, second))
    for side in SIDES:
        assert before[side] <= after[side]
    assert not after["train"] & after["holdout"]
    assert len(after["holdout"]) > len(before["holdout"])
    with studio.ledger.session(write=False) as session:
        assert {s.scene for s in session.scalars(select(HoldoutScene))} == after["holdout"]
        assert {s.scene for s in session.scalars(select(TrainScene))} == after["train"]


def test_a_scene_that_was_trained_on_never_judges(studio: Studio) -> None:
    """Also if its only label was deleted in between, and its draw would send it to the holdout."""
    studio.fill("a b c d")
    first = studio.take()
    scene = first.manifest["train"][0]["scene"]
    with studio.ledger.session() as session:
        labels.bury(session, session.get_one(Project, studio.project_id), [studio.numbers[scene]])
        session.get_one(Project, studio.project_id).holdout_share = 0.99
    second = studio.take()
    assert scene not in studio.sides(second)["train"]
    studio.label(scene, id=900)
    assert scene in studio.sides(studio.take())["train"]


@pytest.mark.parametrize(
    "broken",
    [
        ImageUnavailableError("the server answered 404"),
        RasterError("truncated"),
        an_image(1, invalid=slice(None)),
        Raster(np.zeros((5, 5, 3), np.uint8), np.ones((5, 5), np.bool_)),
    ],
)
def test_an_image_that_cannot_be_used_is_left_out_and_named(
    studio: Studio, broken: Raster | Exception
) -> None:
    studio.fill("a b c")
    studio.add("bad", image=broken)
    studio.label("bad")
    snapshot = studio.take()
    assert studio.sides(snapshot)["left_out"] == {"bad"}
    reason = snapshot.manifest["left_out"][0]["reason"]
    assert any(word in reason for word in ("404", "truncated", "no valid pixel", "16 x 12 pixels and"))
    assert sorted(studio.read(snapshot)) == ["a", "b", "c"]
    with studio.ledger.session(write=False) as session:
        project = session.get_one(Project, studio.project_id)
        assert labels.labels_since(session, project, snapshot) == 0
        assert "bad" not in {s.scene for s in session.scalars(select(Scene))}


def test_another_image_that_is_left_out_gives_another_snapshot(studio: Studio) -> None:
    """Or its label would count as new for ever, and ask for cycle after cycle."""
    studio.fill("a b")
    first = studio.take()
    studio.add("bad", image=ImageUnavailableError("gone"))
    studio.label("bad")
    second = studio.take()
    assert first.id != second.id
    studio.images.known["bad"] = ImageUnavailableError("gone, said differently")
    assert studio.take().id == second.id


def test_labels_of_other_classes_are_left_out(studio: Studio) -> None:
    studio.fill("a b")
    with studio.ledger.session() as session:
        session.get_one(Project, studio.project_id).classes = ["oil", "ship"]
    with pytest.raises(SnapshotError, match=r"2 cannot be used, such as a: its label has 1 classes"):
        studio.take()


@pytest.mark.parametrize(
    ("names", "scene", "says"),
    [
        ("", None, "has 0 usable of 0; label at least 2 more, of two scenes"),
        ("a", None, "has 1 usable of 1; label at least 1 more, of another scene"),
        ("a b c", "one", "has 3 usable of 1; label at least 1 more, of another scene"),
    ],
)
def test_too_few_labels_says_how_many_are_missing(
    studio: Studio, names: str, scene: str | None, says: str
) -> None:
    studio.fill(names, scene=scene)
    with pytest.raises(SnapshotError, match=says):
        studio.take()
    with studio.ledger.session(write=False) as session:
        assert session.scalars(select(Scene)).all() == []
    assert list(studio.folder.iterdir()) == []


def test_a_tool_that_is_away_stops_it_and_leaves_nothing(studio: Studio) -> None:
    studio.fill("a b c")
    studio.images.known["c"] = ToolUnavailableError("no answer")
    with pytest.raises(ToolUnavailableError):
        studio.take()
    assert list(studio.folder.iterdir()) == []


def test_a_full_disk_is_an_error_and_leaves_nothing(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    studio.fill("a b c")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(snapshot_files, "_write_json", full)
    with pytest.raises(SnapshotError, match="No space left on device"):
        studio.take()
    assert list(studio.folder.iterdir()) == []


def test_a_folder_that_cannot_be_made_is_an_error(studio: Studio) -> None:
    studio.fill("a b")
    studio.folder.write_text("a file is in the way")
    with pytest.raises(SnapshotError, match="cannot be written"):
        studio.take()


def test_what_a_killed_process_left_is_removed(studio: Studio) -> None:
    studio.fill("a b")
    leftover = studio.folder / f".unfinished-{studio.project_id}-abc" / "all"
    leftover.mkdir(parents=True)
    other = studio.folder / ".unfinished-99-abc"
    other.mkdir()
    snapshot = studio.take()
    assert {p.name for p in studio.folder.iterdir()} == {snapshot.sha256, other.name}


def test_the_ledger_can_be_written_while_images_are_read(studio: Studio) -> None:
    studio.fill("a b")
    written = []

    def write() -> None:
        with studio.ledger.session() as session:
            session.get_one(Project, studio.project_id).cooldown_s += 1
        written.append(1)

    studio.images.on_open = write
    studio.take()
    assert written == [1, 1]


def test_two_snapshots_at_once_cannot_put_a_scene_on_both_sides(studio: Studio) -> None:
    studio.fill("a b")
    ours = assign({"a": 1, "b": 1}, {}, 0.25)
    kinds = {"train": HoldoutScene, "holdout": TrainScene}  # the other way round

    def other_one() -> None:
        studio.images.on_open = lambda: None
        with studio.ledger.session() as session:
            session.add_all(kinds[ours[s]](project_id=studio.project_id, scene=s) for s in ours)

    studio.images.on_open = other_one
    with pytest.raises(SnapshotError, match="at the same time; try again"):
        studio.take()
    found = studio.sides(studio.take())
    assert all(scene not in found[ours[scene]] for scene in ours)


@pytest.mark.parametrize("bad", ["", "..", ".hidden", "road/paved", "a\\b"])
def test_a_class_that_cannot_be_a_folder_is_refused(ledger: Ledger, tmp_path: Path, bad: str) -> None:
    studio = Studio(ledger, tmp_path / "snapshots", ["oil", bad])
    studio.fill("a b")
    with pytest.raises(SnapshotError, match="cannot be the name of a folder"):
        studio.take()
    assert not studio.folder.exists()


@pytest.mark.postgresql
def test_the_same_on_postgresql(postgresql_url: str, tmp_path: Path) -> None:
    with Ledger(postgresql_url) as ledger:
        ledger.upgrade()
        studio = Studio(ledger, tmp_path)
        studio.fill("a b c d")
        first = studio.take()
        assert studio.take().id == first.id
        assert sorted(studio.read(first)) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("exists", [False, True])
def test_what_people_drew_is_exported_with_its_scenes(studio: Studio, tmp_path: Path, exists: bool) -> None:
    studio.fill("a b", scene="one")
    studio.add("broken", image=ImageUnavailableError("the disk is gone"))
    studio.label("broken")
    studio.add("waiting")
    out = tmp_path / "out"
    if exists:
        out.mkdir()
    assert studio.export(out) == Export(2, {"broken": "the disk is gone"})
    pairs, classes = find_pairs(out)
    assert (classes, [pair.scene for pair in pairs]) == (["oil"], ["one", "one"])
    for number, pair in enumerate(pairs, start=1):
        raster, masks, _ = read_pair(pair)
        assert np.array_equal(raster.pixels, an_image(number).pixels)
        assert np.array_equal(masks, masks_of(number))
    with studio.ledger.session(write=False) as session:
        assert not session.scalars(select(Scene)).all()  # nothing was decided by it
    with pytest.raises(SnapshotError, match="holds something already"):
        studio.export(out)
    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []


def test_without_labels_nothing_is_exported(studio: Studio, tmp_path: Path) -> None:
    studio.add("waiting")
    with pytest.raises(SnapshotError, match="no label that could be exported"):
        studio.export(tmp_path / "out")
    assert not (tmp_path / "out").exists()
