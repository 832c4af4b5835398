from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backend.label_config import parse_label_config
from backend.labeling_interface import labeling_interface
from backend.oracle import OracleAnnotator, OracleError
from backend.regions import masks_to_regions, regions_to_masks

CLASSES = ["oil", "ship"]
CONFIG = labeling_interface(CLASSES)
CONTROL = parse_label_config(CONFIG).control
SIDE = 32


def square(top: int, size: int = 12) -> np.ndarray:
    mask = np.zeros((SIDE, SIDE), np.bool_)
    mask[top : top + size, 4 : 4 + size] = True
    return mask


def masks(oil: np.ndarray, ship: np.ndarray | None = None) -> np.ndarray:
    return np.stack([oil, np.zeros_like(oil) if ship is None else ship])


class Desk:
    """Label Studio's API, as far as an annotator sees it; a task leaves its view when it is submitted."""

    def __init__(self) -> None:
        self.views: dict[str, list[int]] = {}
        self.tasks: dict[int, dict[str, Any]] = {}
        self.submitted: dict[int, dict[str, Any]] = {}
        self.lead = self

    def add(self, view: str, stem: str, *prefills: np.ndarray) -> int:
        number = 100 + len(self.tasks)
        self.views.setdefault(view, []).append(number)
        predictions = [
            {"id": 9000 + i, "result": masks_to_regions(m, CLASSES, CONTROL, 0.5)}
            for i, m in enumerate(prefills)
        ]
        self.tasks[number] = {"id": number, "data": {"source": f"/x/{stem}.png"}, "predictions": predictions}
        return number

    def project(self, _: int) -> dict[str, Any]:
        return {"label_config": CONFIG}

    def get(self, path: str, **params: Any) -> Any:
        if path == "/api/dm/views/":
            return [{"id": i, "data": {"title": title}} for i, title in enumerate(self.views)]
        if path == "/api/tasks":
            titles = list(self.views)
            there = [i for i in self.views[titles[params["view"]]] if i not in self.submitted]
            return {"tasks": [{"id": i} for i in there[: params["page_size"]]]}
        return self.tasks[int(path.strip("/").rpartition("/")[2])]

    def post(self, path: str, body: dict[str, Any]) -> None:
        self.submitted[int(path.split("/")[3])] = body

    def drawn(self, task: int) -> np.ndarray:
        return regions_to_masks(self.submitted[task]["result"], CLASSES, SIDE, SIDE)[0]


def oracle(desk: Desk, tolerance: int = 2, **truths: np.ndarray) -> OracleAnnotator:
    return OracleAnnotator(desk, 7, CLASSES, truths, tolerance)


def test_without_a_prefill_the_truth_is_drawn() -> None:
    desk = Desk()
    task = desk.add("Review queue", "a")
    truth = masks(square(3), square(18))
    (touched,) = oracle(desk, a=truth).work(["Review queue"], 5)
    assert np.array_equal(desk.drawn(task), truth)
    assert (touched.stem, touched.view, touched.corrected_pixels) == ("a", "Review queue", 288)
    assert "parent_prediction" not in desk.submitted[task]
    assert desk.submitted[task]["lead_time"] == touched.seconds > 0


def test_the_newest_prefill_is_corrected_where_it_is_wrong() -> None:
    desk = Desk()
    good = masks(np.roll(square(3), 1, axis=0))  # a pixel off: let pass
    task = desk.add("Review queue", "a", masks(square(18)), good)
    (touched,) = oracle(desk, a=masks(square(3))).work(["Review queue"], 5)
    assert np.array_equal(desk.drawn(task), good)
    assert touched.corrected_pixels == 0
    assert desk.submitted[task]["parent_prediction"] == 9001

    desk = Desk()
    task = desk.add("Review queue", "a", good)
    (strict,) = oracle(desk, 0, a=masks(square(3))).work(["Review queue"], 5)
    assert np.array_equal(desk.drawn(task), masks(square(3)))
    assert strict.corrected_pixels == 24
    assert strict.seconds > touched.seconds


def test_a_class_that_is_not_there_is_erased() -> None:
    desk = Desk()
    task = desk.add("Review queue", "a", masks(square(3), square(18)))
    oracle(desk, a=masks(square(3))).work(["Review queue"], 5)
    assert np.array_equal(desk.drawn(task), masks(square(3)))
    assert len(desk.submitted[task]["result"]) == 1


def test_views_are_worked_off_in_turn_up_to_the_limit() -> None:
    desk = Desk()
    audits = [desk.add("Audit", "a") for _ in range(2)]
    queue = [desk.add("Review queue", "a") for _ in range(3)]
    desk.add("Accepted", "a")
    annotator = oracle(desk, a=masks(square(3)))
    views = ["Audit", "Review queue"]
    assert annotator.work(views, 0) == []
    assert [t.view for t in annotator.work(views, 3)] == ["Audit", "Audit", "Review queue"]
    assert list(desk.submitted) == [*audits, queue[0]]
    assert [t.view for t in annotator.work(views, 9)] == ["Review queue"] * 2
    assert annotator.work(views, 9) == []  # nobody asks for the accepted one


def test_a_view_that_is_missing_is_named() -> None:
    desk = Desk()
    desk.add("Audit", "a")
    with pytest.raises(OracleError, match="no view 'Review queue': `elnet project create` mends it"):
        oracle(desk, a=masks(square(3))).work(["Audit", "Review queue"], 5)


def test_an_image_without_truth_is_named() -> None:
    desk = Desk()
    task = desk.add("Audit", "b")
    with pytest.raises(OracleError, match=rf"Task {task} shows b, of which the truth is not known"):
        oracle(desk, a=masks(square(3))).work(["Audit"], 5)
    assert desk.submitted == {}
