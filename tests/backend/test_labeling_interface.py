"""The labeling interface of a new project."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ElementTree

import pytest

from backend.label_config import parse_label_config
from backend.labeling_interface import ClassesError, check_classes, colour, labeling_interface


def test_a_brush_and_a_polygon_for_every_class():
    config = parse_label_config(labeling_interface(["oil", "ship"]))
    assert config.brush is not None
    assert config.polygon is not None
    assert config.brush.labels == config.polygon.labels == ("oil", "ship")
    assert config.control is config.brush
    assert config.image_field == "image"


def test_what_annotators_need():
    (image,) = ElementTree.fromstring(labeling_interface(["oil"])).iter("Image")
    assert image.get("zoom") == image.get("zoomControl") == "true"
    assert image.get("rotateControl") == "false"  # masks of rotated images cannot be read


def test_names_with_signs_of_xml():
    names = ["sealed & unsealed", "it's"]
    assert parse_label_config(labeling_interface(names)).labels == tuple(names)


def lab(hexadecimal: str) -> tuple[float, float, float]:
    """sRGB -> CIELAB, D65."""
    rgb = [int(hexadecimal[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in rgb]
    rows = ((0.4124, 0.3576, 0.1805), (0.2126, 0.7152, 0.0722), (0.0193, 0.1192, 0.9505))
    x, y, z = (
        sum(a * b for a, b in zip(row, linear, strict=True)) / white
        for row, white in zip(rows, (0.9505, 1.0, 1.089), strict=True)
    )
    f = [v ** (1 / 3) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in (x, y, z)]
    return 116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])


GROUND = ("#808080", "#404040", "#C0C0C0", "#556B2F", "#2E4A25", "#8B7355", "#1B2A3A")  # imagery


def test_colours_are_told_apart_from_each_other_and_from_the_ground():
    colours = [colour(i) for i in range(8)]
    for one, other in itertools.combinations(colours, 2):
        assert math.dist(lab(one), lab(other)) > 40, (one, other)
    for one, ground in itertools.product(colours, GROUND):
        assert math.dist(lab(one), lab(ground)) > 40, (one, ground)


def test_no_two_of_many_classes_share_a_colour():
    colours = [colour(i) for i in range(40)]
    assert len(set(colours)) == 40
    assert all(len(c) == 7 and int(c[1:], 16) >= 0 for c in colours)


@pytest.mark.parametrize(
    "name", ["", " oil", "oil ", "a/b", "..", ".hidden", "a,b", "a\nb", "x" * 101, 'a"b']
)
def test_names_that_cannot_be_folders_or_labels(name):
    with pytest.raises(ClassesError, match="cannot be a class"):
        check_classes(["water", name])


def test_none_or_twice():
    with pytest.raises(ClassesError, match="at least one class"):
        check_classes([])
    with pytest.raises(ClassesError, match="more than case"):
        check_classes(["Oil", "oil"])
    assert check_classes(["oil", "open water", "Straße"]) == ["oil", "open water", "Straße"]
