from __future__ import annotations

import json
from contextlib import closing
from dataclasses import asdict
from typing import Any

import pytest

from active_learning.ledger import Ledger, ModelState, Project
from backend.desk import model_page
from backend.desk.model_page import Ancestor, ModelPage

PATH = "/desk/1/models"
IOUS = {9: 0.5, 10: 0.7}


@pytest.fixture
def chain(history: Any) -> Any:
    """Three versions, each gone on from the one before; the second serves, the third waits."""
    fill(history)
    return history


def fill(history: Any) -> None:
    before: dict[str, Any] | None = None
    for number, labels in enumerate(([1, 2, 3], [1, 2, 3, 4], [1, 2, 3, 4, 5]), 1):
        metrics = history.scores({9: 0.4 + number / 10, 10: 0.5})
        if before is not None:
            metrics["champion"] = {"name": f"elnet-000{number - 1}", **before}
        history.version(
            f"elnet-000{number}",
            history.snapshot(labels, [9, 10]),
            f"elnet-000{number - 1}" if number > 1 else None,
            metrics,
            promote=number < 3,
            state=ModelState.CHALLENGER if number == 3 else None,
        )
        before = metrics


def ask(history: Any, name: str, other: str | None = None) -> ModelPage:
    with history.ledger.session(write=False) as session:
        return model_page.facts(session, session.get_one(Project, history.project_id), name, other)


def check(history: Any) -> None:
    found = ask(history, "elnet-0003")
    assert found.others == ["elnet-0002", "elnet-0001"]
    assert found.figures["fg_iou"] == pytest.approx(0.6)
    assert found.ancestry == [
        Ancestor("elnet-0002", ModelState.CHAMPION, 4),
        Ancestor("elnet-0001", ModelState.RETIRED, 3),
    ]
    origin = found.origin
    assert origin is not None
    assert (origin.labels, origin.holdout, origin.left_out, origin.scenes) == (5, 2, 0, 5)
    assert origin.by_source == {"human": 4, "audit": 1}
    assert origin.by_annotator == {"1": 4, "2": 1}
    assert origin.tasks == [101, 102, 103, 104, 105]
    assert json.dumps(asdict(found), default=str)


def test_a_version_tells_what_it_came_from(chain: Any) -> None:
    check(chain)


def test_so_it_does_on_postgresql(postgresql_url: str, make_history: Any) -> None:
    with Ledger(postgresql_url) as ledger:
        ledger.upgrade()
        history = make_history(ledger)
        fill(history)
        check(history)


def test_many_labels_are_counted_part_by_part(chain: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(model_page, "_CHUNK", 2)
    check(chain)


@pytest.mark.parametrize(
    ("name", "other", "expected"),
    [
        ("elnet-0003", None, "elnet-0002"),  # the champion
        ("elnet-0002", None, "elnet-0001"),  # what the champion succeeded
        ("elnet-0003", "elnet-0001", "elnet-0001"),
        ("elnet-0003", "elnet-0003", "elnet-0002"),  # never with itself
    ],
)
def test_what_it_is_compared_with(chain: Any, name: str, other: str | None, expected: str) -> None:
    compared = ask(chain, name, other).comparison
    assert compared is not None
    assert compared.other == expected


def test_the_page_of_a_challenger_asks_for_a_word(chain: Any, site: Any) -> None:
    chain.predict(3, 9)
    page = site.client.get(f"{PATH}/elnet-0003").text
    assert "Approve: let it serve" in page
    assert f'action="{PATH}/elnet-0003/reject"' in page
    assert "better than elnet-0002 on <b>1</b> of 2 images" in page
    assert "/pictures/109/elnet-0003.png" in page
    assert "/pictures/109/label.png" in page
    assert "/pictures/109/elnet-0002.png" not in page  # the ledger holds none
    assert "mask not kept" in page
    assert "http://tool/projects/7/data?task=109" in page
    for picture in ("109.jpg", "109/elnet-0003.png", "109/label.png"):
        with closing(site.client.get(f"/desk/1/pictures/{picture}")) as answer:
            assert answer.status_code == 200


def test_both_masks_by_which_they_were_judged_stand_side_by_side(chain: Any, site: Any) -> None:
    chain.judge(2, 9)
    chain.judge(3, 9)
    page = site.client.get(f"{PATH}/elnet-0003").text
    assert "mask not kept" not in page
    for picture in ("109/elnet-0003.png?judged=1", "109/elnet-0002.png?judged=1", "109/label.png"):
        assert f'src="/desk/1/pictures/{picture}"' in page
        assert site.client.get(f"/desk/1/pictures/{picture}").status_code == 200


def test_the_page_of_the_champion_has_no_buttons_to_move_it(chain: Any, site: Any) -> None:
    page = site.client.get(f"{PATH}/elnet-0002").text
    assert 'method="post"' not in page.partition("<main")[2]
    assert "Serves since" in page


def test_a_version_from_outside(chain: Any, site: Any) -> None:
    chain.version("elnet-own")
    found = ask(chain, "elnet-own")
    assert (found.figures, found.origin, found.comparison, found.ancestry) == ({}, None, None, [])
    page = site.client.get(f"{PATH}/elnet-own").text
    assert "trained outside of the loop" in page
    assert "Nothing to compare" in page


def test_the_first_version_has_nothing_beside_it(history: Any, site: Any) -> None:
    snapshot = history.snapshot([1, 2], [9])
    history.version("elnet-0001", snapshot, metrics=history.scores({9: 0.5}), promote=True)
    page = site.client.get(f"{PATH}/elnet-0001").text
    assert "There is no other version yet" in page
    assert "the trunk alone" in page


def test_the_labels_as_a_file(chain: Any, site: Any) -> None:
    answer = site.client.get(f"{PATH}/elnet-0003/labels.csv")
    head, *rows = answer.text.splitlines()
    assert head.startswith("version,use,through,snapshot,task")
    assert sorted(row.split(",")[4] for row in rows) == ["101", "102", "103", "104", "105", "109", "110"]
    chain.version("elnet-own")
    assert site.client.get(f"{PATH}/elnet-own/labels.csv").status_code == 200


@pytest.mark.parametrize("path", ["elnet-0009", "elnet-0003?with=elnet-0009", "elnet-0009/labels.csv"])
def test_what_is_not_there_is_not_found(chain: Any, site: Any, path: str) -> None:
    answer = site.client.get(f"{PATH}/{path}")
    assert answer.status_code == 404
    assert "elnet-0009" in answer.text
