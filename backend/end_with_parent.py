"""End a process group when the process that started this one is gone, however it went.

`python end_with_parent.py GROUP`, with standard input a pipe that only the parent can write to: the system
closes it when the parent dies, also by SIGKILL, where no `finally` runs. It imports nothing of the project,
so that it is ready, and small, at once.
"""

import contextlib
import os
import signal
import sys
import time

GRACE_S = 20.0


def main() -> None:
    """Wait for the pipe's end; then SIGTERM, and SIGKILL to what does not heed."""
    group = int(sys.argv[1])
    while os.read(0, 1):
        pass
    with contextlib.suppress(ProcessLookupError):
        os.killpg(group, signal.SIGTERM)
        end = time.monotonic() + GRACE_S
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(0.1)
        os.killpg(group, signal.SIGKILL)


if __name__ == "__main__":
    main()
