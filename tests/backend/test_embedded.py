"""The embedded Label Studio. A small program stands for it where only the process matters."""

from __future__ import annotations

import os
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest

from backend import embedded as subject
from backend.credentials import Credentials
from backend.embedded import EmbeddedError, EmbeddedLabelStudio
from backend.label_studio_environment import server_environment
from backend.settings import LabelStudioSettings, Settings

PRETENDER = f"""#!{sys.executable}
import http.server, os, sqlite3, subprocess, sys
folder = os.environ["LABEL_STUDIO_BASE_DATA_DIR"]
if sys.argv[1] == "version":
    sqlite3.connect(folder + "/label_studio.sqlite3").execute("CREATE TABLE t (i)")
    sys.exit()
if "dies" in folder:
    print("django.db.utils.OperationalError: disk I/O error")
    sys.exit(3)
child = subprocess.Popen(["sleep", "600"])
open(folder + "/child", "w").write(str(child.pid))
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(503 if "silent" in folder else 200)
        self.end_headers()
        self.wfile.write(b"{{}}")
    def log_message(self, *_):
        pass
address = sys.argv[sys.argv.index("--internal-host") + 1], int(sys.argv[sys.argv.index("--port") + 1])
http.server.HTTPServer(address, Handler).serve_forever()
"""

STARTER = """
import sys, time
from pathlib import Path
from backend.embedded import EmbeddedLabelStudio
from backend.settings import LabelStudioSettings, Settings
server = EmbeddedLabelStudio(Settings(state=Path(sys.argv[1]), label_studio=LabelStudioSettings(port=0)))
server.start()
print(server.url, flush=True)
time.sleep(600)
"""


@pytest.fixture
def pretender(tmp_path, monkeypatch) -> Callable[..., EmbeddedLabelStudio]:
    """Makes an `EmbeddedLabelStudio` over a program that only answers; its users count as there."""
    program = tmp_path / "pretender"
    program.write_text(PRETENDER)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("ELNET_LABEL_STUDIO_BIN", str(program))
    monkeypatch.setenv("ELNET_HOME", str(tmp_path / "home"))
    made: list[EmbeddedLabelStudio] = []

    def make(state: str = "state", port: int = 0) -> EmbeddedLabelStudio:
        folder = tmp_path / state
        if not folder.is_file():
            Credentials.load(folder).with_tokens(machine_token="m" * 40).save(folder)
        made.append(EmbeddedLabelStudio(Settings(state=folder, label_studio=LabelStudioSettings(port=port))))
        return made[-1]

    yield make
    for server in made:
        server.stop()


def is_alive(process: int) -> bool:
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def wait_until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_starts_and_stops_the_whole_group(pretender):
    server = pretender()
    server.start()
    assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200
    assert server.is_running()
    child = int((server.log.parent / "child").read_text())
    assert is_alive(child)
    server.start()  # once more: nothing happens
    server.stop()
    assert not server.is_running()
    wait_until(lambda: not is_alive(child))
    with pytest.raises(httpx.ConnectError):
        httpx.get(f"{server.url}/health", trust_env=False)
    server.stop()


def test_nothing_is_known_before_the_start(pretender):
    with pytest.raises(EmbeddedError, match="was not started"):
        _ = pretender().token


def test_a_port_that_is_taken(pretender):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(EmbeddedError, match=rf"127\.0\.0\.1:{port}.*ELNET_LABEL_STUDIO__PORT"):
            pretender(port=port).start()
    pretender(port=port).start()


def test_a_folder_that_cannot_be_written(pretender, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / "label-studio").write_text("a file")
    with pytest.raises(EmbeddedError, match=r"state/label-studio cannot be written.*ELNET_STATE"):
        pretender().start()


def test_a_server_that_dies_shows_its_last_lines(pretender):
    server = pretender("dies")
    with pytest.raises(EmbeddedError, match=r"died while starting:\n.*disk I/O error"):
        server.start()
    assert not server.is_running()


def test_a_server_that_stays_silent(pretender, monkeypatch):
    monkeypatch.setattr(subject, "_START_WITHIN_S", 0.5)
    server = pretender("silent")
    with pytest.raises(EmbeddedError, match="does not answer"):
        server.start()
    assert not server.is_running()


def test_two_on_one_folder(pretender):
    first, second = pretender(), pretender()
    first.start()
    with pytest.raises(EmbeddedError, match=rf"already runs on .*process {os.getpid()} started it"):
        second.start()
    first.stop()
    second.start()


def test_what_a_killed_parent_left_behind_is_ended(pretender, tmp_path):
    server = pretender()  # makes the state
    starter = subprocess.Popen(
        [sys.executable, "-c", STARTER, str(tmp_path / "state")], stdout=subprocess.PIPE, text=True
    )
    with starter:
        assert starter.stdout is not None
        url = starter.stdout.readline().strip()
        assert url.startswith("http://127.0.0.1:")
        starter.kill()
    assert httpx.get(f"{url}/health", trust_env=False).status_code == 200  # an orphan
    orphan = int((tmp_path / "state" / "label-studio" / "server.lock").read_text().split()[0])
    server.start()
    assert not is_alive(orphan)
    assert httpx.get(f"{server.url}/health", trust_env=False).status_code == 200


def test_the_environment_holds_nothing_of_ours(tmp_path, monkeypatch):
    for name in ("HOST", "DEBUG", "http_proxy", "LABEL_STUDIO_HOST", "PYTHONPATH", "STORAGE_TYPE"):
        monkeypatch.setenv(name, "pollutes")
    env = server_environment(Settings(state=tmp_path), Credentials.load(tmp_path), tmp_path / "data")
    assert "pollutes" not in env.values()
    assert env["LABEL_STUDIO_COLLECT_ANALYTICS"] == "false"
    assert env["LABEL_STUDIO_LOCAL_FILES_DOCUMENT_ROOT"] == str(tmp_path / "media")
    assert all(env[f"LABEL_STUDIO_{name}"] == "" for name in ("SENTRY_DSN", "FRONTEND_SENTRY_DSN"))


@pytest.mark.label_studio
def test_both_users_work_and_nobody_else_signs_up(label_studio_server):
    users = []
    for token in (label_studio_server.token, label_studio_server.machine_token):
        headers = {"Authorization": f"Token {token}"}
        answer = httpx.get(
            f"{label_studio_server.url}/api/current-user/whoami", headers=headers, trust_env=False
        )
        users.append(answer.json())
    assert [user["email"] for user in users] == ["lead@elnet.local", "machine@elnet.local"]
    assert users[0]["active_organization"] == users[1]["active_organization"]
    assert users[1]["first_name"] == "ELNet"
    with httpx.Client(base_url=label_studio_server.url, trust_env=False) as stranger:
        stranger.get("/user/signup/")
        form = {"email": "a@example.org", "password": "long-enough-1"}
        form["csrfmiddlewaretoken"] = stranger.cookies["csrftoken"]
        answer = stranger.post("/user/signup/", data=form, headers={"Referer": label_studio_server.url})
        assert answer.status_code == 403


@pytest.mark.label_studio
def test_the_real_one_loses_nothing_not_even_with_its_secrets_lost(label_studio_server, tmp_path):
    def start() -> EmbeddedLabelStudio:
        server = EmbeddedLabelStudio(Settings(state=tmp_path, label_studio=LabelStudioSettings(port=0)))
        server.start()
        return server

    def projects(server: EmbeddedLabelStudio, **title: str) -> list[str]:
        headers = {"Authorization": f"Token {server.token}"}
        with httpx.Client(base_url=server.url, headers=headers, trust_env=False, timeout=30) as client:
            if title:
                client.post("/api/projects/", json=title).raise_for_status()
            found = client.get("/api/projects/").raise_for_status().json()["results"]
            return [project["title"] for project in found]

    first = start()
    try:
        assert projects(first, title="kept") == ["kept"]
    finally:
        first.stop()
    Credentials.path(tmp_path).unlink()
    second = start()
    try:
        assert projects(second) == ["kept"]
        assert second.password != first.password
        assert second.machine_token == first.machine_token
    finally:
        second.stop()


def test_ctrl_c_does_not_reach_the_server(pretender):
    """It has a group of its own, so that it is stopped in order, after the worker."""
    server = pretender()
    server.start()
    process = int((server.log.parent / "server.lock").read_text().split()[0])
    assert os.getpgid(process) == process != os.getpgid(0)
    os.killpg(process, signal.SIGTERM)
    wait_until(lambda: not server.is_running())
