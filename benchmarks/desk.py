"""How long the server takes for each page of the leads' desk, and for each chart's data.

`python -m benchmarks.desk --tasks 100000` (SQLite in a folder of its own; `--database URL`: an empty
PostgreSQL database, which is filled)

The ledger is that of `benchmarks.ledger`. A lead has signed in; every page is asked for once, which loads
what it needs, and then measured. Pictures are left out: they are small files after the first time.
"""

from __future__ import annotations

import argparse
import re
import statistics
import tempfile
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

import numpy as np
from flask.testing import FlaskClient

from active_learning.ledger import Ledger, Role
from backend import accounts
from backend.actions import Who
from backend.app import create_app
from backend.settings import Settings
from benchmarks.ledger import fill
from model.device import describe_machine

PAGES: Final = (
    "",
    "/threshold",
    "/threshold/near?at=0.8",
    "/queue",
    "/queue?form=table",
    "/quality",
    "/models",
    "/models/elnet-0001",
    "/cycles",
    "/policy",
    "/charts/risk-coverage.json",
    "/charts/reliability.json",
)
PASSWORD: Final = "only for this benchmark"


def main() -> None:
    """Fill, measure and print the table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.desk", description=main.__doc__)
    parser.add_argument("--tasks", type=int, default=100_000)
    parser.add_argument("--database", help="URL of an empty database; SQLite by default")
    parser.add_argument("--runs", type=int, default=20)
    given = parser.parse_args()
    print(f"{datetime.now(UTC):%Y-%m-%d}, {describe_machine()}\n")
    print(f"| page, {given.tasks:,} tasks | median (ms) | 95th percentile (ms) | KB |\n|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        url = given.database or f"sqlite:///{Path(folder) / 'ledger.sqlite'}"
        with Ledger(url) as ledger:
            fill(ledger, given.tasks)
            client = signed_in(Settings(state=Path(folder)), ledger)
            for page in PAGES:
                seconds, size = measure(client, f"/desk/1{page}", given.runs)
                late = 1000 * np.percentile(seconds, 95)
                middle = 1000 * statistics.median(seconds)
                print(f"| {page or 'overview'} | {middle:.0f} | {late:.0f} | {size / 1024:.0f} |", flush=True)


def signed_in(settings: Settings, ledger: Ledger) -> FlaskClient:
    """A browser in which a lead has signed in."""
    with ledger.session() as session:
        user, _ = accounts.add(session, "lea", Role.LEAD, Who("benchmark"))
        accounts.set_password(session, user, PASSWORD, Who("benchmark"))
    client = create_app(settings, ledger=ledger).test_client()
    found = re.search(r'name="csrf_token" value="([^"]+)"', client.get("/desk/sign-in").text)
    assert found is not None
    form = {"csrf_token": found[1], "name": "lea", "password": PASSWORD}
    assert client.post("/desk/sign-in", data=form).status_code == 302
    return client


def measure(client: FlaskClient, path: str, runs: int) -> tuple[list[float], int]:
    """Seconds of each run, and the bytes of the answer."""
    size = 0
    seconds = []
    for _ in range(runs + 1):
        started = time.perf_counter()
        answer = client.get(path)
        seconds.append(time.perf_counter() - started)
        assert answer.status_code == 200, f"{path}: {answer.status_code}"
        size = len(answer.data)
    return seconds[1:], size


if __name__ == "__main__":
    main()
