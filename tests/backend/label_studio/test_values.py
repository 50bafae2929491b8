"""Laws of the shapes that are written for masks: each is read back as its mask, and Label Studio takes each."""

from __future__ import annotations

import base64
import io
import json
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image

from backend.label_studio import values
from backend.label_studio.config import ControlPlan, LabelPrompt
from backend.label_studio.results import shape_regions
from backend.label_studio.shapes import bitmask_mask, ellipse_mask, polygon_mask, rectangle_mask
from backend.label_studio.values import (
    bitmask_value,
    brush_value,
    ellipse_value,
    key_point_value,
    polygon_value,
    rectangle_value,
    rotated_rectangle_value,
)
from tests.core.blobs import any_blobs
from vlm_core.evaluate import iou
from vlm_core.polygons import Polygon, polygons
from vlm_core.runs import RunMask, fill_holes

LABEL = 'A "quoted" <ü> & 目'
XML_LABEL = "A &quot;quoted&quot; &lt;ü&gt; &amp; 目"
SHAPES = ("Brush", "Bitmask", "Polygon", "Rectangle", "Ellipse", "KeyPoint")
CONFIG = (
    '<View><Image name="i" value="$image"/>'
    + "".join(
        f'<{s}Labels name="{s.lower()}labels" toName="i"><Label value="{XML_LABEL}"/></{s}Labels>' for s in SHAPES
    )
    + "".join(f'<{s} name="{s.lower()}" toName="i"/>' for s in SHAPES)
    + f'<Labels name="all" toName="i"><Label value="{XML_LABEL}"/></Labels></View>'
)
INTERFACE = LabelInterface(CONFIG)
PROMPTS = (LabelPrompt(LABEL, ("a",), LABEL),)

tiny = arrays(np.bool_, array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=9)).map(RunMask.from_array)
some_masks = st.one_of(any_blobs(), tiny)


def control(kind: str) -> ControlPlan:
    bare = not kind.endswith("labels")
    return ControlPlan(kind, kind, "i", "image", PROMPTS, labels_name="all" if bare else None)  # type: ignore[arg-type]  # a str


def check(value: dict[str, Any], shape: str, size_hw: tuple[int, int]) -> None:
    """Label Studio accepts the shape with its own labels, and bare beside a `Labels` tag; JSON holds it."""
    results = [
        result
        for kind in (shape, f"{shape}labels")
        for result in shape_regions(control(kind), value, LABEL, 0.5, size_hw)
    ]
    prediction = {"result": results, "score": 0.5, "model_version": "v"}
    assert INTERFACE.validate_prediction(prediction, return_errors=True) == []
    assert json.loads(json.dumps(prediction)) == prediction
    bare, labels, own = results
    assert (bare["type"], labels["type"], own["type"]) == (shape, "labels", f"{shape}labels")
    assert (bare["from_name"], labels["from_name"], own["from_name"]) == (shape, "all", f"{shape}labels")
    assert bare["id"] == labels["id"] != own["id"]
    assert bare["value"] == value
    assert labels["value"] == value | {"labels": [LABEL]}
    assert own["value"] == value | {own["type"]: [LABEL]}
    for result in results:
        assert (result["original_height"], result["original_width"], result["image_rotation"]) == (*size_hw, 0)
        assert result["score"] == 0.5


def read_rectangle(value: dict[str, Any], size_hw: tuple[int, int]) -> np.ndarray:
    return rectangle_mask(value["x"], value["y"], value["width"], value["height"], value["rotation"], size_hw)


@settings(deadline=None)
@given(some_masks)
def test_brush_and_bitmask_are_exactly_their_mask(mask: RunMask) -> None:
    assume(len(mask))
    height, width = mask.size_hw
    value = brush_value(mask)
    alpha = decode_rle(value["rle"]).reshape(height, width, 4)[..., 3]
    np.testing.assert_array_equal(alpha, mask.to_array() * 255)
    check(value, "brush", mask.size_hw)
    value = bitmask_value(mask)
    np.testing.assert_array_equal(bitmask_mask(value["imageDataURL"], mask.size_hw), mask.to_array())
    check(value, "bitmask", mask.size_hw)
    # black on transparent, as the editor's canvas writes it
    data = base64.b64decode(value["imageDataURL"].partition(",")[2])
    pixels = np.asarray(Image.open(io.BytesIO(data)).convert("RGBA"))
    np.testing.assert_array_equal(pixels[..., 3], alpha)
    assert not pixels[..., :3].any()


@settings(deadline=None, max_examples=200)
@given(some_masks)
def test_a_polygon_is_its_part_with_its_holes_filled(mask: RunMask) -> None:
    for part in mask.instances():
        value = polygon_value(part)
        check(value, "polygon", mask.size_hw)
        filled = fill_holes(part)
        read = polygon_mask(value["points"], mask.size_hw)
        if part.area_px > 100:
            assert iou(read, filled.to_array()) >= 0.95
        if filled.area_px == part.area_px == 1:
            np.testing.assert_array_equal(read, part.to_array())


@settings(deadline=None, max_examples=200)
@given(some_masks)
def test_boxes_hold_their_part_and_touch_it(mask: RunMask) -> None:
    for part in mask.instances():
        picture = part.to_array()
        assert part.box_xyxy_px is not None
        value = rectangle_value(part.box_xyxy_px, part.size_hw)
        check(value, "rectangle", mask.size_hw)
        x0, y0, x1, y1 = part.box_xyxy_px
        box = np.zeros(mask.size_hw, bool)
        box[y0:y1, x0:x1] = True
        np.testing.assert_array_equal(read_rectangle(value, mask.size_hw), box)
        turned = rotated_rectangle_value(part)
        check(turned, "rectangle", mask.size_hw)
        assert 0 <= turned["rotation"] < 360
        held = read_rectangle(turned, mask.size_hw)
        assert (held | ~picture).all()
        # never larger than the upright one, in px
        area = turned["width"] * turned["height"]
        assert area <= value["width"] * value["height"] * (1 + 1e-6)


@settings(deadline=None, max_examples=200)
@given(some_masks)
def test_an_ellipse_lies_about_the_middle_of_its_part_and_label_studio_takes_it(mask: RunMask) -> None:
    height, width = mask.size_hw
    for part in mask.instances():
        value = ellipse_value(part)
        check(value, "ellipse", mask.size_hw)
        y, x = part.to_array().nonzero()
        assert value["x"] * width / 100 == pytest.approx(x.mean() + 0.5, abs=1e-6)
        assert value["y"] * height / 100 == pytest.approx(y.mean() + 0.5, abs=1e-6)
        assert 0 <= value["rotation"] < 360


def turned_ellipse(size_hw: tuple[int, int], radii: tuple[float, float], angle: float) -> np.ndarray:
    return ellipse_mask(50, 50, 100 * radii[0] / size_hw[1], 100 * radii[1] / size_hw[0], angle, size_hw)


@pytest.mark.parametrize("angle", [0, 20, 44, 46, 90, 133])
@pytest.mark.parametrize("size_hw", [(200, 300), (400, 150)])
def test_a_filled_ellipse_is_written_as_itself(size_hw: tuple[int, int], angle: float) -> None:
    mask = turned_ellipse(size_hw, (65, 20), angle)
    value = ellipse_value(RunMask.from_array(mask))
    read = ellipse_mask(value["x"], value["y"], value["radiusX"], value["radiusY"], value["rotation"], size_hw)
    assert iou(read, mask) > 0.97


def test_a_bar_from_border_to_border_is_an_ellipse_as_wide_as_the_image() -> None:
    value = ellipse_value(RunMask.from_array(np.ones((30, 50), bool)))
    assert (value["x"], value["y"], value["radiusX"], value["radiusY"]) == (50, 50, 50, 50)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize(("size_hw", "turned"), [((100, 100), False), ((300, 100), True), ((100, 300), True)])
def test_a_box_that_is_too_long_for_one_side_is_measured_along_the_other(
    size_hw: tuple[int, int], turned: bool, flip: bool
) -> None:
    """A bar at 45 degrees from border to border: wider than a narrow image, but not as high; in a square, neither."""
    y, x = np.indices(size_hw)
    mask = np.abs(y - x) < 3
    part = RunMask.from_array(mask[:, ::-1].copy() if flip else mask)
    value = rotated_rectangle_value(part)
    check(value, "rectangle", size_hw)
    assert (value["rotation"] % 90 != 0) == turned
    if turned:
        assert iou(read_rectangle(value, size_hw), part.to_array()) > 0.8


def test_a_key_point_is_the_middle_of_its_pixel() -> None:
    value = key_point_value((3, 0), (10, 8))
    assert (value["x"], value["y"]) == (pytest.approx(43.75), 5)
    check(value, "keypoint", (10, 8))
    for pixel in ((0, 0), (7, 9)):
        check(key_point_value(pixel, (10, 8)), "keypoint", (10, 8))


def test_holes_are_filled_and_an_island_in_one_stays_a_part_of_its_own() -> None:
    ring = np.zeros((60, 60), bool)
    ring[5:55, 5:55] = True
    ring[15:45, 15:45] = False
    ring[25:35, 25:35] = True
    outer, island = (
        polygon_mask(polygon_value(part)["points"], (60, 60)) for part in RunMask.from_array(ring).instances()
    )
    assert outer.sum() == 50 * 50
    assert island.sum() == 10 * 10


def test_the_outline_of_what_has_a_hole_is_simplified_as_without_it() -> None:
    y, x = np.indices((200, 200))
    disc = np.hypot(y - 100, x - 100) < 80
    ring = disc & (np.hypot(y - 100, x - 100) > 40)
    outlines = [polygon_value(RunMask.from_array(mask))["points"] for mask in (disc, ring)]
    assert outlines[0] == outlines[1]
    assert len(outlines[0]) < 60


def test_a_ragged_outline_is_drawn_coarser_until_the_editor_can_show_it() -> None:
    comb = np.zeros((60, 3200), bool)
    comb[:40, ::2] = True  # 1600 teeth with four corners each
    comb[40:] = True
    part = RunMask.from_array(comb)
    value = polygon_value(part)
    assert 3 <= len(value["points"]) <= 5000
    check(value, "polygon", part.size_hw)


def test_an_outline_that_crosses_itself_however_coarse_it_is_drawn_becomes_its_hull(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def never_simpler(mask: RunMask, *, tolerance_px: float, min_iou: float) -> list[Polygon]:
        return polygons(mask, tolerance_px=0, min_iou=min_iou)

    monkeypatch.setattr(values, "polygons", never_simpler)
    comb = np.zeros((60, 3200), bool)
    comb[:40, ::2] = True
    comb[40:] = True
    value = polygon_value(RunMask.from_array(comb))
    corners = {(x, y) for x, y in value["points"]}
    # From the first tooth's top to the last one's, whose right edge is a pixel before the border.
    assert corners == {(0, 0), (round(100 * 3199 / 3200, 5), 0), (100, round(100 * 40 / 60, 5)), (100, 100), (0, 100)}


def test_empty_masks_are_refused() -> None:
    empty = RunMask.from_array(np.zeros((3, 4), bool))
    for write in (brush_value, bitmask_value):
        with pytest.raises(ValueError, match="empty"):
            write(empty)
