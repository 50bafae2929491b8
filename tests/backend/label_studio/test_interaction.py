"""Interactive requests as Label Studio 1.23.2's editor sends them (recorded, names and numbers made plain)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from backend.label_studio.brush import encode_mask
from backend.label_studio.interaction import (
    MAX_PHRASE_CHARS,
    MAX_REGIONS,
    At,
    Drawn,
    Inside,
    InteractionError,
    Like,
    Phrase,
    Point,
    read_context,
)
from backend.label_studio.interactive_config import InteractiveConfig
from vlm_core.evaluate import iou

CONFIG = InteractiveConfig(phrases={"phrase": None})
SIZE_HW = (320, 240)
SIZE = {"original_width": 240, "original_height": 320, "image_rotation": 0}


def typed(*texts: str, name: str = "phrase", to_name: str = "image") -> dict[str, Any]:
    return {
        "value": {"text": list(texts)},
        "id": "S_xVjVTc_0",
        "from_name": name,
        "to_name": to_name,
        "type": "textarea",
        "origin": "manual",
    }


def chosen() -> dict[str, Any]:
    value = {"choices": ["day"]}
    return {"value": value, "id": "c1", "from_name": "light", "to_name": "image", "type": "choices", "origin": "manual"}


def key_point(x: float, y: float, *, positive: bool = True, identity: str = "C_b-6Wi190") -> dict[str, Any]:
    return {
        **SIZE,
        "value": {"x": x, "y": y, "width": 0.4, "labels": ["circle"], "keypointlabels": ["circle"]},
        "is_positive": positive,
        "id": identity,
        "from_name": "points",
        "to_name": "image",
        "type": "keypointlabels",
        "origin": "manual",
    }


def rectangle(**value: object) -> dict[str, Any]:
    return {
        **SIZE,
        "value": {
            "x": 50,
            "y": 50.1,
            "width": 30,
            "height": 39.9,
            "rotation": 0,
            **value,
            "rectanglelabels": ["circle"],
        },
        "id": "pvdJghlAlZ",
        "from_name": "boxes",
        "to_name": "image",
        "type": "rectanglelabels",
        "origin": "manual",
    }


def bare_key_point() -> list[dict[str, Any]]:
    """Of `<KeyPoint>` beside `<Labels>`: the shape, and the shape with its label."""
    value = {"x": 40, "y": 45, "width": 0.5, "labels": ["circle"]}
    both = {**SIZE, "value": value, "is_positive": True, "id": "izlzQ2NUp0", "to_name": "image", "origin": "manual"}
    return [{**both, "from_name": "point", "type": "keypoint"}, {**both, "from_name": "label", "type": "labels"}]


def stroke(points: list[float], width: float = 4.0, kind: str = "add") -> dict[str, Any]:
    return {
        "id": "QvmlgSfcVc",
        "type": kind,
        "points": [5 * point for point in points],
        "relativePoints": points,
        "strokeWidth": 15,
        "relativeStrokeWidth": width,
        "eraserSize": 25,
    }


def drafted_brush(*strokes: dict[str, Any], label: str = "circle", **value: object) -> list[dict[str, Any]]:
    """A brush region of `<Brush>` beside `<Labels>` as a draft holds it: strokes, no run-length code."""
    shape = {"format": "rle", **value, "touches": list(strokes)}
    both = {**SIZE, "id": "AD3kn2eFKG", "to_name": "image", "origin": "manual"}
    return [
        {**both, "value": shape, "from_name": "brush", "type": "brush"},
        {**both, "value": {**shape, "labels": [label]}, "from_name": "label", "type": "labels"},
    ]


def region(label: str, identity: str, origin: str = "manual") -> dict[str, Any]:
    """A rectangle of an annotation; its width tells which one."""
    value = {"x": 1, "y": 2, "width": len(identity), "height": 4, "rotation": 0, "rectanglelabels": [label]}
    return {**SIZE, "value": value, "id": identity, "from_name": "boxes", "to_name": "image", "type": "rectanglelabels",
            "origin": origin}  # fmt: skip


def saved(*drafts: list[dict[str, Any]], annotations: list[list[dict[str, Any]]] | None = None) -> dict[str, Any]:
    """A task as it comes along; of several drafts and annotations the last is the newest."""
    return {
        "id": 1,
        "drafts": [{"result": d, "updated_at": f"2026-11-25T23:25:0{n}Z"} for n, d in enumerate(drafts)],
        "annotations": [
            {"result": a, "updated_at": f"2026-11-24T23:25:0{n}Z"} for n, a in enumerate(annotations or [])
        ],
    }


def read(*results: dict[str, Any], config: InteractiveConfig = CONFIG, task: object = None) -> Any:
    return read_context({"result": list(results)}, config, task)


def test_a_typed_phrase_is_the_last_of_all_that_were_typed() -> None:
    assert read(typed("red circle")) == Phrase("image", "red circle", ("red circle",))
    assert read(typed("red circle", "  left\n square ")) == Phrase("image", "left square", ("left square",))


def test_a_phrase_may_hold_alternatives() -> None:
    assert read(typed("car | truck |car")).texts == ("car", "truck")


def test_other_answers_of_the_image_come_along_and_are_passed_over() -> None:
    assert read(chosen(), typed("red circle")).text == "red circle"
    assert read(typed("It rains.", name="description"), typed("red circle")).text == "red circle"
    assert read(chosen()) is None


def test_the_control_that_the_config_names_answers() -> None:
    config = InteractiveConfig(phrases={"phrase": "marks"})
    assert read(typed("red circle"), config=config).control == "marks"


def test_of_two_phrases_nobody_knows_which_is_new() -> None:
    config = InteractiveConfig(phrases={"phrase": None, "second": None})
    with pytest.raises(InteractionError, match=r'"phrase", "second".*smart="false"'):
        read(typed("a"), typed("b", name="second"), config=config)
    assert read(typed("b", name="second"), config=config).text == "b"


def test_nothing_is_asked_where_the_last_text_or_region_was_deleted() -> None:
    assert read() is None
    assert read(typed()) is None


def test_a_smart_rectangle_says_where() -> None:
    asked = read(rectangle())
    assert isinstance(asked, Inside)
    assert (asked.to_name, asked.labels) == ("image", ("circle",))
    # 50.1 % of 320 rows is 160.32, and a pixel is inside when its centre is: rows 160 to 287, columns 120 to 191.
    assert asked.mask(SIZE_HW).box_xyxy_px == (120, 160, 192, 288)


def test_a_bare_smart_rectangle_may_have_no_label() -> None:
    shape = {**rectangle(), "type": "rectangle", "from_name": "box"}
    shape["value"] = {key: item for key, item in shape["value"].items() if key != "rectanglelabels"}
    asked = read(shape)
    assert isinstance(asked, Inside)
    assert asked.labels == ()


def test_smart_key_points_come_together_with_those_before() -> None:
    asked = read(key_point(30, 30), key_point(60, 60, identity="b"), key_point(80, 80.1, positive=False, identity="c"))
    assert asked == At("image", ("circle",), (Point(30, 30), Point(60, 60), Point(80, 80.1, positive=False)))


def test_a_bare_shape_and_its_label_are_one_region() -> None:
    assert read(*bare_key_point()) == At("image", ("circle",), (Point(40, 45),))


def test_a_smart_brush_shows_what_to_look_for() -> None:
    """Version 1.23.2 sends no such thing, but has the tool."""
    asked = read(*drafted_brush(stroke([25, 50, 75, 50])))
    assert isinstance(asked, Like)
    assert asked.labels == ("circle",)
    assert asked.text == ""


@pytest.mark.parametrize("text", ["more like this", "More like this.", "find more like THAT one!", "more  like it"])
def test_more_like_this_is_the_region_drawn_last(text: str) -> None:
    task = saved([region("square", "a"), region("circle", "bb"), region("square", "ccc", origin="prediction")])
    asked = read(typed(text), task=task)
    assert isinstance(asked, Like)
    assert asked.labels == ("circle",)
    assert [drawn.value["width"] for drawn in asked.regions] == [2]


def test_a_region_of_the_model_serves_where_none_was_drawn() -> None:
    asked = read(typed("more like this"), task=saved([region("square", "a", origin="prediction")]))
    assert asked.labels == ("square",)


def test_more_like_these_are_all_of_its_label() -> None:
    task = saved([region("circle", "a"), region("square", "bb"), region("circle", "ccc")])
    asked = read(typed("more like these"), task=task)
    assert [drawn.value["width"] for drawn in asked.regions] == [1, 3]


def test_more_like_a_label() -> None:
    task = saved([region("circle", "a"), region("square", "bb"), region("Circle", "ccc")])
    assert [drawn.value["width"] for drawn in read(typed("more like Square"), task=task).regions] == [2]
    with pytest.raises(InteractionError, match=r'no region of "star".*some of Circle, circle, square'):
        read(typed("more like star"), task=task)


def test_the_newest_draft_counts_then_the_newest_annotation() -> None:
    task = saved([region("circle", "a")], [region("circle", "bb")], annotations=[[region("circle", "ccc")]])
    assert [drawn.value["width"] for drawn in read(typed("more like this"), task=task).regions] == [2]
    task = saved(annotations=[[region("circle", "a")], [region("circle", "ccc")]])
    assert [drawn.value["width"] for drawn in read(typed("more like this"), task=task).regions] == [3]


@pytest.mark.parametrize("task", [None, {}, {"drafts": None, "annotations": []}, saved([chosen()])])
def test_without_a_region_the_annotator_is_told_to_draw_one(task: object) -> None:
    with pytest.raises(InteractionError, match="draw one"):
        read(typed("more like this"), task=task)


def test_strokes_of_a_draft_are_drawn() -> None:
    line = stroke([25, 50, 75, 50], width=10)  # percent; the width of the width: 24 px
    asked = read(typed("more like this"), task=saved(drafted_brush(line)))
    assert asked.labels == ("circle",)
    expected = np.zeros(SIZE_HW, dtype=np.bool_)
    rows, columns = np.mgrid[: SIZE_HW[0], : SIZE_HW[1]] + 0.5
    nearest = np.clip(columns, 60, 180)
    expected[np.hypot(columns - nearest, rows - 160) <= 12] = True
    assert iou(asked.regions[0].mask(SIZE_HW).to_array(), expected) >= 0.95


def test_what_was_erased_is_outside() -> None:
    brush = drafted_brush(stroke([25, 50, 75, 50], 10), stroke([25, 50, 50, 50], 20, "eraser"))
    asked = read(typed("more like this"), task=saved(brush))
    assert (asked.regions[0].mask(SIZE_HW).box_xyxy_px or (0,))[0] >= 120


def test_strokes_lie_on_top_of_the_code_that_was_there() -> None:
    before = np.zeros(SIZE_HW, dtype=np.bool_)
    before[:10, :10] = True
    asked = read(typed("more like this"), task=saved(drafted_brush(stroke([50, 50]), rle=encode_mask(before))))
    mask = asked.regions[0].mask(SIZE_HW).to_array()
    assert mask[:10, :10].all()
    assert mask[160, 120]
    assert not mask[60, 60]


BROKEN: list[tuple[object, str]] = [
    (None, "context is missing"),
    ([], "context is a list"),
    ("text", "context is a text"),
    ({}, "result is missing"),
    ({"result": None}, "result is missing"),
    ({"result": "text"}, "result is a text"),
    ({"result": [7]}, "region in the context is a number"),
    ({"result": [typed("a")] * (MAX_REGIONS + 1)}, "more than 1000"),
    ({"result": [{**typed("a"), "value": None}]}, "value is missing"),
    ({"result": [{**typed("a"), "value": {"text": 7}}]}, "phrase is a number"),
    ({"result": [{**typed("a"), "value": {"text": [None]}}]}, "phrase is a list"),
    ({"result": [{**typed("a"), "to_name": None}]}, "to_name is missing"),
    ({"result": [typed("  ")]}, "blank"),
    ({"result": [typed("|")]}, "blank"),
    ({"result": [typed("x" * (MAX_PHRASE_CHARS + 1))]}, "1001 characters"),
    ({"result": [{**key_point(1, 1), "value": {}}]}, "x is missing"),
    ({"result": [key_point(math.nan, 1)]}, "not a number of percent"),
    ({"result": [key_point(1, 1e300)]}, "far outside"),
    ({"result": [{**key_point(1, 1), "image_rotation": 90}]}, "rotated"),
    ({"result": [rectangle(), {**rectangle(), "id": "b", "to_name": "other"}]}, "image, other"),
]


@pytest.mark.parametrize(("context", "reason"), BROKEN)
def test_what_the_editor_never_sends_is_named(context: object, reason: str) -> None:
    with pytest.raises(InteractionError, match=reason):
        read_context(context, CONFIG)


@pytest.mark.parametrize(
    ("drawn", "reason"),
    [
        (Drawn("rectangle", {"x": 1, "y": 1, "width": "wide", "height": 3}), "width is 'wide'"),
        (Drawn("rectangle", {"x": 200, "y": 1, "width": 3, "height": 3}), "covers no pixel"),
        (Drawn("rectangle", {"x": 1, "y": 1, "width": -3, "height": 3}), "a rectangle of -3.0 %"),
        (Drawn("rectangle", {"x": 1, "y": 1, "width": 1e9, "height": 3}), "far outside"),
        (Drawn("brush", {"rle": [1, 2, 3]}), "brush cannot be used"),
        (Drawn("brush", {"touches": [{}]}), "no points"),
        (Drawn("brush", {"touches": "text"}), "no list"),
        (Drawn("brush", {"touches": [7]}), "no object"),
        (Drawn("brush", {"touches": [stroke([1, math.inf])]}), "not a number"),
        (Drawn("brush", {"touches": [stroke([1, 2], width=0)]}), "no width"),
        (Drawn("brush", {"touches": [stroke([1, 2]), stroke([1, 2], 9, "eraser")]}), "covers no pixel"),
        (Drawn("polygon", {"points": [[1, 2]]}), "three or more"),
    ],
)
def test_a_shape_that_cannot_be_drawn_says_why(drawn: Drawn, reason: str) -> None:
    with pytest.raises(InteractionError, match=reason):
        drawn.mask(SIZE_HW)


JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(sorted({
        "result", "value", "text", "x", "y", "width", "height", "rle", "touches", "points", "id", "type", "from_name",
        "to_name", "labels", "rectanglelabels", "is_positive", "image_rotation", "relativePoints",
    })), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip
TYPES = st.sampled_from(["textarea", "rectanglelabels", "keypoint", "brush", "labels", "polygon", "choices", "x"])
REGIONS = st.fixed_dictionaries(
    {"type": TYPES | JSON, "value": JSON}, optional={"from_name": st.just("phrase") | JSON, "to_name": JSON, "id": JSON}
)


@given(st.fixed_dictionaries({"result": st.lists(REGIONS, max_size=3) | JSON}) | JSON, JSON)
def test_whatever_comes_is_read_or_refused(context: object, draft: object) -> None:
    try:
        asked = read_context(context, CONFIG, {"drafts": [{"result": draft}]})
        if isinstance(asked, Inside):
            asked.mask((20, 30))
    except InteractionError:
        pass
