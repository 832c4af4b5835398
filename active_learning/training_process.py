"""Training in a child process: its memory, its crashes and its death are its own.

The child holds the read end of a pipe whose write end only the worker has: when the worker dies, however it
dies, the pipe closes and the child ends itself, so no orphan goes on training. (Linux could do the same by
prctl, but that follows the death of the *thread* that started the child, and no other system has it.)

Where memory runs out, the kernel is told to end the child rather than the worker or Label Studio.
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
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final, cast

import psutil

import model
from model.distributed import shared_cores, torchrun_command
from model.errors import ELNetError

CHECK_S = 0.5  # how often the caller is asked whether to go on
GRACE_S = 5.0  # from SIGTERM to SIGKILL
MEMORY_S = 2.0  # how often its memory is measured
_TAIL_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Allowance:
    """What a training may take of its machine.

    Attributes:
        processes: that train together, one a GPU.
        memory_gb: of main memory, 10^9 bytes, all its processes together; None: what there is.
        hours: of one attempt; None: as many as it takes.
    """

    processes: int = 1
    memory_gb: float | None = None
    hours: float | None = None


UNLIMITED: Final = Allowance()


class TrainingFailedError(ELNetError):
    """The training process did not end well; the text says how and where its log is."""


def run_training(
    arguments: Sequence[str],
    *,
    log: Path,
    progress: Callable[[Mapping[str, Any]], None],
    check: Callable[[], None],
    module: str = "model.training_child",
    allowance: Allowance = UNLIMITED,
) -> None:
    """Train in a child process and wait for it.

    Args:
        arguments: of the module.
        log: everything that the child says besides its progress is appended here.
        progress: called with each JSON line of the child, in the caller's thread.
        check: called every `CHECK_S` seconds; whatever it raises stops the child and goes on to the caller.
        module: what the child runs, as `python -m` would.
        allowance: a child that takes more is stopped. What it has kept of its state stays.

    Raises:
        TrainingFailedError: the child could not be started, ended with an error, was killed, or took more.
    """
    if allowance.processes > 1:
        module, *arguments = torchrun_command(allowance.processes, module, arguments)[2:]
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as said:
        start = log.stat().st_size
        child = _start([module, *arguments], said, shared_cores(allowance.processes))
        limits = _Limits(child.pid, allowance)

        def check_all() -> None:
            check()
            limits.check()

        try:
            error = _follow(child, said, progress, check_all)
        finally:
            _stop(child)
    if child.returncode or error:
        raise TrainingFailedError(f"{_why(child.returncode, error, log, start)} (log: {log})")


class _Limits:
    """Looks at what a child takes."""

    def __init__(self, pid: int, allowance: Allowance) -> None:
        self._pid = pid
        self._allowance = allowance
        self._started = self._measured = time.monotonic()

    def check(self) -> None:
        """Raise `TrainingFailedError` if it is too much."""
        now, allowed = time.monotonic(), self._allowance
        if allowed.hours is not None and now - self._started > allowed.hours * 3600:
            raise TrainingFailedError(
                f"training was stopped after {allowed.hours:g} h, its limit (trainer.hours); raise that and "
                "resume the cycle, which goes on where training was, or set fewer epochs in the policy"
            )
        if allowed.memory_gb is None or now - self._measured < MEMORY_S:
            return
        self._measured = now
        taken = _memory(self._pid) / 1e9
        if taken > allowed.memory_gb:
            raise TrainingFailedError(
                f"training was stopped: it took {taken:.1f} GB of memory, and its limit (trainer.memory_gb) "
                f"is {allowed.memory_gb:g}; raise that, or set a lower batch_size or size in the policy"
            )


def _memory(pid: int) -> int:
    """Bytes that a process and its descendants hold; what they share counts once, where that can be told."""
    total = 0
    with suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        for process in [parent, *parent.children(recursive=True)]:
            with suppress(psutil.NoSuchProcess):
                held = process.memory_full_info()
                total += getattr(held, "pss", held.uss)
    return total


def _start(
    arguments: Sequence[str], said: IO[bytes], environment: Mapping[str, str]
) -> subprocess.Popen[bytes]:
    package_root = str(Path(next(iter(model.__path__))).parent)  # also where it is not installed
    paths = [package_root, *filter(None, [os.environ.get("PYTHONPATH")])]
    own = {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
    try:
        return subprocess.Popen(
            [sys.executable, "-m", __name__, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env={**os.environ, **environment, **own},
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


def _die_first() -> None:
    """Let the kernel take this process and its children before others when memory runs out (Linux)."""
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")


if __name__ == "__main__":
    _die_first()
    threading.Thread(target=_end_with_the_worker, name="end-with-the-worker", daemon=True).start()
    runpy.run_module(sys.argv.pop(1), run_name="__main__", alter_sys=True)
