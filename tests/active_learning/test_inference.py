from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from active_learning import inference
from active_learning.inference import Made, PrefillError, ask, opened, rows_of
from model.raster import Raster


def run(predictor: Any, group: list[Any], classes: int) -> list[Made]:
    return rows_of(ask(predictor, group), classes)


def uris(loop: Any, *images: Raster | str) -> dict[int, str]:
    return {i: f"img/{i}.png" for i in loop.add(*images)}


def test_images_are_opened_in_groups_of_bounded_size(loop, monkeypatch):
    monkeypatch.setattr(inference, "PIXELS_AT_ONCE", 2 * 32 * 32)
    groups = list(opened(loop.images, uris(loop, *[loop.image(0.5, seed=i) for i in range(5)])))
    assert [[i for i, _ in group] for group in groups] == [[1, 2], [3, 4], [5]]


def test_an_image_larger_than_the_bound_goes_alone(loop, monkeypatch):
    monkeypatch.setattr(inference, "PIXELS_AT_ONCE", 10)
    groups = list(opened(loop.images, uris(loop, loop.image(0.5), loop.image(0.6))))
    assert [len(group) for group in groups] == [1, 1]


def test_an_image_that_is_gone_brings_its_reason(loop):
    (group,) = opened(loop.images, uris(loop, "img/1.png is 404", loop.image(0.5)))
    assert group[0] == (1, "img/1.png is 404")
    assert isinstance(group[1][1], Raster)


def test_a_prediction_becomes_a_row(loop, make_predictor):
    image = replace(loop.image(0.95), affine=(10.0, 0.0, 5.0, 0.0, -10.0, 7.0), crs="EPSG:32633")
    (made,) = run(make_predictor(), [(1, image)], classes=1)
    assert made.failure is None
    assert made.row["masks"].sum() == 16 * 16
    assert made.row["masks"].dtype == np.bool_
    assert 0.8 < made.row["score"] <= 1
    assert made.row["signals"]["usable"] is True
    assert made.row["embedding"].dtype == np.float32
    assert made.image == {
        "height": 32,
        "width": 32,
        "affine": [10.0, 0.0, 5.0, 0.0, -10.0, 7.0],
        "crs": "EPSG:32633",
    }


def test_nothing_is_painted_where_there_is_no_data(loop, make_predictor):
    image = loop.image(0.95)
    image.valid[:16] = False
    (made,) = run(make_predictor(), [(1, image)], classes=1)
    assert not made.row["masks"][0, :16].any()
    assert made.row["masks"][0, 16:24, 8:24].all()


def test_an_image_without_data_goes_to_a_human(loop, make_predictor):
    image = loop.image(0.95)
    image.valid[:] = False
    (made,) = run(make_predictor(), [(1, image)], classes=1)
    assert made.row is None
    assert "nodata" in made.failure


def test_what_the_model_says_where_there_is_no_data_does_not_count(loop, make_predictor):
    class Blind(make_predictor):
        def _one(self, image: Raster) -> Any:
            found = super()._one(image)
            found.probability[:, ~image.valid] = np.nan
            return found

    image = loop.image(0.95)
    image.valid[:4] = False
    (made,) = run(Blind(), [(1, image)], classes=1)
    (whole,) = run(make_predictor(), [(1, loop.image(0.95))], classes=1)
    assert made.row["signals"]["usable"] is True
    assert made.row["score"] == whole.row["score"]


def test_an_image_that_breaks_the_model_spoils_only_itself(loop, make_predictor):
    model = make_predictor()
    group = [(1, loop.image(0.9)), (2, loop.image(0.9, crash=True)), (3, loop.image(0.8)), (4, "gone")]
    made = {m.task_id: m for m in run(model, group, classes=1)}
    assert [made[i].failure is None for i in (1, 2, 3, 4)] == [True, False, True, False]
    assert made[2].failure == "the model failed on this image: RuntimeError: the kernel died"
    assert made[4].failure == "gone"
    assert model.batches == [3, 1, 1, 1, 1]  # together; one by one; and a blank one beside the bad one


def test_a_model_that_cannot_predict_anything_blames_no_image(loop, make_predictor):
    model = make_predictor()
    model.broken = True
    with pytest.raises(PrefillError, match="elnet-0001 cannot predict any image"):
        run(model, [(1, loop.image(0.9)), (2, loop.image(0.8))], classes=1)


def test_a_model_of_other_classes_is_refused(loop, make_predictor):
    with pytest.raises(PrefillError, match="2 classes and the project has 1"):
        run(make_predictor(classes=2), [(1, loop.image(0.9))], classes=1)


def test_an_answer_of_another_size_spoils_only_that_image(loop, make_predictor):
    class Cropping(make_predictor):
        def _one(self, image: Raster) -> Any:
            found = super()._one(image)
            return replace(found, probability=found.probability[:, :5])

    (made,) = run(Cropping(), [(1, loop.image(0.9))], classes=1)
    assert "(5, 32)" in made.failure


def test_a_model_that_answers_too_few_is_asked_one_by_one(loop, make_predictor):
    class Forgetful(make_predictor):
        def predict(self, images: Any) -> Any:
            return super().predict(images)[:1]

    made = run(Forgetful(), [(1, loop.image(0.9)), (2, loop.image(0.8))], classes=1)
    assert [m.failure for m in made] == [None, None]


def test_values_that_are_no_probabilities_are_kept_as_unusable(loop, make_predictor):
    class Exploded(make_predictor):
        def _one(self, image: Raster) -> Any:
            found = super()._one(image)
            found.probability[0, 3, 3] = np.nan
            return found

    (made,) = run(Exploded(), [(1, loop.image(0.9))], classes=1)
    assert made.row["score"] == 0
    assert made.row["signals"]["usable"] is False
