"""The eight symmetries of the square: what an image seen from above may be turned and mirrored by."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray


class Symmetry(NamedTuple):
    """Quarter turns, counterclockwise, and then perhaps a mirror, left to right."""

    turns: int
    mirror: bool

    def apply(self, array: NDArray[Any], axes: tuple[int, int] = (0, 1)) -> NDArray[Any]:
        """Turn and mirror over these axes, rows and columns; a view."""
        turned = np.rot90(array, self.turns, axes)
        return np.flip(turned, axes[1]) if self.mirror else turned

    def undo(self, array: NDArray[Any], axes: tuple[int, int] = (0, 1)) -> NDArray[Any]:
        """The array that `apply` was given; a view."""
        unmirrored = np.flip(array, axes[1]) if self.mirror else array
        return np.rot90(unmirrored, -self.turns, axes)


FLIPS: Final = (1, 2, 4, 8)  # how many of them, from the first on, make a group

# The array as it is; mirrored left to right; upside down and both, which makes four; and all of them turned.
SYMMETRIES: Final = tuple(
    Symmetry(turns, mirror)
    for turns, mirror in (
        (0, False), (0, True), (2, True), (2, False), (1, False), (1, True), (3, True), (3, False),
    )
)  # fmt: skip
