from __future__ import annotations

from backend.desk import log


def test_who_did_what_page_by_page(spills, monkeypatch):
    monkeypatch.setattr(log, "SHOWN", 3)
    for number in range(3):
        spills.post("/threshold", value=str(0.1 + number / 100), why="<try>")
    page = spills.client.get("/desk/log").text
    assert page.count("threshold.set") == 3
    assert "&lt;try&gt;" in page
    with spills.ledger.session(write=False) as session:
        oldest = log.actions(session)[-1].id
    older = spills.client.get("/desk/log", query_string={"before": oldest}).text
    assert f"before={oldest}" in page
    assert "user.sign_in" in older
    assert "threshold.set" not in older
    only = spills.client.get("/desk/log", query_string={"who": "tester"}).text
    assert "threshold.set" not in only
    assert "user.add" in only
