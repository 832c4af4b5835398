"""What Prometheus reads."""

from __future__ import annotations

import re
from datetime import timedelta
from pathlib import Path

import yaml

from active_learning import thresholds
from active_learning.guarantee import Promise
from active_learning.ledger import Cycle, CycleEvent, CycleState, InboxEvent, Project, WorkerLease
from active_learning.ledger.types import utc_now

ALERTS = Path(__file__).parents[2] / "configs" / "alerts.yaml"


def read(site) -> dict[str, float]:
    """Name and labels, as Prometheus writes them -> value."""
    lines = [line for line in site.client.get("/metrics").text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in (line.rpartition(" ") for line in lines)}


def add(site, *rows) -> None:
    with site.ledger.session() as session:
        session.add_all(rows)


def test_queues_latencies_and_results(site, payloads):
    project = site.add_project()
    site.promote(project)
    tasks = [payloads.task(1), payloads.task(2)]
    site.client.post("/webhook", json=payloads.created(5, 12))
    body = {"tasks": [tasks[0], 5], "project": "7.1", "label_config": payloads.project["label_config"]}
    site.client.post("/predict", json=body)
    site.client.get("/nowhere")
    found = read(site)
    assert found['elnet_inbox_events{state="waiting"}'] == 1
    assert found['elnet_inbox_events{state="failed"}'] == 0
    assert found['elnet_predict_results_total{outcome="prediction"}'] == 1
    assert found['elnet_predict_results_total{outcome="empty"}'] == 1
    assert found['elnet_request_seconds_count{endpoint="ml_api.predict",status="200"}'] == 1
    assert found['elnet_request_seconds_count{endpoint="unknown",status="404"}'] == 1
    assert sum(v for name, v in found.items() if name.startswith('elnet_tasks{project="town"')) == 1
    assert found['elnet_predictions_total{project="town",version="elnet-0001"}'] == 1
    assert not any(name.startswith("elnet_cycle") for name in found)


def test_two_applications_have_their_own(make_site):
    one, two = make_site(), make_site()
    one.client.get("/health")
    assert "ml_api.health" in one.client.get("/metrics").text
    assert "ml_api.health" not in two.client.get("/metrics").text


def test_the_lag_of_the_inbox_and_the_silence_of_the_worker(site):
    assert read(site)["elnet_inbox_lag_seconds"] == 0
    then = utc_now() - timedelta(seconds=500)
    add(
        site,
        InboxEvent(key="1", action="TASKS_CREATED", payload={}, received_at=then),
        InboxEvent(key="2", action="TASKS_CREATED", payload={}),
        WorkerLease(name="worker", holder="x", host="gpu1", pid=1, heartbeat_at=then),
    )
    found = read(site)
    assert 500 <= found["elnet_inbox_lag_seconds"] < 560
    assert 500 <= found['elnet_worker_silence_seconds{host="gpu1",worker="worker"}'] < 560


def test_a_cycle_under_way_and_the_last_ones(site):
    project = site.add_project()
    add(site, Cycle(project_id=project.id, trigger="x", state=CycleState.FAILED, finished_at=utc_now()))
    assert read(site)['elnet_cycle_last_state{project="town",state="failed"}'] == 1
    add(
        site,
        Cycle(
            project_id=project.id,
            trigger="x",
            state=CycleState.RUNNING,
            step="train",
            requested_at=utc_now() - timedelta(hours=1),
        ),
    )
    for data in (
        {"began": True},
        {"epoch": 1, "epochs": 8, "loss": 2.0},
        {"epoch": 2, "epochs": 8, "loss": 1.5},
    ):
        add(site, CycleEvent(cycle_id=2, step="train", message="", data=data))
    add(site, CycleEvent(cycle_id=2, step="train", message="", data={"resumed": "Going on."}))
    found = read(site)
    assert found['elnet_cycles{project="town",state="failed"}'] == 1
    assert found['elnet_cycles{project="town",state="running"}'] == 1
    assert found['elnet_cycles{project="town",state="promoted"}'] == 0
    assert found['elnet_cycle_last_state{project="town",state="failed"}'] == 0
    assert found['elnet_cycle_last_state{project="town",state="running"}'] == 1
    assert 3600 <= found['elnet_cycle_seconds{project="town",step="train"}'] < 3660
    assert found['elnet_training_progress{project="town"}'] == 0.25
    assert found['elnet_training_loss{project="town"}'] == 1.5


def test_the_promise_and_auto_accept(site):
    project = site.add_project(accept_threshold=0.9)
    site.promote(project)
    found = read(site)
    assert found['elnet_accept_threshold{project="town"}'] == 0.9
    assert found['elnet_auto_accept_stopped{project="town"}'] == 0
    assert 'elnet_promised_risk{project="town"}' not in found
    with site.ledger.session() as session:
        row = session.get_one(Project, project.id)
        promised = Promise(iou=0.6, risk=0.1, confidence=0.9)
        thresholds.set_threshold(session, row, 0.8, "lea", "for the test", promised)
    found = read(site)
    assert found['elnet_promised_risk{project="town"}'] == 0.1
    assert found['elnet_promise_audits{project="town"}'] == 0
    assert found['elnet_promise_evidence{project="town"}'] == 1
    with site.ledger.session() as session:
        thresholds.set_threshold(
            session, session.get_one(Project, project.id), None, thresholds.LOOP, "drift"
        )
    found = read(site)
    assert found['elnet_auto_accept_stopped{project="town"}'] == 1
    assert 'elnet_accept_threshold{project="town"}' not in found


def test_the_example_alerts_ask_for_metrics_that_there_are(site):
    text = site.client.get("/metrics").text
    there = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    rules = [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]
    assert len(rules) > 10
    for rule in rules:
        assert rule["annotations"]["summary"]
        asked = set(re.findall(r"\belnet_\w+", rule["expr"]))
        assert asked or rule["alert"] == "BackendIsAway"
        assert {re.sub(r"_(bucket|count)$", "", name) for name in asked} <= there


def test_the_process_is_ready_where_the_ledger_answers(site):
    answer = site.client.get("/readyz")
    assert (answer.status_code, answer.json) == (200, {"ready": True, "worker_silent_s": None})
    then = utc_now() - timedelta(seconds=7)
    add(site, WorkerLease(name="worker", holder="x", host="gpu1", pid=1, heartbeat_at=then))
    assert 7 <= site.client.get("/readyz").json["worker_silent_s"] < 60


def test_the_process_is_not_ready_on_older_tables(site):
    with site.ledger.engine.begin() as connection:
        connection.exec_driver_sql("UPDATE ledger_version SET version_num = '0001'")
    answer = site.client.get("/readyz")
    assert answer.status_code == 503
    assert not answer.json["ready"]
    assert "older than this code" in answer.json["reason"]


def test_readiness_needs_no_password(make_site):
    site = make_site(username="elnet", password="secret")
    assert site.client.get("/readyz").status_code == 200
    assert site.client.get("/metrics").status_code == 401
