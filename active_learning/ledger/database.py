"""The ledger: one SQLite file, or a PostgreSQL database by URL."""

from __future__ import annotations

import json
import math
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any, Self

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import URL, Connection, Engine, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError, DBAPIError
from sqlalchemy.orm import Session, sessionmaker

from active_learning.ledger.draws import audit_draw
from active_learning.ledger.failures import UPGRADE, LedgerError, explain, is_surrounding, shown

MIGRATIONS = Path(__file__).parent / "migrations"
VERSION_TABLE = "ledger_version"  # not alembic's default, which other programs in the same database use
_BUSY_S = 30.0  # how long a SQLite writer waits for another


class Ledger:
    """The database of one installation.

    Args:
        url: `sqlite:///path/ledger.sqlite`, or `postgresql://user:password@host/name`.

    Raises:
        LedgerError: the URL is of neither kind, or the PostgreSQL driver is not installed.
    """

    def __init__(self, url: str) -> None:
        self.url = _parse(url)
        self.engine = _engine(self.url)
        self._write = sessionmaker(self.engine, expire_on_commit=False)
        read_only = self.engine.execution_options(read_only=True, **_read_only(self.engine))
        self._read = sessionmaker(read_only, expire_on_commit=False)

    def __repr__(self) -> str:
        return f"Ledger({shown(self.url)!r})"

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close every connection that is not in use."""
        self.engine.dispose()

    @contextmanager
    def session(self, *, write: bool = True) -> Iterator[Session]:
        """One transaction: committed at the end, rolled back on an error.

        On SQLite a writing session holds the only write lock from its first statement on (BEGIN IMMEDIATE),
        so that two processes wait for each other and never deadlock: keep it short, and fetch images and
        run models outside. A reading session never waits and never makes others wait.

        Args:
            write: False for a session that only reads; the database then refuses every change.

        Raises:
            LedgerError: the database is away, locked, full, damaged or has no such table.
        """
        maker = self._write if write else self._read
        with self._explained(), maker() as session:
            yield session
            if write:
                session.commit()

    def upgrade(self) -> None:
        """Make the tables, or bring them to this code's version. Safe to repeat, and from two processes.

        Raises:
            LedgerError: as `session`, or the tables are newer than this code.
        """
        if path := self._file:
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise LedgerError(
                    f"the folder of the ledger {path} cannot be made: {error.strerror}; "
                    "correct ELNET_DATABASE_URL or ELNET_STATE"
                ) from error
        with self._explained(), self.engine.connect() as connection:
            config = alembic_config()
            config.attributes["connection"] = connection
            try:
                command.upgrade(config, "head")
            except CommandError as error:
                raise LedgerError(self._newer()) from error

    def check(self) -> None:
        """Refuse to work on tables that are not of this code's version.

        Raises:
            LedgerError: they are absent, older or newer; the text says what to do.
        """
        if (path := self._file) and not path.is_file():
            raise LedgerError(f"there is no ledger at {path}; run {UPGRADE}")
        with self._explained(), self.engine.connect() as connection:
            options = {"version_table": VERSION_TABLE}
            found = MigrationContext.configure(connection, opts=options).get_current_heads()
        revisions, heads = _revisions()
        if not found:
            raise LedgerError(f"{shown(self.url)} holds no ledger yet; run {UPGRADE}")
        if set(found) - revisions:
            raise LedgerError(self._newer())
        if set(found) != heads:
            raise LedgerError(f"the ledger {shown(self.url)} is older than this code; run {UPGRADE}")

    @property
    def _file(self) -> Path | None:
        return Path(self.url.database or "") if self.url.drivername == "sqlite" else None

    def _newer(self) -> str:
        return (
            f"the ledger {shown(self.url)} was made by a newer version of elnet-loop; "
            "upgrade elnet-loop (`pip install -U elnet-loop`) or point ELNET_DATABASE_URL elsewhere"
        )

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except DBAPIError as error:
            if is_surrounding(error):
                raise explain(error, self.url) from error
            raise


def _parse(text: str) -> URL:
    try:
        url = make_url(text)
    except (ArgumentError, ValueError) as error:  # their texts repeat the URL, and so the password
        raise LedgerError(
            "the ledger's URL cannot be read; write sqlite:///path/ledger.sqlite "
            "or postgresql://user:password@host:5432/name (special characters as %XX)"
        ) from error.__cause__
    if url.drivername in {"sqlite", "sqlite+pysqlite"}:
        if not url.database or url.database.startswith((":memory:", "file:")):
            raise LedgerError(
                "a ledger in memory would forget every label; write sqlite:///path/ledger.sqlite"
            )
        return url.set(drivername="sqlite")
    if url.drivername in {"postgres", "postgresql", "postgresql+psycopg"}:
        return url.set(drivername="postgresql+psycopg")
    raise LedgerError(f"{url.drivername} is not supported; use a sqlite:/// or a postgresql:// URL")


def _engine(url: URL) -> Engine:
    common: dict[str, Any] = {"hide_parameters": True, "json_serializer": _json}
    if url.drivername == "sqlite":
        engine = create_engine(url, connect_args={"timeout": _BUSY_S}, **common)
        event.listen(engine, "connect", _on_sqlite_connect)
        event.listen(engine, "begin", _on_sqlite_begin)
        return engine
    connect = {"connect_timeout": 10} if "connect_timeout" not in url.query else {}
    try:
        return create_engine(url, pool_pre_ping=True, connect_args=connect, **common)
    except ImportError as error:
        raise LedgerError(
            "PostgreSQL needs the psycopg driver; run `pip install 'elnet-loop[postgresql]'`"
        ) from error


def _read_only(engine: Engine) -> dict[str, bool]:
    return {} if engine.dialect.name == "sqlite" else {"postgresql_readonly": True}


def _on_sqlite_connect(connection: sqlite3.Connection, _record: object) -> None:
    connection.isolation_level = None  # transactions begin where `_on_sqlite_begin` says
    connection.create_function("elnet_audit_draw", 2, audit_draw, deterministic=True)  # triggers count by it
    connection.execute("PRAGMA foreign_keys = ON")
    connection.execute("PRAGMA recursive_triggers = ON")  # else INSERT OR REPLACE deletes past the triggers
    connection.execute("PRAGMA synchronous = FULL")  # an answered webhook survives a power cut
    if connection.execute("PRAGMA journal_mode").fetchone()[0] != "wal":
        # two processes that open a new file at once: SQLite does not wait here, the other one sets it
        with suppress(sqlite3.OperationalError):
            connection.execute("PRAGMA journal_mode = WAL")


def _on_sqlite_begin(connection: Connection) -> None:
    read_only = connection.get_execution_options().get("read_only", False)
    connection.exec_driver_sql(f"PRAGMA query_only = {'ON' if read_only else 'OFF'}")
    connection.exec_driver_sql("BEGIN" if read_only else "BEGIN IMMEDIATE")


def _json(value: Any) -> str:
    return json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)


def _finite(value: Any) -> Any:
    """JSON has no NaN, and PostgreSQL refuses it: null stands for it in both databases."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    return [_finite(item) for item in value] if isinstance(value, list | tuple) else value


@cache
def _revisions() -> tuple[set[str], set[str]]:
    """Every revision that this code knows, and the last; read once, for /readyz asks often."""
    scripts = ScriptDirectory.from_config(alembic_config())
    return {script.revision for script in scripts.walk_revisions()}, set(scripts.get_heads())


def alembic_config() -> Config:
    """Where the migrations lie."""
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    return config
