"""The child process: its progress, its end, and that it never outlives its worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from active_learning import training_process
from active_learning.training_process import UNLIMITED, Allowance, TrainingFailedError, run_training

Run = Callable[..., list[dict[str, Any]]]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a piece of Python as the training: `run("print('hello')")` returns its progress."""
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))

    def run(
        body: str,
        *arguments: str,
        check: Callable[[], None] = lambda: None,
        seen: list[dict[str, Any]] | None = None,
        allowance: Allowance = UNLIMITED,
    ) -> list[dict[str, Any]]:
        (tmp_path / "pretended.py").write_text("import json, os, sys, time\n" + textwrap.dedent(body))
        seen = [] if seen is None else seen
        log = tmp_path / "cycle" / "train.log"
        run_training(
            arguments,
            log=log,
            progress=lambda m: seen.append(dict(m)),
            check=check,
            module="pretended",
            allowance=allowance,
        )
        return seen

    return run


def test_progress_comes_as_it_is_printed_and_the_rest_goes_to_the_log(run: Run, tmp_path: Path) -> None:
    seen = run(
        """
        print(json.dumps({"epoch": 1, "loss": 0.5}))
        print("not for the ledger")
        print("a warning", file=sys.stderr)
        print(json.dumps({"arguments": sys.argv[1:], "name": __name__}))
        """,
        "--data",
        "here",
    )
    assert seen == [{"epoch": 1, "loss": 0.5}, {"arguments": ["--data", "here"], "name": "__main__"}]
    assert sorted((tmp_path / "cycle" / "train.log").read_text().split("\n")) == [
        "",
        "a warning",
        "not for the ledger",
    ]


def test_progress_arrives_before_the_end(run: Run) -> None:
    seen: list[dict[str, Any]] = []

    def check() -> None:
        if seen:
            raise InterruptedError  # else it would sleep for a minute

    started = time.monotonic()
    with pytest.raises(InterruptedError):
        run("print(json.dumps({'epoch': 1})); time.sleep(60)", check=check, seen=seen)
    assert time.monotonic() - started < 20


def test_a_reported_error_is_the_reason(run: Run) -> None:
    with pytest.raises(TrainingFailedError, match=r"training failed: no pairs in /data .*train\.log"):
        run("print(json.dumps({'error': 'no pairs in /data'})); sys.exit(1)")


def test_a_crash_ends_with_the_last_thing_that_was_said(run: Run) -> None:
    with pytest.raises(TrainingFailedError, match="exit code 1: ValueError: what a pity"):
        run("raise ValueError('what a pity')")


def test_only_this_attempt_counts_for_the_reason(run: Run) -> None:
    with pytest.raises(TrainingFailedError):
        run("sys.exit('the first attempt')")
    with pytest.raises(TrainingFailedError, match="exit code 7: it said nothing"):
        run("sys.exit(7)")


def test_sigkill_is_told_as_what_it_mostly_is(run: Run) -> None:
    with pytest.raises(TrainingFailedError, match=r"SIGKILL, most likely because .* ran out of memory"):
        run("os.kill(os.getpid(), 9)")


def test_another_signal_is_named(run: Run) -> None:
    with pytest.raises(TrainingFailedError, match=r"ended by SIGSEGV \(log"):
        run("os.kill(os.getpid(), 11)")


def test_no_python_is_an_error_of_ours(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/nowhere/python")
    with pytest.raises(TrainingFailedError, match=r"could not be started: .*nowhere"):
        run("pass")


def test_what_the_check_raises_stops_the_child_and_its_children(run: Run, tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def check() -> None:
        if pids.is_file() and len(pids.read_text().split()) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(
            f"""
            grandchild = os.fork()
            with open({str(pids)!r}, "a") as file:
                file.write(f"{{os.getpid()}} ")
            time.sleep(60)
            """,
            check=check,
        )
    for pid in map(int, pids.read_text().split()):
        assert _ends(pid)


def test_a_child_that_ignores_sigterm_is_killed(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_process, "GRACE_S", 0.5)
    said: list[float] = []

    def check() -> None:
        said.append(time.monotonic())
        if said[-1] - said[0] > 2:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        run("import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)", check=check)
    assert time.monotonic() - said[0] < 10


def test_a_child_that_takes_too_long_is_stopped(run: Run) -> None:
    began = time.monotonic()
    with pytest.raises(TrainingFailedError, match=r"stopped after 0\.0003 h, its limit \(trainer\.hours\)"):
        run("time.sleep(60)", allowance=Allowance(hours=0.0003))
    assert time.monotonic() - began < 30


def test_a_child_that_takes_too_much_memory_is_stopped_with_its_children(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_process, "MEMORY_S", 0.1)
    seen: list[dict[str, Any]] = []
    hungry = """
        import subprocess
        eat = "import time; input(); held = b'x' * 300_000_000; time.sleep(60)"
        child = subprocess.Popen([sys.executable, "-c", eat], stdin=subprocess.PIPE)
        print(json.dumps({"child": child.pid}))
        time.sleep(1)
        child.stdin.write(b"go\\n")
        child.stdin.flush()
        time.sleep(60)
    """
    with pytest.raises(TrainingFailedError, match=r"it took 0\.[2-4] GB of memory, and its limit .* is 0\.2"):
        run(hungry, seen=seen, allowance=Allowance(memory_gb=0.2))
    assert _ends(seen[0]["child"])


def test_a_modest_child_is_left_alone(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_process, "MEMORY_S", 0.1)
    body = 'time.sleep(2); print(json.dumps({"done": 1}))'
    assert run(body, allowance=Allowance(memory_gb=1, hours=1)) == [{"done": 1}]


def test_the_kernel_takes_the_child_before_others(run: Run) -> None:
    body = 'print(json.dumps({"first": int(open("/proc/self/oom_score_adj").read())}))'
    assert run(body) == [{"first": 1000}]


@pytest.mark.parametrize(("given", "threads"), [(None, "3"), ("2", "2")])
def test_several_processes_are_started_by_torchrun_and_share_the_cores(
    given: str | None, threads: str, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 7)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    names = ("RANK", "WORLD_SIZE", "OMP_NUM_THREADS")
    seen = run(
        f'print(json.dumps({{"said": [os.environ[name] for name in {names}]}}))',
        allowance=Allowance(processes=2),
    )
    assert sorted(line["said"] for line in seen) == [["0", "2", threads], ["1", "2", threads]]


def test_one_process_has_all_cores(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert run('print(json.dumps({"threads": os.environ.get("OMP_NUM_THREADS")}))') == [{"threads": None}]


def test_several_processes_die_with_what_the_check_raises(run: Run) -> None:
    seen: list[dict[str, Any]] = []

    def check() -> None:
        if len(seen) == 2:
            raise InterruptedError

    body = 'print(json.dumps({"pid": os.getpid()}), flush=True); time.sleep(60)'
    with pytest.raises(InterruptedError):
        run(body, seen=seen, check=check, allowance=Allowance(processes=2))
    assert all(_ends(said["pid"]) for said in seen)


def test_the_child_dies_with_a_worker_that_is_killed(tmp_path: Path) -> None:
    (tmp_path / "pretended.py").write_text(
        "import json, os, time\nprint(json.dumps({'pid': os.getpid()}))\ntime.sleep(60)\n"
    )
    (tmp_path / "worker.py").write_text(
        textwrap.dedent("""
            from pathlib import Path
            from active_learning.training_process import run_training
            run_training([], log=Path("train.log"), progress=lambda m: print(m["pid"], flush=True),
                         check=lambda: None, module="pretended")
        """)
    )
    root = Path(training_process.__file__).parents[1]
    worker = subprocess.Popen(
        [sys.executable, "worker.py"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": f"{root}:{tmp_path}"},
        stdout=subprocess.PIPE,
    )
    with worker:
        assert worker.stdout is not None
        child = int(worker.stdout.readline())
        os.kill(child, 0)  # it runs
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        assert _ends(child)


def _ends(pid: int, within_s: float = 5.0) -> bool:
    """Whether a process ends, or is dead and only waits to be buried."""
    until = time.monotonic() + within_s
    while time.monotonic() < until:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except (FileNotFoundError, ProcessLookupError):
            return True
        if state == "Z":
            return True
        time.sleep(0.05)
    return False
