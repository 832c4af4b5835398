"""Which scenes judge and which train: whole scenes, by a hash of their name, once and for good."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

TRAIN, HOLDOUT = "train", "holdout"
ENOUGH = 2  # images on each side that are aimed at


def draw(scene: str) -> float:
    """A number in [0, 1) that looks random and hangs on the scene's name alone.

    It is the same in every project, so that a model that starts from another project's never judges itself on
    scenes that the other trained on.
    """
    digest = hashlib.sha256(f"holdout/{scene}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def assign(images: Mapping[str, int], known: Mapping[str, str], share: float) -> dict[str, str]:
    """Give every scene its side.

    A known scene stays where it is. A new one goes to the holdout if its draw is below the share. Then, where
    a side would be short, new scenes change over, those with the nearest draw first: none is left empty if
    there are two scenes to share out, and `ENOUGH` images are aimed at as long as the other side keeps them.

    Args:
        images: scene -> how many labelled images it holds, at least 1.
        known: scene -> TRAIN or HOLDOUT, from earlier snapshots.
        share: of the scenes that judge, in (0, 1).

    Returns:
        Scene -> TRAIN or HOLDOUT, for each of `images`.
    """
    new = sorted((scene for scene in images if scene not in known), key=lambda scene: (draw(scene), scene))
    sides = {scene: known.get(scene) or (HOLDOUT if draw(scene) < share else TRAIN) for scene in images}
    _fill(sides, images, HOLDOUT, new)
    _fill(sides, images, TRAIN, new[::-1])
    return sides


def _fill(sides: dict[str, str], images: Mapping[str, int], side: str, candidates: list[str]) -> None:
    """Move candidates, in their order, to a side that is short of images."""
    for scene in candidates:
        here = sum(images[s] for s in sides if sides[s] == side)
        left = sum(images[s] for s in sides if sides[s] != side and s != scene)
        if here >= ENOUGH:
            return
        if sides[scene] != side and left >= (1 if here == 0 else ENOUGH):
            sides[scene] = side
