"""Throw-away databases on a PostgreSQL server."""

from __future__ import annotations

import uuid

from sqlalchemy import create_engine, text


def new_database(server: str, template: str = "template1") -> str:
    """Make a database on the server of this URL, a copy of another one; its URL."""
    name = f"test_{uuid.uuid4().hex}"
    engine = create_engine(f"{server}/postgres".replace("postgresql:", "postgresql+psycopg:"))
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text(f"CREATE DATABASE {name} TEMPLATE {template}"))
    engine.dispose()
    return f"{server}/{name}"
