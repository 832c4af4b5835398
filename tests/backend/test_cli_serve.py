from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import backend.cli
from active_learning.ledger import Ledger
from backend import (
    accounts,
    demo,
    label_studio,
    label_studio_install,
    prefill_worker,
    train_worker,
    up,
    worker,
)
from backend.cli import serve_commands
from backend.demo import DemoPlan
from backend.label_studio_install import InstallError
from model.errors import ELNetError

Elnet = Callable[..., Any]


@pytest.fixture(autouse=True)
def surroundings(own_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serve_commands, "start_logging", lambda settings: None)


def test_help_of_every_command_needs_no_torch() -> None:
    code = (
        "import sys\nfrom backend.cli import COMMANDS, main\n"
        "for name in COMMANDS:\n"
        "    sys.argv = ['elnet', name, '--help']\n"
        "    try:\n        main()\n    except SystemExit as end:\n        assert not end.code, name\n"
        "heavy = {'torch', 'dbos', 'label_studio_sdk', 'altair', 'sam2'} & sys.modules.keys()\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") == len(backend.cli.COMMANDS)


@pytest.mark.parametrize(
    ("group", "names"),
    [
        ("project", ["create", "list"]),
        ("cycles", ["log", "cancel", "resume"]),
        ("models", ["promote", "rollback"]),
        ("threshold", ["set", "undo", "history"]),
        ("ledger", ["upgrade"]),
        ("users", ["add", "role", "password", "disable", "enable", "remove", "log", "token"]),
        ("label-studio", ["install"]),
    ],
)
def test_help_of_a_group_lists_its_subcommands(group: str, names: list[str], elnet: Elnet) -> None:
    answer = elnet(group, "--help")
    assert answer.code == 0
    for name in names:
        assert f" {name} " in answer.out
        assert elnet(group, name, "--help").code == 0


def test_up_hands_on_what_was_said(elnet: Elnet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(up, "run_up", lambda *arguments: calls.append(arguments))
    assert elnet("up").code == 0
    options = ("--data", tmp_path, "--name", "spills", "--classes", "oil, ship", "--labelled-share", "0.5")
    assert elnet("up", *options).code == 0
    assert [call[1:] for call in calls] == [
        (None, None, None, 0.4),
        (tmp_path, "spills", ["oil", "ship"], 0.5),
    ]
    assert calls[0][0].state == tmp_path
    assert elnet("up", "--labelled-share", "1.5").code == 2


@pytest.mark.parametrize(
    ("options", "started"),
    [
        ((), ("all", False)),
        (("--standby",), ("all", True)),
        (("--queues", "all"), ("all", False)),
        (("--queues", "label-studio,prefill"), ("without cycles", False)),
        (("--queues", "label-studio,prefill", "--standby"), ("without cycles", True)),
        (("--queues", "prefill"), ("prefill", None)),
        (("--queues", "train"), ("train", None)),
    ],
)
def test_a_worker_does_all_or_a_part(
    options: tuple[str, ...], started: tuple[str, bool | None], elnet: Elnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[tuple[str, bool | None]] = []
    monkeypatch.setattr(label_studio.LabelStudio, "from_settings", lambda _settings: object())
    monkeypatch.setenv("ELNET_DATABASE_URL", "postgresql://elnet@127.0.0.1:9/elnet")  # none is asked

    def run(started: worker.Worker, *, standby: bool) -> None:
        calls.append(("all" if started._jobs else "without cycles", standby))

    monkeypatch.setattr(worker.Worker, "run", run)
    monkeypatch.setattr(train_worker.TrainWorker, "run", lambda _self: calls.append(("train", None)))
    monkeypatch.setattr(prefill_worker.PrefillWorker, "run", lambda _self: calls.append(("prefill", None)))
    answer = elnet("worker", *options)
    assert answer.code == 0, answer.err
    assert calls == [started]


def test_a_queue_that_does_not_exist_is_refused(elnet: Elnet) -> None:
    answer = elnet("worker", "--queues", "cycles")
    assert answer.code == 2
    assert "'cycles' is not one of" in answer.err


@pytest.mark.parametrize("queues", ["prefill", "train"])
def test_helpers_do_not_stand_by(queues: str, elnet: Elnet) -> None:
    answer = elnet("worker", "--queues", queues, "--standby")
    assert answer.code == 2
    assert "none needs to stand by" in " ".join(answer.err.split())


def test_a_worker_that_only_trains_needs_postgresql(elnet: Elnet) -> None:
    answer = elnet("worker", "--queues", "train")
    assert (answer.code, answer.out) == (1, "")
    assert "needs a ledger in PostgreSQL" in answer.err


def test_demo_hands_on_what_was_said(elnet: Elnet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls: list[tuple[Any, ...]] = []
    monkeypatch.setattr(demo, "run_demo", lambda *arguments: calls.append(arguments))
    assert elnet("demo").code == 0
    assert elnet("demo", "--data", tmp_path, "--out", "o", "--cycles", 2, "--limit", 9, "--seed", 5).code == 0
    assert calls == [
        (None, Path("demo-report"), DemoPlan()),
        (tmp_path, Path("o"), DemoPlan(cycles=2, limit=9, seed=5)),
    ]
    assert elnet("demo", "--cycles", 0).code == 2


def raising(error: BaseException) -> Callable[..., None]:
    def run(*_: object) -> None:
        raise error

    return run


@pytest.mark.parametrize("command", ["up", "demo"])
def test_ctrl_c_is_one_line_and_130(command: str, elnet: Elnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "run_up", raising(KeyboardInterrupt()))
    monkeypatch.setattr(demo, "run_demo", raising(KeyboardInterrupt()))
    answer = elnet(command)
    assert (answer.code, answer.out, answer.err) == (130, "", "elnet: stopped by Ctrl-C\n")


def test_ctrl_c_while_a_command_is_imported(elnet: Elnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backend.cli, "load", raising(KeyboardInterrupt()))
    answer = elnet("up")
    assert (answer.code, answer.out, answer.err) == (130, "", "elnet: stopped by Ctrl-C\n")


@pytest.mark.parametrize("command", ["up", "demo"])
def test_ctrl_c_of_a_real_process(command: str, tmp_path: Path) -> None:
    code = (
        "import sys, time, types\nfrom backend.cli import main\n"
        "def run(*_):\n    print('running', flush=True)\n    time.sleep(60)\n"
        # stand-ins, so that nothing heavy is imported: only the way of the signal is looked at
        "up = types.SimpleNamespace(run_up=run)\n"
        "demo = types.SimpleNamespace(run_demo=run, DemoPlan=dict)\n"
        "sys.modules['backend.up'], sys.modules['backend.demo'] = up, demo\n"
        f"sys.argv = ['elnet', {command!r}]\nmain()"
    )
    env = {**os.environ, "ELNET_STATE": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-c", code], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert err == "elnet: stopped by Ctrl-C\n"


@pytest.mark.parametrize("command", ["up", "demo"])
def test_what_does_not_start_is_one_line(command: str, elnet: Elnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(up, "run_up", raising(ELNetError("the port is taken")))
    monkeypatch.setattr(demo, "run_demo", raising(ELNetError("the port is taken")))
    answer = elnet(command)
    assert (answer.code, answer.out, answer.err) == (1, "", "elnet: error: the port is taken\n")


@pytest.mark.parametrize("command", ["up", "web", "worker"])
def test_wrong_settings_are_named(command: str, elnet: Elnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELNET_WEB__PORT", "many")
    answer = elnet(command)
    assert (answer.code, answer.out) == (1, "")
    assert "ELNET_WEB__PORT: " in answer.err


def test_web_becomes_gunicorn_and_is_never_open(elnet: Elnet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ELNET_WEB__PORT", "9191")
    became: list[tuple[str, list[str], dict[str, str]]] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: became.append(arguments))
    assert elnet("web").code == 0
    ((program, command, env),) = became
    assert program == sys.executable
    assert command[1:3] == ["-m", "gunicorn"]
    assert "127.0.0.1:9191" in command
    assert len(env["ELNET_WEB__PASSWORD"]) > 20
    assert len(env["ELNET_WEB__WEBHOOK_SECRET"]) > 20


def test_the_first_start_makes_an_admin_and_says_so_once(
    elnet: Elnet, ledger: Ledger, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(os, "execve", lambda *_: None)
    caplog.set_level("DEBUG")
    said = elnet("web").out
    address, invitation = said.splitlines()
    assert address == "The desk: http://127.0.0.1:9090/desk/"
    found = re.fullmatch(r"sign in there as admin with the one-time password (\S+)", invitation)
    assert found, said
    assert found[1] not in caplog.text
    again = elnet("web")
    assert (again.out, again.err) == ("", "")
    user = accounts.sign_in(ledger, "admin", found[1], None)
    assert user is not None
    assert user.role == "admin"


def test_where_no_desk_is_served_no_admin_is_made(
    elnet: Elnet, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ELNET_DESK__ENABLED", "false")
    monkeypatch.setattr(os, "execve", lambda *_: None)
    assert elnet("web").out == ""
    with ledger.session(write=False) as session:
        assert accounts.users(session) == []


def test_web_starts_without_a_ledger_and_says_what_is_missing(
    elnet: Elnet, monkeypatch: pytest.MonkeyPatch
) -> None:
    became: list[object] = []
    monkeypatch.setattr(os, "execve", lambda *arguments: became.append(arguments))
    answer = elnet("web")
    assert (answer.code, answer.out, len(became)) == (0, "", 1)
    assert "elnet ledger upgrade" in answer.err


def test_a_worker_needs_label_studio_and_a_ledger(elnet: Elnet, monkeypatch: pytest.MonkeyPatch) -> None:
    answer = elnet("worker")
    assert (answer.code, answer.out) == (1, "")
    assert "ELNET_LABEL_STUDIO__URL" in answer.err
    monkeypatch.setenv("ELNET_LABEL_STUDIO__URL", "http://127.0.0.1:9")
    monkeypatch.setenv("ELNET_LABEL_STUDIO__TOKEN", "0" * 40)
    answer = elnet("worker")
    assert (answer.code, answer.out) == (1, "")
    assert "there is no ledger at" in answer.err


def test_label_studio_is_installed(elnet: Elnet, monkeypatch: pytest.MonkeyPatch) -> None:
    def install(*, say: Callable[[str], None]) -> Path:
        say("Installing")
        return Path("/somewhere/bin/label-studio")

    monkeypatch.setattr(label_studio_install, "install", install)
    answer = elnet("label-studio", "install")
    assert (answer.code, answer.err) == (0, "Installing\n")
    assert answer.out.startswith("/somewhere/bin/label-studio (")

    def refuse(*, say: Callable[[str], None]) -> Path:
        raise InstallError("no network")

    monkeypatch.setattr(label_studio_install, "install", refuse)
    answer = elnet("label-studio", "install")
    assert (answer.code, answer.out, answer.err) == (1, "", "elnet: error: no network\n")
