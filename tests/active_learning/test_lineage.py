from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from active_learning import lineage, registry
from active_learning.ledger import ModelVersion, Project, Snapshot
from active_learning.lineage import Use
from active_learning.registry import RegistryError


def entry(task: int, content: str, source: str = "human") -> dict[str, Any]:
    told = {"tool_task_id": task, "scene": f"s{task}", "label_id": 100 + task, "content": content}
    return {**told, "source": source, "weight": 1.0}


@pytest.fixture
def versions(loop: Any) -> Any:
    """A version, one that went on from it with task 1 drawn anew, and one from outside."""
    sets = {
        "elnet-0001": ([entry(1, "a"), entry(2, "b")], [entry(9, "z", "audit")]),
        "elnet-0002": ([entry(1, "a2"), entry(3, "c")], [entry(9, "z", "audit"), entry(8, "y")]),
    }
    parent: ModelVersion | None = None
    with loop.ledger.session() as session:
        project = session.get_one(Project, loop.project_id)
        for number, (name, (train, holdout)) in enumerate(sets.items()):
            manifest = {"classes": ["oil"], "train": train, "holdout": holdout}
            snapshot = Snapshot(project_id=project.id, sha256=str(number) * 64, manifest=manifest)
            session.add(snapshot)
            session.flush()
            parent = registry.register(
                session, project, Path(name), str(number) * 64, snapshot, parent, name=name
            )
        registry.register(session, project, Path("own"), "f" * 64, name="elnet-own")
    return loop


def ask(loop: Any, name: str | None = None, task: int | None = None) -> list[Use]:
    with loop.ledger.session(write=False) as session:
        project = session.get_one(Project, loop.project_id)
        if name is not None:
            return lineage.of_version(session, project, name)
        return lineage.of_task(session, project, task or 0)


def test_a_version_has_learned_from_its_labels_and_its_parents(versions: Any) -> None:
    uses = ask(versions, "elnet-0002")
    assert {(use.use, use.task, use.content, use.through) for use in uses} == {
        ("train", 1, "a2", "elnet-0002"),
        ("train", 3, "c", "elnet-0002"),
        ("holdout", 9, "z", "elnet-0002"),
        ("holdout", 8, "y", "elnet-0002"),
        ("train", 1, "a", "elnet-0001"),  # an earlier label of the same image
        ("train", 2, "b", "elnet-0001"),
    }
    [own] = [use for use in uses if use.task == 3]
    assert own == Use("elnet-0002", "train", "elnet-0002", "1" * 64, 3, "s3", 103, "c", "human", 1.0)


def test_an_image_tells_which_versions_know_it(versions: Any) -> None:
    assert [(use.version, use.through) for use in ask(versions, task=2)] == [
        ("elnet-0001", "elnet-0001"),
        ("elnet-0002", "elnet-0001"),
    ]
    assert {(use.version, use.use) for use in ask(versions, task=9)} == {
        ("elnet-0001", "holdout"),
        ("elnet-0002", "holdout"),
    }
    assert ask(versions, task=77) == []


def test_a_version_from_outside_has_no_labels_and_an_unknown_one_is_refused(versions: Any) -> None:
    assert ask(versions, "elnet-own") == []
    with pytest.raises(RegistryError, match="no model version 'elnet-0009'"):
        ask(versions, "elnet-0009")
