"""Which scenes judge and which train: whole scenes, by a hash of their name, once and for good."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

TRAIN, HOLDOUT = "train", "holdout"
ENOUGH = 2  # images on each side that are aimed at


def draw(scene: str) -> float:
    """A number in [0, 1) that looks random and hangs on the scene's name alone."""
    digest = hashlib.sha256(f"holdout/{scene}".encode()).digest()
    return int.from_bytes(digest[:6]) / 2**48


def assign(images: Mapping[str, int], known: Mapping[str, str], share: float) -> dict[str, str]:
    """Give every scene its side.

    A known scene stays where it is. Of the new ones, those with the lowest draws go to the holdout until it
    holds its share of the images: a draw for each scene alone would leave a first training set of a dozen
    images far from the share. Then, where a side would be short, new scenes change over, those with the
    nearest draw first: none is left empty if there are two scenes to share out, and `ENOUGH` images are aimed
    at as long as the other side keeps them.

    Args:
        images: scene -> how many labelled images it holds, at least 1.
        known: scene -> TRAIN or HOLDOUT, from earlier snapshots.
        share: of the images that judge, in (0, 1).

    Returns:
        Scene -> TRAIN or HOLDOUT, for each of `images`.
    """
    new = sorted((scene for scene in images if scene not in known), key=lambda scene: (draw(scene), scene))
    sides = {scene: known.get(scene, TRAIN) for scene in images}
    held = sum(count for scene, count in images.items() if sides[scene] == HOLDOUT)
    wanted = share * sum(images.values())
    for scene in new:
        if held + images[scene] / 2 <= wanted:  # nearer to the share with it than without it
            sides[scene] = HOLDOUT
            held += images[scene]
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
