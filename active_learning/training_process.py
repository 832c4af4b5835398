"""Training in a child process: its memory, its crashes and its death are its own.

The child holds the read end of a pipe whose write end only the
worker has: when the worker dies, however it dies, the pipe closes and the child ends itself, so no orphan
goes on training. (Linux could do the same by prctl, but that follows the death of the *thread* that started
the child, and no other system has it.)
"""

from __future__ import annotations

import json
import os
import queue
import runpy
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import IO, Any, cast

import model
from model.errors import ELNetError

CHECK_S = 0.5  # how often the caller is asked whether to go on
GRACE_S = 5.0  # from SIGTERM to SIGKILL
_TAIL_BYTES = 4096


class TrainingFailedError(ELNetError):
    """The training process did not end well; the text says how and where its log is."""


def run_training(
    arguments: Sequence[str],
    *,
    log: Path,
    progress: Callable[[Mapping[str, Any]], None],
    check: Callable[[], None],
    module: str = "model.training",
) -> None:
    """Train in a child process and wait for it.

    Args:
        arguments: of the module.
        log: everything that the child says besides its progress is appended here.
        progress: called with each JSON line of the child, in the caller's thread.
        check: called every `CHECK_S` seconds; whatever it raises stops the child and goes on to the caller.
        module: what the child runs, as `python -m` would.

    Raises:
        TrainingFailedError: the child could not be started, ended with an error, or was killed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as said:
        start = log.stat().st_size
        child = _start([module, *arguments], said)
        try:
            error = _follow(child, said, progress, check)
        finally:
            _stop(child)
    if child.returncode or error:
        raise TrainingFailedError(f"{_why(child.returncode, error, log, start)} (log: {log})")


def _start(arguments: Sequence[str], said: IO[bytes]) -> subprocess.Popen[bytes]:
    package_root = str(Path(next(iter(model.__path__))).parent)  # also where it is not installed
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"},
            start_new_session=True,  # Ctrl-C in a terminal is the worker's to handle
        )
    except OSError as error:
        raise TrainingFailedError(f"the training process could not be started: {error}") from error


def _follow(
    child: subprocess.Popen[bytes],
    said: IO[bytes],
    progress: Callable[[Mapping[str, Any]], None],
    check: Callable[[], None],
) -> str | None:
    """Pass progress on until the child's output ends; the error that it reported, if any."""
    lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()

    def read() -> None:
        for line in cast(IO[bytes], child.stdout):
            lines.put(line)
        lines.put(None)

    reader = threading.Thread(target=read, name="training-output", daemon=True)
    reader.start()
    error: str | None = None
    while True:
        check()
        try:
            line = lines.get(timeout=CHECK_S)
        except queue.Empty:
            continue
        if line is None:
            break
        message = _parse(line)
        if message is None:
            said.write(line)
            said.flush()
        elif "error" in message:
            error = str(message["error"])
        else:
            progress(message)
    while child.poll() is None:  # its output is closed, but it may still be tidying up
        check()
        try:
            child.wait(CHECK_S)
        except subprocess.TimeoutExpired:
            continue
    return error


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        message = json.loads(line)
    except ValueError:
        return None
    return message if isinstance(message, dict) else None


def _stop(child: subprocess.Popen[bytes]) -> None:
    """End the child if it still runs, and close the pipes."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGTERM)  # the group: loader processes of its own go with it
        try:
            child.wait(GRACE_S)
        except subprocess.TimeoutExpired:
            os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    cast(IO[bytes], child.stdin).close()
    cast(IO[bytes], child.stdout).close()


def _why(code: int, error: str | None, log: Path, start: int) -> str:
    if error:
        return f"training failed: {error}"
    if code < 0:
        name = signal.Signals(-code).name
        memory = ", most likely because the machine ran out of memory; lower batch_size or size in the "
        memory += "project's training settings"
        return f"training was ended by {name}{memory if name == 'SIGKILL' else ''}"
    return f"training ended with exit code {code}: {_last_line(log, start)}"


def _last_line(log: Path, start: int) -> str:
    """The last thing that was said in the log since byte `start`."""
    with log.open("rb") as said:
        said.seek(max(start, log.stat().st_size - _TAIL_BYTES))
        lines = said.read().decode("utf-8", "replace").replace("\r", "\n").split("\n")
    return next((line.strip() for line in reversed(lines) if line.strip()), "it said nothing")


def _end_with_the_worker() -> None:
    """Wait until the worker's end of the pipe is closed, then end at once.

    `os.read`, not `sys.stdin`: its lock would be held at the interpreter's shutdown.
    """
    while os.read(0, 1):
        pass
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=_end_with_the_worker, name="end-with-the-worker", daemon=True).start()
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
