"""A process of the stack: started under given settings, in a group of its own, and ended with all of it."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pydantic import BaseModel, SecretStr

from backend import end_with_parent
from backend.settings import Settings
from model.errors import ELNetError

_STOP_WITHIN_S = 20.0


class StackError(ELNetError):
    """A server of the stack did not start, or died."""


def free_port(name: str, setting: str, host: str, port: int) -> int:
    """`port`, if nobody listens there; any free one for 0.

    Raises:
        StackError: somebody does, or `host` is no address of this machine.
    """
    try:
        with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            return int(probe.getsockname()[1])
    except OSError as error:
        raise StackError(
            f"Port {port} of {host} cannot be used for the {name}: {error.strerror}. "
            f"Is it running already? {setting}=0 takes any free port."
        ) from error


def environment(settings: Settings) -> dict[str, str]:
    """The process environment under which `Settings()` gives these very settings again."""
    inherited = {name: value for name, value in os.environ.items() if not _is_setting(name)}
    return inherited | dict(_flatten("ELNET", settings))


def _is_setting(name: str) -> bool:
    fields = {f"ELNET_{field_name.upper()}" for field_name in Settings.model_fields} | {"ELNET_CONFIG"}
    name = name.upper()  # settings are read from names in any case
    return name in fields or any(name.startswith(f"{prefix}__") for prefix in fields)


def _flatten(prefix: str, model: BaseModel) -> Iterator[tuple[str, str]]:
    separator = "_" if prefix == "ELNET" else "__"
    for name, described in type(model).model_fields.items():
        key, value = f"{prefix}{separator}{name.upper()}", getattr(model, name)
        if isinstance(value, BaseModel):
            yield from _flatten(key, value)
        elif isinstance(value, SecretStr):
            yield key, value.get_secret_value()
        elif value is not None:
            yield key, json.dumps(value) if isinstance(value, list | dict) else str(value)
        elif described.get_default() is not None:  # else the child would take the default
            yield key, "none"


@dataclass(slots=True)
class Child:
    """One process of ours and how to know that it works."""

    name: str
    command: list[str]
    env: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    _watcher: subprocess.Popen[bytes] | None = field(default=None, repr=False)

    def start(self) -> None:
        """Start the process in a group of its own, to end when this one does; its output goes to `log`."""
        self._unwatch()
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
        self._watcher = subprocess.Popen(
            [sys.executable, "-m", end_with_parent.__name__, str(self.process.pid)],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def exit_status(self) -> int | None:
        """The exit status, or None while it runs."""
        return None if self.process is None else self.process.poll()

    def stop(self) -> None:
        """SIGTERM, then SIGKILL to what is left of the group; a second Ctrl-C does not wait for that."""
        if self.process is None:
            return
        self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired, KeyboardInterrupt):
            self.process.wait(_STOP_WITHIN_S)
        self.kill()

    def kill(self) -> None:
        """SIGKILL to the whole group, also to what the process left behind when it died."""
        if self.process is None:
            return
        self._unwatch()
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def last_lines(self, count: int = 15) -> str:
        """The end of the log."""
        if not self.log.is_file():
            return "(no output)"
        return "\n".join(self.log.read_text(errors="replace").splitlines()[-count:])

    def _unwatch(self) -> None:
        if self._watcher is not None:
            self._watcher.kill()
            self._watcher.communicate()  # closes the pipe as well
            self._watcher = None
