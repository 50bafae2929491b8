from __future__ import annotations

import re
from typing import Any

import pytest

from backend.label_studio.task_filter import (
    CONDITION_PATTERN,
    Condition,
    TaskFilterError,
    filter_items,
    parse_condition,
)

COLUMNS = {
    "id": "Number",
    "total_annotations": "Number",
    "completed_at": "Datetime",
    "draft_exists": "Boolean",
    "annotators": "List",
    "predictions_model_versions": "List",
    "file_upload": "String",
    "data": "List",
    "data.city": "Unknown",
    "data.image": "Image",
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("total_annotations = 0", Condition("total_annotations", "=", "0")),
        ("total_annotations=0", Condition("total_annotations", "=", "0")),
        ("  id >= 12 ", Condition("id", ">=", "12")),
        ("data.city ~ New York ", Condition("data.city", "~", "New York")),
        ("data.city !~ x = y", Condition("data.city", "!~", "x = y")),
        ("data.city != ", None),
        ("= 3", None),
        ("total_annotations", None),
        ("total annotations = 3", None),
        ("", None),
    ],
)
def test_conditions_are_read_as_people_write_them(text: str, expected: Condition | None) -> None:
    assert (re.search(CONDITION_PATTERN, text) is not None) == (expected is not None)
    if expected is None:
        with pytest.raises(TaskFilterError, match="COLUMN OPERATOR VALUE"):
            parse_condition(text)
    else:
        assert parse_condition(text) == expected


@pytest.mark.parametrize(
    ("text", "operator", "kind", "value"),
    [
        ("total_annotations = 0", "equal", "Number", 0),
        ("total_annotations != 2", "not_equal", "Number", 2),
        ("id > 12", "greater", "Number", 12),
        ("id <= 1.5", "less_or_equal", "Number", 1.5),
        ("completed_at > 2026-01-31", "greater", "Datetime", "2026-01-31T00:00:00.000000Z"),
        ("completed_at < 2026-01-31T12:00+02:00", "less", "Datetime", "2026-01-31T10:00:00.000000Z"),
        ("draft_exists = True", "equal", "Boolean", True),
        ("annotators ~ 3", "contains", "List", 3),
        ("predictions_model_versions !~ demo-p1", "not_contains", "List", ["demo-p1"]),
        ("data.city = Rome", "equal", "String", "Rome"),
        ("data.city = 7", "equal", "String", "7"),
        ("data.city >= 7", "greater_or_equal", "Number", 7),
        ("data.image ~ png", "contains", "String", "png"),
        ("file_upload ~ a.png", "contains", "String", "a.png"),
    ],
)
def test_values_have_the_columns_type(text: str, operator: str, kind: str, value: Any) -> None:
    condition = parse_condition(text)
    assert filter_items([condition], COLUMNS) == [
        {"filter": f"filter:tasks:{condition.column}", "operator": operator, "type": kind, "value": value}
    ]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("colour = red", "no column 'colour'.*data.city.*total_annotations"),
        ("data = 3", "no column 'data'"),
        ("total_annotations = none", "compared with a number, not with 'none'"),
        ("data.city > Rome", "compared with a number"),
        ("completed_at > yesterday", "compared with a time"),
        ("draft_exists = perhaps", "true or false"),
        ("annotators ~ Ann", "compared with an id"),
    ],
)
def test_what_label_studio_would_ignore_or_choke_on_is_an_error(text: str, says: str) -> None:
    with pytest.raises(TaskFilterError, match=says):
        filter_items([parse_condition(text)], COLUMNS)
