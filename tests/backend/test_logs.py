from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from backend.logs import start_logging
from backend.settings import Settings


@pytest.fixture(autouse=True)
def levels_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (None, "httpx", "httpcore", "alembic", "dbos")]
    before = [logger.level for logger in loggers]
    yield
    for logger, level in zip(loggers, before, strict=True):
        logger.setLevel(level)


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, level: str) -> list[str]:
    """Which of two loggers' lines come through, by level."""
    monkeypatch.setattr(logging.getLogger(), "handlers", [])  # pytest's own
    start_logging(Settings(log_level=level))
    for name in ("elnet.test", "httpx"):
        for line in ("debug", "info", "warning", "error"):
            getattr(logging.getLogger(name), line)("said %s", line)
    captured = capsys.readouterr()
    assert captured.out == ""
    return [" ".join(line.split()[2:4]).rstrip(":") for line in captured.err.splitlines()]


@pytest.mark.parametrize(
    ("level", "ours", "theirs"),
    [
        ("debug", 4, 4),
        ("info", 3, 2),
        ("warning", 2, 2),
        ("error", 1, 1),
    ],
)
def test_our_lines_from_the_level_on_and_of_libraries_what_is_wrong(
    level: str,
    ours: int,
    theirs: int,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    lines = told(capsys, monkeypatch, level)
    levels = ["DEBUG", "INFO", "WARNING", "ERROR"]
    assert sorted(lines) == sorted(
        [
            *(f"{name} elnet.test" for name in levels[-ours:]),
            *(f"{name} httpx" for name in levels[-theirs:]),
        ]
    )
