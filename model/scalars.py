"""The course of a training as TensorBoard shows it: loss, learning rate and gradient of every step."""

from __future__ import annotations

from contextlib import AbstractContextManager
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from model.errors import ELNetError

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class ScalarsError(ELNetError):
    """TensorBoard is not installed."""


def can_write() -> bool:
    """Whether TensorBoard's files can be written here."""
    return find_spec("tensorboard") is not None


class Scalars(AbstractContextManager["Scalars"]):
    """Event files in a folder; without a folder nothing."""

    def __init__(self, folder: Path | None) -> None:
        """Open nothing yet.

        Raises:
            ScalarsError: a folder, and no TensorBoard.
        """
        if folder is not None and not can_write():
            raise ScalarsError("TensorBoard is not installed: pip install 'elnet-loop[tensorboard]'")
        self._folder = folder
        self._writer: SummaryWriter | None = None

    def begin(self, step: int) -> None:
        """Open the files; what an interrupted run wrote of this step and later ones is not shown."""
        if self._folder is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(self._folder), purge_step=step)

    def write(self, step: int, **values: float) -> None:
        """Values of a step, by name."""
        if self._writer is not None:
            for name, value in values.items():
                self._writer.add_scalar(name, value, step)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._writer is not None:
            self._writer.close()
