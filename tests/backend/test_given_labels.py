from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from active_learning.ledger import Ledger, Project, Task
from backend.given_labels import GivenLabelError, import_labels
from backend.label_config import parse_label_config
from backend.labeling_interface import labeling_interface
from backend.regions import regions_to_masks
from model.raster import RasterError, write_mask, write_png
from model.scenes import scene_of

SHA = "0123456789abcdef"


class Board:
    """A labeling tool that holds tasks and takes annotations."""

    def __init__(self, classes: list[str]) -> None:
        self.classes = classes
        self.config = labeling_interface(classes)
        self.annotations: dict[int, list[dict[str, Any]]] = {}
        self.lead = self

    def project(self, _: int) -> dict[str, Any]:
        return {"label_config": self.config}

    def listed(self, _: int) -> list[dict[str, Any]]:
        return [{"id": i, "total_annotations": len(a)} for i, a in self.annotations.items()]

    def post(self, path: str, body: dict[str, Any]) -> None:
        task = int(path.removeprefix("/api/tasks/").removesuffix("/annotations/"))
        self.annotations[task].append(body)

    def masks(self, task: int, height: int, width: int) -> np.ndarray:
        (annotation,) = self.annotations[task]
        return regions_to_masks(annotation["result"], self.classes, height, width)[0]


@pytest.fixture
def make(ledger: Ledger, tmp_path: Path) -> Callable[..., tuple[Board, Project, Path]]:
    """A project with these classes and tasks: stem -> (height, width) or, of a tile, (h, w, row, column)."""

    def made(classes: list[str], tasks: dict[str, tuple[int, ...] | None]) -> tuple[Board, Project, Path]:
        board = Board(classes)
        with ledger.session() as session:
            project = Project(name="p", tool_url="http://tool", tool_project_id=7, classes=classes)
            session.add(project)
            session.flush()
            for number, (key, size) in enumerate(tasks.items(), start=100):
                stem = key.partition("@")[0]
                height, width, *corner = size or (None, None)
                tile = f"__r{corner[0]:05d}_c{corner[1]:05d}" if corner else ""
                data = {"source": f"/photos/{stem}.tif", "content": f"{SHA}{tile}"}
                session.add(
                    Task(
                        project_id=project.id,
                        tool_task_id=number,
                        image_uri=f"/data/local-files/?d=p-7/{SHA}/{stem}{tile}.png",
                        scene=scene_of(stem),
                        data=data,
                        width=width,
                        height=height,
                    )
                )
                board.annotations[number] = []
        (tmp_path / "masks").mkdir()
        return board, project, tmp_path / "masks"

    return made


def noise(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).random((height, width)) > 0.5


def test_a_mask_becomes_the_label_of_its_image(make: Any, ledger: Ledger) -> None:
    board, project, masks = make(["oil"], {"a": (6, 8), "b": (5, 5), "unknown": (4, 4)})
    write_mask(masks / "a.png", noise(6, 8))
    write_mask(masks / "b.png", np.zeros((5, 5), np.bool_))
    assert import_labels(ledger, board, project, masks) == 2
    assert np.array_equal(board.masks(100, 6, 8)[0], noise(6, 8))
    (empty,) = board.annotations[101]
    assert empty["result"] == []  # nothing of the class is there, which is a label too
    assert board.annotations[102] == []


def test_what_anybody_labelled_is_left_alone(make: Any, ledger: Ledger) -> None:
    board, project, masks = make(["oil"], {"a": (6, 8), "b": (6, 8)})
    for stem in "ab":
        write_mask(masks / f"{stem}.png", noise(6, 8))
    board.annotations[101] = [{"result": "theirs"}]
    assert import_labels(ledger, board, project, masks) == 1
    assert board.annotations[101] == [{"result": "theirs"}]
    assert import_labels(ledger, board, project, masks) == 0  # nor is our own doubled


def test_several_classes_have_a_folder_each(make: Any, ledger: Ledger) -> None:
    board, project, masks = make(["oil", "ship"], {"a": (6, 8), "b": (6, 8)})
    for seed, name in enumerate(("oil", "ship")):
        (masks / name).mkdir()
        write_mask(masks / name / "a.png", noise(6, 8, seed))
    write_mask(masks / "oil" / "b.png", noise(6, 8))  # its ships are not known
    assert import_labels(ledger, board, project, masks) == 1
    assert np.array_equal(board.masks(100, 6, 8), np.stack([noise(6, 8, 0), noise(6, 8, 1)]))


def test_one_class_may_have_a_folder_too(make: Any, ledger: Ledger) -> None:
    board, project, masks = make(["oil"], {"a": (6, 8)})
    (masks / "oil").mkdir()
    write_mask(masks / "oil" / "a.png", noise(6, 8))
    assert import_labels(ledger, board, project, masks) == 1


def test_tiles_get_their_part_of_the_mask(make: Any, ledger: Ledger) -> None:
    tiles = {"big@1": (4, 5, 0, 0), "big@2": (4, 3, 0, 5), "big@3": (2, 8, 4, 0)}
    board, project, masks = make(["oil"], tiles)
    write_mask(masks / "big.png", noise(6, 8))
    assert import_labels(ledger, board, project, masks) == 3
    whole = noise(6, 8)
    assert np.array_equal(board.masks(100, 4, 5)[0], whole[:4, :5])
    assert np.array_equal(board.masks(101, 4, 3)[0], whole[:4, 5:])
    assert np.array_equal(board.masks(102, 2, 8)[0], whole[4:])


def test_an_image_that_is_only_called_like_a_tile_is_whole(make: Any, ledger: Ledger) -> None:
    board, project, masks = make(["road"], {"vegas__r00160_c00320": (6, 8)})
    write_mask(masks / "vegas__r00160_c00320.png", noise(6, 8))
    assert import_labels(ledger, board, project, masks) == 1
    assert np.array_equal(board.masks(100, 6, 8)[0], noise(6, 8))


def test_a_share_is_of_scenes_and_stays_the_same(make: Any, ledger: Ledger) -> None:
    stems = [f"s{scene}__r0000{tile}_c00000" for scene in range(12) for tile in range(2)]
    board, project, masks = make(["oil"], dict.fromkeys(stems, (6, 8)))
    for stem in stems:
        write_mask(masks / f"{stem}.png", noise(6, 8))
    count = import_labels(ledger, board, project, masks, share=0.5)
    assert 0 < count < len(stems)
    first = [task for task, given in board.annotations.items() if given]
    assert import_labels(ledger, board, project, masks, share=0.5) == 0
    with ledger.session(write=False) as session:
        scenes = {task.tool_task_id: task.scene for task in session.query(Task)}
    labelled = {scenes[task] for task in first}
    assert {scenes[task] for task, given in board.annotations.items() if not given}.isdisjoint(labelled)
    assert import_labels(ledger, board, project, masks, share=1.0) == len(stems) - count
    assert import_labels(ledger, board, project, masks, share=0.0) == 0


@pytest.mark.parametrize("size", [(6, 9), (12, 16), (5, 8)])
def test_a_mask_of_another_size_is_refused(size: tuple[int, int], make: Any, ledger: Ledger) -> None:
    board, project, masks = make(["oil"], {"a": (6, 8)})
    write_mask(masks / "a.png", noise(*size))
    with pytest.raises(GivenLabelError, match=rf"a.png is {size[1]} x {size[0]} px, its image 8 x 6: make"):
        import_labels(ledger, board, project, masks)
    assert board.annotations == {100: []}


def test_a_tile_beyond_the_mask_is_refused(make: Any, ledger: Ledger) -> None:
    board, project, masks = make(["oil"], {"big": (4, 5, 0, 5)})
    write_mask(masks / "big.png", noise(6, 8))
    with pytest.raises(GivenLabelError, match="its image 5 x 4, as the tile at row 0, column 5"):
        import_labels(ledger, board, project, masks)


def test_masks_of_one_image_that_differ_in_size_are_refused(make: Any, ledger: Ledger) -> None:
    board, project, masks = make(["oil", "ship"], {"a": (6, 8)})
    for name, size in (("oil", (6, 8)), ("ship", (6, 7))):
        (masks / name).mkdir()
        write_mask(masks / name / "a.png", noise(*size))
    with pytest.raises(GivenLabelError, match=r"ship/a.png and .*oil/a.png are masks of one image"):
        import_labels(ledger, board, project, masks)


def test_a_class_without_a_folder_is_named(make: Any, ledger: Ledger) -> None:
    _board, project, masks = make(["oil", "ship"], {"a": (6, 8)})
    (masks / "oil").mkdir()
    with pytest.raises(GivenLabelError, match="has no folder 'ship'"):
        import_labels(ledger, _board, project, masks)


def test_a_mask_that_is_none_is_named(make: Any, ledger: Ledger) -> None:
    board, project, masks = make(["oil"], {"a": (6, 8)})
    write_png(masks / "a.png", np.full((6, 8, 3), 77, np.uint8))
    with pytest.raises(RasterError, match=r"a.png"):
        import_labels(ledger, board, project, masks)


def test_an_image_whose_size_is_not_known_is_left_out(make: Any, ledger: Ledger) -> None:
    board, project, masks = make(["oil"], {"a": None})
    write_mask(masks / "a.png", noise(6, 8))
    assert import_labels(ledger, board, project, masks) == 0


def test_labels_go_to_the_projects_own_interface(make: Any, ledger: Ledger) -> None:
    board, project, masks = make(["oil"], {"a": (6, 8)})
    board.config = board.config.replace('name="brush"', 'name="pinsel"')
    control = parse_label_config(board.config).control
    write_mask(masks / "a.png", noise(6, 8))
    import_labels(ledger, board, project, masks)
    assert {region["from_name"] for region in board.annotations[100][0]["result"]} == {control.from_name}
