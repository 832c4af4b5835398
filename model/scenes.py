"""Which images show the same ground: siblings share a scene and stay on one side of every split."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from typing import Protocol, TypeVar

from model.errors import ELNetError
from model.tiles import parse_tile

BLOCK = 512  # px

# Deep-SAR Oil Spill: each base patch was published in five versions k, numbered this far apart.
_SOS = re.compile(r"sos_(?P<id>\d+)_(?P<sensor>palsar|sentinel1)_v(?P<k>\d)")
_SOS_STEP = {"palsar": 509, "sentinel1": 444}
_INDEXED_TILE = re.compile(r"(?P<scene>.+?)_r\d+_?c\d+")  # vegas_10219_r0c1: tiles counted, not measured


class SplitError(ELNetError):
    """Images that cannot be split without parting siblings."""


class _HasScene(Protocol):
    @property
    def scene(self) -> str: ...


Item = TypeVar("Item", bound=_HasScene)


def scene_of(stem: str, block: int = BLOCK) -> str:
    """The scene of an image, from its name.

    Versions of one SOS base patch share a scene. Tiles that were cut from a large raster
    ("STEM__r<row>_c<col>") share one if they begin in the same block of `block` x `block` px: neighbours
    mostly stay together, and the raster can still be split. Tiles with row and column numbers ("STEM_r0c1")
    share the scene of their stem. Any other image is a scene of its own.

    Args:
        stem: the file's name without folder and suffix.
        block: px, best twice the side of a tile or more.
    """
    if (tile := parse_tile(stem)) is not None:
        parent, row, col = tile
        return f"{scene_of(parent, block)}__b{row // block}_{col // block}"
    if match := _SOS.fullmatch(stem):
        base = int(match["id"]) - int(match["k"]) * _SOS_STEP[match["sensor"]]
        return f"sos_{base}_{match['sensor']}"
    if match := _INDEXED_TILE.fullmatch(stem):
        return match["scene"]
    return stem


def split_by_scene(items: Sequence[Item], share: float, seed: int = 0) -> tuple[list[Item], list[Item]]:
    """Split in two, whole scenes at a time: the rest, and about `share` of the items.

    Scenes are taken in the order of a hash of seed and name until the share is reached, so a scene keeps its
    place in that order when others join.

    Args:
        items: anything with a scene; their order is kept.
        share: in (0, 1), of the items in the second part; at least one scene stands on each side.
        seed: draws another order.

    Raises:
        SplitError: fewer than two scenes.
    """
    if not 0 < share < 1:
        raise ValueError(f"a share of {share} is not between 0 and 1")
    sizes: dict[str, int] = {}
    for item in items:
        sizes[item.scene] = sizes.get(item.scene, 0) + 1
    if len(sizes) < 2:
        raise SplitError(
            f"{len(items)} images of {len(sizes)} scene(s) cannot be split without parting siblings; "
            "add images of other scenes"
        )
    order = sorted(sizes, key=lambda scene: hashlib.sha256(f"{seed}/{scene}".encode()).digest())
    taken: set[str] = set()
    count = 0
    for scene in order[:-1]:
        if taken and count + sizes[scene] / 2 > share * len(items):
            break
        taken.add(scene)
        count += sizes[scene]
    return [i for i in items if i.scene not in taken], [i for i in items if i.scene in taken]
