"""Draws that look random and are the same after a crash, on every machine, and in the database itself."""

from __future__ import annotations

import hashlib


def seeded(*parts: object) -> float:
    """A uniform number in [0, 1) made from a hash of the parts; the same on every machine."""
    digest = hashlib.sha256("/".join(map(str, parts)).encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def audit_draw(task_id: int, version: str) -> float:
    """A number in [0, 1) that looks random and is the same after a crash.

    It hangs on the task and the model version only: moving the threshold to and fro draws nobody anew. The
    database knows it as the function `elnet_audit_draw` (revision 0013), for it counts what was drawn.
    """
    return seeded("audit", version, task_id)
