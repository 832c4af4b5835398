"""The labeling interface of a new project: a brush and a polygon per class."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from xml.sax.saxutils import quoteattr

from model.errors import ELNetError

# Bright, saturated and far apart, for masks lie half transparent over grey, green and brown ground; the first
# ones are also told apart by people who do not see red and green.
_COLOURS = ("#FF2D95", "#00E5FF", "#FFD500", "#0080FF", "#00E000", "#FF4D00", "#B040FF", "#B0FFC0")
_GOLDEN = 0.618033988749895


class ClassesError(ELNetError):
    """Class names that cannot be used."""


def check_classes(classes: Sequence[str]) -> list[str]:
    """The names, if every one can be a label and the name of a folder of masks.

    Raises:
        ClassesError: none, doubled, or with characters that do not go.
    """
    if not classes:
        raise ClassesError("a project needs at least one class: name what is to be labelled, such as oil")
    for name in classes:
        if not name or name != name.strip() or name.startswith(".") or set(name) & set('/\\:*?"<>|,'):
            raise ClassesError(
                f"{name!r} cannot be a class: use letters, digits, spaces, - and _, no space at its ends"
            )
        if not name.isprintable() or len(name) > 100:
            raise ClassesError(f"{name!r} cannot be a class: at most 100 printable characters")
    folded = [name.casefold() for name in classes]
    if len(set(folded)) < len(folded):
        raise ClassesError(f"class names must differ by more than case: {', '.join(classes)}")
    return list(classes)


def labeling_interface(classes: Sequence[str]) -> str:
    """Label Studio's XML for these classes.

    The image cannot be rotated: what is drawn on a rotated image cannot be read as a mask of the image.
    """
    labels = "\n".join(
        f"      <Label value={quoteattr(name)} background={quoteattr(colour(i))}/>"
        for i, name in enumerate(classes)
    )
    return f"""<View>
  <View style="display: flex; flex-wrap: wrap; align-items: center; gap: 0 1em">
    <Header value="Brush" size="5"/>
    <BrushLabels name="brush" toName="image">
{labels}
    </BrushLabels>
    <Header value="Polygon" size="5"/>
    <PolygonLabels name="polygon" toName="image" strokeWidth="2" pointSize="small" opacity="0.4">
{labels}
    </PolygonLabels>
  </View>
  <Image name="image" value="$image" zoom="true" zoomControl="true" rotateControl="false" defaultzoom="fit"
         brightnessControl="true" contrastControl="true" gammaControl="true"/>
</View>
"""


def colour(index: int) -> str:
    """The colour of the class with this index, as #RRGGBB."""
    if index < len(_COLOURS):
        return _COLOURS[index]
    step = index - len(_COLOURS)
    red, green, blue = colorsys.hsv_to_rgb((0.07 + step * _GOLDEN) % 1, (1.0, 0.55)[step % 2], 1.0)
    return f"#{round(red * 255):02X}{round(green * 255):02X}{round(blue * 255):02X}"
