"""The masks that model versions drew on the holdout when they were judged: for people to look at.

Nothing is decided by them. What is kept is bounded: the champion's masks and those of the newest versions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Final, cast

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import CursorResult, LargeBinary, Table, bindparam, delete, select, type_coerce
from sqlalchemy.orm import Session

from active_learning.ledger import HoldoutMask, Ledger, ModelVersion, Project
from active_learning.ledger.bulk import insert
from active_learning.ledger.types import encode_masks

KEPT: Final = 10  # newest judged versions whose masks stay, beside the champion's
_ROWS, _BYTES = 64, 8_000_000  # of packed masks that one transaction writes, and about as many in memory

Keep = Callable[[str, NDArray[np.bool_]], None]  # stem, (N, H, W) masks


@contextmanager
def keeping(ledger: Ledger, version_id: int, tasks: Mapping[str, int]) -> Iterator[Keep]:
    """Keep masks of a version as they come, some at a time; after an error not the last ones.

    Masks are packed outside of any transaction: large ones take a second. What an earlier judging left is
    replaced where it differs, by other settings or another machine, so that masks fit the newest figures.

    Args:
        ledger: the ledger.
        version_id: of the version that is judged.
        tasks: stem -> task.
    """
    rows: list[dict[str, Any]] = []

    def keep(stem: str, masks: NDArray[np.bool_]) -> None:
        rows.append({"version": version_id, "task": tasks[stem], "packed": encode_masks(masks)})
        if len(rows) >= _ROWS or sum(len(row["packed"]) for row in rows) >= _BYTES:
            flush()

    def flush() -> None:
        if rows:
            with ledger.session() as session:
                _write(session, rows)
            rows.clear()

    yield keep
    flush()


def _write(session: Session, rows: list[dict[str, Any]]) -> None:
    table = cast(Table, HoldoutMask.__table__)
    new = insert(session, table).values(
        model_version_id=bindparam("version"),
        task_id=bindparam("task"),
        masks=type_coerce(bindparam("packed"), LargeBinary),
    )
    masks = new.excluded.masks
    session.execute(
        new.on_conflict_do_update(
            index_elements=list(table.primary_key), set_={"masks": masks}, where=table.c.masks != masks
        ),
        rows,
    )


def forget_older(ledger: Ledger, project_id: int) -> None:
    """Drop the masks of all but the champion and the newest `KEPT` other versions, some at a time."""
    with ledger.session(write=False) as session:
        project = session.get_one(Project, project_id)
        judged = select(HoldoutMask.model_version_id).distinct().join(ModelVersion)
        others = judged.where(
            ModelVersion.project_id == project_id,
            ModelVersion.id.is_distinct_from(project.champion_id),
        )
        older = session.scalars(others.order_by(HoldoutMask.model_version_id.desc()).offset(KEPT)).all()
    for version_id in older:
        mine = HoldoutMask.model_version_id == version_id
        some = select(HoldoutMask.task_id).where(mine).limit(_ROWS)
        dropped = _ROWS
        while dropped == _ROWS:
            with ledger.session() as session:
                gone = session.execute(delete(HoldoutMask).where(mine, HoldoutMask.task_id.in_(some)))
                dropped = cast(CursorResult[Any], gone).rowcount
