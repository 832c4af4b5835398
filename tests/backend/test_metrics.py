"""What Prometheus reads."""

from __future__ import annotations


def test_queues_latencies_and_results(site, payloads):
    project = site.add_project()
    site.promote(project)
    tasks = [payloads.task(1), payloads.task(2)]
    site.client.post("/webhook", json=payloads.created(5, 12))
    body = {"tasks": [tasks[0], 5], "project": "7.1", "label_config": payloads.project["label_config"]}
    site.client.post("/predict", json=body)
    site.client.get("/nowhere")
    text = site.client.get("/metrics").text
    assert 'elnet_inbox_events{state="waiting"} 1.0' in text
    assert 'elnet_inbox_events{state="failed"} 0.0' in text
    assert 'elnet_predict_results_total{outcome="prediction"} 1.0' in text
    assert 'elnet_predict_results_total{outcome="empty"} 1.0' in text
    assert 'elnet_request_seconds_count{endpoint="ml_api.predict",status="200"} 1.0' in text
    assert 'elnet_request_seconds_count{endpoint="unknown",status="404"} 1.0' in text
    statuses = [line for line in text.splitlines() if line.startswith('elnet_tasks{project="town"')]
    assert sum(float(line.split()[-1]) for line in statuses) == 1


def test_two_applications_have_their_own(make_site):
    one, two = make_site(), make_site()
    one.client.get("/health")
    assert "ml_api.health" in one.client.get("/metrics").text
    assert "ml_api.health" not in two.client.get("/metrics").text
