from __future__ import annotations

import base64
import io
import json
import math
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from label_studio_sdk.converter.brush import decode_rle
from label_studio_sdk.label_interface import LabelInterface
from PIL import Image

from backend.label_studio.config import parse_label_config
from backend.label_studio.results import (
    brush_region,
    choices_region,
    masks_from_results,
    rectangle_region,
)

Mask = npt.NDArray[np.bool_]

CONFIG = """<View>
  <Image name="image" value="$image"/>
  <BrushLabels name="mask" toName="image"><Label value="Car" alias="C"/><Label value="Tree"/></BrushLabels>
  <RectangleLabels name="box" toName="image"><Label value="Sign"/><Label value="Tree"/></RectangleLabels>
  <Choices name="weather" toName="image"><Choice value="sunny"/><Choice value="rain" alias="r"/></Choices>
  <Choices name="seen" toName="image" choice="multiple"><Choice value="a"/><Choice value="b"/></Choices>
  <PolygonLabels name="outline" toName="image"><Label value="Tree"/><Label value="House"/></PolygonLabels>
</View>"""
PLAN = parse_label_config(CONFIG)
INTERFACE = LabelInterface(CONFIG)
MASK, BOX, WEATHER, SEEN, OUTLINE = PLAN.controls

MASKS = st.tuples(st.integers(1, 20), st.integers(1, 20)).flatmap(lambda size: hnp.arrays(np.bool_, size))


def errors(*regions: dict[str, Any]) -> list[str]:
    prediction = {"result": list(regions), "score": 0.5, "model_version": "v"}
    assert json.loads(json.dumps(prediction)) == prediction
    found: list[str] = INTERFACE.validate_prediction(prediction, return_errors=True)
    return found


def region(kind: str, value: dict[str, Any], from_name: str = "mask", **extra: Any) -> dict[str, Any]:
    return {
        "id": "x",
        "from_name": from_name,
        "to_name": "image",
        "type": kind,
        "value": value,
        "original_width": 10,
        "original_height": 8,
        "image_rotation": 0,
        **extra,
    }


@given(MASKS)
def test_a_brush_region_is_valid_and_decodes_to_its_mask(mask: Mask) -> None:
    assume(mask.any())
    made = brush_region(mask, MASK, "C", 0.75)
    assert errors(made) == []
    height, width = mask.shape
    assert (made["original_width"], made["original_height"], made["image_rotation"]) == (width, height, 0)
    assert (made["score"], made["type"], made["value"]["brushlabels"]) == (0.75, "brushlabels", ["C"])
    alpha = decode_rle(made["value"]["rle"]).reshape(height, width, 4)[..., 3]
    assert np.array_equal(alpha, mask * 255)
    read = masks_from_results([made], PLAN)
    assert read.unread == ()
    assert read.size_hw == mask.shape
    assert list(read.masks) == ["C"]
    assert np.array_equal(read.masks["C"], mask)


@given(
    st.tuples(st.integers(1, 2000), st.integers(1, 2000)),
    st.tuples(*[st.floats(0, 1, allow_subnormal=False)] * 4),
)
def test_a_box_comes_back_as_its_pixels(size_hw: tuple[int, int], corners: tuple[float, ...]) -> None:
    height, width = size_hw
    left, right = sorted(round(corner * width) for corner in corners[:2])
    top, bottom = sorted(round(corner * height) for corner in corners[2:])
    assume(left < right and top < bottom)
    made = rectangle_region((left, top, right, bottom), size_hw, BOX, "Sign", 1.0)
    assert errors(made) == []
    value = made["value"]
    assert value["x"] / 100 * width == pytest.approx(left)
    assert (value["y"] + value["height"]) / 100 * height == pytest.approx(bottom)
    mask = masks_from_results([made], PLAN).masks["Sign"]
    assert mask.sum() == (right - left) * (bottom - top)
    assert mask[top:bottom, left:right].all()


def test_choices_regions() -> None:
    one, several = choices_region(WEATHER, ["r"], 0.9), choices_region(SEEN, ["a", "b"], 0.5)
    assert errors(one, several) == []
    assert (one["value"], one["type"]) == ({"choices": ["r"]}, "choices")
    assert "original_width" not in one
    assert masks_from_results([one, several], PLAN).choices == {"weather": ("r",), "seen": ("a", "b")}


@pytest.mark.parametrize("score", [-0.1, 1.1, math.nan, math.inf])
def test_scores_out_of_range_are_refused(score: float) -> None:
    with pytest.raises(ValueError, match="from 0 to 1"):
        brush_region(np.ones((2, 2), bool), MASK, "C", score)


def test_wrong_regions_are_refused() -> None:
    with pytest.raises(ValueError, match="empty"):
        brush_region(np.zeros((2, 2), bool), MASK, "C", 0.5)
    with pytest.raises(ValueError, match="no label 'Car'"):
        brush_region(np.ones((2, 2), bool), MASK, "Car", 0.5)
    with pytest.raises(ValueError, match="takes rectanglelabels"):
        brush_region(np.ones((2, 2), bool), BOX, "Sign", 0.5)
    for box in ((0, 0, 0, 1), (0, 0, 11, 1), (-1, 0, 1, 1), (0, 5, 1, 9)):
        with pytest.raises(ValueError, match="leaves the image"):
            rectangle_region(box, (8, 10), BOX, "Sign", 0.5)
    for control, labels in ((WEATHER, []), (WEATHER, ["sunny", "r"]), (SEEN, ["a", "a"])):
        with pytest.raises(ValueError, match="no answer"):
            choices_region(control, labels, 0.5)


def test_regions_of_one_label_are_united_whatever_drew_them() -> None:
    top, left = np.zeros((8, 10), bool), np.zeros((8, 10), bool)
    top[0], left[:, 0] = True, True
    read = masks_from_results(
        [
            brush_region(top, MASK, "Tree", 0.5),
            brush_region(left, MASK, "Tree", 0.5),
            # another control with the same label: as good a truth
            region(
                "polygonlabels", {"points": [[50, 50], [100, 50], [100, 100], [50, 100]], "polygonlabels": ["Tree"]}
            ),
            rectangle_region((2, 2, 3, 3), (8, 10), BOX, "Sign", 0.5),
        ],
        PLAN,
    )
    expected = top | left
    expected[4:, 5:] = True
    assert read.unread == ()
    assert np.array_equal(read.masks["Tree"], expected)
    assert read.sources == {
        "Tree": frozenset({"brushlabels", "polygonlabels"}),
        "Sign": frozenset({"rectanglelabels"}),
    }
    assert read.masks["Sign"].sum() == 1


def test_a_label_of_another_tool_is_drawn_as_the_region_that_it_was_added_to() -> None:
    """So the editor saves an accepted answer while a label of another tool is selected."""
    mask = np.eye(8, 10) > 0
    answer = brush_region(mask, MASK, "Tree", 0.5)
    shape = {"format": "rle", "rle": answer["value"]["rle"]}
    box = rectangle_region((2, 2, 3, 3), (8, 10), BOX, "Sign", 0.5)
    corners = {key: item for key, item in box["value"].items() if key != "rectanglelabels"}
    read = masks_from_results(
        [
            answer,
            {**answer, "from_name": "point", "type": "keypointlabels", "value": {**shape, "keypointlabels": ["Tree"]}},
            {**answer, "from_name": "box", "type": "rectanglelabels", "value": {**shape, "rectanglelabels": ["Sign"]}},
            {
                **box,
                "id": "other",
                "from_name": "mask",
                "type": "brushlabels",
                "value": {**corners, "brushlabels": ["C"]},
            },
        ],
        PLAN,
    )
    assert read.unread == ()
    assert np.array_equal(read.masks["Tree"], mask)
    assert np.array_equal(read.masks["Sign"], mask)
    assert np.argwhere(read.masks["C"]).tolist() == [[2, 2]]
    assert read.sources["Sign"] == frozenset({"brushlabels"})


def test_labels_are_found_by_alias_and_by_value() -> None:
    for name in ("C", "Car"):
        made = region(
            "brushlabels", brush_region(np.ones((8, 10), bool), MASK, "C", 1)["value"] | {"brushlabels": [name]}
        )
        assert list(masks_from_results([made], PLAN).masks) == ["C"]


@pytest.mark.parametrize(
    ("kind", "value", "filled"),
    [
        # column 2 to 5 of 10, row 2 to 4 of 8
        ("rectanglelabels", {"x": 20, "y": 25, "width": 30, "height": 25}, [(2, 2), (3, 4)]),
        # the same turned by 90 degrees about its top-left corner: 2 wide to the left, 3 down
        ("rectanglelabels", {"x": 20, "y": 25, "width": 30, "height": 25, "rotation": 90}, [(2, 0), (4, 1)]),
        # by 180: left and up
        ("rectanglelabels", {"x": 50, "y": 50, "width": 30, "height": 25, "rotation": 180}, [(2, 2), (3, 4)]),
        # turns of 360 change nothing, negative angles are fine
        ("rectanglelabels", {"x": 20, "y": 25, "width": 30, "height": 25, "rotation": -720}, [(2, 2), (3, 4)]),
        # beyond the image: cut off
        ("rectanglelabels", {"x": 80, "y": 75, "width": 100, "height": 100, "rotation": 0}, [(6, 8), (7, 9)]),
        ("polygonlabels", {"points": [[20, 25], [50, 25], [50, 50], [20, 50]], "closed": True}, [(2, 2), (3, 4)]),
    ],
)
def test_shapes_fill_the_right_pixels(kind: str, value: dict[str, Any], filled: list[tuple[int, int]]) -> None:
    (top, left), (bottom, right) = filled
    expected = np.zeros((8, 10), bool)
    expected[top : bottom + 1, left : right + 1] = True
    read = masks_from_results([region(kind, {**value, kind: ["Tree"]})], PLAN)
    assert read.unread == ()
    assert np.array_equal(read.masks["Tree"], expected)


@given(st.floats(-400, 400), st.floats(5, 60), st.floats(5, 60))
def test_a_turned_rectangle_keeps_its_area_and_equals_its_polygon(angle: float, width: float, height: float) -> None:
    size = (180, 240)
    value = {"x": 50, "y": 50, "width": width, "height": height, "rotation": angle, "rectanglelabels": ["Tree"]}
    stated = {"original_width": size[1], "original_height": size[0]}
    turned = masks_from_results([region("rectanglelabels", value, **stated)], PLAN).masks["Tree"]

    a = math.radians(angle)
    across, down = width / 100 * size[1], height / 100 * size[0]
    corners = [(0, 0), (across, 0), (across, down), (0, down)]
    points = [
        [
            50 + (u * math.cos(a) - v * math.sin(a)) / size[1] * 100,
            50 + (u * math.sin(a) + v * math.cos(a)) / size[0] * 100,
        ]
        for u, v in corners
    ]
    polygon = masks_from_results(
        [region("polygonlabels", {"points": points, "polygonlabels": ["Tree"]}, **stated)], PLAN
    ).masks["Tree"]
    # Only pixels whose centre lies on an edge, within rounding, may differ: at 45 degrees a whole row of them does.
    rows, columns = np.nonzero(turned ^ polygon)
    # Centres in the rectangle's own axes, px from its first corner.
    x, y = columns + 0.5 - 0.5 * size[1], rows + 0.5 - 0.5 * size[0]
    u, v = x * math.cos(a) + y * math.sin(a), y * math.cos(a) - x * math.sin(a)
    to_an_edge = np.minimum.reduce([np.abs(u), np.abs(u - across), np.abs(v), np.abs(v - down)])
    assert (to_an_edge < 1e-6).all()


def test_a_polygon_with_a_notch_and_one_that_crosses_itself() -> None:
    notch = [[0, 0], [100, 0], [100, 100], [50, 60], [0, 100]]
    square = {"original_width": 10, "original_height": 10}
    mask = masks_from_results(
        [region("polygonlabels", {"points": notch, "polygonlabels": ["Tree"]}, **square)], PLAN
    ).masks["Tree"]
    assert mask[:5].all()
    assert mask[9].tolist() == [True, *[False] * 8, True]
    # a star of five points, drawn without lifting the pen: the canvas fills its middle
    angles = [math.pi / 2 + 4 * math.pi * k / 5 for k in range(5)]
    star = [[50 + 45 * math.cos(a), 50 - 45 * math.sin(a)] for a in angles]
    mask = masks_from_results(
        [region("polygonlabels", {"points": star, "polygonlabels": ["Tree"]}, **square)], PLAN
    ).masks["Tree"]
    assert mask[5, 5]


def test_an_ellipse_has_its_place_and_area() -> None:
    value = {"x": 50, "y": 25, "radiusX": 25, "radiusY": 10, "rotation": 30, "ellipselabels": ["Tree"]}
    made = region("ellipselabels", value, original_width=400, original_height=800)
    mask = masks_from_results([made], PLAN).masks["Tree"]
    assert mask.sum() == pytest.approx(math.pi * 100 * 80, rel=0.01)
    rows, columns = np.nonzero(mask)
    assert (rows.mean(), columns.mean()) == (pytest.approx(199.5, abs=0.5), pytest.approx(199.5, abs=0.5))
    assert mask[200 + 45, 200 + 80]  # clockwise as seen: the right end goes down
    assert not mask[200 - 45, 200 + 80]


def data_url(image: Image.Image) -> str:
    file = io.BytesIO()
    image.save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def test_bitmasks_are_read_by_their_transparency() -> None:
    pixels = np.zeros((8, 10, 4), np.uint8)
    pixels[3, 4:6, 3] = (255, 100)
    value = {"imageDataURL": data_url(Image.fromarray(pixels)), "bitmasklabels": ["Tree"]}
    mask = masks_from_results([region("bitmasklabels", value)], PLAN).masks["Tree"]
    assert np.argwhere(mask).tolist() == [[3, 4]]


BLACK = data_url(Image.new("L", (10, 8)))
SMALL = data_url(Image.new("RGBA", (2, 2), (0, 0, 0, 255)))

UNREADABLE: list[tuple[object, str]] = [
    ("text", "not an object"),
    (region("brushlabels", {"brushlabels": ["C"], "rle": [1, 2]}), "no header"),
    (region("brushlabels", {"brushlabels": ["C"], "format": "png", "rle": []}), "'png'"),
    (region("brushlabels", {"brushlabels": ["C"]}), "no header"),
    (region("brushlabels", {"brushlabels": ["Boat"], "rle": []}), "no label 'Boat'"),
    (region("brushlabels", {"rle": []}), "has no label"),
    (region("polygonlabels", {"points": [], "polygonlabels": ["Hut"]}), "no label 'Hut'"),
    (region("polygonlabels", {"points": [[0, 0], [1, 1]], "polygonlabels": ["Tree"]}), "three or more"),
    (region("polygonlabels", {"points": [[0, 0], [1], [2, 2]], "polygonlabels": ["Tree"]}), "three or more"),
    (region("polygonlabels", {"points": "abc", "polygonlabels": ["Tree"]}), "three or more"),
    (region("polygonlabels", {"points": [[0, 0], [1, math.nan], [2, 2]], "polygonlabels": ["Tree"]}), "not a number"),
    (region("polygonlabels", {"points": [[0, 0], [1e300, 5], [2, 2]], "polygonlabels": ["Tree"]}), "far outside"),
    (
        region("polygonlabels", {"points": [[0, 0], [9, 0], [9, 9]], "closed": False, "polygonlabels": ["Tree"]}),
        "not closed",
    ),
    (region("rectanglelabels", {"x": 1, "y": 1, "width": "a", "height": 1, "rectanglelabels": ["Sign"]}), "'a'"),
    (region("rectanglelabels", {"x": 1, "y": 1, "width": -1, "height": 1, "rectanglelabels": ["Sign"]}), "-1"),
    (region("rectanglelabels", {"x": 1, "y": 1, "width": 0, "height": 1, "rectanglelabels": ["Sign"]}), "no pixel"),
    (region("rectanglelabels", {"x": 1e9, "y": 1, "width": 1, "height": 1, "rectanglelabels": ["Sign"]}), "outside"),
    (region("ellipselabels", {"x": 1, "y": 1, "radiusX": 0, "radiusY": 1, "ellipselabels": ["Sign"]}), "radii"),
    (region("keypointlabels", {"x": 1, "y": 1, "width": 1, "keypointlabels": ["Tree"]}), "no area"),
    (region("bitmasklabels", {"imageDataURL": "http://x", "bitmasklabels": ["Tree"]}), "PNG in a data URL"),
    (region("bitmasklabels", {"imageDataURL": BLACK[:60], "bitmasklabels": ["Tree"]}), "readable PNG"),
    (region("bitmasklabels", {"imageDataURL": BLACK, "bitmasklabels": ["Tree"]}), "without transparency"),
    (region("bitmasklabels", {"imageDataURL": SMALL, "bitmasklabels": ["Tree"]}), "2 x 2"),
    (region("brushlabels", {"brushlabels": ["C"], "rle": []}, image_rotation=90), "rotated by 90"),
    (region("brushlabels", {"brushlabels": ["C"], "rle": []}, original_width=0), "0 x 8"),
    (region("brushlabels", {"brushlabels": ["C"], "rle": []}, original_width="a"), "a x 8"),
    (region("brushlabels", {"brushlabels": ["C"], "rle": []}, original_width=10**9), "too large"),
    (region("brushlabels", {"brushlabels": ["C"], "rle": []}, to_name="other"), "'other'"),
    (region("brushlabels", "text"), "no value"),  # type: ignore[arg-type]
    (region("choices", {"choices": ["snow"]}, "weather"), "no choice"),
    (region("choices", {"choices": []}, "weather"), "no choice"),
    (region("choices", {"choices": ["a"]}, "mask"), "not predicted"),
    ({"id": "x", "type": "relation", "from_id": "a", "to_id": "b"}, "belongs to None"),
]


@pytest.mark.parametrize(("broken", "words"), UNREADABLE)
def test_an_unreadable_region_is_listed_and_the_others_count(broken: dict[str, Any], words: str) -> None:
    good = rectangle_region((0, 0, 1, 1), (8, 10), BOX, "Sign", 1.0)
    for result in ([broken, good], [good, broken]):
        read = masks_from_results(result, PLAN)
        if words == "too large" and result[0] is good:
            continue  # the good region has already fixed the image's size
        (left_out,) = read.unread
        assert words in left_out.reason
        assert read.masks["Sign"].sum() == 1


def test_sizes_must_agree_and_may_be_given() -> None:
    first = rectangle_region((0, 0, 1, 1), (8, 10), BOX, "Sign", 1.0)
    other = rectangle_region((0, 0, 1, 1), (9, 10), BOX, "Sign", 1.0)
    read = masks_from_results([first, other], PLAN)
    assert read.size_hw == (8, 10)
    assert "10 x 9" in read.unread[0].reason
    bare = {key: value for key, value in first.items() if not key.startswith("original")}
    assert "does not state" in masks_from_results([bare], PLAN).unread[0].reason
    assert masks_from_results([bare], PLAN, size_hw=(8, 10)).masks["Sign"].shape == (8, 10)


def test_no_result_is_no_mask() -> None:
    for result in ([], None, "text", {}):
        read = masks_from_results(result, PLAN)  # type: ignore[arg-type]
        assert (read.size_hw, read.masks, read.choices, read.unread) == (None, {}, {}, ())


def test_of_several_images_one_is_named() -> None:
    plan = parse_label_config(
        '<View><Image name="a" value="$a"/><Image name="b" value="$b"/>'
        '<BrushLabels name="m" toName="a"><Label value="x"/></BrushLabels>'
        '<BrushLabels name="n" toName="b"><Label value="x"/></BrushLabels></View>'
    )
    regions = [
        brush_region(np.ones((4, 4), bool), plan.controls[0], "x", 1),
        brush_region(np.ones((2, 3), bool), plan.controls[1], "x", 1),
    ]
    with pytest.raises(ValueError, match="several images"):
        masks_from_results(regions, plan)
    assert masks_from_results(regions, plan, to_name="a").size_hw == (4, 4)
    assert masks_from_results(regions, plan, to_name="b").size_hw == (2, 3)


BARE = parse_label_config(
    """<View><Image name="image" value="$image"/>
    <Labels name="what" toName="image"><Label value="Car" alias="C"/><Label value="Tree"/></Labels>
    <Rectangle name="box" toName="image"/><Polygon name="outline" toName="image"/>
    <Labels name="how" toName="image"><Label value="broken"/></Labels>
    <Choices name="colour" toName="image" perRegion="true"><Choice value="red"/></Choices>
    <Taxonomy name="kind" toName="image"><Choice value="a"/></Taxonomy>
    <TextArea name="note" toName="image" perRegion="true"/></View>"""
)
SQUARE = {"x": 20, "y": 25, "width": 30, "height": 25, "rotation": 0}
CORNERS = {"points": [[50, 50], [100, 50], [100, 100], [50, 100]], "closed": True}


def drawn(number: str, kind: str, value: dict[str, Any], *labels: str, tag: str = "what") -> list[dict[str, Any]]:
    """What the editor stores for a shape of a bare tag: the shape, and the shape again with its labels."""
    shape = region(kind, value, "box", id=number)
    return [shape, {**shape, "from_name": tag, "type": "labels", "value": {**value, "labels": list(labels)}}]


def test_a_bare_shape_and_its_label_are_one_region() -> None:
    result = [
        *drawn("1", "rectangle", SQUARE, "C"),
        *reversed(drawn("2", "polygon", CORNERS, "Tree")),
        # a tool that is not predicted counts too, and so does the label's value instead of its alias
        *drawn(
            "3", "brush", {"format": "rle", "rle": brush_region(np.eye(8, 10) > 0, MASK, "C", 1)["value"]["rle"]}, "Car"
        ),
    ]
    before = json.dumps(result)
    read = masks_from_results(result, BARE)
    assert read.unread == ()
    expected = np.eye(8, 10) > 0
    expected[2:4, 2:5] = True
    assert np.array_equal(read.masks["C"], expected)
    assert read.masks["Tree"].sum() == 20
    assert read.sources == {"C": frozenset({"rectangle", "brush"}), "Tree": frozenset({"polygon"})}
    assert json.dumps(result) == before


def test_labels_of_other_groups_and_answers_about_regions_do_no_harm() -> None:
    shape = drawn("1", "rectangle", SQUARE, "C")
    broken = {**shape[1], "from_name": "how", "value": {**SQUARE, "labels": ["broken"]}}
    answers = [
        {**shape[0], "from_name": "colour", "type": "choices", "value": {**SQUARE, "choices": ["red"]}},
        {**shape[0], "from_name": "note", "type": "textarea", "value": {**SQUARE, "text": ["x"]}},
        region("taxonomy", {"taxonomy": [["a"]]}, "kind"),
    ]
    for result in ([*shape, broken, *answers], [*answers, broken, *shape]):
        read = masks_from_results(result, BARE)
        assert (list(read.masks), read.choices, read.unread) == (["C"], {}, ())


def test_bare_shapes_without_a_label_are_unread() -> None:
    shape, label = drawn("1", "rectangle", SQUARE, "C")
    (unread,) = masks_from_results([shape], BARE).unread
    assert unread.reason == "it has no label"
    (unread,) = masks_from_results([label], BARE).unread
    assert "'labels' has no area" in unread.reason
    (unread,) = masks_from_results(drawn("1", "rectangle", SQUARE, "broken", tag="how"), BARE).unread
    assert "no label 'broken'" in unread.reason


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=5), children, max_size=3),
    max_leaves=8,
)
FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "id": st.sampled_from(["1", "2"]) | JSON,
        "type": st.sampled_from(
            ["brushlabels", "rectanglelabels", "polygonlabels", "bitmasklabels", "ellipselabels", "rectangle", "labels"]
        )
        | JSON,
        "to_name": st.just("image"),
        "from_name": st.sampled_from(["mask", "box"]) | JSON,
        "value": st.fixed_dictionaries(
            {
                kind: st.just(["Tree"]) | JSON
                for kind in (
                    *("brushlabels", "rectanglelabels", "polygonlabels", "bitmasklabels", "ellipselabels", "labels"),
                )
            },
            optional={
                key: JSON | st.floats() | st.integers(0, 100)
                for key in ("rle", "points", "x", "y", "width", "height", "rotation", "radiusX", "radiusY")
            },
        )
        | JSON,
        "original_width": st.integers(-1, 50) | JSON,
        "original_height": st.integers(-1, 50) | JSON,
        "image_rotation": JSON,
    },
)


@given(st.lists(FIELDS | JSON, max_size=3))
def test_no_result_whatever_is_fatal(result: list[Any]) -> None:
    read = masks_from_results(result, PLAN)
    assert len(read.unread) + len(read.masks) <= len(result) + 10
