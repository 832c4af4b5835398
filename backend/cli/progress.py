"""A progress bar on standard error, so that standard output stays the command's answer."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)

Report = Callable[[str, int, int], None]  # what, done, in all (0: unknown)


@contextmanager
def progress_bar(*, hidden: bool, bytes_: bool = False) -> Iterator[Report]:
    """A bar that follows the reports it gets; one line for each thing reported on.

    Args:
        hidden: show nothing.
        bytes_: the numbers are bytes.
    """
    count: ProgressColumn = DownloadColumn() if bytes_ else MofNCompleteColumn()
    columns = (TextColumn("{task.description}"), BarColumn(), count, TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), disable=hidden) as bar:
        tasks: dict[str, TaskID] = {}
        if hidden:
            yield lambda _what, _done, _total: None
            return

        def report(what: str, done: int, total: int) -> None:
            subject, _, detail = what.partition(
                ": "
            )  # "training: loss 0.3": the detail changes, the bar stays
            task = tasks.get(subject)
            if task is None:
                task = tasks[subject] = bar.add_task(subject, total=total or None)
            bar.update(task, completed=done, total=total or None, description=what if detail else subject)

        yield report
