from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from backend.credentials import Credentials
from backend.running import ML_USERNAME, forget_running, note_running, running_settings, with_secrets
from backend.settings import LabelStudioSettings, Settings, SettingsError, WebSettings


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ELNET_STATE", str(tmp_path))
    return tmp_path


def stack_on(state: Path) -> Settings:
    """The settings of a stack that runs on this folder."""
    url = LabelStudioSettings(url="http://127.0.0.1:8099")
    return Settings(state=state, label_studio=url, web=WebSettings(host="127.0.0.2", port=9099))


def pid_of_the_dead() -> int:
    done = subprocess.Popen([sys.executable, "-S", "-c", ""])
    done.wait()
    return done.pid


def test_secrets_fill_only_what_is_not_set(tmp_path: Path) -> None:
    filled = with_secrets(Settings(state=tmp_path)).web
    kept = Credentials.load(tmp_path)
    assert filled.username == ML_USERNAME
    assert filled.password.get_secret_value() == kept.ml_password
    assert filled.webhook_secret.get_secret_value() == kept.webhook_secret
    desk = with_secrets(Settings(state=tmp_path)).desk
    assert desk.secret_key.get_secret_value() == kept.desk_key
    own = WebSettings(username="me", password=SecretStr("p"), webhook_secret=SecretStr("w"))
    assert with_secrets(Settings(state=tmp_path, web=own)).web == own


def test_commands_find_the_stack_that_runs(state: Path) -> None:
    note_running(stack_on(state))
    secrets = Credentials.load(state)
    secrets.with_tokens(machine_token="m" * 40).save(state)
    found = running_settings()
    assert found.label_studio.url == "http://127.0.0.1:8099"
    assert found.label_studio.token.get_secret_value() == secrets.token
    assert found.label_studio.machine_token.get_secret_value() == "m" * 40
    assert found.web_url == "http://127.0.0.2:9099"
    assert found.web.password.get_secret_value() == secrets.ml_password
    text = (state / "running.json").read_text()
    assert secrets.token not in text
    assert [path.name for path in state.glob(".part-*")] == []


def test_nothing_runs(state: Path) -> None:
    assert running_settings().label_studio.url is None
    assert running_settings().web.port == 9090
    note_running(stack_on(state))
    forget_running(stack_on(state))
    forget_running(stack_on(state))
    assert running_settings().label_studio.url is None


def test_a_machine_token_that_is_not_made_yet(state: Path) -> None:
    note_running(stack_on(state))
    assert running_settings().label_studio.machine_token is None


def test_what_a_killed_stack_left_behind_is_not_believed(state: Path) -> None:
    note_running(stack_on(state))
    book = json.loads((state / "running.json").read_text())
    (state / "running.json").write_text(json.dumps({**book, "pid": pid_of_the_dead()}))
    found = running_settings()
    assert (found.label_studio.url, found.web.port) == (None, 9090)


def test_another_processs_book_is_not_forgotten(state: Path) -> None:
    note_running(stack_on(state))
    book = json.loads((state / "running.json").read_text())
    assert book["pid"] == os.getpid()
    (state / "running.json").write_text(json.dumps({**book, "pid": 1}))
    forget_running(stack_on(state))
    assert running_settings().web.port == 9099  # process 1 lives, whoever owns it


def test_a_server_that_is_named_stays_and_the_backend_is_found(
    state: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note_running(stack_on(state))
    monkeypatch.setenv("ELNET_LABEL_STUDIO__URL", "http://tool.example")
    monkeypatch.setenv("ELNET_LABEL_STUDIO__TOKEN", "mine")
    found = running_settings()
    assert found.label_studio.url == "http://tool.example"
    assert found.label_studio.token.get_secret_value() == "mine"
    assert found.web.port == 9099


@pytest.mark.parametrize("text", ["", "{", "[]", '{"pid": 1}'])
def test_a_damaged_book_is_named(state: Path, text: str) -> None:
    (state / "running.json").write_text(text)
    with pytest.raises(SettingsError, match=r"running.json cannot be read .* remove the file"):
        running_settings()
    forget_running(Settings(state=state))
    assert (state / "running.json").exists()


def test_settings_that_are_wrong_are_named(state: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELNET_WEB__PORT", "many")
    with pytest.raises(SettingsError, match="ELNET_WEB__PORT"):
        running_settings()
