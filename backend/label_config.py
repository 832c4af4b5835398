"""What a project's labeling interface (Label Studio's XML) says of masks."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree
from dataclasses import dataclass

from model.errors import ELNetError

_KINDS = {"BrushLabels": "brush", "PolygonLabels": "polygon"}


class LabelConfigError(ELNetError):
    """A labeling interface in which no mask can be drawn."""


@dataclass(frozen=True, slots=True)
class Control:
    """One tag that draws masks.

    Attributes:
        from_name: its own name, as regions carry it.
        to_name: the name of its image tag.
        kind: "brush" or "polygon".
        labels: in the order of the config; what regions carry (the alias, where a label has one).
    """

    from_name: str
    to_name: str
    kind: str
    labels: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class LabelConfig:
    """A labeling interface with at least one tag that draws masks.

    Attributes:
        controls: every brush and polygon tag, in the order of the config.
        image_field: the key of the image in the task data ("image" for value="$image").
    """

    controls: tuple[Control, ...]
    image_field: str

    @property
    def brush(self) -> Control | None:
        """The first brush tag."""
        return next((c for c in self.controls if c.kind == "brush"), None)

    @property
    def polygon(self) -> Control | None:
        """The first polygon tag."""
        return next((c for c in self.controls if c.kind == "polygon"), None)

    @property
    def control(self) -> Control:
        """The tag that prefills use: the brush where there is one, for only it keeps masks exactly."""
        return self.brush or self.controls[0]

    @property
    def labels(self) -> tuple[str, ...]:
        """Every label of every mask tag, once, in the order of the config."""
        return tuple(dict.fromkeys(label for control in self.controls for label in control.labels))


def parse_label_config(xml: str) -> LabelConfig:
    """Read a labeling interface.

    Args:
        xml: as Label Studio sends it in `schema` and `label_config`.

    Returns:
        Its mask tags and the field of the task data that holds the image.

    Raises:
        LabelConfigError: not XML, no mask tag on an image, mask tags on several images, or no labels.
    """
    root = _parse(xml)
    images = {tag.get("name"): tag.get("value") or "" for tag in root.iter("Image")}
    controls = tuple(
        Control(tag.get("name") or "", target, _KINDS[tag.tag], _labels(tag))
        for tag in root.iter()
        if tag.tag in _KINDS and (target := tag.get("toName") or "") in images
    )
    if not controls:
        raise LabelConfigError(
            "the labeling interface has no mask tag: add <BrushLabels> or <PolygonLabels> whose toName is "
            "the name of an <Image> (Label Studio: Settings, Labeling Interface)"
        )
    targets = {control.to_name for control in controls}
    if len(targets) > 1:
        raise LabelConfigError(
            f"the labeling interface draws masks on several images ({', '.join(sorted(targets))}): keep one"
        )
    if not any(control.labels for control in controls):
        raise LabelConfigError("the mask tags of the labeling interface have no <Label>: add one per class")
    value = images[controls[0].to_name]
    if not re.fullmatch(r"\$\w[\w.\-]*", value):
        raise LabelConfigError(
            f"the <Image> of the labeling interface has value={value!r}: it must name one field, as in $image"
        )
    return LabelConfig(controls, value[1:])


def _parse(xml: str) -> ElementTree.Element:
    """Parse without entities: a config has no use for a DOCTYPE, an attacker has."""
    if "<!doctype" in xml.lower() or "<!entity" in xml.lower():
        raise LabelConfigError("the labeling interface must not have a DOCTYPE or entities: remove them")
    try:
        return ElementTree.fromstring(xml)  # noqa: S314 - entities were refused above
    except ElementTree.ParseError as error:
        raise LabelConfigError(f"the labeling interface is not valid XML: {error}") from None


def _labels(tag: ElementTree.Element) -> tuple[str, ...]:
    """What regions of this tag will carry: the alias of each label, else its value."""
    found = (label.get("alias") or label.get("value") or "" for label in tag.iter("Label"))
    return tuple(dict.fromkeys(label for label in found if label))
