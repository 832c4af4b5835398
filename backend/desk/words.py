"""Numbers and statuses in words, the same on every page."""

from __future__ import annotations

import re
from typing import Final

from markupsafe import Markup, escape

from active_learning.ledger import TaskStatus

# In the order in which an image goes through them.
MEANINGS: Final = {
    TaskStatus.WAITING: "wait for a prediction",
    TaskStatus.REVIEW: "in review",
    TaskStatus.AUDIT: "in the audit",
    TaskStatus.ACCEPTED: "accepted unseen",
    TaskStatus.DONE: "labelled by people",
    TaskStatus.SKIPPED: "skipped by people",
    TaskStatus.FAILED: "unreadable",
}

_CODE: Final = re.compile("`([^`]+)`")


def duration(hours: float) -> str:
    """Hours of work: "40 s", "12 min", "3.4 h", "120 h"."""
    seconds = hours * 3600
    if seconds < 60:
        return f"{seconds:.0f} s"
    if seconds < 3600:
        return f"{seconds / 60:.0f} min"
    return f"{hours:.1f} h" if hours < 100 else f"{hours:,.0f} h"


def marked(text: str) -> Markup:
    """A sentence in which `commands` stand between backticks."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))  # noqa: S704 - escaped


def count(number: int, noun: str) -> str:
    """`1 image`, `1,200 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def sentence(text: object) -> str:
    """A text as a sentence: with a full stop, and a capital unless it begins with a name."""
    said = str(text)
    if said.partition(" ")[0].isalpha():
        said = f"{said[:1].upper()}{said[1:]}"
    return said if said.endswith(".") else f"{said}."


def span(seconds: float) -> str:
    """How long something took: "under 0.1 s", "8.5 s", "2 min 13 s", "1 h 20 min"."""
    if seconds < 0.1:
        return "under 0.1 s"
    if seconds < 59.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    minutes = round(whole / 60)
    return f"{whole // 60} min {whole % 60} s" if whole < 3600 else f"{minutes // 60} h {minutes % 60} min"
