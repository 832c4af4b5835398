"""What the loop needs from outside: a labeling tool, and the pixels of a task."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from model.errors import ELNetError
from model.raster import Raster


class ToolUnavailableError(ELNetError):
    """The labeling tool did not answer; the same call may go through later."""


class ImageUnavailableError(ELNetError):
    """The pixels of a task cannot be had: gone, refused, too large or not an image. The text says why."""


@dataclass(frozen=True, slots=True)
class ToolTask:
    """A task as the tool lists it."""

    id: int
    image_uri: str
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class ToolAnnotation:
    """An annotation, decoded.

    Attributes:
        masks: (N, H, W) bool in the project's class order; None for a skip. (N, 0, 0) when nothing was drawn
            and the tool does not say how large the image is: an empty mask of the image's size is meant.
        annotator: the tool's user id, as text.
        machine: made by the user under which the loop accepts masks.
        parent_prediction: the tool's id of the prediction that it began with.
        soft_edges: the tool stored anti-aliased strokes, cut at alpha > 127.
    """

    id: int
    task_id: int
    masks: NDArray[np.bool_] | None
    annotator: str
    machine: bool
    cancelled: bool
    updated_at: datetime
    lead_time_s: float | None = None
    parent_prediction: int | None = None
    soft_edges: bool = False


@dataclass(frozen=True, slots=True)
class Prefill:
    """A prediction on its way to the tool. `masks` is (N, H, W) bool."""

    tool_task_id: int
    masks: NDArray[np.bool_]
    quality: float
    model_version: str


@dataclass(frozen=True, slots=True)
class Placement:
    """Where a task stands, as the tool's views filter and order by it."""

    tool_task_id: int
    route: str
    quality: float | None
    priority: float | None
    data: Mapping[str, Any] = field(default_factory=dict)  # the task's data as last seen


@dataclass(frozen=True, slots=True)
class Acceptance:
    """A prediction that becomes an annotation without a human. `masks` is (N, H, W) bool."""

    tool_task_id: int
    masks: NDArray[np.bool_]
    quality: float
    tool_prediction_id: int | None


class LabelingTool(Protocol):
    """The labeling tool behind one project. Every call may raise `ToolUnavailableError`."""

    def tasks(self, tool_project_id: int) -> Iterator[ToolTask]:
        """Every task of the project."""

    def annotations(self, tool_project_id: int, classes: Sequence[str]) -> Iterator[ToolAnnotation]:
        """Every annotation of the project, people's and the machine user's."""

    def push_prefills(
        self, tool_project_id: int, classes: Sequence[str], prefills: Sequence[Prefill]
    ) -> dict[int, int]:
        """Store predictions in bulk, read them back, remove those of other model versions.

        Returns:
            The tool's task id -> the tool's prediction id, for those that the tool really holds.
        """

    def push_placements(self, tool_project_id: int, placements: Iterable[Placement]) -> list[int]:
        """Write route, quality and priority to the task data. Returns the tool's ids of the tasks written."""

    def accept(
        self, tool_project_id: int, classes: Sequence[str], acceptances: Sequence[Acceptance]
    ) -> dict[int, int]:
        """Make each an annotation of the machine user, in place of an earlier one of that user.

        Returns:
            The tool's task id -> annotation id.
        """

    def withdraw(self, tool_project_id: int, tool_task_ids: Sequence[int]) -> None:
        """Remove the machine user's annotations of these tasks; people's are never touched."""

    def machine_annotator(self) -> str:
        """The tool's id of the user under whom `accept` stores, as text: what they say is no human label."""

    def serve_version(self, tool_project_id: int, version: str) -> None:
        """Tell the tool which model version serves, so that scores and order follow it."""


class ImageSource(Protocol):
    """The pixels of tasks."""

    def open(self, image_uri: str) -> Raster:
        """Read an image.

        Raises:
            ImageUnavailableError: it cannot be had; the text says why.
        """
