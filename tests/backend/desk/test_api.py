from __future__ import annotations

from typing import Any

import pytest
from openapi_spec_validator import validate

from active_learning.ledger import Role
from backend import accounts, api_tokens
from backend.actions import Who
from backend.desk.openapi import document


@pytest.fixture
def api(spills):
    return f"/api/v1/projects/{spills.project_id}"


@pytest.fixture(autouse=True)
def _token(spills, monkeypatch):
    """Every request of this module's client carries a token of the lead instead of a cookie."""
    with spills.ledger.session() as session:
        user = accounts.find(session, "lea")
        _, token = api_tokens.make(session, user, "test", None, Who("tester"))
    spills.client.delete_cookie("elnet")
    spills.client.environ_base["HTTP_AUTHORIZATION"] = f"Bearer {token}"


def test_the_document_is_valid_and_names_every_route(spills):
    served = spills.client.get("/api/v1/openapi.json").get_json()
    assert served == document()
    validate(served)
    named = {(method.upper(), f"/api/v1{path}") for path, item in served["paths"].items() for method in item}
    routed = {
        (method, rule.rule.replace("<int:", "{").replace("<", "{").replace(">", "}"))
        for rule in spills.client.application.url_map.iter_rules()
        if rule.rule.startswith("/api/v1/") and rule.endpoint != "openapi.show"
        for method in rule.methods - {"HEAD", "OPTIONS"}
    }
    assert named == routed
    ids = [operation["operationId"] for item in served["paths"].values() for operation in item.values()]
    assert len(set(ids)) == len(ids)


def test_every_read_answers_as_the_document_says(spills, api):
    import jsonschema

    spills.audit(good=20, bad=2)
    with spills.ledger.session() as session:
        accounts.set_role(session, accounts.find(session, "lea"), Role.ADMIN, Who("tester"))
    told = document()
    for path, item in told["paths"].items():
        if "get" not in item or path.count("{") > 1:
            continue
        answer = spills.client.get("/api/v1" + path.format(project_id=spills.project_id))
        assert answer.status_code == 200, path
        schema = item["get"]["responses"]["200"]["content"]["application/json"]["schema"]
        jsonschema.validate(answer.get_json(), {**schema, "components": told["components"]})


def test_a_threshold_is_set_promised_and_undone(spills, api):
    spills.audit(good=40, bad=0)
    made = spills.client.post(f"{api}/threshold", json={"value": 0.7, "why": "try"})
    assert (made.status_code, made.get_json()["before"], made.get_json()["after"]) == (200, 0.9, 0.7)
    made = spills.client.post(f"{api}/threshold/promise", json={"risk": 0.1, "iou": 0.6, "why": "rather so"})
    assert made.get_json()["after"] == pytest.approx(1.0)
    assert spills.client.get(f"{api}/threshold").get_json()["stands"]["risk"] == 0.1
    assert spills.client.post(f"{api}/threshold/undo").get_json()["after"] == 0.7


@pytest.mark.parametrize(
    ("path", "body", "status", "said"),
    [
        ("/threshold", {"value": 2, "why": "x"}, 400, "value: "),
        ("/threshold", {"value": 0.5}, 400, "why: "),
        ("/threshold", {"value": 0.9, "why": "x"}, 409, "is 0.9 already"),
        ("/threshold/promise", {"risk": 0.1, "iou": 0.6, "classes": {"ship": 0.5}, "why": "x"}, 409, "ship"),
        ("/threshold/undo", None, 409, "never changed"),
        ("/policy", {"changes": {"colour": 1}, "why": "x"}, 409, "no setting 'colour'"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_told(spills, api, path: str, body: Any, status: int, said: str):
    answer = spills.client.post(api + path, json=body)
    assert (answer.status_code, said in answer.get_json()["error"]) == (status, True), answer.get_json()
    assert spills.client.get(f"{api}/threshold").get_json()["threshold"] == 0.9


def test_no_json_no_project_no_number(spills, api):
    answer = spills.client.post(f"{api}/threshold", data=b"{", content_type="application/json")
    assert answer.status_code == 400
    assert spills.client.get("/api/v1/projects/99").status_code == 404
    answer = spills.client.get(f"{api}/threshold", query_string={"risk": "much", "iou": 0.5})
    assert answer.status_code == 400
    assert "risk" in answer.get_json()["error"]


def test_the_queue_page_by_page_and_by_another_strategy(spills, api):
    spills.add(0.61, 0.62, 0.63)
    found = spills.client.get(f"{api}/queue", query_string={"least": 0.6, "most": 0.65, "size": 2}).get_json()
    assert (found["found"], found["pages"], len(found["images"])) == (3, 2, 2)
    tried = spills.client.get(f"{api}/queue/strategy/random").get_json()
    assert (tried["strategy"], tried["waiting"]) == ("random", 5)
    answer = spills.client.get(f"{api}/queue/strategy/fortune")
    assert (answer.status_code, "fortune" in answer.get_json()["error"]) == (409, True)
    assert spills.client.get(f"{api}/queue", query_string={"view": "nowhere"}).status_code == 400


def test_a_setting_is_changed_for_a_reason(spills, api):
    answer = spills.client.post(f"{api}/policy", json={"changes": {"audit_share": 0.3}, "why": "more audits"})
    assert {line["name"]: line["value"] for line in answer.get_json()["settings"]}["audit_share"] == 0.3
