"""The embedded Label Studio: started from its own environment, with its data in the state folder.

What it is told differs from its defaults in three ways. It may call the backend at a local address, which is
refused by default. Legacy tokens work, for it hands one to the backend. It connects to nothing outside.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import IO

import httpx

from backend.credentials import Credentials
from backend.label_studio_accounts import MACHINE_EMAIL, AccountError, Accounts
from backend.label_studio_install import InstallError, find_program, install, migrated_database
from backend.settings import Settings
from model.errors import ELNetError

__all__ = ["EmbeddedError", "EmbeddedLabelStudio", "InstallError", "install"]

_START_WITHIN_S = 300.0  # with migrations, on a slow disk
_STOP_WITHIN_S = 10.0
_DATABASE = "label_studio.sqlite3"
# Local and private addresses are allowed, for there the backend is. These stay forbidden: addresses that mean
# "this host" without saying so, the metadata services of clouds, multicast and what is reserved.
_BANNED = "0.0.0.0/8,169.254.0.0/16,224.0.0.0/4,240.0.0.0/4,fe80::/10,ff00::/8"
_SET_PASSWORD = """
import os
from label_studio.server import _setup_env
_setup_env()
from users.models import User
user = User.objects.get(email=os.environ["ELNET_EMAIL"])
user.set_password(os.environ["ELNET_PASSWORD"])
user.save()
"""  # noqa: S105 - a script, not a password


class EmbeddedError(ELNetError):
    """The embedded Label Studio cannot be started; the text says why."""


class EmbeddedLabelStudio:
    """One Label Studio process and its users. As a context manager it is started and stopped.

    Args:
        settings: `state` holds its data, `label_studio` its host, port (0: a free one) and the lead's name.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._data = settings.state / "label-studio"
        self._log = self._data / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._held = contextlib.ExitStack()
        self._credentials: Credentials | None = None
        self._lock_file: IO[str] | None = None
        self._port = 0

    def __enter__(self) -> EmbeddedLabelStudio:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def url(self) -> str:
        """Its address, on the loopback where it listens everywhere."""
        host = self._settings.label_studio.host
        host = "127.0.0.1" if host in {"", "0.0.0.0"} else host  # noqa: S104 - compared, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def username(self) -> str:
        """The lead's email address, to sign in with."""
        return self._settings.label_studio.username

    @property
    def credentials(self) -> Credentials:
        """Passwords and tokens; only known once it was started.

        Raises:
            EmbeddedError: it was not.
        """
        if self._credentials is None:
            raise EmbeddedError("the embedded Label Studio was not started")
        return self._credentials

    @property
    def password(self) -> str:
        """The lead's password."""
        return self.credentials.password

    @property
    def token(self) -> str:
        """The lead's legacy token."""
        return self.credentials.token

    @property
    def machine_token(self) -> str:
        """Legacy token of the user under whom masks are accepted."""
        return self.credentials.machine_token or ""

    @property
    def log(self) -> Path:
        """What the server printed since it was last started."""
        return self._log

    def start(self) -> None:
        """Start it, and return when it answers and both users can work.

        The first start makes the database, 3 seconds from the migrated one of `install`. Later starts find
        everything as it was left.

        Raises:
            InstallError: it is not installed.
            EmbeddedError: the port is taken, the folder cannot be written or is in use, or the server died;
                then with its last lines.
            AccountError: its users are not those of secrets.json.
        """
        if self._process is not None:
            return
        program = find_program()
        self._credentials = Credentials.load(self._settings.state)
        try:
            self._prepare(program)
            self._port = self._choose_port()
            self._spawn(program)
            self._wait()
            self._credentials = self._settle(program)
            self._credentials.save(self._settings.state)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the whole process group. Safe to repeat."""
        process, self._process = self._process, None
        if process is not None:
            _end_group(process.pid, lambda: process.poll() is not None)
            process.wait()
        self._held.close()

    def is_running(self) -> bool:
        """Whether the process lives."""
        return self._process is not None and self._process.poll() is None

    def last_lines(self, count: int = 15) -> str:
        """The end of what it printed."""
        try:
            return "\n".join(self._log.read_text(errors="replace").splitlines()[-count:])
        except OSError:
            return "(no output)"

    def _prepare(self, program: Path) -> None:
        """Folders, the lock on them, and a migrated database."""
        try:
            self._data.mkdir(parents=True, exist_ok=True)
            self._settings.media_root.mkdir(parents=True, exist_ok=True)
            self._held.enter_context(self._locked())
            database = self._data / _DATABASE
            if not database.exists():
                part = database.with_suffix(".part")
                shutil.copyfile(migrated_database(program), part)
                part.replace(database)
        except OSError as error:
            raise EmbeddedError(
                f"Label Studio's folder {error.filename or self._data} cannot be written ({error.strerror}); "
                "make room or take the right to write, or let ELNET_STATE name another folder"
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        """Hold the data folder, together with the server, which inherits the lock.

        So a server that was left behind by a killed parent still holds it; it is ended here.
        """
        with (self._data / "server.lock").open("a+") as file:
            if not _try_lock(file):
                self._end_orphan(file)
            file.seek(0)
            file.truncate()
            self._lock_file = file
            yield

    def _end_orphan(self, file: IO[str]) -> None:
        """End the server that holds the folder if whoever started it is gone.

        Raises:
            EmbeddedError: it is not gone.
        """
        file.seek(0)
        server, _, parent = file.read().partition(" ")
        if not (server.isdigit() and parent.isdigit()) or _is_alive(int(parent)):
            raise EmbeddedError(
                f"a Label Studio already runs on {self._data} (started by process {parent or 'unknown'}); "
                "stop it first, or let ELNET_STATE name another folder"
            )
        _end_group(int(server), lambda: _try_lock(file))
        if not _try_lock(file):
            raise EmbeddedError(f"a Label Studio that was left behind (process {server}) cannot be ended")

    def _choose_port(self) -> int:
        """The port of the settings, or a free one.

        Raises:
            EmbeddedError: somebody listens there, or the host is not an address of this machine.
        """
        host, port = self._settings.label_studio.host, self._settings.label_studio.port
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                raise EmbeddedError(
                    f"Label Studio cannot listen on {host}:{port} ({error.strerror}); stop what listens "
                    "there, or set ELNET_LABEL_STUDIO__PORT (0: any free port)"
                ) from error
            return int(probe.getsockname()[1])

    def _environment(self) -> dict[str, str]:
        """All that the server is told.

        Nothing is inherited but what a program needs: Label Studio also listens to names without a prefix,
        such as HOST and DEBUG, and a proxy would stand between it and the backend.
        """
        wanted = ("PATH", "HOME", "LANG", "LC_ALL", "TZ", "TMPDIR")
        return {name: os.environ[name] for name in wanted if name in os.environ} | {
            "PYTHONUNBUFFERED": "1",
            "PYTHONWARNINGS": "ignore",
            **{f"LABEL_STUDIO_{name}": value for name, value in self._options().items()},
        }

    def _options(self) -> dict[str, str]:
        return {
            "HOST": "",
            "DEBUG": "false",
            "DJANGO_DB": "sqlite",
            "BASE_DATA_DIR": str(self._data.resolve()),
            "DATABASE_NAME": str(self._data.resolve() / _DATABASE),
            "USERNAME": self.username,
            "PASSWORD": self.credentials.password,
            "USER_TOKEN": self.credentials.token,
            "ENABLE_LEGACY_API_TOKEN": "true",
            "DISABLE_SIGNUP_WITHOUT_LINK": "true",
            "LOCAL_FILES_SERVING_ENABLED": "true",
            "LOCAL_FILES_DOCUMENT_ROOT": str(self._settings.media_root.resolve()),
            "USE_DEFAULT_BANNED_SUBNETS": "false",
            "USER_ADDITIONAL_BANNED_SUBNETS": _BANNED,
            "COLLECT_ANALYTICS": "false",
            "LATEST_VERSION_CHECK": "false",
            "SENTRY_DSN": "",
            "FRONTEND_SENTRY_DSN": "",
        }

    def _spawn(self, program: Path) -> None:
        assert self._lock_file is not None  # noqa: S101 - `_prepare` opened it
        command = [
            *(str(program.absolute()), "start", "--no-browser"),
            *("--internal-host", self._settings.label_studio.host, "--port", str(self._port)),
        ]
        with self._log.open("wb") as out:
            self._process = subprocess.Popen(
                command,
                env=self._environment(),
                cwd=self._data,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                pass_fds=[self._lock_file.fileno()],
            )
        self._lock_file.write(f"{self._process.pid} {os.getpid()}")
        self._lock_file.flush()

    def _wait(self) -> None:
        """Until /health answers.

        Raises:
            EmbeddedError: the process died, or is silent for too long.
        """
        end = time.monotonic() + _START_WITHIN_S
        while time.monotonic() < end:
            if not self.is_running():
                raise EmbeddedError(f"Label Studio died while starting:\n{self.last_lines()}")
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/health", timeout=5, trust_env=False).is_success:
                    return
            time.sleep(0.1)
        raise EmbeddedError(
            f"Label Studio does not answer at {self.url} after {_START_WITHIN_S:.0f} s:\n{self.last_lines()}"
        )

    def _settle(self, program: Path) -> Credentials:
        """Both users with working tokens; passwords that do not fit (secrets.json was lost) are set anew."""
        accounts = Accounts(self.url, self.username)
        try:
            return accounts.settle(self.credentials)
        except AccountError:
            self._set_password(program, self.username, self.credentials.password)
            self._set_password(program, MACHINE_EMAIL, self.credentials.machine_password)
            return accounts.settle(self.credentials)

    def _set_password(self, program: Path, email: str, password: str) -> None:
        """In the database that is ours; a user who is not there is passed over."""
        subprocess.run(
            [str(program.resolve().parent / "python"), "-"],
            input=_SET_PASSWORD.encode(),
            env={**self._environment(), "ELNET_EMAIL": email, "ELNET_PASSWORD": password},
            capture_output=True,
            timeout=120,
            check=False,
        )


def _try_lock(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _end_group(group: int, has_ended: Callable[[], bool]) -> None:
    """SIGTERM to a process group, SIGKILL to what does not heed."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGTERM)
        end = time.monotonic() + _STOP_WITHIN_S
        while not has_ended() and time.monotonic() < end:
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)
