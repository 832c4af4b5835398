"""A folder held by one server process, whoever started it; what was left behind is ended."""

from __future__ import annotations

import contextlib
import fcntl
import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

_END_WITHIN_S = 10.0


class FolderInUseError(Exception):
    """A server whose parent lives holds the folder. `holder` names the parent's process."""

    def __init__(self, holder: str) -> None:
        super().__init__(holder)
        self.holder = holder


class FolderLock:
    """A lock that the server inherits: it is held for as long as either process lives.

    So a server that outlives its killed parent still holds the folder; the next one ends it.

    Args:
        path: of the lock file.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: IO[str] | None = None

    def acquire(self) -> int:
        """Take the lock.

        Returns:
            A file descriptor to be passed to the server.

        Raises:
            FolderInUseError: another parent and its server hold it.
            OSError: the file cannot be written.
        """
        file = self._path.open("a+")
        try:
            if not _try(file):
                _end_orphan(file)
        except BaseException:
            file.close()
            raise
        self._file = file
        return file.fileno()

    def note(self, server: int) -> None:
        """Write down the server's process and ours, for whoever finds the folder in use."""
        if self._file is not None:
            self._file.truncate(0)
            self._file.write(f"{server} {os.getpid()}")
            self._file.flush()

    def release(self) -> None:
        """Let go. Safe to repeat."""
        file, self._file = self._file, None
        if file is not None:
            file.close()


def end_group(group: int, has_ended: Callable[[], bool], within_s: float = _END_WITHIN_S) -> None:
    """SIGTERM to a process group, SIGKILL to what does not heed."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(group, signal.SIGTERM)
        end = time.monotonic() + within_s
        while not has_ended() and time.monotonic() < end:
            time.sleep(0.05)
        os.killpg(group, signal.SIGKILL)


def _end_orphan(file: IO[str]) -> None:
    """End the server that holds the lock, if its parent is gone."""
    file.seek(0)
    server, _, parent = file.read().partition(" ")
    if not (server.isdigit() and parent.isdigit()) or _is_alive(int(parent)):
        raise FolderInUseError(parent)
    end_group(int(server), lambda: _try(file))
    if not _try(file):
        raise FolderInUseError(server)


def _try(file: IO[str]) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
