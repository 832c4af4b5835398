"""The figures of versions and snapshots, without the images that they are of.

Where thousands are labelled, a version's metrics and a snapshot's manifest hold megabytes each: a page that
lists them reads from them inside the database.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any, Final
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, func, select, true
from sqlalchemy.orm import Session

from active_learning.ledger import ModelVersion, Snapshot

_NAMES: Final = ("n", "seconds", "fg_iou", "fg_iou_per_image", "boundary_f1", "gate")
_COUNTED: Final[WeakKeyDictionary[Engine | Connection, dict[int, int]]] = WeakKeyDictionary()


def metrics_of(session: Session, versions: Collection[int]) -> dict[int, dict[str, Any]]:
    """The headline of `ModelVersion.metrics`, and the gate's words.

    Args:
        session: any.
        versions: ids.

    Returns:
        Id -> name -> figure; what a version does not have is absent.
    """
    each = func.json_each(ModelVersion.metrics).table_valued("key", "value")
    query = select(ModelVersion.id, each.c.key, each.c.value).join(each, true())
    found: dict[int, dict[str, Any]] = {version: {} for version in versions}
    for version, key, value in session.execute(
        query.where(ModelVersion.id.in_(versions), each.c.key.in_(_NAMES))
    ):
        # SQLite gives numbers as such, and objects as text; PostgreSQL gives text.
        figure = json.loads(value) if isinstance(value, str) else value
        if figure is not None:
            found[version][key] = figure
    return found


def labels_of(session: Session, snapshots: Collection[int]) -> dict[int, int]:
    """How many labels each snapshot trains on; each is counted once, for a snapshot never changes."""
    known = _COUNTED.setdefault(session.get_bind(), {})
    if unknown := set(snapshots) - known.keys():
        count = func.json_array_length(Snapshot.manifest["train"])
        known |= {  # noqa: C416 - rows are no pairs
            snapshot: labels
            for snapshot, labels in session.execute(
                select(Snapshot.id, count).where(Snapshot.id.in_(unknown))
            )
        }
    return {snapshot: known[snapshot] for snapshot in snapshots}
