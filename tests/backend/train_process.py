"""A worker of a machine of its own, in a process of its own: python train_process.py IMAGES train|serve.

The environment says where ledger, files, state and cache are.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from active_learning.ledger import Ledger
from active_learning.ports import ToolAnnotation, ToolTask
from backend.settings import Settings
from backend.train_worker import TrainWorker
from backend.worker import Worker
from tests.backend.worker_process import FolderImages, MirrorTool


class ProjectsTool(MirrorTool):
    """Tells of each project what is its own."""

    def tasks(self, tool_project_id: int) -> Iterator[ToolTask]:
        return (task for task in super().tasks(tool_project_id) if _is_of(tool_project_id, task.id))

    def annotations(self, tool_project_id: int, classes: Sequence[str]) -> Iterator[ToolAnnotation]:
        found = super().annotations(tool_project_id, classes)
        return (said for said in found if _is_of(tool_project_id, said.task_id))


def _is_of(tool_project_id: int, task: int) -> bool:
    """As `worker_process.furnish` numbers them."""
    return task // 1000 == tool_project_id - 7


def main(images: Path, kind: str) -> None:
    logging.basicConfig(level=logging.INFO, format="%(process)d %(name)s: %(message)s")
    settings = Settings(device="cpu", trunk="random-nano", poll_s=0.05, batch_size=4)
    with Ledger(settings.ledger_url) as ledger:
        if kind == "train":
            TrainWorker(settings, ledger, FolderImages(images)).run()
        else:
            Worker(settings, ledger, ProjectsTool(ledger), FolderImages(images), cycles=False).run()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
