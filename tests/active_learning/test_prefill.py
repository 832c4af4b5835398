from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from active_learning import waiting
from active_learning.inference import PrefillError
from active_learning.ledger import Calibration, Ledger, Project, Task, TaskStatus
from active_learning.ledger.types import utc_now
from active_learning.pace import Pace
from active_learning.ports import ToolUnavailableError
from active_learning.prefill import predict_share, predict_tasks, predict_waiting
from active_learning.push import push
from active_learning.thresholds import set_threshold
from active_learning.upkeep import Upkeep
from active_learning.waiting import Share


def work(loop: Any, model: Any, **options: Any) -> int:
    return predict_waiting(loop.ledger, loop.project_id, model, loop.images, **options)


def status(loop: Any, *ids: int) -> list[str]:
    return [loop.task(i).status.value for i in ids]


def at(monkeypatch: pytest.MonkeyPatch, **later: float) -> None:
    now = utc_now() + timedelta(**later)
    monkeypatch.setattr(waiting, "utc_now", lambda: now)


def test_without_a_champion_tasks_go_to_humans_in_random_order(loop):
    ids = loop.add(loop.image(0.9), loop.image(0.8))
    assert work(loop, None) == 0
    assert status(loop, *ids) == ["review", "review"]
    assert all(loop.task(i).priority is not None for i in ids)
    assert loop.images.opened == []


def test_the_champion_predicts_routes_and_orders(loop, make_predictor):
    sure, unsure, empty, vague = loop.add(
        *(loop.image(p, seed=i) for i, p in enumerate((1.0, 0.6, 0.0, 0.45)))
    )
    loop.promote()
    assert work(loop, make_predictor()) == 4
    assert status(loop, sure, unsure, empty, vague) == ["accepted", "review", "accepted", "review"]
    (prediction,) = loop.predictions(sure)
    assert prediction.quality == prediction.score == loop.task(sure).quality
    assert prediction.masks.sum() == 16 * 16
    assert loop.task(unsure).priority is not None
    assert loop.task(sure).priority is None
    (decision,) = loop.decisions(unsure)
    assert decision.prediction_id == loop.predictions(unsure)[0].id
    assert (loop.task(sure).width, loop.task(sure).height) == (32, 32)


def test_working_again_changes_nothing(loop, make_predictor):
    ids = loop.add(*(loop.image(0.9, seed=i) for i in range(5)))
    loop.promote()
    model = make_predictor()
    assert work(loop, model, batch=2) == 5
    assert model.batches == [2, 2, 1]
    assert work(loop, model) == 0
    assert model.batches == [2, 2, 1]
    assert [len(loop.decisions(i)) for i in ids] == [1] * 5


def test_the_limit_bounds_one_call_and_the_next_goes_on(loop, make_predictor):
    ids = loop.add(*(loop.image(0.6, seed=i) for i in range(5)))
    loop.promote()
    assert work(loop, make_predictor(), limit=2) == 2
    assert [loop.task(i).priority is None for i in ids] == [False, False, True, True, True]
    assert [work(loop, make_predictor(), limit=2) for _ in range(3)] == [2, 1, 0]
    assert all(loop.task(i).priority is not None for i in ids)


def test_a_new_champion_predicts_everything_that_no_human_labelled(loop, make_predictor):
    ids = loop.add(*(loop.image(p, seed=i) for i, p in enumerate((1.0, 0.6, 1.0))))
    first = loop.promote("elnet-0001")
    work(loop, make_predictor("elnet-0001"))
    loop.label(ids[2])
    second = loop.promote("elnet-0002")
    assert work(loop, make_predictor("elnet-0002")) == 2
    assert [p.model_version_id for p in loop.predictions(ids[0])] == [first, second]
    assert len(loop.predictions(ids[2])) == 1
    assert status(loop, *ids) == ["accepted", "review", "done"]


def test_a_predictor_that_is_not_the_champions_is_refused(loop, make_predictor):
    loop.add(loop.image(0.9))
    loop.promote("elnet-0002")
    for model in (None, make_predictor("elnet-0001")):
        with pytest.raises(PrefillError, match="'elnet-0002'"):
            work(loop, model)


def test_a_broken_image_fails_alone_with_its_reason(loop, make_predictor):
    good, gone, bad = loop.add(loop.image(1.0), "img/2.png answers 404", loop.image(0.9, crash=True))
    loop.promote()
    assert work(loop, make_predictor()) == 1
    assert status(loop, good, gone, bad) == ["accepted", "failed", "failed"]
    assert loop.task(gone).failure == "img/2.png answers 404"
    assert "the kernel died" in loop.task(bad).failure
    assert loop.decisions(gone)[0].reason == "img/2.png answers 404"


def test_a_failed_image_is_tried_again_ever_more_rarely_and_heals(loop, make_predictor, monkeypatch):
    (task,) = loop.add("img/1.png answers 503")
    loop.promote()
    model = make_predictor()

    def tries(**later: float) -> int:
        at(monkeypatch, **later)
        before = len(loop.images.opened)
        work(loop, model)
        return len(loop.images.opened) - before

    assert tries() == 1
    assert tries(seconds=30) == 0
    assert tries(seconds=61) == 1
    assert tries(seconds=120) == 0
    assert tries(minutes=4, seconds=30) == 1
    assert tries(minutes=10) == 0
    loop.images.known["img/1.png"] = loop.image(1.0)
    assert tries(minutes=17) == 1
    assert status(loop, task) == ["accepted"]
    assert loop.task(task).failure is None


def test_a_failed_image_is_tried_at_once_by_the_next_champion(loop, make_predictor):
    (task,) = loop.add(loop.image(1.0, crash=True))
    loop.promote("elnet-0001")
    work(loop, make_predictor("elnet-0001"))
    loop.images.known["img/1.png"] = loop.image(1.0)
    loop.promote("elnet-0002")
    assert work(loop, make_predictor("elnet-0002")) == 1
    assert status(loop, task) == ["accepted"]


def test_a_broken_predictor_marks_no_image(loop, make_predictor):
    ids = loop.add(loop.image(1.0), loop.image(0.9))
    loop.promote()
    model = make_predictor()
    model.broken = True
    with pytest.raises(PrefillError):
        work(loop, model)
    assert status(loop, *ids) == ["waiting", "waiting"]
    model.broken = False
    assert work(loop, model) == 2


def test_what_was_stored_before_the_tool_went_away_stays(loop, make_predictor, monkeypatch):
    ids = loop.add(*(loop.image(0.6, seed=i) for i in range(4)))
    loop.promote()
    real = loop.images.open

    def flaky(uri: str) -> Any:
        if uri == "img/3.png":
            raise ToolUnavailableError("the tool does not answer")
        return real(uri)

    monkeypatch.setattr(loop.images, "open", flaky)
    with pytest.raises(ToolUnavailableError):
        work(loop, make_predictor(), batch=2)
    assert status(loop, *ids) == ["review", "review", "waiting", "waiting"]
    assert loop.task(ids[0]).priority is not None
    monkeypatch.undo()
    assert work(loop, make_predictor()) == 2


class Interfering:
    """A model during whose prediction something else happens."""

    def __init__(self, model: Any, happens: Any) -> None:
        self._model, self._happens = model, happens
        self.version = model.version

    def predict(self, images: Any) -> Any:
        self._happens()
        return self._model.predict(images)


def test_a_label_that_arrives_meanwhile_wins(loop, make_predictor):
    (task,) = loop.add(loop.image(1.0))
    loop.promote()
    work(loop, Interfering(make_predictor(), lambda: loop.label(task)))
    assert status(loop, task) == ["done"]
    assert loop.decisions(task) == []


def test_a_failure_does_not_take_a_label_away(loop, make_predictor):
    (task,) = loop.add(loop.image(1.0, crash=True))
    loop.promote()
    labelled: list[int] = []

    def once() -> None:
        if not labelled:
            labelled.append(loop.label(task))

    work(loop, Interfering(make_predictor(), once))
    assert status(loop, task) == ["done"]


def test_a_promotion_meanwhile_leaves_the_rest_to_the_new_champion(loop, make_predictor):
    ids = loop.add(*(loop.image(0.9, seed=i) for i in range(4)))
    loop.promote("elnet-0001")
    model = Interfering(make_predictor("elnet-0001"), lambda: loop.promote("elnet-0002"))
    assert work(loop, model, batch=2) == 0
    assert [loop.predictions(i) for i in ids] == [[]] * 4


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def any_loop(request: pytest.FixtureRequest, tmp_path: Path, make_loop: Any) -> Iterator[Any]:
    """The loop on either database."""
    on_postgresql = request.param == "postgresql"
    url = request.getfixturevalue("postgresql_url") if on_postgresql else f"sqlite:///{tmp_path / 'l.sqlite'}"
    with Ledger(url) as ledger:
        ledger.upgrade()
        yield make_loop(ledger)


def at_once(*jobs: Callable[[], Any]) -> None:
    """Run jobs in threads of their own; the first error is raised here."""
    with ThreadPoolExecutor(len(jobs)) as pool:
        for future in [pool.submit(job) for job in jobs]:
            future.result(timeout=60)


def test_two_processes_that_do_the_same_work_store_it_once(any_loop, make_predictor):
    loop = any_loop
    ids = loop.add(*(loop.image(0.9, seed=i) for i in range(6)))
    loop.promote()
    together = threading.Barrier(2, timeout=20)
    stored: list[int] = []

    def process() -> None:
        model = Interfering(make_predictor(), together.wait)  # both predict before either stores
        with Ledger(loop.ledger.url.render_as_string(hide_password=False)) as ledger:
            stored.append(predict_waiting(ledger, loop.project_id, model, loop.images, batch=6))

    at_once(process, process)
    assert sorted(stored) == [0, 6]
    assert [len(loop.predictions(i)) for i in ids] == [1] * 6
    assert [len(loop.decisions(i)) for i in ids] == [1] * 6


def test_people_label_while_the_loop_predicts_and_pushes(any_loop, make_predictor):
    loop = any_loop
    ids = loop.add(*(loop.image(1.0, seed=i) for i in range(24)))
    loop.promote()

    def people() -> None:
        for task in ids[::3]:
            loop.label(task)

    def machine() -> None:
        for _ in range(6):
            work(loop, make_predictor(), batch=2, limit=4)
            push(loop.ledger, loop.project_id, loop.tool)

    def lead() -> None:
        for value in (0.5, 0.95) * 3:
            with loop.ledger.session() as session:
                project = session.get_one(Project, loop.project_id)
                set_threshold(session, project, value, "lea", "to and fro")

    at_once(people, machine, lead)
    work(loop, make_predictor())
    push(loop.ledger, loop.project_id, loop.tool)
    labelled = set(ids[::3])
    assert status(loop, *ids) == ["done" if i in labelled else "accepted" for i in ids]
    assert set(loop.tool.of_machine()) == {loop.task(i).tool_task_id for i in ids if i not in labelled}


def test_a_deleted_label_sends_the_task_back_with_its_prediction(loop, make_predictor):
    (task,) = loop.add(loop.image(1.0))
    loop.promote()
    annotation = loop.label(task)
    assert work(loop, make_predictor()) == 0
    loop.bury(annotation)
    assert work(loop, make_predictor()) == 1
    assert status(loop, task) == ["accepted"]


def test_a_prediction_is_graded_by_the_current_calibration(loop, make_predictor):
    (task,) = loop.add(loop.image(1.0))
    version = loop.promote()
    with loop.ledger.session() as session:
        knots = {"knots": [0.0, 1.0], "values": [0.0, 0.5]}
        session.add(
            Calibration(
                project_id=loop.project_id,
                model_version_id=version,
                kind="isotonic",
                samples=30,
                parameters=knots,
            )
        )
    work(loop, make_predictor())
    (prediction,) = loop.predictions(task)
    assert prediction.quality == pytest.approx(prediction.score / 2)
    assert status(loop, task) == ["review"]


def test_predict_tasks_serves_what_is_held_and_computes_the_rest(loop, make_predictor):
    held, lacking, other = loop.add(*(loop.image(0.9, seed=i) for i in range(3)))
    loop.promote()
    model = make_predictor()
    first = predict_tasks(loop.ledger, loop.project_id, model, loop.images, [held])
    both = predict_tasks(loop.ledger, loop.project_id, model, loop.images, [lacking, held, lacking])
    assert set(both) == {held, lacking}
    assert both[held].id == first[held].id
    assert both[held].model_version.name == "elnet-0001"
    assert both[lacking].masks.shape == (1, 32, 32)
    assert model.batches == [1, 1]
    assert loop.predictions(other) == []
    assert status(loop, held, lacking, other) == [loop.task(held).status.value] * 2 + ["waiting"]


def test_predict_tasks_predicts_a_labelled_task_without_routing_it(loop, make_predictor):
    (task,) = loop.add(loop.image(1.0))
    loop.label(task)
    loop.promote()
    assert set(predict_tasks(loop.ledger, loop.project_id, make_predictor(), loop.images, [task])) == {task}
    assert status(loop, task) == ["done"]


def test_predict_tasks_leaves_out_what_cannot_be_had(loop, make_predictor):
    good, gone = loop.add(loop.image(1.0), "gone")
    assert predict_tasks(loop.ledger, loop.project_id, None, loop.images, [good, gone]) == {}
    assert predict_tasks(loop.ledger, loop.project_id, make_predictor(), loop.images, [good]) == {}
    loop.promote()
    found = predict_tasks(loop.ledger, loop.project_id, make_predictor(), loop.images, [good, gone, 999])
    assert set(found) == {good}
    assert set(predict_tasks(loop.ledger, loop.project_id, None, loop.images, [good])) == {good}


def test_an_unusable_prediction_is_stored_with_quality_zero_and_seen_by_a_human(loop, make_predictor):
    class Exploded(make_predictor):
        def _one(self, image: Any) -> Any:
            found = super()._one(image)
            found.probability[0, 3, 3] = 7.0
            return found

    (task,) = loop.add(loop.image(1.0))
    loop.promote()
    loop.configure(accept_threshold=0.0)
    work(loop, Exploded())
    assert loop.predictions(task)[0].quality == 0
    assert status(loop, task) == ["review"]
    assert loop.task(task).quality is None


def test_an_audited_task_stays_in_the_audit_when_the_work_is_done_again(loop, make_predictor):
    ids = loop.add(*(loop.image(1.0, seed=i) for i in range(30)))
    loop.configure(audit_share=0.5)
    loop.promote()
    work(loop, make_predictor())
    before = status(loop, *ids)
    assert {"accepted", "audit"} == set(before)
    with loop.ledger.session() as session:  # as after a crash that lost the routes but not the predictions
        for task in ids:
            session.get_one(Task, task).status = TaskStatus.WAITING
    work(loop, make_predictor())
    assert status(loop, *ids) == before
    assert [len(loop.decisions(i)) for i in ids] == [1] * 30


# several workers


def turn(loop: Any, model: Any, share: Share, **options: Any) -> int:
    given = {"batch": 2, "limit": None, "seconds": None} | options
    return predict_share(loop.ledger, loop.project_id, model, loop.images, *given.values(), share)


def test_each_predicts_its_share_and_then_helps_the_other(loop, make_predictor):
    ids = loop.add(*(loop.image(0.6, seed=i) for i in range(9)))
    loop.promote()
    model = make_predictor()
    assert turn(loop, model, Share(1, 2)) == sum(i % 2 == 1 for i in ids)
    assert all(bool(loop.predictions(i)) is (i % 2 == 1) for i in ids)
    assert turn(loop, model, Share(1, 2)) == 2  # a batch of the other's
    assert turn(loop, model, Share(0, 2)) == sum(i % 2 == 0 for i in ids) - 2
    assert turn(loop, model, Share(0, 2)) == turn(loop, model, Share(1, 2)) == 0
    assert all(len(loop.predictions(i)) == 1 for i in ids)


def test_what_two_predict_at_once_is_stored_once(loop, make_predictor):
    ids = loop.add(*(loop.image(0.6, seed=i) for i in range(4)))
    loop.promote()

    class Overtaken(type(make_predictor())):
        def predict(self, images):
            found = super().predict(images)
            turn(loop, make_predictor(), Share(), batch=8)
            return found

    assert turn(loop, Overtaken(), Share(0, 2)) == 0
    assert all(len(loop.predictions(i)) == len(loop.decisions(i)) == 1 for i in ids)


def test_a_turn_ends_after_its_time_and_has_at_least_one_batch(loop, make_predictor):
    loop.add(*(loop.image(0.6, seed=i) for i in range(6)))
    loop.promote()

    class Slow(type(make_predictor())):
        def predict(self, images):
            time.sleep(2)
            return super().predict(images)

    assert turn(loop, Slow(), Share(), seconds=0.0) == 2
    assert turn(loop, make_predictor(), Share(), seconds=60.0) == 4


def test_while_images_are_predicted_the_whole_project_is_looked_at_now_and_then(
    loop, make_predictor, monkeypatch
):
    ids = loop.add(*(loop.image(0.6, seed=i) for i in range(6)))
    loop.promote()
    upkeep = Upkeep()
    rests: list[float] = []
    monkeypatch.setattr(upkeep._pace, "rest", lambda took: rests.append(took) or Pace.rest(upkeep._pace, 1e3))
    model = make_predictor()
    assert work(loop, model, limit=2, upkeep=upkeep) == 2
    assert [loop.task(i).priority is None for i in ids] == [False, False, True, True, True, True]
    assert work(loop, model, limit=2, upkeep=upkeep) == 2
    assert [loop.task(i).priority is None for i in ids] == [False, False, True, True, True, True]
    assert work(loop, model, upkeep=upkeep) == 2
    assert len(rests) == 1  # at its first call; since then it rests
    assert work(loop, model, upkeep=upkeep) == 0
    assert len(rests) == 2  # nothing is left to predict: now the order is thought over
    assert all(loop.task(i).priority is not None for i in ids)


def test_what_another_worker_predicted_gets_its_place_too(loop, make_predictor):
    ids = loop.add(*(loop.image(0.6, seed=i) for i in range(4)))
    loop.promote()
    upkeep = Upkeep()
    work(loop, make_predictor(), limit=1, upkeep=upkeep)
    turn(loop, make_predictor(), Share())
    assert work(loop, make_predictor(), upkeep=upkeep) == 0
    assert all(loop.task(i).priority is not None for i in ids)


def test_another_strategy_orders_the_queue_anew(loop, make_predictor):
    ids = loop.add(*(loop.image(0.6, seed=i) for i in range(4)))
    loop.promote()
    work(loop, make_predictor())
    before = [loop.task(i).priority for i in ids]
    loop.configure(strategy="random")
    work(loop, make_predictor())
    assert [loop.task(i).priority for i in ids] != before
