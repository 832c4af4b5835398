"""The embedded Label Studio: started from its own environment, with its data in the state folder."""

from __future__ import annotations

import contextlib
import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from types import TracebackType

import httpx

from backend.credentials import Credentials
from backend.folder_lock import FolderInUseError, FolderLock, end_group
from backend.label_studio_accounts import MACHINE_EMAIL, AccountError, Accounts
from backend.label_studio_environment import DATABASE, server_environment
from backend.label_studio_install import InstallError, find_program, install, migrated_database
from backend.settings import Settings
from model.errors import ELNetError

__all__ = ["EmbeddedError", "EmbeddedLabelStudio", "InstallError", "install"]

_START_WITHIN_S = 300.0  # with migrations, on a slow disk
_SET_PASSWORDS = """
import json, os
from label_studio.server import _setup_env
_setup_env()
from users.models import User
for email, password in json.loads(os.environ["ELNET_PASSWORDS"]).items():
    for user in User.objects.filter(email=email):
        user.set_password(password)
        user.save()
"""


class EmbeddedError(ELNetError):
    """The embedded Label Studio cannot be started; the text says why."""


class EmbeddedLabelStudio:
    """One Label Studio process and its users. As a context manager it is started and stopped.

    Args:
        settings: kept as `settings`; `state` holds its data, `label_studio` its host, port (0: a free one)
            and the lead's name.
    """

    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        self._data = settings.state / "label-studio"
        self._log = self._data / "server.log"
        self._process: subprocess.Popen[bytes] | None = None
        self._lock = FolderLock(self._data / "server.lock")
        self._lock_descriptor = -1
        self._credentials: Credentials | None = None
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
        host = self.settings.label_studio.host
        host = "127.0.0.1" if host in {"", "0.0.0.0"} else host  # noqa: S104 - compared, not bound
        return f"http://{f'[{host}]' if ':' in host else host}:{self._port}"

    @property
    def username(self) -> str:
        """The lead's email address, to sign in with."""
        return self.settings.label_studio.username

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
        self._credentials = Credentials.load(self.settings.state)
        try:
            self._prepare(program)
            self._port = self._choose_port()
            self._spawn(program)
            self._wait()
            self._credentials = self._settle(program)
            self._credentials.save(self.settings.state)
        except BaseException:
            self.stop()
            raise

    def stop(self) -> None:
        """Stop the whole process group. Safe to repeat."""
        process, self._process = self._process, None
        if process is not None:
            end_group(process.pid, lambda: process.poll() is not None)
            process.wait()
        self._lock.release()

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
            self.settings.media_root.mkdir(parents=True, exist_ok=True)
            self._lock_descriptor = self._lock.acquire()
            database = self._data / DATABASE
            if not database.exists():
                part = database.with_suffix(".part")
                shutil.copyfile(migrated_database(program), part)
                part.replace(database)
        except FolderInUseError as error:
            raise EmbeddedError(
                f"a Label Studio already runs on {self._data} (process {error.holder or 'unknown'} started "
                "it); stop it first, or let ELNET_STATE name another folder"
            ) from error
        except OSError as error:
            raise EmbeddedError(
                f"Label Studio's folder {error.filename or self._data} cannot be written ({error.strerror}); "
                "make room or take the right to write, or let ELNET_STATE name another folder"
            ) from error

    def _choose_port(self) -> int:
        """The port of the settings, or a free one.

        Raises:
            EmbeddedError: somebody listens there, or the host is not an address of this machine.
        """
        host, port = self.settings.label_studio.host, self.settings.label_studio.port
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
        return server_environment(self.settings, self.credentials, self._data)

    def _spawn(self, program: Path) -> None:
        command = [
            *(str(program.absolute()), "start", "--no-browser"),
            *("--internal-host", self.settings.label_studio.host, "--port", str(self._port)),
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
                pass_fds=[self._lock_descriptor],
            )
        self._lock.note(self._process.pid)

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
            self._set_passwords(program)
            return accounts.settle(self.credentials)

    def _set_passwords(self, program: Path) -> None:
        """Ours, in the database that is ours; a user who is not there is passed over."""
        passwords = {
            self.username: self.credentials.password,
            MACHINE_EMAIL: self.credentials.machine_password,
        }
        subprocess.run(
            [str(program.resolve().parent / "python"), "-"],
            input=_SET_PASSWORDS.encode(),
            env={**self._environment(), "ELNET_PASSWORDS": json.dumps(passwords)},
            capture_output=True,
            timeout=120,
            check=False,
        )
