"""What became of predictions, against cases counted by hand."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from backend.label_studio.acceptance import KEPT_IOU, LabelOutcome, compare, made_in_bulk, origin_of
from backend.label_studio.config import parse_label_config
from tests.backend.label_studio.regions import CONFIG, box, brush, choice, region

PLAN = parse_label_config(CONFIG)
V0, V1, OTHER = "demo-p7-v000-aaaaaaaa", "demo-p7-v001-bbbbbbbb", "demo-p8-v001-bbbbbbbb"

TABLE = [
    ("both empty", [], [], []),
    ("the same", [brush("cat", 0, 50)], [brush("cat", 0, 50)], [("cat", "kept", 1.0)]),
    ("99 of 100: just kept", [brush("cat", 0, 100)], [brush("cat", 0, 99)], [("cat", "kept", 0.99)]),
    ("98 of 100 columns", [brush("cat", 0, 100)], [brush("cat", 0, 98)], [("cat", "changed", 0.98)]),
    ("20 shared of 60", [brush("cat", 0, 40)], [brush("cat", 20, 60)], [("cat", "changed", 20 / 60)]),
    ("drawn elsewhere", [brush("cat", 0, 40)], [brush("cat", 50, 60)], [("cat", "changed", 0.0)]),
    ("removed", [brush("cat", 0, 40)], [], [("cat", "removed", 0.0)]),
    ("added", [], [brush("cat", 0, 40)], [("cat", "added", 0.0)]),
    ("another label", [brush("cat", 0, 9)], [brush("dog", 0, 9)], [("cat", "removed", 0.0), ("hound", "added", 0.0)]),
    ("a label's value and its alias", [brush("hound", 0, 9)], [brush("dog", 0, 9)], [("hound", "kept", 1.0)]),
    ("split in two", [brush("cat", 0, 40)], [brush("cat", 0, 10), brush("cat", 10, 40)], [("cat", "kept", 1.0)]),
    ("erased to nothing", [brush("cat", 0, 40)], [brush("cat", 0, 0)], [("cat", "removed", 0.0)]),
    ("a box", [box("car", 0, 40)], [box("car", 0, 30)], [("car", "changed", 0.75)]),
    ("a box beside strokes of its label says nothing", [brush("cat", 0, 10), box("cat", 0, 40)],
     [brush("cat", 0, 10), box("cat", 0, 90)], [("cat", "kept", 1.0)]),
    ("an outline of the same area as a box", [box("car", 0, 50)],
     [region("any", "polygonlabels", {"points": [[0, 0], [50, 0], [50, 100], [0, 100]], "closed": True,
                                      "polygonlabels": ["car"]})], [("car", "kept", 1.0)]),
    ("a label that the config lacks", [], [brush("fish", 0, 40)], []),
    ("choices", [choice("scene", "day")], [choice("scene", "day")], [("day", "kept", None)]),
    ("another choice", [choice("scene", "day")], [choice("scene", "night")],
     [("day", "removed", None), ("night", "added", None)]),
    ("one choice more", [choice("scene", "day")], [choice("scene", "day", "night")],
     [("day", "kept", None), ("night", "added", None)]),
]  # fmt: skip


@pytest.mark.parametrize(("predicted", "annotated", "expected"), [row[1:] for row in TABLE], ids=[r[0] for r in TABLE])
def test_a_table_of_fates(predicted: list[Any], annotated: list[Any], expected: list[Any]) -> None:
    found = compare(predicted, annotated, PLAN)
    assert found is not None
    assert [(item.label, item.fate) for item in found] == [(label, fate) for label, fate, _ in expected]
    assert [item.iou for item in found] == [None if iou is None else pytest.approx(iou) for *_, iou in expected]


def test_choices_about_regions_are_not_choices_about_the_image() -> None:
    controls = [replace(item, per_region=True) if item.from_name == "scene" else item for item in PLAN.controls]
    assert compare([choice("scene", "day")], [choice("scene", "night")], replace(PLAN, controls=tuple(controls))) == ()


def test_what_is_kept_depends_on_nothing_but_the_iou() -> None:
    assert KEPT_IOU == 0.99


@pytest.mark.parametrize(
    "annotated",
    [
        pytest.param([brush("cat", 0, 40, size_hw=(40, 101))], id="another size"),
        pytest.param([brush("cat", 0, 40) | {"image_rotation": 90}], id="drawn on the rotated image"),
        pytest.param(
            [region("brush", "brushlabels", {"format": "rle", "rle": [1, 2], "brushlabels": ["cat"]})], id="broken"
        ),
    ],
)
def test_what_cannot_be_read_is_not_taken_as_absent(annotated: list[Any]) -> None:
    assert compare([brush("cat", 0, 40)], annotated, PLAN) is None


def test_two_images_are_compared_each_with_itself() -> None:
    plan = parse_label_config(
        '<View><Image name="a" value="$a"/><Image name="b" value="$b"/>'
        '<BrushLabels name="one" toName="a"><Label value="cat"/></BrushLabels>'
        '<BrushLabels name="two" toName="b"><Label value="cat"/></BrushLabels></View>'
    )
    on_a, on_b = (brush("cat", 0, 50) | {"from_name": n, "to_name": t} for n, t in (("one", "a"), ("two", "b")))
    assert compare([on_a], [on_a, on_b], plan) == (LabelOutcome("cat", "kept", 1.0), LabelOutcome("cat", "added", 0.0))


def prediction(number: int, version: str, created_at: str) -> dict[str, Any]:
    return {"id": number, "model_version": version, "created_at": created_at, "result": []}


PREDICTIONS = [
    prediction(1, V0, "2026-11-25T10:00:00.000001Z"),
    prediction(2, V1, "2026-11-25T12:00:00Z"),
    prediction(3, OTHER, "2026-11-25T12:10:00Z"),
    prediction(4, "somebody else's", "2026-11-25T12:20:00Z"),
]


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        pytest.param({"created_at": "2026-11-25T13:00:00Z", "parent_prediction": 1}, (1, 0, False), id="noted"),
        pytest.param({"created_at": "2026-11-25T13:00:00Z", "parent_prediction": 4}, None, id="another's prediction"),
        pytest.param({"created_at": "2026-11-25T13:00:00Z", "parent_prediction": 9}, None, id="deleted since"),
        pytest.param({"created_at": "2026-11-25T13:00:00Z"}, (2, 1, True), id="the newest of ours"),
        pytest.param({"created_at": "2026-11-25T11:59:59.9Z"}, (1, 0, True), id="the newest at that time"),
        pytest.param({"created_at": "2026-11-25T10:00:00Z"}, None, id="before any"),
        pytest.param({"created_at": None}, None, id="no time"),
    ],
)
def test_which_prediction_an_annotation_is_compared_with(annotation: dict[str, Any], expected: Any) -> None:
    found = origin_of(annotation, PREDICTIONS, 7)
    assert (found and (found.prediction["id"], found.version, found.afresh)) == expected


def test_annotations_that_nobody_has_looked_at() -> None:
    made = {"last_action": "prediction", "created_at": "2026-11-25T10:00:00Z", "updated_at": "2026-11-25T10:00:00.1Z"}
    assert made_in_bulk(made)
    assert not made_in_bulk(made | {"updated_at": "2026-11-25T10:01:00Z"})
    assert not made_in_bulk(made | {"last_action": "submitted"})
    assert not made_in_bulk(made | {"last_action": None})
