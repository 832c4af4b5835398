"""Counts that triggers keep, of tasks by status and of predictions by quality; indexes for the queues and
for what people said.

A lead's what-if then reads a thousand rows, however many tasks there are. The counts of a version are of its
predictions of open tasks; `active_learning.tallies` reads them.

Revision: 0013, after 0012.
"""

from __future__ import annotations

from typing import NamedTuple

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None

STATUSES = ("waiting", "review", "accepted", "audit", "done", "skipped", "failed", "gone")
COUNTED_AS = ("audit", "unusable", "graded")

# What predictions of open tasks are counted as. A bin is a thousandth of the quality.
OF_PREDICTIONS = """
SELECT model_version_id, counted_as, CASE counted_as WHEN 'graded' THEN bin ELSE 0 END AS bin, {n} AS tasks
FROM (
    SELECT p.model_version_id, {bin} AS bin, CASE
        WHEN t.holdout THEN 'audit'
        WHEN NOT {usable} THEN 'unusable'
        WHEN elnet_audit_draw(p.task_id, v.name) < r.audit_share THEN 'audit'
        ELSE 'graded' END AS counted_as
    FROM {predictions} p
    JOIN {tasks} t ON t.id = p.task_id
    JOIN projects r ON r.id = t.project_id
    JOIN model_versions v ON v.id = p.model_version_id
    WHERE t.status IN ('waiting', 'review', 'accepted', 'audit', 'failed') AND {which}
) AS of_one"""
OF_TASKS = "SELECT project_id, status, {n} AS tasks FROM {tasks} AS t WHERE {which}"

ADD_PREDICTIONS = """
INSERT INTO quality_counts (model_version_id, counted_as, bin, tasks)
SELECT model_version_id, counted_as, bin, SUM(tasks) FROM ({changes}) AS changes WHERE true
GROUP BY model_version_id, counted_as, bin HAVING SUM(tasks) <> 0
ORDER BY model_version_id, counted_as, bin
ON CONFLICT (model_version_id, counted_as, bin) DO UPDATE SET tasks = quality_counts.tasks + excluded.tasks;
"""
ADD_TASKS = """
INSERT INTO task_counts (project_id, status, tasks)
SELECT project_id, status, SUM(tasks) FROM ({changes}) AS changes WHERE true
GROUP BY project_id, status HAVING SUM(tasks) <> 0 ORDER BY project_id, status
ON CONFLICT (project_id, status) DO UPDATE SET tasks = task_counts.tasks + excluded.tasks;
"""
FORGET_PROJECT = """
DELETE FROM quality_counts
WHERE model_version_id IN (SELECT id FROM model_versions WHERE project_id {projects});
"""

ON_SQLITE = {
    "bin": "CAST(p.quality * 1000 AS INTEGER)",
    "usable": "COALESCE(json_extract(p.signals, '$.usable'), 1)",
}
ON_POSTGRESQL = {
    "bin": "CAST(floor(p.quality * 1000) AS INTEGER)",
    "usable": "COALESCE(CAST(CAST(p.signals AS json) ->> 'usable' AS BOOLEAN), true)",
}
DRAW_ON_POSTGRESQL = """
CREATE FUNCTION elnet_audit_draw(task_id integer, version text) RETURNS double precision
LANGUAGE sql IMMUTABLE PARALLEL SAFE AS $$
    SELECT CAST(CAST(CAST('x' || encode(substring(
        sha256(convert_to('audit/' || version || '/' || task_id, 'UTF8')) FROM 1 FOR 6
    ), 'hex') AS bit(48)) AS bigint) AS double precision) / 281474976710656
$$"""


def upgrade() -> None:
    op.create_table(
        "task_counts",
        sa.Column("project_id", sa.Integer(), nullable=False),
        sa.Column("status", _one_of(STATUSES, "counted_status"), nullable=False),
        sa.Column("tasks", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["project_id"], ["projects.id"], name=op.f("fk_task_counts_project_id_projects")
        ),
        sa.PrimaryKeyConstraint("project_id", "status", name=op.f("pk_task_counts")),
    )
    op.create_table(
        "quality_counts",
        sa.Column("model_version_id", sa.Integer(), nullable=False),
        sa.Column("counted_as", _one_of(COUNTED_AS, "counted_as"), nullable=False),
        sa.Column("bin", sa.Integer(), nullable=False),
        sa.Column("tasks", sa.Integer(), nullable=False),
        sa.ForeignKeyConstraint(
            ["model_version_id"],
            ["model_versions.id"],
            name=op.f("fk_quality_counts_model_version_id_model_versions"),
        ),
        sa.PrimaryKeyConstraint("model_version_id", "counted_as", "bin", name=op.f("pk_quality_counts")),
    )
    op.create_index("ix_tasks_queue", "tasks", ["project_id", "status", "priority", "id"])
    op.drop_index("ix_tasks_project_status", table_name="tasks")
    op.create_index("ix_predictions_version_quality", "predictions", ["model_version_id", "quality"])
    op.drop_index("ix_predictions_model_version_id", table_name="predictions")
    op.create_index("ix_labels_project_source", "labels", ["project_id", "source", "task_id"])
    on_sqlite = op.get_bind().dialect.name == "sqlite"
    (_count_on_sqlite if on_sqlite else _count_on_postgresql)()
    op.execute(ADD_TASKS.format(changes=_fill(OF_TASKS)))
    words = ON_SQLITE if on_sqlite else ON_POSTGRESQL
    op.execute(ADD_PREDICTIONS.format(changes=_fill(OF_PREDICTIONS, **words)))


def _one_of(values: tuple[str, ...], name: str) -> sa.Enum:
    return sa.Enum(*values, name=name, native_enum=False, create_constraint=True, length=20)


class _Source(NamedTuple):
    """Where a trigger finds the rows of its table, as they were and as they are, with their sign."""

    old: str
    new: str

    def changes(self, template: str, place: str, **given: str) -> str:
        sides = (("OLD", self.old, -1), ("NEW", self.new, 1))
        return " UNION ALL ".join(
            _fill(template, **{place: rows, "n": str(n)}, **{k: v.format(side) for k, v in given.items()})
            for side, rows, n in sides
            if rows
        )


def _fill(template: str, **given: str) -> str:
    whole = {"predictions": "predictions", "tasks": "tasks", "which": "true", "n": "1"}
    return template.format(**{**whole, **given})


def _count_on_sqlite() -> None:
    """Row by row: SQLite has no other triggers, and a row that is written often costs it nothing."""
    task = "(SELECT {0}.id AS id, {0}.project_id AS project_id, {0}.status AS status, {0}.holdout AS holdout)"
    prediction = (
        "(SELECT {0}.task_id AS task_id, {0}.model_version_id AS model_version_id, "
        "{0}.quality AS quality, {0}.signals AS signals)"
    )
    tasks = _Source(task.format("OLD"), task.format("NEW"))
    predictions = _Source(prediction.format("OLD"), prediction.format("NEW"))
    theirs = ADD_PREDICTIONS.format(
        changes=tasks.changes(OF_PREDICTIONS, "tasks", which="p.task_id = {0}.id", **ON_SQLITE)
    )
    for event, what in (
        ("INSERT ON tasks", _add_tasks(tasks._replace(old=""))),
        ("DELETE ON tasks", _add_tasks(tasks._replace(new=""))),
        (
            "UPDATE OF status, holdout ON tasks WHEN OLD.status <> NEW.status OR OLD.holdout <> NEW.holdout",
            _add_tasks(tasks) + theirs,
        ),
        ("INSERT ON predictions", _add_predictions(predictions._replace(old=""), ON_SQLITE)),
        ("DELETE ON predictions", _add_predictions(predictions._replace(new=""), ON_SQLITE)),
        (
            "UPDATE OF quality, signals ON predictions "
            "WHEN OLD.quality <> NEW.quality OR OLD.signals <> NEW.signals",
            _add_predictions(predictions, ON_SQLITE),
        ),
        (
            "UPDATE OF audit_share ON projects WHEN OLD.audit_share <> NEW.audit_share",
            _recount("NEW.id", ON_SQLITE),
        ),
    ):
        name = f"{event.partition(' ON ')[2].split()[0]}_counted_on_{event.split()[0].lower()}"
        op.execute(_literal(f"CREATE TRIGGER {name} AFTER {event} BEGIN {what} END"))


def _count_on_postgresql() -> None:
    """Statement by statement: a row that one transaction writes often gets slow there.

    These triggers also run where a priority is written, or what the tool was told; so they look first.
    """
    op.execute(_literal(DRAW_ON_POSTGRESQL))
    old, new = _Source("old_rows", ""), _Source("", "new_rows")
    tasks = _changed("id, project_id, status, holdout")
    predictions = _changed("id, task_id, model_version_id, quality, CAST(signals AS text) AS signals")
    shared = _changed("id, audit_share").new
    theirs = ADD_PREDICTIONS.format(changes=tasks.changes(OF_PREDICTIONS, "tasks", **ON_POSTGRESQL))
    for event, table, look, what in (
        ("INSERT", "tasks", "", _add_tasks(new)),
        ("DELETE", "tasks", "", _add_tasks(old)),
        ("UPDATE", "tasks", tasks.new, _add_tasks(tasks) + theirs),
        ("INSERT", "predictions", "", _add_predictions(new, ON_POSTGRESQL)),
        ("DELETE", "predictions", "", _add_predictions(old, ON_POSTGRESQL)),
        ("UPDATE", "predictions", predictions.new, _add_predictions(predictions, ON_POSTGRESQL)),
        ("UPDATE", "projects", shared, _recount(f"SELECT id FROM {shared} AS p", ON_POSTGRESQL)),  # noqa: S608
    ):
        name = f"{table}_counted_on_{event.lower()}"
        if look:
            what = f"IF EXISTS {look} THEN {what} END IF;"
        op.execute(
            _literal(
                f"CREATE FUNCTION elnet_{name}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN {what} "
                "RETURN NULL; END $$"
            )
        )
        rows = {"INSERT": "NEW TABLE AS new_rows", "DELETE": "OLD TABLE AS old_rows"}
        op.execute(
            f"CREATE TRIGGER {name} AFTER {event} ON {table} "
            f"REFERENCING {rows.get(event, 'OLD TABLE AS old_rows NEW TABLE AS new_rows')} "
            f"FOR EACH STATEMENT EXECUTE FUNCTION elnet_{name}()"
        )


def _changed(columns: str) -> _Source:
    """Rows of an UPDATE in which one of these changed. Not by a join, whose plan is kept for other sizes."""
    old, new = (f"SELECT {columns} FROM {rows}" for rows in ("old_rows", "new_rows"))  # noqa: S608
    return _Source(f"({old} EXCEPT {new})", f"({new} EXCEPT {old})")


def _add_tasks(source: _Source) -> str:
    return ADD_TASKS.format(changes=source.changes(OF_TASKS, "tasks"))


def _add_predictions(source: _Source, words: dict[str, str]) -> str:
    return ADD_PREDICTIONS.format(changes=source.changes(OF_PREDICTIONS, "predictions", **words))


def _recount(projects: str, words: dict[str, str]) -> str:
    again = _fill(OF_PREDICTIONS, which=f"t.project_id IN ({projects})", **words)
    return FORGET_PROJECT.format(projects=f"IN ({projects})") + ADD_PREDICTIONS.format(changes=again)


def _literal(statement: str) -> sa.TextClause:
    """A colon is no parameter here."""
    return sa.text(statement.replace(":", "\\:"))


def downgrade() -> None:
    raise RuntimeError("not undone: the counts would no longer be kept; upgrade elnet-loop instead")
