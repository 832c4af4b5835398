from __future__ import annotations

import csv
import io

import pytest

from backend.desk import charts


def test_a_chart_comes_as_vega_lite_csv_and_png(spills):
    spills.audit(good=8, bad=2)
    base = f"{spills.path}/charts/risk-coverage"
    drawn = spills.client.get(f"{base}.json").get_json()
    assert len(drawn["layer"]) == 5, drawn.keys()
    rows = list(csv.DictReader(io.StringIO(spills.client.get(f"{base}.csv").get_data(as_text=True))))
    assert [(row["audited scenes"], row["bad"]) for row in rows] == [("10", "2")]
    answer = spills.client.get(f"{base}.png", query_string={"risk": 20, "iou": 0.5, "confidence": 80})
    assert answer.data.startswith(b"\x89PNG")
    assert "attachment" in answer.headers["Content-Disposition"]


def test_nothing_to_draw_is_told(spills):
    base = f"{spills.path}/charts/risk-coverage"
    assert spills.client.get(f"{base}.json").get_json() == {"empty": True}
    assert spills.client.get(f"{base}.png").status_code == 404
    assert spills.client.get(f"{spills.path}/charts/none.json").status_code == 404


def test_the_library_that_draws_is_served_from_here(spills, monkeypatch, tmp_path):
    monkeypatch.setenv("ELNET_HOME", str(tmp_path))
    with spills.client.get(f"/desk/vega/{charts.vega_version()}.js") as answer:
        assert b"vegaEmbed" in answer.data
        assert "immutable" in answer.headers["Cache-Control"]
    assert charts.vega_bundle().parent.parent == tmp_path
    assert spills.client.get("/desk/vega/vega-0.js").status_code == 404


OF_ONE = {
    "cycle-losses",
    "version-differences",
    "version-scatter",
}  # of one cycle or version: drawn in the tests of its page


@pytest.mark.parametrize("name", sorted(charts._MAKERS.keys() - OF_ONE))
def test_each_chart_is_valid_vega_lite(spills, name):
    spills.audit(good=25, bad=5)
    with spills.ledger.session(write=False) as session:
        made = charts._MAKERS[name](session, spills.project(session), {})
    if made.rows:
        made.draw(made.rows).to_dict()  # validates
