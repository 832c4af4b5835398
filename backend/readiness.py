"""/readyz: whether this process can do its work, for what starts and balances processes."""

from __future__ import annotations

from typing import Any

from flask import Blueprint

from active_learning.ledger import WorkerLease
from active_learning.ledger.failures import LedgerError
from backend.lease import NAME, silence_s
from backend.services import services

blueprint = Blueprint("readiness", __name__)


@blueprint.get("/readyz")
def ready() -> tuple[dict[str, Any], int]:
    """200 where the ledger answers and its tables are of this code's version, else 503 with the reason.

    The worker's last heartbeat is told beside it: without a worker events are taken and kept, and `/predict`
    answers, so the web process is ready all the same.
    """
    ledger = services().ledger
    try:
        ledger.check()
        with ledger.session(write=False) as session:
            worker = session.get(WorkerLease, NAME)
    except LedgerError as error:
        return {"ready": False, "reason": str(error)}, 503
    silence = None if worker is None else round(silence_s(worker), 1)
    return {"ready": True, "worker_silent_s": silence}, 200
