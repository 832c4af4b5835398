"""Against a real Label Studio: what is suggested, what stays, what is taken back."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from active_learning import labels
from active_learning.ledger import Ledger, Project, Task
from active_learning.ports import ImageUnavailableError, Prefill, ToolAnnotation
from backend.label_enhancement import LabelEnhancementError, Suggested, suggest
from backend.label_studio import LabelStudio
from backend.labeling_interface import labeling_interface
from backend.regions import regions_to_masks
from backend.views import ENHANCED
from model.predictor import ImagePrediction
from model.raster import Raster

pytestmark = pytest.mark.label_studio

CLASSES = ["oil"]
HEIGHT, WIDTH = 40, 48


def drawn() -> np.ndarray:
    """What a person drew: (1, 40, 48) bool."""
    masks = np.zeros((1, HEIGHT, WIDTH), np.bool_)
    masks[0, 10:30, 10:30] = True
    return masks


class Widening:
    """Says of each coarse mask that it goes one column further to the right."""

    def __init__(self, version: str = "elnet-0003", columns: int = 1, **card: Any) -> None:
        self.version, self.columns = version, columns
        self.card = SimpleNamespace(**{"classes": ("oil",), "architecture": {"prompt": True}} | card)

    def predict(self, images: Sequence[Raster], coarse: Sequence[np.ndarray]) -> list[ImagePrediction]:
        made = []
        for masks in coarse:
            probability = np.where(masks, 0.95, 0.02).astype(np.float32)
            if masks.any():
                probability[:, 10:30, 30 : 30 + self.columns] = 0.9
            made.append(ImagePrediction(probability, np.zeros_like(probability), np.zeros(4, np.float32)))
        return made


class Images:
    """One size; `broken` names the address that cannot be had."""

    broken = ""
    size = (HEIGHT, WIDTH)

    def open(self, image_uri: str) -> Raster:
        if image_uri == self.broken:
            raise ImageUnavailableError(f"{image_uri} is gone")
        return Raster(np.zeros((*self.size, 3), np.uint8), np.ones(self.size, np.bool_))


@dataclass
class Place:
    """A project of both, with two labelled tasks and an open one."""

    ledger: Ledger
    tool: LabelStudio
    project: Project
    ids: list[int]
    images: Images = field(default_factory=Images)

    def enhance(self, predictor: Widening | None = None, chosen: list[int] | None = None) -> list[Suggested]:
        network: Any = predictor or Widening()
        return suggest(
            self.ledger, self.tool, self.images, self.project, network, chosen, reach=12, smallest=0
        )

    def predictions(self, task_id: int) -> dict[str, dict[str, Any]]:
        task = self.tool.detailed(self.project.tool_project_id, [task_id])[task_id]
        return {prediction["model_version"]: prediction for prediction in task["predictions"]}

    def delete_label(self, task_id: int) -> None:
        with self.ledger.session() as session:
            labels.bury(session, session.get_one(Project, self.project.id), [1000 + task_id])


@pytest.fixture
def place(ledger: Ledger, label_studio: LabelStudio) -> Place:
    body = {"title": "enhanced", "label_config": labeling_interface(CLASSES)}
    project_id = label_studio.lead.post("/api/projects/", body)["id"]
    tasks = [{"data": {"image": f"/data/x/{number}.png"}} for number in range(3)]
    label_studio.lead.post(f"/api/projects/{project_id}/import", tasks)
    ids = [task["id"] for task in label_studio.listed(project_id)]
    with ledger.session() as session:
        project = Project(name="p", tool_url=label_studio.url, tool_project_id=project_id, classes=CLASSES)
        session.add(project)
        session.flush()
        for number, task_id in enumerate(ids):
            task = Task(
                project_id=project.id,
                tool_task_id=task_id,
                image_uri=f"/data/x/{number}.png",
                scene=str(number),
            )
            session.add(task)
        session.flush()
        for task_id in ids[:2]:
            said = ToolAnnotation(1000 + task_id, task_id, drawn(), "1", False, False, datetime.now(UTC))
            labels.record(session, project, said)
    return Place(ledger, label_studio, project, ids)


def test_a_suggestion_stands_beside_what_the_serving_version_said(place: Place) -> None:
    first, second, _ = place.ids
    prefill = Prefill(first, drawn(), 0.75, "elnet-0003")
    place.tool.push_prefills(place.project.tool_project_id, CLASSES, [prefill])
    rows = place.enhance()
    assert [(row.task, row.added, row.removed, row.outcome) for row in rows] == [
        (first, 20, 0, "suggested"),
        (second, 20, 0, "suggested"),
    ]
    assert all(row.quality is not None and 0.5 < row.quality <= 1 for row in rows)
    shown = place.predictions(first)
    assert set(shown) == {"elnet-0003", "elnet-0003-enhanced"}
    suggested = shown["elnet-0003-enhanced"]
    assert suggested["score"] == rows[0].quality
    masks, _ = regions_to_masks(suggested["result"], CLASSES, HEIGHT, WIDTH)
    wanted = drawn()
    wanted[0, 10:30, 30] = True
    assert np.array_equal(masks, wanted)
    assert place.tool.project(place.project.tool_project_id)["model_version"] == "elnet-0003"


def test_the_view_shows_the_tasks_with_a_suggestion(place: Place) -> None:
    first, second, _ = place.ids
    place.enhance(chosen=[second])
    views = place.tool.lead.get("/api/dm/views/", project=place.project.tool_project_id)
    [view] = [view for view in views if view["data"]["title"] == ENHANCED.title]
    shown = place.tool.lead.get("/api/tasks/", project=place.project.tool_project_id, view=view["id"])
    assert [task["id"] for task in shown["tasks"]] == [second]
    place.enhance()
    shown = place.tool.lead.get("/api/tasks/", project=place.project.tool_project_id, view=view["id"])
    assert {task["id"] for task in shown["tasks"]} == {first, second}


def test_again_it_is_the_same_and_another_network_takes_its_place(place: Place) -> None:
    first = place.ids[0]
    place.enhance()
    before = place.predictions(first)
    place.enhance()
    assert place.predictions(first) == before
    place.enhance(Widening("elnet-0004", columns=2))
    assert set(place.predictions(first)) == {"elnet-0004-enhanced"}


def test_where_nothing_is_better_nothing_is_suggested_and_an_earlier_suggestion_goes(place: Place) -> None:
    first = place.ids[0]
    place.enhance()
    [row] = place.enhance(Widening("elnet-0004", columns=0), [first])
    assert row == Suggested(first, outcome="unchanged")
    assert not row.failed
    assert place.predictions(first) == {}


def test_suggestions_are_taken_back_and_prefills_stay(place: Place) -> None:
    first = place.ids[0]
    place.tool.push_prefills(
        place.project.tool_project_id, CLASSES, [Prefill(first, drawn(), 0.75, "elnet-0003")]
    )
    place.enhance()
    assert place.tool.take_back_suggestions(place.project.tool_project_id, place.ids) == 2
    assert set(place.predictions(first)) == {"elnet-0003"}
    assert place.tool.take_back_suggestions(place.project.tool_project_id, place.ids) == 0


def test_a_task_that_is_open_again_gets_its_prefill_and_no_suggestion(place: Place) -> None:
    first = place.ids[0]
    place.enhance()
    place.tool.push_prefills(
        place.project.tool_project_id, CLASSES, [Prefill(first, drawn(), 0.75, "elnet-0004")]
    )
    assert set(place.predictions(first)) == {"elnet-0004"}


def test_a_broken_image_spoils_only_its_own(place: Place) -> None:
    first, second, _ = place.ids
    place.images.broken = "/data/x/0.png"
    rows = place.enhance()
    assert [(row.task, row.failed) for row in rows] == [(first, True), (second, False)]
    assert rows[0].outcome == "/data/x/0.png is gone"
    assert place.predictions(first) == {}


def test_a_label_of_another_size_is_told(place: Place) -> None:
    place.images.size = (HEIGHT, WIDTH + 8)
    rows = place.enhance()
    assert {row.outcome for row in rows} == {"its label is of 48 x 40 px, its image of 56 x 40 px"}


def test_a_task_that_label_studio_lost_is_told(place: Place) -> None:
    first = place.ids[0]
    place.tool.lead.delete(f"/api/tasks/{first}/")
    rows = place.enhance()
    assert rows[0].outcome == "Label Studio does not hold the task any more"
    assert rows[1].outcome == "suggested"


def test_what_nobody_has_labelled_is_refused_before_anything_is_done(place: Place) -> None:
    first, _, unlabelled = place.ids
    with pytest.raises(LabelEnhancementError, match=f"no label by a person for task {unlabelled}, 999999;"):
        place.enhance(chosen=[first, unlabelled, 999999])
    assert place.predictions(first) == {}
    for task_id in place.ids[:2]:
        place.delete_label(task_id)
    with pytest.raises(LabelEnhancementError, match="nobody has labelled an image of 'p' yet"):
        place.enhance()


@pytest.mark.parametrize(
    ("card", "said"),
    [
        ({"architecture": {}}, r"cannot enhance labels. Let the project train with"),
        ({"classes": ("ship",)}, r"knows the classes ship, project 'p' has oil"),
    ],
)
def test_a_network_that_does_not_fit_is_refused(place: Place, card: dict[str, Any], said: str) -> None:
    make: Callable[..., Widening] = Widening
    with pytest.raises(LabelEnhancementError, match=said):
        place.enhance(make(**card))
