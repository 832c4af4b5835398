"""Errors are JSON, say what to do, and tell nothing of the inside."""

from __future__ import annotations

import pytest

from active_learning.ledger import Ledger
from backend import app as application
from backend.app import create_app
from backend.settings import Settings


@pytest.mark.parametrize(
    ("method", "path", "options", "status"),
    [
        ("get", "/nowhere", {}, 404),
        ("get", "/predict", {}, 405),
        ("post", "/health", {}, 405),
        ("post", "/predict", {"data": "{"}, 415),
        ("post", "/predict", {"data": "{", "content_type": "application/json"}, 400),
        ("post", "/webhook", {"data": "nonsense", "content_type": "application/json"}, 400),
    ],
)
def test_errors_are_json(site, method, path, options, status):
    answer = getattr(site.client, method)(path, **options)
    assert answer.status_code == status
    assert answer.is_json
    assert answer.json["error"]


def test_405_names_the_methods(site):
    assert "POST" in site.client.get("/predict").headers["Allow"]


def test_too_large_a_request(site, monkeypatch):
    site.app.config["MAX_CONTENT_LENGTH"] = 100
    answer = site.client.post("/predict", json={"tasks": ["x" * 200]})
    assert answer.status_code == 413
    assert answer.is_json


def test_a_defect_is_told_by_a_number_that_the_log_knows(site, monkeypatch, caplog):
    def broken(*_):
        raise ZeroDivisionError("secret inside")

    monkeypatch.setattr(site.app.extensions["elnet"].serving, "project", broken, raising=False)
    answer = site.client.post("/predict", json={"tasks": [], "project": "1.2"})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    number = answer.json["error"].split()[-1]
    assert number in caplog.text
    assert "ZeroDivisionError" in caplog.text


def test_a_ledger_without_tables_is_503_with_the_cure(tmp_path):
    with Ledger(f"sqlite:///{tmp_path / 'none.sqlite'}") as ledger:
        client = create_app(Settings(state=tmp_path), ledger=ledger).test_client()
        answer = client.post("/predict", json={"tasks": [{"id": 1, "data": {}}], "project": "1.2"})
        assert answer.status_code == 503
        assert "elnet ledger upgrade" in answer.json["error"]
        health = client.get("/health")
        assert health.status_code == 503
        assert health.json["status"] == "DOWN"


def test_no_other_site_may_read_the_answers(site):
    answer = site.client.get("/health", headers={"Origin": "https://evil.example"})
    assert "Access-Control-Allow-Origin" not in answer.headers


def test_an_open_webhook_is_warned_of(make_site, caplog):
    make_site(webhook_secret="s")
    assert not caplog.records
    make_site()
    assert "webhook_secret" in caplog.text


def test_nothing_is_connected_to_when_it_is_made(tmp_path, monkeypatch):
    settings = Settings(state=tmp_path / "absent", database_url="postgresql://nobody@127.0.0.1:9/x")
    assert application.create_app(settings).url_map
    assert not (tmp_path / "absent").exists()
