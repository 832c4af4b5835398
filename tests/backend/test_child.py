from __future__ import annotations

import inspect
import json
import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from backend.child import Child, StackError, environment, free_port
from backend.settings import (
    DeskSettings,
    LabelStudioSettings,
    LoopSettings,
    MediaSettings,
    OidcSettings,
    ProxySettings,
    Settings,
    WebSettings,
)


def reveal(value: Any) -> Any:
    """A setting with its type, secrets included."""
    if hasattr(value, "get_secret_value"):
        return {"secret": value.get_secret_value()}
    if hasattr(type(value), "model_fields"):
        return {name: reveal(getattr(value, name)) for name in type(value).model_fields}
    return repr(value)


def in_child(settings: Settings) -> Any:
    """What `Settings()` is in a process with this environment."""
    code = (
        "import json\nfrom typing import Any\nfrom backend.settings import Settings\n"
        f"{inspect.getsource(reveal)}\nprint(json.dumps(reveal(Settings())))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(settings), capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_a_child_has_the_very_same_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The parent's environment says otherwise, also where the settings say None, in any case, and as a whole.
    (tmp_path / "other.yaml").write_text("trunk: random-nano\nloop: {training: {epochs: 99}}\n")
    others = {
        "ELNET_CONFIG": str(tmp_path / "other.yaml"),
        "ELNET_DATABASE_URL": "postgresql://elsewhere/db",
        "ELNET_LABEL_STUDIO__URL": "http://elsewhere:1",
        "ELNET_LABEL_STUDIO__MACHINE_TOKEN": "leaked",
        "elnet_web__public_url": "http://elsewhere:2",
        "Elnet_Media__Document_Root": "/elsewhere",
        "ELNET_LOOP": '{"labels_per_cycle": 7}',
        "ELNET_LOOP__TRAINING__LR": "1",
        "ELNET_WEB__PASSWORD": "leaked",
    }
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    settings = Settings(
        state=tmp_path / "a state = strange",
        database_url=None,
        device="cpu",
        trunk="sam2-hiera-tiny",
        poll_s=0.1 + 0.2,
        label_studio=LabelStudioSettings(port=0, token=SecretStr('q"u\'o\\te $HOME {"a": 1}')),
        web=WebSettings(password=None, webhook_secret=SecretStr(""), username="ü, 1"),
        desk=DeskSettings(
            secret_key=SecretStr("k\"'$"),
            trusted_proxies=["10.0.0.0/8", "::1"],
            proxy=ProxySettings(header="Remote-User", roles={"geo, leads": "lead"}, default_role=None),
            oidc=OidcSettings(
                issuer="https://login.example",
                client_id="e",
                client_secret=SecretStr("none"),
                default_role="viewer",
            ),
        ),
        media=MediaSettings(allowed_hosts=["a.example", "10.0.0.0/8"], document_root=None),
        loop=LoopSettings(
            accept_threshold=None, training={"epochs": 3, "trunk": "random-nano", "deep": {"er": [1, None]}}
        ),
    )
    assert in_child(settings) == reveal(settings)


def test_a_path_in_a_section_and_full_secrets_survive(tmp_path: Path) -> None:
    settings = Settings(
        state=tmp_path,
        database_url="postgresql://user:p%40ss@host/name",
        label_studio=LabelStudioSettings(
            url="https://tool.example", token=SecretStr("t"), machine_token=SecretStr("none")
        ),
        web=WebSettings(public_url="https://elnet.example/", password=SecretStr("none")),
        media=MediaSettings(document_root=Path("relative/media")),
    )
    assert in_child(settings) == reveal(settings)


def test_what_is_no_setting_is_inherited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELNET_HOME", "/cache")
    monkeypatch.setenv("ELNET_LABEL_STUDIO_BIN", "/bin/label-studio")
    monkeypatch.setenv("ELNET_WEB", "{}")
    given = environment(Settings())
    assert given["ELNET_HOME"] == "/cache"
    assert given["ELNET_LABEL_STUDIO_BIN"] == "/bin/label-studio"
    assert given["PATH"] == os.environ["PATH"]
    assert "ELNET_WEB" not in given


PARENT = """
import os, sys, time
from pathlib import Path
from backend.child import Child
child = Child("little", [sys.executable, "-S", "-c", sys.argv[1]], dict(os.environ), Path(sys.argv[2]))
child.start()
while "ready" not in child.last_lines():
    time.sleep(0.02)
print(child.process.pid, child._watcher.pid, flush=True)
time.sleep(60)
"""
TIDY = (
    "import signal, sys, time\n"
    "signal.signal(signal.SIGTERM, lambda *_: (print('tidy', flush=True), sys.exit(0)))\n"
    "print('ready', flush=True)\ntime.sleep(60)"
)


def child_of(tmp_path: Path, code: str, **env: str) -> Child:
    return Child(
        "little", [sys.executable, "-S", "-c", code], {**os.environ, **env}, tmp_path / "logs" / "little.log"
    )


def wait_for(child: Child, text: str) -> str:
    end = time.monotonic() + 20
    while text not in child.last_lines():
        assert time.monotonic() < end, child.last_lines()
        time.sleep(0.02)
    return child.last_lines()


def lives(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state != "Z"


def gone(pid: int) -> bool:
    end = time.monotonic() + 10
    while lives(pid):
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def test_a_child_logs_and_its_end_is_told(tmp_path: Path) -> None:
    child = child_of(tmp_path, "import os, sys; print(os.environ['SAYS']); sys.exit(3)", SAYS="hello")
    assert (child.exit_status(), child.last_lines()) == (None, "(no output)")
    child.stop()  # nothing to stop
    for _ in range(2):
        child.start()
        child.process.wait(20)
    assert child.exit_status() == 3
    assert child.last_lines() == "hello\nhello"  # a restart goes on with the same log
    assert child.last_lines(1) == "hello"
    child.stop()


def test_stopping_is_asked_for_first(tmp_path: Path) -> None:
    child = child_of(tmp_path, TIDY)
    child.start()
    wait_for(child, "ready")
    assert child.exit_status() is None
    child.stop()
    assert child.exit_status() == 0
    assert child.last_lines() == "ready\ntidy"
    child.stop()


FAMILY = (
    "import signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, {parent})\n"
    "young = subprocess.Popen([sys.executable, '-S', '-c', "
    "'import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    "print(chr(33), flush=True); time.sleep(60)'])\n"
    "print('young', young.pid, flush=True)\ntime.sleep(60)"
)


def started_family(tmp_path: Path, parent: str) -> tuple[Child, int]:
    child = child_of(tmp_path, FAMILY.format(parent=parent))
    child.start()
    wait_for(child, "!")
    (line,) = [line for line in wait_for(child, "young ").splitlines() if line.startswith("young ")]
    return child, int(line.split()[1])


def test_what_does_not_heed_is_killed_with_all_of_its_group(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.child._STOP_WITHIN_S", 0.2)
    child, young = started_family(tmp_path, "signal.SIG_IGN")
    assert lives(young)
    child.stop()
    assert child.exit_status() == -signal.SIGKILL
    assert gone(young)


def test_what_a_dead_child_left_behind_is_killed_too(tmp_path: Path) -> None:
    child, young = started_family(tmp_path, "signal.SIG_DFL")
    os.kill(child.process.pid, signal.SIGKILL)
    child.process.wait(20)
    assert lives(young)
    child.stop()
    assert gone(young)


def test_a_child_ends_with_a_parent_that_was_killed(tmp_path: Path) -> None:
    log = tmp_path / "little.log"
    command = [sys.executable, "-c", PARENT, TIDY, str(log)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        child, watcher = map(int, parent.stdout.readline().split())
        parent.kill()
    assert gone(child)
    assert gone(watcher)
    assert log.read_text() == "ready\ntidy\n"  # it was asked first


def test_a_child_that_was_stopped_leaves_no_watcher(tmp_path: Path) -> None:
    child = child_of(tmp_path, "import time; time.sleep(60)")
    for _ in range(2):
        child.start()
        watcher = child._watcher.pid
        child.stop()
        assert gone(watcher)


def test_a_second_ctrl_c_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    child = child_of(
        tmp_path,
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN)\nprint('ready', flush=True)\n"
        "time.sleep(60)",
    )
    child.start()
    wait_for(child, "ready")
    waits = [KeyboardInterrupt(), None]
    real = child.process.wait

    def wait(timeout: float | None = None) -> int:
        if (error := waits.pop(0)) is not None:
            raise error
        return real(20)

    monkeypatch.setattr(child.process, "wait", wait)
    child.stop()
    assert child.exit_status() == -signal.SIGKILL


def test_a_free_port_is_free_and_a_taken_one_is_refused() -> None:
    port = free_port("backend", "ELNET_WEB__PORT", "127.0.0.1", 0)
    assert port > 0
    assert free_port("backend", "ELNET_WEB__PORT", "127.0.0.1", port) == port
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        number = taken.getsockname()[1]
        with pytest.raises(
            StackError,
            match=rf"Port {number} of 127.0.0.1 cannot be used for the backend: .*ELNET_WEB__PORT=0",
        ):
            free_port("backend", "ELNET_WEB__PORT", "127.0.0.1", number)


def test_a_host_that_is_none_of_ours_is_refused() -> None:
    with pytest.raises(StackError, match=r"of 192\.0\.2\.1 cannot be used for the backend"):
        free_port("backend", "ELNET_WEB__PORT", "192.0.2.1", 0)
