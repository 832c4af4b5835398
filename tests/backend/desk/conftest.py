"""A project with a champion, images that wait and audits, behind the real application."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flask.testing import FlaskClient
from sqlalchemy import select
from sqlalchemy.orm import Session

from active_learning import labels, registry, routing
from active_learning.ledger import Ledger, Prediction, Project, Task
from active_learning.ledger.types import utc_now
from active_learning.ports import ToolAnnotation
from active_learning.signals import signals

SQUARE = np.zeros((1, 8, 8), np.bool_)
SQUARE[:, 2:6, 2:6] = True
SIGNALS = signals(np.where(SQUARE, 0.9, 0.1)).to_dict()


@dataclass
class Spills:
    """The project, and how it is filled."""

    ledger: Ledger
    client: FlaskClient
    images: Any
    project_id: int = 1

    @property
    def path(self) -> str:
        return f"/desk/{self.project_id}"

    def project(self, session: Session) -> Project:
        return session.get_one(Project, self.project_id)

    def page(self, path: str = "", **query: Any) -> str:
        answer = self.client.get(self.path + path, query_string=query)
        assert answer.status_code == 200, answer.get_data(as_text=True)
        return answer.get_data(as_text=True)

    def post(self, path: str, **form: Any) -> str:
        """Send a form; the page that comes next."""
        answer = self.client.post(self.path + path, data=form, follow_redirects=True)
        assert answer.status_code == 200, answer.get_data(as_text=True)
        return answer.get_data(as_text=True)

    def promote(self, name: str = "elnet-0001") -> None:
        with self.ledger.session() as session:
            project, sha256 = self.project(session), f"{int(name[-4:]):064d}"
            version = registry.register(session, project, Path("models") / name, sha256, name=name)
            registry.promote(session, version)

    def add(self, *qualities: float, audit_share: float = 0.0) -> list[Task]:
        """Images with a prediction each, routed; scenes of their own."""
        with self.ledger.session() as session:
            project = self.project(session)
            before, project.audit_share = project.audit_share, audit_share
            first = len(session.scalars(select(Task.id)).all())
            tasks = []
            for number, quality in enumerate(qualities, start=first):
                task = Task(
                    project_id=project.id, tool_task_id=number, image_uri=f"{number}.png", scene=str(number)
                )
                session.add(task)
                session.flush()
                said = {"score": quality, "quality": quality, "signals": SIGNALS, "masks": SQUARE}
                session.add(Prediction(task_id=task.id, model_version_id=project.champion_id, **said))
                tasks.append(task)
            session.flush()
            routing.route(session, project, tasks)
            project.audit_share = before
            return tasks

    def label(self, task: Task, *, good: bool = True, annotator: str = "ada") -> None:
        with self.ledger.session() as session:
            said = ToolAnnotation(
                id=1000 + task.id,
                task_id=task.tool_task_id,
                masks=SQUARE if good else ~SQUARE,
                annotator=annotator,
                machine=False,
                cancelled=False,
                updated_at=utc_now() + timedelta(seconds=1),
                lead_time_s=60.0,
            )
            labels.record(session, self.project(session), said)

    def audit(self, good: int, bad: int, quality: float = 0.8) -> None:
        for number, task in enumerate(self.add(*[quality] * (good + bad), audit_share=1.0)):
            self.label(task, good=number < good)


@pytest.fixture
def empty_spills(make_site: Callable[..., Any]) -> Spills:
    """Without images and versions."""
    site = make_site()
    site.app.secret_key = "test"
    project = site.add_project(name="spills", tool_project_id=1, classes=["oil"])
    return Spills(site.ledger, site.client, site.images, project.id)


@pytest.fixture
def spills(empty_spills: Spills) -> Spills:
    """With a champion, and images of qualities 0.95 (accepted from 0.9 on), 0.7 and 0.5."""
    with empty_spills.ledger.session() as session:
        empty_spills.project(session).accept_threshold = 0.9
    empty_spills.promote()
    empty_spills.add(0.95, 0.7, 0.5)
    return empty_spills
