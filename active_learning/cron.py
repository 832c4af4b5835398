"""Cron expressions of five fields, in UTC. Only projects with a schedule load the library."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import AfterValidator, Field


def _valid(expression: str) -> str:
    from croniter import croniter

    if not croniter.is_valid(expression):
        raise ValueError(f"{expression!r} is no cron expression; five fields, such as 0 2 * * 1-5")
    return expression


Cron = Annotated[str, Field(max_length=100), AfterValidator(_valid)]


def next_time(expression: str, after: datetime) -> datetime:
    """The first time of an expression after another."""
    from croniter import croniter

    found: datetime = croniter(expression, after).get_next(datetime)
    return found
