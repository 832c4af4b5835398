"""Label Studio, backend and worker on this machine: started together, watched, stopped together."""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
from collections.abc import Iterator
from types import FrameType, TracebackType

import httpx
from pydantic import SecretStr

from active_learning.ledger import Ledger
from backend.accounts import add_first_admin
from backend.child import Child, StackError, environment, free_port
from backend.embedded import EmbeddedLabelStudio
from backend.running import forget_running, note_running, with_secrets
from backend.settings import Settings, WebSettings

_START_WITHIN_S = 60.0


class Stack:
    """The backend and the worker of `settings`, with an embedded Label Studio where no server is named.

    After `start`, `settings` names the addresses, tokens and secrets that are in force. `admin_password` is
    the one-time password of the desk's first user, where this start made one.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self.admin_password: str | None = None
        self._label_studio: EmbeddedLabelStudio | None = None
        self._children: list[Child] = []
        self._signals = contextlib.ExitStack()

    def __enter__(self) -> Stack:
        self._signals.enter_context(_ended_by_signals())
        try:
            self.start()
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        finally:
            self._signals.close()

    def start(self) -> None:
        """Start Label Studio, then the backend, then the worker; Label Studio and the backend are waited for.

        Raises:
            StackError: the backend did not come up; the text ends with its last lines of output.
            ELNetError: Label Studio or the ledger did not.
        """
        settings = with_secrets(self.settings)
        web = settings.web
        port = free_port("backend", "ELNET_WEB__PORT", web.host, web.port)
        settings = settings.model_copy(update={"web": web.model_copy(update={"port": port})})
        self.settings = self._with_label_studio(settings)
        with Ledger(self.settings.ledger_url) as ledger:
            ledger.upgrade()
            if settings.desk.enabled:  # not by the backend itself, whose output goes to a log
                self.admin_password = add_first_admin(ledger)
        backend = self._child("web")
        backend.start()
        _wait_until_healthy(backend, f"{_loopback_url(self.settings.web)}/health")
        self._child("worker").start()
        note_running(self.settings)

    def mend(self) -> list[str]:
        """Start again what died, and return when Label Studio answers. Call it every now and then.

        Returns:
            The names of those that were started again, each with its last line of output.
        """
        mended = []
        label_studio = self._label_studio
        if label_studio is not None and not label_studio.is_running():
            mended.append(f"label-studio: {label_studio.last_lines(1)}")
            label_studio.stop()
            label_studio.start()
        for child in self._children:
            status = child.exit_status()
            if status is not None:
                mended.append(f"{child.name} (exit status {status}): {child.last_lines(1)}")
                child.kill()
                child.start()
        return mended

    def check(self) -> None:
        """Raise if one of them died.

        Raises:
            StackError: with the end of its log.
        """
        if self._label_studio is not None and not self._label_studio.is_running():
            raise StackError(f"Label Studio stopped:\n{self._label_studio.last_lines()}")
        for child in self._children:
            status = child.exit_status()
            if status is not None:
                raise StackError(
                    f"The {child.name} stopped with exit status {status}. The end of {child.log}:\n"
                    f"{child.last_lines()}"
                )

    def kill(self, name: str) -> None:
        """SIGKILL "web" or "worker", as a power cut would, or stop "label-studio"; `mend` starts it again."""
        if name == "label-studio" and self._label_studio is not None:
            self._label_studio.stop()
        for child in self._children:
            if child.name == name:
                child.kill()

    def stop(self) -> None:
        """Stop them in the opposite order. Safe to repeat."""
        forget_running(self.settings)
        while self._children:
            self._children.pop().stop()
        if self._label_studio is not None:
            self._label_studio.stop()
            self._label_studio = None

    def _with_label_studio(self, settings: Settings) -> Settings:
        section = settings.label_studio
        if section.url is not None:
            return settings
        if section.port == 0:  # chosen here, so that `mend` brings it back where the others look for it
            port = free_port("Label Studio", "ELNET_LABEL_STUDIO__PORT", section.host, 0)
            section = section.model_copy(update={"port": port})
            settings = settings.model_copy(update={"label_studio": section})
        self._label_studio = EmbeddedLabelStudio(settings)
        self._label_studio.start()
        values = {
            "url": self._label_studio.url,
            "token": SecretStr(self._label_studio.token),
            "machine_token": SecretStr(self._label_studio.machine_token),
        }
        return settings.model_copy(update={"label_studio": section.model_copy(update=values)})

    def _child(self, name: str) -> Child:
        log_file = self.settings.state / "logs" / f"{name}.log"
        child = Child(name, [sys.executable, "-m", "backend.cli", name], environment(self.settings), log_file)
        self._children.append(child)
        return child


def _loopback_url(web: WebSettings) -> str:
    """Where a server that may listen everywhere is found from here."""
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(web.host, web.host)  # noqa: S104
    return f"http://{f'[{host}]' if ':' in host else host}:{web.port}"


@contextlib.contextmanager
def _ended_by_signals() -> Iterator[None]:
    """SIGTERM and a closed terminal end this process like Ctrl-C: its servers, in groups of their own, stop.

    The second signal is ignored, so that the stopping is not cut short.
    """

    def end(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_IGN)
        sys.exit(128 + number)

    if threading.current_thread() is not threading.main_thread():  # only that one hears signals
        yield
        return
    heard = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) is not signal.SIG_IGN]  # nohup
    before = {number: signal.signal(number, end) for number in heard}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


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
