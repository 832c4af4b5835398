"""Which label counts, of all that were ever recorded."""

from __future__ import annotations

from collections.abc import Collection

from sqlalchemy import Select, Subquery, case, exists, func, select
from sqlalchemy.orm import Session

from active_learning.ledger import Label, LabelSource, Project, Snapshot, Task, TaskStatus, Tombstone

PEOPLE = (LabelSource.HUMAN, LabelSource.AUDIT)


def current_label(session: Session, task: Task) -> Label | None:
    """The latest living label by a person; None without one, or where it was only skipped."""
    ids = current_ids(task.project_id, task_id=task.id)
    return session.scalar(select(Label).where(Label.id.in_(ids)))


def current_labels(
    session: Session, project: Project, sources: Collection[LabelSource] = PEOPLE
) -> list[Label]:
    """Each task's label that counts, if it came from one of the sources; ordered by task."""
    ids = current_ids(project.id, sources)
    return list(session.scalars(select(Label).where(Label.id.in_(ids)).order_by(Label.task_id)))


def current_ids(
    project_id: int, sources: Collection[LabelSource] = PEOPLE, task_id: int | None = None
) -> Select[tuple[int]]:
    """`Label.id` of each task's label that counts, if it came from one of the sources.

    That is, of the annotations that were neither deleted nor cancelled, the latest by a person, and only
    without one the latest of the machine. Tasks that are gone have none.
    """
    said = living(project_id, task_id, sources)
    by_machine = case((said.c.source == LabelSource.MACHINE, 1), else_=0)
    order = (by_machine, said.c.updated_at.desc(), said.c.tool_annotation_id.desc())
    ranked = (
        select(
            said.c.id,
            said.c.source,
            func.row_number().over(partition_by=said.c.task_id, order_by=order).label("rank"),
        )
        .join(Task, Task.id == said.c.task_id)
        .where(said.c.cancelled.is_(False), Task.status != TaskStatus.GONE)
        .subquery()
    )
    return select(ranked.c.id).where(ranked.c.rank == 1, ranked.c.source.in_(sources))


def labels_since(session: Session, project: Project, snapshot: Snapshot | None) -> int:
    """How many tasks carry a person's label that the snapshot does not hold; all of them without one.

    A label that was saved again unchanged counts as held, and so does one that the snapshot left out. Images
    that were drawn for the holdout teach nothing, and do not count.
    """
    ids = current_ids(project.id)
    found = session.execute(
        select(Label.task_id, Label.content)
        .join(Task, Task.id == Label.task_id)
        .where(Label.id.in_(ids), Task.holdout.is_(False))
    )
    held: set[tuple[int, str]] = set()
    if snapshot is not None:
        for part in ("train", "holdout", "left_out"):
            held |= {(entry["task_id"], entry["content"]) for entry in snapshot.manifest.get(part, [])}
    return sum((task_id, content) not in held for task_id, content in found)


def living(
    project_id: int, task_id: int | None = None, sources: Collection[LabelSource] = tuple(LabelSource)
) -> Subquery:
    """The revision that counts of each annotation that was not deleted.

    The latest by the tool's clock; one by a person goes before any of the machine. The revision's hash
    decides between equals, so that the order of arrival never does.

    Args:
        project_id: the project.
        task_id: only of this task.
        sources: only of tasks with a label of one of these; of people's alone, none of the machine is among
            them. In a large project most labels are the machine's.
    """
    buried = exists().where(
        Tombstone.project_id == Label.project_id,
        Tombstone.tool_annotation_id == Label.tool_annotation_id,
    )
    by_machine = case((Label.source == LabelSource.MACHINE, 1), else_=0)
    order = (by_machine, Label.updated_at.desc(), Label.revision.desc())
    rank = func.row_number().over(partition_by=Label.tool_annotation_id, order_by=order)
    within = Label.task_id == task_id
    if task_id is None:
        # a person's goes before any of the machine: who asks for people's alone can leave the others out
        heard = PEOPLE if set(sources) <= set(PEOPLE) else tuple(LabelSource)
        within = (Label.project_id == project_id) & Label.source.in_(heard)
        if set(sources) < set(heard):
            told = select(Label.task_id).where(Label.project_id == project_id, Label.source.in_(sources))
            within &= Label.task_id.in_(told)
    columns = (Label.id, Label.task_id, Label.tool_annotation_id, Label.source, Label.cancelled)
    ranked = select(*columns, Label.updated_at, rank.label("rank")).where(within, ~buried).subquery()
    return select(ranked).where(ranked.c.rank == 1).subquery()
