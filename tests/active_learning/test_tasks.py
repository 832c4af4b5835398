"""Tasks as the tool tells them, in any order."""

from __future__ import annotations

import pytest
from sqlalchemy import select

from active_learning import labels
from active_learning.ledger import Task, TaskStatus
from active_learning.ports import ToolTask
from active_learning.tasks import add_tasks, mark_gone, refresh_tasks


def told(number: int, uri: str | None = None, **data: object) -> ToolTask:
    uri = uri if uri is not None else f"/data/local-files/?d=imgs/s{number}.png"
    return ToolTask(number, uri, {"image": uri, **data})


@pytest.fixture
def change(loop):
    def change(function, what):
        with loop.ledger.session() as session:
            return function(session, loop.project(), what)

    return change


def rows(loop) -> dict[int, Task]:
    with loop.ledger.session(write=False) as session:
        return {row.tool_task_id: row for row in session.scalars(select(Task))}


def test_new_tasks_wait_and_known_ones_stay(loop, change):
    assert len(change(add_tasks, [told(1), told(2), told(2)])) == 2
    assert change(add_tasks, [told(1, "/other.png"), told(3)])[0].tool_task_id == 3
    found = rows(loop)
    assert found.keys() == {1, 2, 3}
    assert found[1].image_uri == "/data/local-files/?d=imgs/s1.png"
    assert {row.status for row in found.values()} == {TaskStatus.WAITING}


@pytest.mark.parametrize(
    ("uri", "data", "scene"),
    [
        ("/data/local-files/?d=imgs/s11.png", {}, "s11"),
        ("/data/local-files/?d=sos_0511_palsar_v1.jpg", {}, "sos_2_palsar"),
        ("/data/upload/3/1a2b3c4d-port.tif", {}, "port"),
        ("https://b.example/dir/two%20words.png?X-Sig=1", {}, "two words"),
        ("s3://bucket/a/b.tif", {"scene": "orbit 7"}, "orbit 7"),
        ("", {}, "task/1"),
        ("http://[broken", {}, "http://[broken"),
    ],
)
def test_scenes_come_from_the_import_or_the_name(loop, change, uri, data, scene):
    change(add_tasks, [told(1, uri, **data)])
    assert rows(loop)[1].scene == scene


def test_georeference_is_taken_over(loop, change):
    change(add_tasks, [told(1, affine=[10, 0, 5, 0, -10, 7], crs="EPSG:4326"), told(2, affine=[1, "x"])])
    found = rows(loop)
    assert found[1].affine == [10.0, 0.0, 5.0, 0.0, -10.0, 7.0]
    assert found[1].crs == "EPSG:4326"
    assert found[2].affine is None


def test_gone_before_or_after_it_was_told(loop, change):
    change(add_tasks, [told(1)])
    assert change(mark_gone, [1, 2]) == 2
    assert change(mark_gone, [1, 2]) == 0
    assert change(add_tasks, [told(1), told(2)]) == []
    found = rows(loop)
    assert {row.status for row in found.values()} == {TaskStatus.GONE}
    assert found[2].image_uri == "/data/local-files/?d=imgs/s2.png"
    assert found[2].scene == "s2"


def test_a_listing_revives_and_refreshes_but_never_moves_a_scene(loop, change):
    [number] = loop.add(loop.image(0.9))
    loop.label(number)
    row = loop.task(number)
    change(mark_gone, [row.tool_task_id])
    listed = ToolTask(row.tool_task_id, row.image_uri, {**row.data, "route": "review", "scene": "other"})
    assert change(refresh_tasks, [listed, told(500)]) == 3
    assert change(refresh_tasks, [listed, told(500)]) == 0
    found = rows(loop)
    assert found[row.tool_task_id].status is TaskStatus.DONE  # its label counts again
    assert found[row.tool_task_id].data["route"] == "review"
    assert found[row.tool_task_id].scene == row.scene
    with loop.ledger.session(write=False) as session:
        assert labels.current_label(session, found[row.tool_task_id]) is not None


def test_many_tasks(loop, change):
    assert len(change(add_tasks, [told(n) for n in range(1200)])) == 1200
    assert change(mark_gone, range(1200)) == 1200
