"""Labeling interfaces with and without what a mask needs."""

from __future__ import annotations

import pytest

from backend.label_config import LabelConfigError, parse_label_config

FULL = """<View>
  <Image name="image" value="$image" zoom="true"/>
  <PolygonLabels name="poly" toName="image"><Label value="oil"/></PolygonLabels>
  <BrushLabels name="brush" toName="image">
    <Label value="oil" background="#F00"/><Label value="ship"/>
  </BrushLabels>
  <KeyPointLabels name="kp" toName="image" smart="true"><Label value="oil"/></KeyPointLabels>
</View>"""


def test_both_tags_are_found_and_the_brush_prefills():
    config = parse_label_config(FULL)
    assert config.image_field == "image"
    assert config.brush is not None
    assert config.brush.labels == ("oil", "ship")
    assert config.polygon is not None
    assert (config.polygon.from_name, config.polygon.to_name) == ("poly", "image")
    assert config.polygon.kind == "polygon"
    assert config.control is config.brush
    assert config.labels == ("oil", "ship")


def test_polygons_alone_prefill_as_polygons():
    polygon = '<PolygonLabels name="p" toName="i"><Label value="x"/></PolygonLabels>'
    xml = f'<View><Image name="i" value="$url"/>{polygon}</View>'
    config = parse_label_config(xml)
    assert config.brush is None
    assert config.control.kind == "polygon"
    assert config.image_field == "url"


def test_regions_carry_the_alias():
    xml = FULL.replace('<Label value="ship"/>', '<Label value="ship" alias="vessel"/>')
    assert parse_label_config(xml).control.labels == ("oil", "vessel")


@pytest.mark.parametrize(
    ("xml", "message"),
    [
        ('<View><Image name="i" value="$image"/><Choices name="c" toName="i"/></View>', "no mask tag"),
        ("<View><BrushLabels name='b' toName='text'><Label value='x'/></BrushLabels></View>", "no mask tag"),
        ('<View><Image name="i" value="$a"/><BrushLabels name="b" toName="i"/></View>', "no <Label>"),
        (
            '<View><Image name="i" value="$a"/><Image name="j" value="$b"/>'
            '<BrushLabels name="b" toName="i"><Label value="x"/></BrushLabels>'
            '<BrushLabels name="c" toName="j"><Label value="x"/></BrushLabels></View>',
            "several images",
        ),
        (
            '<View><Image name="i" value="x.png"/>'
            '<BrushLabels name="b" toName="i"><Label value="x"/></BrushLabels></View>',
            "one field",
        ),
        ("<View>", "not valid XML"),
        ("", "not valid XML"),
        ('<!DOCTYPE v [<!ENTITY a "aa">]><View>&a;</View>', "DOCTYPE"),
    ],
)
def test_configs_without_a_mask_are_refused(xml, message):
    with pytest.raises(LabelConfigError, match=message):
        parse_label_config(xml)
