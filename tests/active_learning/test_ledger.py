from __future__ import annotations

import builtins
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from sqlalchemy import Engine, create_engine, inspect, select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session

from active_learning.ledger import (
    ActionRecord,
    Base,
    Calibration,
    Cycle,
    CycleEvent,
    CycleState,
    HoldoutMask,
    HoldoutScene,
    Label,
    LabelSource,
    Ledger,
    LedgerError,
    ModelState,
    ModelVersion,
    PolicyChange,
    Prediction,
    Project,
    Promotion,
    RouteDecision,
    Snapshot,
    Task,
    TaskStatus,
    ThresholdChange,
    Tombstone,
    TrainScene,
)
from active_learning.ledger.database import VERSION_TABLE, alembic_config
from active_learning.ledger.types import decode_masks, encode_masks, hash_masks, utc_now

MASKS = np.ones((1, 4, 5), np.bool_)


@pytest.fixture
def ledger(url: str) -> Iterator[Ledger]:
    with Ledger(url) as ledger:
        ledger.upgrade()
        yield ledger


def _project(**values: Any) -> Project:
    given = {"name": "oil", "tool_url": "http://tool", "tool_project_id": 1, "classes": ["oil"]}
    return Project(**{**given, **values})


def _fill(ledger: Ledger) -> None:
    """One row in every table that is append-only or has immutable columns."""
    with ledger.session() as session:
        project = _project()
        session.add(project)
        session.flush()
        task = Task(project_id=project.id, tool_task_id=1, image_uri="a.png", scene="a")
        snapshot = Snapshot(project_id=project.id, sha256="0" * 64, manifest={})
        version = ModelVersion(project_id=project.id, name="elnet-0001", path="m", sha256="1" * 64)
        cycle = Cycle(project_id=project.id, trigger="test")
        session.add_all([task, snapshot, version, cycle])
        session.flush()
        session.add_all(
            [
                Label(
                    project_id=project.id,
                    task_id=task.id,
                    tool_annotation_id=7,
                    revision="r",
                    source=LabelSource.HUMAN,
                    annotator="1",
                    masks=MASKS,
                    updated_at=utc_now(),
                ),
                Tombstone(project_id=project.id, tool_annotation_id=8),
                RouteDecision(task_id=task.id, status=TaskStatus.REVIEW, reason="test"),
                ThresholdChange(project_id=project.id, who="ada", to_value=0.9, why="test"),
                PolicyChange(
                    project_id=project.id,
                    who="ada",
                    setting="audit_share",
                    from_value=0.1,
                    to_value=0.2,
                    why="x",
                ),
                HoldoutScene(project_id=project.id, scene="a"),
                Promotion(project_id=project.id, model_version_id=version.id),
                Calibration(
                    project_id=project.id,
                    model_version_id=version.id,
                    kind="identity",
                    samples=0,
                    parameters={},
                ),
                CycleEvent(cycle_id=cycle.id, step="train", message="test"),
                ActionRecord(who="ada", action="cycle.cancel", thing="cycle 1", project_id=project.id),
                Prediction(
                    task_id=task.id,
                    model_version_id=version.id,
                    masks=MASKS,
                    score=0.5,
                    quality=0.5,
                    signals={},
                    embedding=np.arange(3, dtype=np.float32),
                ),
            ]
        )


APPEND_ONLY = {
    "labels": "annotator",
    "tombstones": "tool_annotation_id",
    "route_decisions": "reason",
    "threshold_changes": "why",
    "policy_changes": "why",
    "snapshots": "sha256",
    "scenes": "scene",
    "promotions": "model_version_id",
    "calibrations": "kind",
    "cycle_events": "message",
    "actions": "who",
}


def test_append_only_tables_refuse_change_and_deletion(ledger: Ledger) -> None:
    _fill(ledger)
    for table, column in APPEND_ONLY.items():
        for statement in (f"UPDATE {table} SET {column} = {column}", f"DELETE FROM {table}"):
            with pytest.raises(IntegrityError, match=f"{table} is append-only"), ledger.session() as session:
                session.execute(text(statement))
        with ledger.session(write=False) as session:
            assert session.execute(text(f"SELECT count(*) FROM {table}")).scalar_one() == 1


@pytest.mark.postgresql
def test_append_only_tables_refuse_truncation(postgresql_url: str) -> None:
    with Ledger(postgresql_url) as ledger:
        ledger.upgrade()
        _fill(ledger)
        for table in APPEND_ONLY:
            with pytest.raises(IntegrityError, match="append-only"), ledger.session() as session:
                session.execute(text(f"TRUNCATE {table} CASCADE"))


def test_replacing_a_label_on_sqlite_is_refused(tmp_path: Path) -> None:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}") as ledger:
        ledger.upgrade()
        _fill(ledger)
        with pytest.raises(IntegrityError, match="append-only"), ledger.session() as session:
            session.execute(text("INSERT OR REPLACE INTO labels SELECT * FROM labels"))


def test_model_versions_never_change(ledger: Ledger) -> None:
    _fill(ledger)
    for values in ({"sha256": "2" * 64}, {"path": "elsewhere"}, {"name": "elnet-0002"}):
        with pytest.raises(IntegrityError, match="never change"), ledger.session() as session:
            session.execute(update(ModelVersion).values(values))
    with pytest.raises(IntegrityError), ledger.session() as session:
        session.execute(text("DELETE FROM model_versions"))
    with ledger.session() as session:  # what may change
        session.execute(update(ModelVersion).values(state=ModelState.RETIRED, metrics={"fg_iou": 0.5}))


def test_a_prediction_keeps_its_version_and_masks(ledger: Ledger) -> None:
    _fill(ledger)
    with pytest.raises(IntegrityError, match="never change"), ledger.session() as session:
        session.scalars(select(Prediction)).one().masks = ~MASKS
    with ledger.session() as session:
        session.scalars(select(Prediction)).one().quality = 0.7
    with ledger.session(write=False) as session:
        found = session.scalars(select(Prediction)).one()
        assert found.quality == 0.7
        assert np.array_equal(found.masks, MASKS)
        assert found.embedding is not None
        assert found.embedding.tolist() == [0, 1, 2]


def _champion(project: int, name: str) -> ModelVersion:
    return ModelVersion(project_id=project, name=name, path=name, sha256="3" * 64, state=ModelState.CHAMPION)


def _broken_rules() -> dict[str, Callable[[], list[Any]]]:
    def prediction(**values: Any) -> Prediction:
        given = {"task_id": 1, "masks": MASKS, "score": 0.5, "quality": 0.5, "signals": {}}
        return Prediction(model_version_id=1, **{**given, **values})

    def label(**values: Any) -> Label:
        given = {"revision": "s", "source": LabelSource.HUMAN, "annotator": "1", "updated_at": utc_now()}
        return Label(project_id=1, task_id=1, tool_annotation_id=7, **{**given, **values})

    return {
        "quality above 1": lambda: [prediction(quality=1.01)],
        "score that is no number": lambda: [prediction(score=float("nan"))],
        "two predictions of one version": lambda: [prediction()],
        "two holdout masks of one version": lambda: [
            HoldoutMask(task_id=1, model_version_id=1, masks=masks) for masks in (MASKS, ~MASKS)
        ],
        "holdout mask without a task": lambda: [HoldoutMask(task_id=99, model_version_id=1, masks=MASKS)],
        "prediction without a task": lambda: [prediction(task_id=99)],
        "the same revision twice": lambda: [label(revision="r", masks=MASKS)],
        "label without masks": lambda: [label()],
        "skip with masks": lambda: [label(cancelled=True, masks=MASKS)],
        "two champions": lambda: [_champion(1, "elnet-0002"), _champion(1, "elnet-0003")],
        "two active cycles": lambda: [
            Cycle(project_id=1, trigger="a", state=CycleState.RUNNING),
            Cycle(project_id=1, trigger="b"),
        ],
        "a scene on both sides": lambda: [TrainScene(project_id=1, scene="a")],
        "accepted without a quality": lambda: [
            RouteDecision(task_id=1, status=TaskStatus.ACCEPTED, reason="")
        ],
        "the same tool project twice": lambda: [_project(name="other")],
        "a tombstone twice": lambda: [Tombstone(project_id=1, tool_annotation_id=8)],
    }


def test_the_database_holds_the_rules(ledger: Ledger) -> None:
    _fill(ledger)
    kept = [name for name, rows in _broken_rules().items() if _is_kept(ledger, rows())]
    assert kept == []


def _is_kept(ledger: Ledger, rows: list[Any]) -> bool:
    try:
        with ledger.session() as session:
            session.add_all(rows)
    except IntegrityError:
        return False
    return True


def test_migrations_give_the_tables(ledger: Ledger) -> None:
    with ledger.engine.connect() as connection:
        options = {"compare_type": True, "version_table": VERSION_TABLE}
        context = MigrationContext.configure(connection, opts=options)
        assert compare_metadata(context, Base.metadata) == []


def test_migrations_give_the_same_database_as_create_all(ledger: Ledger, tmp_path: Path) -> None:
    """Also checks, foreign keys and the conditions of indexes, which `compare_metadata` does not look at."""
    if ledger.engine.dialect.name == "sqlite":
        other = create_engine(f"sqlite:///{tmp_path / 'created.sqlite'}")
    else:
        name = "created"
        with ledger.engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            connection.execute(text(f"DROP DATABASE IF EXISTS {name}"))
            connection.execute(text(f"CREATE DATABASE {name}"))
        other = create_engine(ledger.url.set(database=name))
    Base.metadata.create_all(other)
    made, created = _schema(ledger.engine), _schema(other)
    other.dispose()
    assert made.pop(VERSION_TABLE)
    assert made == created
    assert len(created["labels"]["checks"]) == 3
    assert "requested" in str(created["cycles"]["indexes"])


def _schema(engine: Engine) -> dict[str, dict[str, Any]]:
    found = inspect(engine)
    return {
        table: {
            "columns": [(c["name"], str(c["type"]), c["nullable"]) for c in found.get_columns(table)],
            "checks": sorted((str(c["name"]), c["sqltext"]) for c in found.get_check_constraints(table)),
            "keys": sorted(map(str, found.get_foreign_keys(table))),
            "unique": sorted(map(str, found.get_unique_constraints(table))),
            "indexes": sorted(
                (str(i["name"]), str(i["column_names"]), str(i["unique"]), _condition(i))
                for i in found.get_indexes(table)
            ),
            "primary": str(found.get_pk_constraint(table)),
        }
        for table in found.get_table_names()
    }


def _condition(index: Any) -> list[str]:
    return [str(value) for key, value in index.get("dialect_options", {}).items() if key.endswith("_where")]


def test_an_older_ledger_learns_to_let_versions_wait(tmp_path: Path) -> None:
    """No table is made anew: rows, triggers and keys stay, and the check knows the new values."""
    with Ledger(f"sqlite:///{tmp_path / 'old.sqlite'}") as ledger:
        with ledger.engine.connect() as connection:
            config = alembic_config()
            config.attributes["connection"] = connection
            command.upgrade(config, "0009")
        insert = (
            "INSERT INTO model_versions (id, project_id, name, state, path, sha256, metrics, created_at) "
            "VALUES ({0}, 1, 'v{0}', '{1}', 'p{0}', 's', '{{}}', '2026-11-20')"
        )
        project = (
            "INSERT INTO projects (id, name, tool_url, tool_project_id, classes, audit_share, holdout_share, "
            "labels_per_cycle, cooldown_s, training, created_at) "
            "VALUES (1, 'oil', 'http://tool', 1, '[\"oil\"]', 0.1, 0.2, 50, 0, '{}', '2026-11-20')"
        )
        with ledger.engine.begin() as connection:
            connection.exec_driver_sql(project)
            connection.exec_driver_sql(insert.format(1, "champion"))
        ledger.upgrade()
        with ledger.engine.begin() as connection:
            connection.exec_driver_sql(insert.format(2, "challenger"))
        for number, state in ((3, "unknown"), (4, "champion")):
            with pytest.raises(IntegrityError), ledger.engine.begin() as connection:
                connection.exec_driver_sql(insert.format(number, state))
        with pytest.raises(IntegrityError, match="never deleted"), ledger.engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM model_versions")
        with ledger.engine.connect() as connection:
            assert connection.exec_driver_sql("PRAGMA integrity_check").scalar_one() == "ok"
            assert connection.exec_driver_sql("PRAGMA foreign_key_check").all() == []


def test_holdout_masks_come_and_go_with_their_revision(url: str) -> None:
    with Ledger(url) as ledger:
        for move, revision, there in (
            (command.upgrade, "0016", True),
            (command.downgrade, "0015", False),
        ):
            with ledger.engine.connect() as connection:
                config = alembic_config()
                config.attributes["connection"] = connection
                move(config, revision)
            assert ("holdout_masks" in inspect(ledger.engine).get_table_names()) is there
        ledger.upgrade()
        _fill(ledger)
        with ledger.session() as session:
            session.add(HoldoutMask(task_id=1, model_version_id=1, masks=MASKS))
        with ledger.session(write=False) as session:
            assert np.array_equal(session.scalars(select(HoldoutMask)).one().masks, MASKS)


def test_upgrade_is_safe_to_repeat_and_keeps_what_is_there(ledger: Ledger) -> None:
    _fill(ledger)
    ledger.upgrade()
    ledger.check()
    with ledger.session(write=False) as session:
        assert session.scalars(select(Project)).one().name == "oil"


def _write_and_fail(session: Session) -> None:
    session.add(_project())
    session.flush()
    raise ZeroDivisionError


def test_an_error_rolls_the_whole_session_back(ledger: Ledger) -> None:
    with pytest.raises(ZeroDivisionError), ledger.session() as session:
        _write_and_fail(session)
    with ledger.session(write=False) as session:
        assert session.scalars(select(Project)).all() == []


def test_a_reading_session_refuses_to_write(ledger: Ledger) -> None:
    with pytest.raises(LedgerError, match=r"read.?only"), ledger.session(write=False) as session:
        session.execute(update(Project).values(name="x"))
    with ledger.session() as session:  # the same connection may write again
        session.add(_project())


def test_what_was_read_is_usable_after_the_session(ledger: Ledger) -> None:
    with ledger.session() as session:
        written = _project()
        session.add(written)
    with ledger.session(write=False) as session:
        read = session.scalars(select(Project)).one()
    assert (written.name, read.name, read.classes) == ("oil", "oil", ["oil"])


def test_numbers_that_json_does_not_know_become_null(ledger: Ledger) -> None:
    with ledger.session() as session:
        session.add(_project(training={"lr": float("nan"), "steps": [1, float("inf")]}))
    with ledger.session(write=False) as session:
        assert session.scalars(select(Project)).one().training == {"lr": None, "steps": [1, None]}


def test_times_come_back_in_utc(ledger: Ledger) -> None:
    noon = datetime(2026, 1, 2, 12, 0, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    with ledger.session() as session:
        session.add(_project(created_at=noon))
    with ledger.session(write=False) as session:
        found = session.scalars(select(Project)).one().created_at
    assert found == noon
    assert found.utcoffset() == timedelta(0)


def test_a_time_without_a_zone_is_refused(ledger: Ledger) -> None:
    with pytest.raises(Exception, match="no time zone"), ledger.session() as session:
        session.add(_project(created_at=datetime(2026, 1, 2)))


def test_readers_do_not_wait_for_a_writer(ledger: Ledger) -> None:
    with ledger.session() as writer:
        writer.add(_project())
        writer.flush()
        with ledger.session(write=False) as reader:
            assert reader.scalars(select(Project)).all() == []


def test_writers_in_threads_wait_for_each_other(ledger: Ledger) -> None:
    """Read, then write: without BEGIN IMMEDIATE, SQLite answers 'database is locked' at once."""
    with ledger.session() as session:
        session.add(_project(labels_per_cycle=1))
    failures: list[BaseException] = []

    def count() -> None:
        try:
            for _ in range(10):
                with ledger.session() as session:
                    project = session.scalars(select(Project).with_for_update()).one()
                    project.labels_per_cycle += 1
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=count) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    with ledger.session(write=False) as session:
        assert session.scalars(select(Project)).one().labels_per_cycle == 41


_UPGRADE_AND_WRITE = """
import sys
from sqlalchemy import select
from active_learning.ledger import Ledger, Project
ledger = Ledger(sys.argv[1])
ledger.upgrade()
for i in range(10):
    with ledger.session() as session:
        taken = len(session.scalars(select(Project)).all())
        name = sys.argv[2]
        session.add(Project(name=f"{name}{i}", tool_url=name, tool_project_id=i, classes=["a"]))
"""


def test_processes_may_upgrade_and_write_at_once(url: str) -> None:
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _UPGRADE_AND_WRITE, url, name],
            cwd=Path(__file__).parents[2],
            stderr=subprocess.PIPE,
            text=True,
        )
        for name in "abc"
    ]
    errors = [process.communicate(timeout=120)[1] for process in processes]
    assert errors == ["", "", ""]
    with Ledger(url) as ledger, ledger.session(write=False) as session:
        assert len(session.scalars(select(Project)).all()) == 30


def test_the_file_is_kept_in_wal_and_its_folder_is_made(tmp_path: Path) -> None:
    path = tmp_path / "a" / "100 % new" / "ledger.sqlite"
    with Ledger(f"sqlite:///{path}") as ledger:
        ledger.upgrade()
        with ledger.session(write=False) as session:
            pragmas = ("journal_mode", "foreign_keys", "synchronous", "busy_timeout")
            values = [session.execute(text(f"PRAGMA {name}")).scalar_one() for name in pragmas]
    assert values == ["wal", 1, 2, 30000]
    assert path.is_file()


def test_check_tells_what_is_wrong_with_the_schema(url: str) -> None:
    with Ledger(url) as ledger:
        with pytest.raises(LedgerError, match=r"no ledger.*run `elnet ledger upgrade`"):
            ledger.check()
        ledger.upgrade()
        ledger.check()
        for revision, cure in (
            ("0001", "older than this code; run `elnet ledger upgrade`"),
            ("9999", "newer"),
        ):
            with ledger.session() as session:
                session.execute(text(f"UPDATE {VERSION_TABLE} SET version_num = '{revision}'"))
            with pytest.raises(LedgerError, match=cure):
                ledger.check()
        with pytest.raises(LedgerError, match="upgrade elnet-loop"):
            ledger.upgrade()


def test_a_session_without_tables_says_upgrade(url: str) -> None:
    with Ledger(url) as ledger, pytest.raises(LedgerError), ledger.session() as session:
        session.scalars(select(Project)).all()


def test_a_check_makes_no_file(tmp_path: Path) -> None:
    with Ledger(f"sqlite:///{tmp_path / 'ledger.sqlite'}") as ledger, pytest.raises(LedgerError):
        ledger.check()
    assert list(tmp_path.iterdir()) == []


def test_tables_of_another_program_are_left_alone(url: str) -> None:
    with Ledger(url) as ledger:
        with ledger.session() as session:
            session.execute(text("CREATE TABLE projects (id INTEGER)"))
        with pytest.raises(LedgerError, match="a database of its own"):
            ledger.upgrade()
        assert inspect(ledger.engine).get_table_names() == ["projects"]


def test_a_file_that_is_no_database(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    path.write_text("these are my notes, more than a hundred bytes of them " * 10)
    with Ledger(f"sqlite:///{path}") as ledger:
        for act in (ledger.upgrade, ledger.check):
            with pytest.raises(LedgerError, match=f"{path}.*not a database.*move that file away"):
                act()
    assert path.read_text().startswith("these are my notes")


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    ledger = Ledger(f"sqlite:///{tmp_path / 'file' / 'ledger.sqlite'}")
    with pytest.raises(LedgerError, match=r"cannot be made.*ELNET_DATABASE_URL"):
        ledger.upgrade()


@pytest.mark.parametrize(
    ("bad", "cure"),
    [
        ("", "sqlite:///"),
        ("ledger.sqlite", "sqlite:///"),
        ("postgresql://ada:s3cret@host:port/x", "sqlite:///"),
        ("mysql://ada:s3cret@host/x", "not supported"),
        ("sqlite://", "in memory"),
        ("sqlite:///:memory:", "in memory"),
    ],
)
def test_a_url_that_cannot_serve(bad: str, cure: str) -> None:
    with pytest.raises(LedgerError, match=cure) as caught:
        Ledger(bad)
    assert "s3cret" not in str(caught.value)


def test_a_server_that_does_not_answer_shows_no_secret() -> None:
    url = "postgresql://ada:s3cret@127.0.0.1:1/loop?sslpassword=hidden"
    with Ledger(url) as ledger, pytest.raises(LedgerError) as caught:
        ledger.check()
    message = str(caught.value)
    assert "127.0.0.1:1/loop" in message
    assert "start the server" in message
    assert "s3cret" not in message + repr(ledger)
    assert "hidden" not in message + repr(ledger)


@pytest.mark.postgresql
def test_a_database_and_a_user_that_do_not_exist(postgresql_server: str) -> None:
    with pytest.raises(LedgerError, match=r'"absent" does not exist; make it with `createdb`'):
        Ledger(f"{postgresql_server}/absent").upgrade()
    with pytest.raises(LedgerError, match="make that user") as caught:
        Ledger(postgresql_server.replace("elnet@", "nobody:s3cret@") + "/postgres").upgrade()
    assert "s3cret" not in str(caught.value)


@pytest.mark.postgresql
def test_a_wrong_password(postgresql_server: str, postgresql_url: str) -> None:
    with Ledger(postgresql_url) as ledger, ledger.session() as session:
        session.execute(text("CREATE ROLE ada LOGIN PASSWORD 'right'"))
        found = session.execute(text("SHOW hba_file")).scalar_one()
    hba = Path(found)
    before = hba.read_text()
    hba.write_text("host all ada 127.0.0.1/32 scram-sha-256\n" + before)
    try:
        with Ledger(postgresql_url) as ledger, ledger.session() as session:
            session.execute(text("SELECT pg_reload_conf()"))
        with pytest.raises(LedgerError, match="check the user and the password") as caught:
            Ledger(postgresql_url.replace("elnet@", "ada:s3cret@")).check()
        assert "s3cret" not in str(caught.value)
    finally:
        hba.write_text(before)


def test_a_missing_driver_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *rest: Any) -> Any:
        if name.partition(".")[0] == "psycopg":
            raise ImportError(name)
        return real(name, *rest)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(LedgerError, match=r"elnet-loop\[postgresql\]"):
        Ledger("postgresql://ada@host/loop")


@given(arrays(np.bool_, array_shapes(min_dims=3, max_dims=3, max_side=20)))
def test_masks_survive_packing(masks: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    assert np.array_equal(decode_masks(encode_masks(masks)), masks)


@pytest.mark.parametrize("bad", [np.ones((4, 5), np.bool_), np.ones((1, 4, 5), np.uint8)])
def test_masks_of_another_kind_are_refused(bad: np.ndarray[Any, Any]) -> None:
    with pytest.raises(ValueError, match=r"\(N, H, W\) bool"):
        encode_masks(bad)


@given(st.integers(1, 3), st.integers(0, 9), st.integers(0, 9))
def test_the_hash_of_empty_masks_forgets_the_size_and_nothing_else(n: int, h: int, w: int) -> None:
    empty = np.zeros((n, h, w), np.bool_)
    assert hash_masks(empty) == hash_masks(np.zeros((n, 0, 0), np.bool_))
    assert hash_masks(empty) not in {hash_masks(None), hash_masks(np.zeros((n + 1, h, w), np.bool_))}
    assert hash_masks(~np.zeros((n, 2, 3), np.bool_)) != hash_masks(~np.zeros((n, 3, 2), np.bool_))


def test_utc_now_is_aware() -> None:
    assert utc_now().tzinfo is UTC
