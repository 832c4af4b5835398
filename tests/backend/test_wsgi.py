"""gunicorn really serves it."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import httpx
import pytest

from backend.settings import Settings, WebSettings
from backend.wsgi import gunicorn_command


def test_the_command_never_preloads_and_has_one_worker():
    settings = Settings(web=WebSettings(host="::1", port=9, threads=3))
    command = gunicorn_command(settings)
    assert command[0] == sys.executable
    assert "--preload" not in command
    assert command[command.index("--workers") + 1] == "1"
    assert command[command.index("--threads") + 1] == "3"
    assert command[command.index("--bind") + 1] == "[::1]:9"


def test_it_answers_and_stops(ledger, tmp_path, monkeypatch):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    monkeypatch.setenv("ELNET_STATE", str(tmp_path))
    monkeypatch.setenv("ELNET_WEB__PORT", str(port))
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(gunicorn_command(Settings()), stdout=log, stderr=log)
    try:
        answer = wait_for(f"http://127.0.0.1:{port}/health")
        assert answer.json()["status"] == "UP"
    finally:
        process.terminate()
        status = process.wait(30)
    text = (tmp_path / "log").read_text()
    assert status == 0, text
    assert "Traceback" not in text


def wait_for(url: str) -> httpx.Response:
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            return httpx.get(url, trust_env=False)
        except httpx.TransportError:
            time.sleep(0.1)
    pytest.fail(f"{url} does not answer")
