"""End a process group when the process that started this one is gone, however it went.

`python -m backend.end_with_parent GROUP`, with standard input a pipe that only the parent can write to: the
system closes it when the parent dies, also by SIGKILL, where no `finally` runs.
"""

from __future__ import annotations

import os
import sys

from backend.folder_lock import end_group

GRACE_S = 20.0


def main() -> None:
    """Wait for the pipe's end; then SIGTERM, and SIGKILL to what does not heed."""
    group = int(sys.argv[1])
    while os.read(0, 1):
        pass
    end_group(group, lambda: _is_gone(group), GRACE_S)


def _is_gone(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return True
    return False


if __name__ == "__main__":
    main()
