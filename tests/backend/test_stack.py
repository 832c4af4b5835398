from __future__ import annotations

import json
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpx
import pytest
from pydantic import SecretStr

from active_learning.ledger import Ledger
from backend import stack as module
from backend.accounts import sign_in
from backend.child import Child, StackError
from backend.credentials import Credentials
from backend.settings import LabelStudioSettings, Settings, WebSettings
from backend.stack import Stack

WEB = """
import json, os, socket
listening = socket.create_server((os.environ["ELNET_WEB__HOST"], int(os.environ["ELNET_WEB__PORT"])))
print("listening", flush=True)
while True:
    with listening.accept()[0] as connection:
        connection.recv(9999)
        body = json.dumps({k: v for k, v in os.environ.items() if k.startswith("ELNET_")}).encode()
        head = "HTTP/1.1 200 OK\\r\\nConnection: close\\r\\nContent-Length: %d\\r\\n\\r\\n" % len(body)
        connection.sendall(head.encode() + body)
"""
WORKER = "import time; print('working', flush=True); time.sleep(60)"


class Embedded:
    """Stands for the embedded Label Studio."""

    made: ClassVar[list[Embedded]] = []

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.events: list[str] = []
        self.made.append(self)

    url = property(lambda self: f"http://127.0.0.1:{self.settings.label_studio.port}")
    token = "lead"
    machine_token = "machine"

    def start(self) -> None:
        self.events.append("start")

    def stop(self) -> None:
        self.events.append("stop")

    def is_running(self) -> bool:
        return bool(self.events) and self.events[-1] == "start"

    def last_lines(self, count: int = 15) -> str:
        return "the end of its log"


class LittleStack(Stack):
    """A stack whose backend and worker are a few lines each."""

    codes: ClassVar[dict[str, str]] = {}

    def _child(self, name: str) -> Child:
        child = super()._child(name)
        assert child.command[1:] == ["-m", "backend.cli", name]
        child.command = [sys.executable, "-S", "-c", {"web": WEB, "worker": WORKER, **self.codes}[name]]
        return child


@pytest.fixture
def embedded(monkeypatch: pytest.MonkeyPatch) -> list[Embedded]:
    monkeypatch.setattr(Embedded, "made", [])
    monkeypatch.setattr(module, "EmbeddedLabelStudio", Embedded)
    return Embedded.made


def settings_of(tmp_path: Path, **values: Any) -> Settings:
    given = {"label_studio": LabelStudioSettings(port=0), "web": WebSettings(port=0), **values}
    return Settings(state=tmp_path, **given)


def processes(stack: Stack) -> list[Any]:
    return [child.process for child in stack._children]


def until(true: Any) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_the_servers_start_with_what_is_in_force_and_stop(tmp_path: Path, embedded: list[Embedded]) -> None:
    with LittleStack(settings_of(tmp_path)) as stack:
        (label_studio,) = embedded
        web, secrets = stack.settings.web, Credentials.load(tmp_path)
        assert stack.settings.label_studio.url == label_studio.url
        assert label_studio.settings.label_studio.port == stack.settings.label_studio.port > 0
        told = httpx.get(f"http://127.0.0.1:{web.port}/", trust_env=False).json()
        assert told["ELNET_STATE"] == str(tmp_path)
        assert told["ELNET_LABEL_STUDIO__URL"] == label_studio.url
        assert told["ELNET_LABEL_STUDIO__TOKEN"] == "lead"
        assert told["ELNET_LABEL_STUDIO__MACHINE_TOKEN"] == "machine"
        assert told["ELNET_WEB__PASSWORD"] == secrets.ml_password
        assert told["ELNET_WEB__WEBHOOK_SECRET"] == secrets.webhook_secret
        assert told["ELNET_DESK__SECRET_KEY"] == secrets.desk_key
        with Ledger(stack.settings.ledger_url) as ledger:
            ledger.check()
            admin = sign_in(ledger, "admin", stack.admin_password or "", None)
        assert admin is not None
        assert stack.admin_password not in str(told)
        assert json.loads((tmp_path / "running.json").read_text())["web_port"] == web.port
        stack.check()
        assert stack.mend() == []
        running = processes(stack)
        assert [process.poll() for process in running] == [None, None]
    assert all(process.returncode is not None for process in running)
    assert label_studio.events == ["start", "stop"]
    assert not (tmp_path / "running.json").exists()
    assert "working" in (tmp_path / "logs" / "worker.log").read_text()
    stack.stop()


def test_what_died_is_told_and_started_again(tmp_path: Path, embedded: list[Embedded]) -> None:
    with LittleStack(settings_of(tmp_path)) as stack:
        until(lambda: (tmp_path / "logs" / "worker.log").read_text())
        address = f"http://127.0.0.1:{stack.settings.web.port}/"
        stack.kill("worker")
        with pytest.raises(StackError, match=r"(?s)worker stopped with exit status -9.*worker.log:\nworking"):
            stack.check()
        assert stack.mend() == ["worker (exit status -9): working"]
        stack.check()
        stack.kill("web")
        (line,) = stack.mend()
        assert line == "web (exit status -9): listening"
        until(lambda: (tmp_path / "logs" / "web.log").read_text().count("listening") == 2)
        assert httpx.get(address, trust_env=False).status_code == 200


def test_label_studio_comes_back_at_its_address(tmp_path: Path, embedded: list[Embedded]) -> None:
    with LittleStack(settings_of(tmp_path)) as stack:
        (label_studio,) = embedded
        address = label_studio.url
        stack.kill("label-studio")
        with pytest.raises(StackError, match="Label Studio stopped:\nthe end of its log"):
            stack.check()
        assert stack.mend() == ["label-studio: the end of its log"]
        assert label_studio.is_running()
        assert label_studio.url == address == stack.settings.label_studio.url
        stack.check()


def test_a_server_that_is_named_is_left_alone(tmp_path: Path, embedded: list[Embedded]) -> None:
    named = LabelStudioSettings(url="http://tool.example", token=SecretStr("mine"))
    own = WebSettings(port=0, username="me", password=SecretStr("p"), webhook_secret=SecretStr("w"))
    with LittleStack(settings_of(tmp_path, label_studio=named, web=own)) as stack:
        assert stack.settings.label_studio == named
        assert stack.settings.web == own.model_copy(update={"port": stack.settings.web.port})
    assert embedded == []


def test_a_backend_that_does_not_come_up_ends_it_all(
    tmp_path: Path, embedded: list[Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LittleStack, "codes", {"web": "raise SystemExit('the model is [/not] there')"})
    stack = LittleStack(settings_of(tmp_path))
    with (
        pytest.raises(StackError, match=r"(?s)The web did not start.*web.log:\nthe model is \[/not\] there"),
        stack,
    ):
        pytest.fail("it must not start")
    assert embedded[0].events == ["start", "stop"]
    assert processes(stack) == []
    assert not (tmp_path / "running.json").exists()


def test_a_silent_backend_is_given_up(
    tmp_path: Path, embedded: list[Embedded], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LittleStack, "codes", {"web": WORKER})
    monkeypatch.setattr(module, "_START_WITHIN_S", 0.3)
    stack = LittleStack(settings_of(tmp_path))
    with pytest.raises(StackError, match="The web did not start"):
        stack.__enter__()
    assert processes(stack) == []


def test_a_second_stack_does_not_forget_the_first(tmp_path: Path, embedded: list[Embedded]) -> None:
    book = {"pid": os.getppid(), "label_studio": "http://first", "web_host": "127.0.0.1", "web_port": 1}
    (tmp_path / "running.json").write_text(json.dumps(book))
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with (
            pytest.raises(StackError, match=rf"Port {port} .*Is it running already\?"),
            LittleStack(settings_of(tmp_path, web=WebSettings(port=port))),
        ):
            pytest.fail("it must not start")
    assert json.loads((tmp_path / "running.json").read_text()) == book
    assert embedded == []


@pytest.fixture
def hears_hangup() -> Iterator[None]:
    """Also where the tests themselves run under nohup, whose children ignore it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize(
    ("number", "ends"),
    [(signal.SIGTERM, SystemExit), (signal.SIGHUP, SystemExit), (signal.SIGINT, KeyboardInterrupt)],
)
def test_signals_stop_every_server(
    number: signal.Signals,
    ends: type[BaseException],
    tmp_path: Path,
    embedded: list[Embedded],
    hears_hangup: None,
) -> None:
    before = [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)]
    running: list[Any] = []

    def run() -> None:
        with LittleStack(settings_of(tmp_path)) as stack:
            running.extend(processes(stack))
            os.kill(os.getpid(), number)
            time.sleep(5)

    with pytest.raises(ends) as end:
        run()
    if ends is SystemExit:
        assert end.value.code == 128 + number
    assert [process.returncode is not None for process in running] == [True, True]
    assert embedded[0].events[-1] == "stop"
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)] == before


def test_a_hangup_that_is_ignored_stays_ignored(tmp_path: Path, embedded: list[Embedded]) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as nohup does
    try:
        with LittleStack(settings_of(tmp_path)) as stack:
            os.kill(os.getpid(), signal.SIGHUP)
            stack.check()
    finally:
        signal.signal(signal.SIGHUP, before)


def test_a_stack_may_live_in_a_thread(tmp_path: Path, embedded: list[Embedded]) -> None:
    ports: list[int] = []

    def run() -> None:
        with LittleStack(settings_of(tmp_path)) as stack:
            ports.append(stack.settings.web.port)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(30)
    assert ports


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:1"),
        ("0.0.0.0", "http://127.0.0.1:1"),
        ("::", "http://[::1]:1"),
        ("box", "http://box:1"),
    ],
)
def test_where_a_backend_is_found_from_here(host: str, url: str) -> None:
    assert module._loopback_url(WebSettings(host=host, port=1)) == url
