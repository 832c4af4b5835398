"""The ML contract over HTTP."""

from __future__ import annotations

import pytest


def predict(site, tasks, payloads, **changes):
    body = {
        "tasks": tasks,
        "project": "7.1795143225",
        "label_config": payloads.project["label_config"],
        "params": {"login": None, "password": None, "context": None},
        **changes,
    }
    return site.client.post("/predict", json=body)


def test_health(site):
    answer = site.client.get("/health")
    assert answer.status_code == 200
    assert answer.json["status"] == "UP"
    assert answer.json["version"]
    assert site.loaded == []


def test_setup_names_the_champion(site, payloads):
    body = {"project": "7.1795143225", "schema": payloads.project["label_config"], "access_token": "x"}
    assert site.client.post("/setup", json=body).json["model_version"] == ""
    project = site.add_project()
    assert site.client.post("/setup", json=body).json == {"model_version": ""}
    site.promote(project)
    assert site.client.post("/setup", json=body).json == {"model_version": "elnet-0001"}
    body["schema"] = body["schema"].replace('<Label value="road"/>', "")
    assert "road" in site.client.post("/setup", json=body).json["warnings"][0]
    assert site.loaded == []


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"project": "1.1", "schema": "<View><Text name='t' value='$t'/></View>"}, "mask tag"),
        ({"project": "1.1", "schema": "<View"}, "not valid XML"),
        ({"project": "1.1"}, "schema"),
        ([], "JSON object"),
    ],
)
def test_setup_refuses_what_no_mask_can_be_drawn_in(site, body, message):
    answer = site.client.post("/setup", json=body)
    assert answer.status_code == 400
    assert message in answer.json["error"]


def test_versions_begin_with_the_champion(site):
    assert site.client.get("/versions").json == {"versions": []}
    project = site.add_project()
    other = site.add_project(name="other", tool_project_id=8)
    site.promote(project, "elnet-0001")
    site.promote(project, "elnet-0002")
    site.promote(other, "elnet-0001")
    assert site.client.get("/versions").json["versions"] == ["elnet-0001", "elnet-0002"]
    assert site.client.get("/versions?project=7.1").json["versions"] == ["elnet-0002", "elnet-0001"]


def test_predict_gives_a_region_for_each_class_that_is_there(site, payloads):
    site.promote(site.add_project())
    answer = predict(site, [payloads.task(1)], payloads)
    assert answer.status_code == 200
    [result] = answer.json["results"]
    assert result["model_version"] == "elnet-0001"
    assert 0 < result["score"] <= 1
    [region] = result["result"]
    assert region["from_name"] == "brush"
    assert region["value"]["brushlabels"] == ["building"]
    assert (region["original_width"], region["original_height"]) == (8, 6)


@pytest.mark.parametrize("body", [{}, {"tasks": None}, {"tasks": {"id": 1}}, [], 5])
def test_predict_without_a_list_of_tasks_is_400(site, body):
    assert site.client.post("/predict", json=body).status_code == 400


@pytest.mark.parametrize("project", [None, "", "x.y", 5, "7", "9" * 40, {"id": 7}])
def test_odd_project_fields_are_no_crash(site, payloads, project):
    answer = predict(site, [payloads.task(1)], payloads, project=project)
    assert answer.status_code == 200
    assert len(answer.json["results"]) == 1


@pytest.mark.parametrize("params", [None, 5, [], {}, {"context": 5}])
def test_odd_params_are_no_crash(site, payloads, params):
    assert predict(site, [payloads.task(1)], payloads, params=params).status_code == 200


@pytest.mark.parametrize(
    ("name", "fields"),
    [
        ("health", {"status"}),
        ("setup", {"model_version"}),
        ("versions", {"versions"}),
        ("predict", {"results"}),
        ("predict_interactive_keypoint", {"results"}),
    ],
)
def test_recorded_requests(site, recorded, name, fields):
    site.promote(site.add_project(tool_project_id=1))
    call = recorded(name)
    answer = site.client.open(call["path"], method=call["method"], headers=call["headers"], json=call["body"])
    assert answer.status_code == 200
    assert fields <= answer.json.keys()
    if "results" in fields:
        assert len(answer.json["results"]) == len(call["body"]["tasks"])
        [result] = answer.json["results"]
        assert {"result", "score", "model_version"} <= result.keys()
        assert bool(result["result"]) == (name == "predict")
    if name == "setup":
        assert answer.json["model_version"] == "elnet-0001"
