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


def sentence(text: str) -> str:
    """With a capital at the beginning and a full stop at the end."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def count(number: int, noun: str) -> str:
    """`1 image`, `1,200 images`."""
    return f"{number:,} {noun}{'' if number == 1 else 's'}"
