"""Label Studio, backend and worker on this machine: started together, watched, stopped together."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import httpx
from pydantic import BaseModel, SecretStr

from active_learning.ledger import Ledger
from backend.embedded import EmbeddedLabelStudio
from backend.running import forget_running, note_running, with_secrets
from backend.settings import Settings
from model.errors import ELNetError

_START_WITHIN_S = 60.0
_STOP_WITHIN_S = 20.0


class StackError(ELNetError):
    """A server of the stack did not start, or died."""


def free_port(host: str) -> int:
    """A TCP port on `host` that nobody listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


def environment(settings: Settings) -> dict[str, str]:
    """The process environment under which `Settings()` gives these very settings again."""
    inherited = {name: value for name, value in os.environ.items() if not _is_setting(name)}
    return inherited | dict(_flatten("ELNET", settings))


def _is_setting(name: str) -> bool:
    fields = {f"ELNET_{field_name.upper()}" for field_name in Settings.model_fields} | {"ELNET_CONFIG"}
    return name in fields or any(name.startswith(f"{prefix}__") for prefix in fields)


def _flatten(prefix: str, model: BaseModel) -> Iterator[tuple[str, str]]:
    separator = "_" if prefix == "ELNET" else "__"
    for name in type(model).model_fields:
        key, value = f"{prefix}{separator}{name.upper()}", getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _flatten(key, value)
        elif isinstance(value, SecretStr):
            yield key, value.get_secret_value()
        elif value is not None:
            yield key, json.dumps(value) if isinstance(value, list | dict) else str(value)


@dataclass(slots=True)
class Child:
    """One process of ours and how to know that it works."""

    name: str
    command: list[str]
    env: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start the process in a group of its own; its output goes to `log`."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                self.command,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def exit_status(self) -> int | None:
        """The exit status, or None while it runs."""
        return None if self.process is None else self.process.poll()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to the whole group when it does not heed."""
        if self.process is None or self.process.poll() is not None:
            return
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_STOP_WITHIN_S)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def last_lines(self, count: int = 15) -> str:
        """The end of the log."""
        if not self.log.is_file():
            return "(no output)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])


class Stack:
    """The backend and the worker of `settings`, with an embedded Label Studio where no server is named.

    After `start`, `settings` names the addresses, tokens and secrets that are in force.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._label_studio: EmbeddedLabelStudio | None = None
        self._children: list[Child] = []

    def __enter__(self) -> Stack:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def start(self) -> None:
        """Start Label Studio, then the backend, then the worker; Label Studio and the backend are waited for.

        Raises:
            StackError: the backend did not come up; the text ends with its last lines of output.
            ELNetError: Label Studio or the ledger did not.
        """
        settings = with_secrets(self.settings)
        web = settings.web
        port = _own_port(web.host, web.port)
        settings = settings.model_copy(update={"web": web.model_copy(update={"port": port})})
        self.settings = self._with_label_studio(settings)
        with Ledger(self.settings.ledger_url) as ledger:
            ledger.upgrade()
        web = self._child("web")
        web.start()
        _wait_until_healthy(web, f"http://{self.settings.web.host}:{self.settings.web.port}/health")
        self._child("worker").start()
        note_running(self.settings)

    def mend(self) -> list[str]:
        """Start again what died. Call it every now and then.

        Returns:
            The names of those that were started again, each with its last line of output.
        """
        mended = []
        for child in self._children:
            status = child.exit_status()
            if status is not None:
                mended.append(f"{child.name} (exit status {status}): {child.last_lines(1)}")
                child.start()
        return mended

    def check(self) -> None:
        """Raise if one of them died.

        Raises:
            StackError: with the end of its log.
        """
        for child in self._children:
            status = child.exit_status()
            if status is not None:
                raise StackError(
                    f"The {child.name} stopped with exit status {status}. The end of {child.log}:\n"
                    f"{child.last_lines()}"
                )

    def kill_worker(self) -> None:
        """SIGKILL the worker, as a power cut would; `mend` starts it again."""
        for child in self._children:
            if child.name == "worker" and child.process is not None:
                os.killpg(child.process.pid, signal.SIGKILL)
                child.process.wait()

    def stop(self) -> None:
        """Stop them in the opposite order. Safe to repeat."""
        forget_running(self.settings)
        while self._children:
            self._children.pop().stop()
        if self._label_studio is not None:
            self._label_studio.stop()
            self._label_studio = None

    def _with_label_studio(self, settings: Settings) -> Settings:
        if settings.label_studio.url is not None:
            return settings
        self._label_studio = EmbeddedLabelStudio(settings)
        self._label_studio.start()
        values = {
            "url": self._label_studio.url,
            "token": SecretStr(self._label_studio.token),
            "machine_token": SecretStr(self._label_studio.machine_token),
        }
        return settings.model_copy(update={"label_studio": settings.label_studio.model_copy(update=values)})

    def _child(self, name: str) -> Child:
        log_file = self.settings.state / "logs" / f"{name}.log"
        child = Child(name, [sys.executable, "-m", "backend.cli", name], environment(self.settings), log_file)
        self._children.append(child)
        return child


def _own_port(host: str, port: int) -> int:
    """The port, if nobody listens there; any free one for 0."""
    if port == 0:
        return free_port(host)
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            raise StackError(
                f"Port {port} of {host} cannot be used for the backend: {error.strerror}. "
                "Is it running already? ELNET_WEB__PORT=0 takes any free port."
            ) from error
    return port


def _wait_until_healthy(child: Child, url: str) -> None:
    give_up = time.monotonic() + _START_WITHIN_S
    while time.monotonic() < give_up:
        if child.exit_status() is not None:
            break
        with contextlib.suppress(httpx.TransportError):
            if httpx.get(url, timeout=2, trust_env=False).status_code == httpx.codes.OK:
                return
        time.sleep(0.2)
    raise StackError(f"The {child.name} did not start. The end of {child.log}:\n{child.last_lines()}")
