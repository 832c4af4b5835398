"""Models are loaded when they are needed, and no earlier."""

from __future__ import annotations

import subprocess
import sys

from sqlalchemy import select

from active_learning.ledger import ModelVersion
from backend import model_files
from backend.resident import ResidentPredictors


def test_the_application_starts_without_pytorch():
    code = "import sys, backend.wsgi; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


class Pool:
    made: list[Pool] = []  # noqa: RUF012 - a record of this test

    def __init__(self, *_: object) -> None:
        self.kept: list[set[int]] = []
        Pool.made.append(self)

    def keep(self, version_ids: set[int]) -> None:
        self.kept.append(set(version_ids))

    def get(self, version: ModelVersion) -> str:
        return f"predictor of {version.name}"


def test_one_pool_that_keeps_champions_and_what_is_asked_for(site, monkeypatch):
    monkeypatch.setattr(model_files, "PredictorPool", Pool)
    monkeypatch.setattr(Pool, "made", [])
    project = site.add_project()
    site.promote(project, "elnet-0001")
    site.promote(project, "elnet-0002")
    with site.ledger.session(write=False) as session:
        first, second = session.scalars(select(ModelVersion).order_by(ModelVersion.id))
    resident = ResidentPredictors(site.settings, site.ledger)
    assert Pool.made == []
    assert resident(second) == "predictor of elnet-0002"
    assert resident(first) == "predictor of elnet-0001"
    [pool] = Pool.made
    assert pool.kept == [{second.id}, {first.id, second.id}]
