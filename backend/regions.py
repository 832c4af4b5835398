"""Label Studio's regions <-> masks.

What counts: brush and polygon regions. Keypoints and rectangles (prompts that were submitted along with the
mask) and relations are passed over. Several regions of one class are united. A stroke's anti-aliased alpha
is cut at > 127, and that is told.
"""

from __future__ import annotations

import base64
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from backend.label_config import Control, LabelConfig, LabelConfigError, parse_label_config
from backend.polygons import PolygonError, mask_to_polygons, polygons_to_mask
from backend.rle import RleError, decode_rle, encode_rle
from model.errors import ELNetError

__all__ = [
    "Control",
    "LabelConfig",
    "LabelConfigError",
    "PolygonError",
    "RegionError",
    "RleError",
    "decode_rle",
    "encode_rle",
    "image_size",
    "mask_to_polygons",
    "masks_to_regions",
    "parse_label_config",
    "polygons_to_mask",
    "regions_to_masks",
    "unknown_labels",
]

ALPHA_CUT = 127  # alpha above it is foreground
MAX_PIXELS = 400_000_000  # of one image that a region may claim
POLYGON_TOLERANCE = 1.0  # pixels; a staircase of every pixel cannot be edited by hand
_MASK_TYPES = {"brushlabels", "polygonlabels"}

Region = Mapping[str, Any]


class RegionError(ELNetError):
    """Regions that cannot be read as masks without guessing."""


def masks_to_regions(
    masks: NDArray[np.bool_], classes: Sequence[str], control: Control, quality: float
) -> list[dict[str, Any]]:
    """Write masks as regions of a prediction or annotation.

    Args:
        masks: (N, H, W) bool in the order of `classes`.
        classes: the N class names.
        control: the tag that draws them. A brush gives one region per class and is exact; a polygon gives
            one per object, simplified to 1 pixel.
        quality: predicted IoU in [0, 1], stored as each region's score.

    Returns:
        No region for an empty class, so an empty list for "nothing here".

    Raises:
        RegionError: shapes do not agree, or the control lacks a label for a class that is not empty.
    """
    if masks.ndim != 3 or masks.dtype != np.bool_ or len(masks) != len(classes):
        raise RegionError(f"masks must be ({len(classes)}, H, W) bool, not {masks.shape} {masks.dtype}")
    _, height, width = masks.shape
    regions = []
    for index, (name, mask) in enumerate(zip(classes, masks, strict=True)):
        if not mask.any():
            continue
        if name not in control.labels:
            raise RegionError(
                f"the tag {control.from_name!r} of the labeling interface has no label {name!r} "
                f"(it has: {', '.join(control.labels)}); add it, or create the project again with its labels"
            )
        for number, value in enumerate(_values(mask, name, control)):
            regions.append(
                {
                    "id": f"elnet-{index}-{number}",
                    "from_name": control.from_name,
                    "to_name": control.to_name,
                    "type": f"{control.kind}labels",
                    "original_width": width,
                    "original_height": height,
                    "image_rotation": 0,
                    "score": quality,
                    "value": value,
                }
            )
    return regions


def regions_to_masks(
    result: Sequence[Region], classes: Sequence[str], height: int, width: int
) -> tuple[NDArray[np.bool_], bool]:
    """Read the masks of an annotation or prediction.

    A region of a label that the project does not know is passed over (`unknown_labels` names it): people may
    draw more than is learnt from. If *every* mask region is of unknown labels, the annotation is refused: it
    must not be taken for "nothing here", as it would be after a class was renamed.

    Args:
        result: the regions.
        classes: the project's N class names.
        height: of the image in pixels.
        width: the same.

    Returns:
        (N, H, W) bool in the order of `classes`, and whether any stroke had soft edges.

    Raises:
        RegionError: a rotated image, another image size, a region without its value, or only unknown labels.
        RleError: a brush code that is malformed.
        PolygonError: a polygon that is malformed.
    """
    _check_size(height, width)
    masks = np.zeros((len(classes), height, width), dtype=np.bool_)
    soft_edges = False
    any_known, any_region = False, False
    for region in _mask_regions(result):
        any_region = True
        known = [classes.index(label) for label in _labels_of(region) if label in classes]
        if not known:
            continue
        any_known = True
        mask, soft = _decode(region, height, width)
        masks[known] |= mask
        soft_edges |= soft
    if any_region and not any_known:
        raise RegionError(
            f"every mask is labelled {', '.join(map(repr, unknown_labels(result, classes)))}, no class of "
            f"the project ({', '.join(classes)}): rename the label in Label Studio, or make a new project"
        )
    return masks, soft_edges


def image_size(result: Sequence[Region]) -> tuple[int, int] | None:
    """Height and width that the mask regions name; None if there is no mask region.

    Raises:
        RegionError: they disagree, or are no sizes.
    """
    sizes = {(r.get("original_height"), r.get("original_width")) for r in _mask_regions(result)}
    if len(sizes) > 1:
        raise RegionError(f"the regions of one annotation name several image sizes: {sizes}")
    if not sizes:
        return None
    height, width = sizes.pop()
    if not isinstance(height, int) or not isinstance(width, int):
        raise RegionError(f"a region must name original_height and original_width, not {height!r}, {width!r}")
    _check_size(height, width)
    return height, width


def unknown_labels(result: Sequence[Region], classes: Sequence[str]) -> list[str]:
    """Labels of mask regions that are no class of the project, each once; "" for a region without label."""
    found = (label for region in _mask_regions(result) for label in _labels_of(region) or [""])
    return [label for label in dict.fromkeys(found) if label not in classes]


def _values(mask: NDArray[np.bool_], name: str, control: Control) -> Iterator[dict[str, Any]]:
    """The `value` of each region that draws this mask (H, W)."""
    if control.kind == "brush":
        yield {"format": "rle", "rle": encode_rle(mask), "brushlabels": [name]}
    else:
        for points in mask_to_polygons(mask, POLYGON_TOLERANCE):
            yield {"points": points, "closed": True, "polygonlabels": [name]}


def _mask_regions(result: Sequence[Region]) -> Iterator[Region]:
    """Brush and polygon regions."""
    for region in result:
        if not isinstance(region, Mapping):
            raise RegionError(f"a region must be an object, not {type(region).__name__}")
        if region.get("type") in _MASK_TYPES:
            yield region


def _value_of(region: Region) -> Mapping[str, Any]:
    value = region.get("value")
    if not isinstance(value, Mapping):
        raise RegionError(f"region {region.get('id')!r} has no value")
    return value


def _labels_of(region: Region) -> list[str]:
    labels = _value_of(region).get(region["type"]) or []
    if not isinstance(labels, list):
        raise RegionError(f"region {region.get('id')!r}: its labels must be a list, not {labels!r}")
    return [str(label) for label in labels]


def _decode(region: Region, height: int, width: int) -> tuple[NDArray[np.bool_], bool]:
    """(H, W) bool of one region, and whether its edges were soft."""
    if region.get("image_rotation"):
        raise RegionError(
            f"region {region.get('id')!r} was drawn on an image rotated by {region['image_rotation']} "
            "degrees: such masks cannot be read; rotate the image back in Label Studio and submit again"
        )
    size = (region.get("original_height"), region.get("original_width"))
    if size != (height, width):
        raise RegionError(f"region {region.get('id')!r} is of a {size} image, not ({height}, {width})")
    value = _value_of(region)
    if region["type"] == "polygonlabels":
        return polygons_to_mask([value.get("points") or []], height, width), False
    alpha = decode_rle(_code(value.get("rle")), height, width)
    return alpha > ALPHA_CUT, bool(((alpha > 0) & (alpha < 255)).any())


def _code(rle: Any) -> Sequence[int]:
    """The bytes of a brush code: a list of numbers, or base64 text as the inbox keeps it."""
    if isinstance(rle, str):
        try:
            return base64.b64decode(rle, validate=True)
        except ValueError as error:
            raise RleError(f"a brush code in text form must be base64: {error}") from None
    return rle or []


def _check_size(height: int, width: int) -> None:
    """Refuse sizes that nobody labels before memory is taken for them."""
    if height < 1 or width < 1 or height * width > MAX_PIXELS:
        raise RegionError(f"an image of {width} x {height} pixels is not one that can be labelled")
