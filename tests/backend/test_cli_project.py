from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from active_learning import holdout, registry
from active_learning.checkpoints import Checkpoints
from active_learning.ledger import Ledger, Project, Task, TaskStatus
from backend import doctor, given_labels, label_enhancement, projects
from backend.doctor import Finding
from backend.label_enhancement import Suggested
from backend.label_studio import LabelStudio
from model import predictor as predictor_module

Elnet = Callable[..., Any]


@pytest.fixture(autouse=True)
def surroundings(own_settings: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A Label Studio that is named, and that nobody calls."""
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.setenv("ELNET_LABEL_STUDIO__URL", "http://tool.invalid")
    monkeypatch.setenv("ELNET_LABEL_STUDIO__TOKEN", "0" * 40)


@pytest.fixture
def created(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """What `projects.create` was asked for; it only writes the row."""
    calls: list[Any] = []

    def create(
        ledger: Ledger, settings: Any, tool: Any, name: str, classes: list[str], *rest: Any, upload: bool
    ) -> Project:
        calls.append((tool.url, name, classes, *rest, upload))
        with ledger.session() as session:
            project = Project(name=name, tool_url=tool.url, tool_project_id=7, classes=classes)
            session.add(project)
        return project

    monkeypatch.setattr(projects, "create", create)
    return calls


def test_a_project_is_made_in_a_ledger_that_is_made(elnet: Elnet, created: list[Any], tmp_path: Path) -> None:
    options = ("--classes", "oil, ship", "--images", tmp_path, "--tile", 512, "--upload")
    answer = elnet("project", "create", "spills", *options, "--json")
    assert (answer.code, answer.err) == (0, "")
    assert created == [("http://tool.invalid", "spills", ["oil", "ship"], tmp_path, 512, True)]
    (row,) = answer.json()
    assert (row["project"], row["classes"], row["champion"]) == ("spills", ["oil", "ship"], None)
    assert row["label_studio"] == "http://tool.invalid/projects/7"
    assert (row["images"], row["review"]) == (0, 0)


def test_given_masks_are_told_beside_the_table(
    elnet: Elnet, created: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Any] = []

    def import_labels(ledger: Ledger, tool: Any, project: Project, masks: Path, *, share: float) -> int:
        asked.append((project.name, masks, share))
        return 12

    monkeypatch.setattr(given_labels, "import_labels", import_labels)
    options = ("--classes", "oil", "--masks", tmp_path, "--labelled-share", "0.25")
    answer = elnet("project", "create", "spills", *options, "--json")
    assert (answer.code, answer.err) == (0, "12 masks were imported as labels.\n")
    assert len(answer.json()) == 1
    assert asked == [("spills", tmp_path, 0.25)]


def test_images_are_drawn_for_the_holdout_before_masks_are_given(
    elnet: Elnet, created: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    monkeypatch.setattr(holdout, "draw", lambda session, project, images: told.append(project.name) or images)
    monkeypatch.setattr(given_labels, "import_labels", lambda *_, **__: told.append("masks") or 3)
    options = ("--classes", "oil", "--masks", tmp_path, "--holdout", "20", "--json")
    answer = elnet("project", "create", "spills", *options)
    assert (answer.code, told) == (0, ["spills", "masks"])
    assert "20 images were drawn for the holdout; they wait in the view Audit." in answer.err


def test_a_holdout_that_is_too_large_is_refused(elnet: Elnet, created: list[Any], ledger: Ledger) -> None:
    answer = elnet("project", "create", "spills", "--classes", "oil", "--holdout", "20")
    assert answer.code == 1
    assert "has 0 images of 0 scenes; 20 for the holdout would leave too few" in answer.err


def test_what_create_needs(elnet: Elnet, monkeypatch: pytest.MonkeyPatch) -> None:
    assert elnet("project", "create", "spills").code == 2  # no classes
    monkeypatch.delenv("ELNET_LABEL_STUDIO__URL")
    answer = elnet("project", "create", "spills", "--classes", "oil")
    assert (answer.code, answer.out) == (1, "")
    assert "start everything with `elnet up`" in answer.err


def test_projects_are_listed_with_where_their_images_stand(elnet: Elnet, ledger: Ledger) -> None:
    answer = elnet("project", "list")
    assert (answer.code, answer.out) == (
        0,
        "There is no project yet: make one with `elnet project create`.\n",
    )
    assert elnet("project", "list", "--json").json() == []
    with ledger.session() as session:
        for number, name in enumerate(("spills [/x]", "roads")):
            project = Project(name=name, tool_url="http://tool", tool_project_id=number, classes=["a", "b"])
            session.add(project)
            session.flush()
            for task, status in enumerate((TaskStatus.DONE, TaskStatus.REVIEW, TaskStatus.REVIEW)):
                session.add(
                    Task(
                        project_id=project.id,
                        tool_task_id=task,
                        image_uri="i",
                        scene="s",
                        status=status,
                        quality=0.5,
                    )
                )
    roads, spills = elnet("project", "list", "--json").json()
    assert (roads["project"], spills["project"]) == ("roads", "spills [/x]")
    assert (roads["images"], roads["review"], roads["done"], roads["failed"]) == (3, 2, 1, 0)
    answer = elnet("project", "list")
    assert answer.code == 0
    assert "spills [/x]" in answer.out
    assert "a, b" in answer.out


def test_without_a_ledger_the_cure_is_named(elnet: Elnet) -> None:
    for command in (("project", "list"), ("doctor",)):
        answer = elnet(*command)
        assert (answer.code, answer.out) == (1, "")
        assert "elnet ledger upgrade" in answer.err


@pytest.fixture
def enhancing(monkeypatch: pytest.MonkeyPatch, ledger: Ledger) -> list[Any]:
    """What was asked of `suggest` and of Label Studio; a project that a version serves."""
    asked: list[Any] = []

    def suggest(
        ledger: Ledger, tool: Any, images: Any, project: Project, predictor: Any, chosen: Any, **more: Any
    ) -> list[Suggested]:
        asked.append((project.name, predictor, chosen, more["reach"], more["smallest"]))
        more["report"](2, 2)
        rows = [Suggested(12, 30, 4, 0.75), Suggested(17, outcome="unchanged")]
        return [*rows, Suggested(18, outcome="gone")] if chosen is None else rows

    monkeypatch.setattr(label_enhancement, "suggest", suggest)
    monkeypatch.setattr(predictor_module, "Predictor", lambda path, device, batch, flips: str(path))
    monkeypatch.setattr(Checkpoints, "local", lambda _checkpoints, version: Path(version.path))
    monkeypatch.setattr(LabelStudio, "listed", lambda tool, project: [{"id": 12}, {"id": 17}])
    monkeypatch.setattr(
        LabelStudio, "take_back_suggestions", lambda tool, project, ids: asked.append(list(ids)) or len(ids)
    )
    with ledger.session() as session:
        project = Project(name="spills", tool_url="http://tool", tool_project_id=7, classes=["oil"])
        session.add(project)
        session.flush()
        version = registry.register(session, project, Path("models/one"), "0" * 64, name="elnet-0001")
        registry.promote(session, version)
    return asked


def test_labels_are_enhanced_by_the_version_that_serves_or_a_checkpoint(
    elnet: Elnet, enhancing: list[Any]
) -> None:
    answer = elnet("project", "enhance", "--tasks", "17, 12", "--json")
    assert (answer.code, answer.err) == (0, "")
    first, second = answer.json()
    assert (first["task"], first["added"], first["removed"], first["outcome"]) == (12, 30, 4, "suggested")
    assert second["outcome"] == "unchanged"
    elnet("project", "enhance", "--tasks", "12", "--checkpoint", "other", "--reach", "6", "--smallest", "3")
    assert enhancing == [
        ("spills", "models/one", [17, 12], 12.0, 24),
        ("spills", "other", [12], 6.0, 3),
    ]


def test_a_label_that_cannot_be_enhanced_fails_the_command(elnet: Elnet, enhancing: list[Any]) -> None:
    answer = elnet("project", "enhance", "--all")
    assert answer.code == 1
    assert "1 of 3 labels could not be enhanced" in answer.err
    assert "gone" in answer.out


def test_suggestions_are_taken_back(elnet: Elnet, enhancing: list[Any]) -> None:
    assert elnet("project", "enhance", "--take-back", "--all").out == "2 suggestions were taken back.\n"
    assert elnet("project", "enhance", "--take-back", "--tasks", "12", "--json").json() == {"taken_back": 1}
    assert enhancing == [[12, 17], [12]]


def test_which_labels_to_enhance_must_be_said(elnet: Elnet, enhancing: list[Any], ledger: Ledger) -> None:
    for options in ((), ("--all", "--tasks", "1")):
        answer = elnet("project", "enhance", *options)
        assert (answer.code, "--tasks 12,17 or --all" in answer.err) == (1, True)
    for text in ("twelve", "1,-2", ","):
        assert "are no task ids" in elnet("project", "enhance", "--tasks", text).err
    with ledger.session() as session:
        session.add(Project(name="roads", tool_url="http://tool", tool_project_id=8, classes=["road"]))
    answer = elnet("project", "enhance", "-p", "roads", "--all")
    assert "no version serves 'roads' yet" in answer.err
    assert enhancing == []


FINDINGS = [
    Finding("webhook", True, "there and active", ""),
    Finding("model version", False, "Label Studio says [/elnet-0001]", "run `elnet project create`"),
]


def test_the_doctor_says_what_is_wrong_and_the_cure(
    elnet: Elnet, ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = list(FINDINGS)
    examined: list[str] = []

    def examine(ledger: Ledger, settings: Any, tool: Any, project: Project) -> list[Finding]:
        examined.append(project.name)
        return found

    monkeypatch.setattr(doctor, "examine", examine)
    assert "elnet project create" in elnet("doctor").err
    with ledger.session() as session:
        session.add(Project(name="spills", tool_url="http://tool", tool_project_id=7, classes=["oil"]))
    assert "no project 'roads'" in elnet("doctor", "-p", "roads").err
    assert examined == []

    answer = elnet("doctor")
    assert answer.code == 1
    assert answer.out.splitlines() == [
        "ok   webhook: there and active",
        "FAIL model version: Label Studio says [/elnet-0001]",
        "     cure: run `elnet project create`",
    ]
    assert answer.err == "elnet: error: 1 of 2 checks failed.\n"
    answer = elnet("doctor", "--json", "-p", "spills")
    assert answer.code == 1
    assert answer.json()[1] == {
        "name": "model version",
        "ok": False,
        "detail": "Label Studio says [/elnet-0001]",
        "cure": "run `elnet project create`",
    }
    found.pop()
    assert (elnet("doctor").code, elnet("doctor", "--json").code) == (0, 0)
    assert examined == ["spills"] * 4
