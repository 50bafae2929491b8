"""Conditions on tasks as people write them, and as Label Studio's Data Manager wants them.

`total_annotations = 0`, `data.city ~ Rome`, `predictions_score < 0.5`: a column, an operator, a value. Columns are the
Data Manager's own; fields of the tasks' data begin with `data.`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

_OPERATORS = {
    "=": "equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_or_equal",
    ">": "greater",
    ">=": "greater_or_equal",
    "~": "contains",
    "!~": "not_contains",
}
# Spelt out, since what counts as white space differs between the regular expressions of languages.
_SPACE = r" \t\n\r\f\v"
_CONDITION = re.compile(
    rf"[{_SPACE}]*(?P<column>[^{_SPACE}=!<>~]+)[{_SPACE}]*(?P<operator>!=|<=|>=|!~|=|<|>|~)"
    rf"[{_SPACE}]*(?P<value>.*?)[{_SPACE}]*",
    re.DOTALL,
)
CONDITION_PATTERN = rf"^[{_SPACE}]*[^{_SPACE}=!<>~]+[{_SPACE}]*(!=|<=|>=|!~|=|<|>|~)[{_SPACE}]*[^{_SPACE}]"
"""What a condition looks like, as a regular expression for others than Python."""

_PLAIN = ("Number", "Boolean", "Datetime", "List")


class TaskFilterError(ValueError):
    """A condition that cannot be used; the message says what to write."""


@dataclass(frozen=True)
class Condition:
    """One condition.

    Attributes:
        column: of the Data Manager, like "total_annotations" or "data.city".
        operator: as written: =, !=, <, <=, >, >=, ~ (contains) or !~.
        value: as written.
    """

    column: str
    operator: str
    value: str


def parse_condition(text: str) -> Condition:
    """Read `COLUMN OPERATOR VALUE`.

    Raises:
        TaskFilterError: it is something else.
    """
    match = _CONDITION.fullmatch(text)
    if match is None or not match["value"]:
        raise TaskFilterError(
            f"the filter {text!r} is not COLUMN OPERATOR VALUE, like 'total_annotations = 0' or 'data.city ~ Rome'; "
            f"operators are {' '.join(_OPERATORS)}"
        )
    return Condition(match["column"], match["operator"], match["value"])


UNANNOTATED = "total_annotations = 0"


def parse_choice(text: str) -> tuple[str, ...] | None:
    """The conditions of a setting that chooses tasks; all of them must hold. () for all tasks, None for none.

    >>> parse_choice("off"), parse_choice("all"), parse_choice("unannotated")
    (None, (), ('total_annotations = 0',))
    >>> parse_choice("total_annotations = 0; data.city ~ Rome")
    ('total_annotations = 0', 'data.city ~ Rome')

    Raises:
        TaskFilterError: it is none of these words, and no conditions either.
    """
    words: dict[str, tuple[str, ...] | None] = {"off": None, "all": (), "unannotated": (UNANNOTATED,)}
    if text in words:
        return words[text]
    conditions = tuple(part.strip() for part in text.split(";"))
    for condition in conditions:
        parse_condition(condition)
    return conditions


def filter_items(conditions: Sequence[Condition], columns: Mapping[str, str]) -> list[dict[str, Any]]:
    """The conditions as Label Studio's filters, all of which must hold.

    Args:
        conditions: to translate.
        columns: the project's, with their types; `LabelStudioClient.task_columns`. A filter on a column that it does
            not know would be ignored by Label Studio, and mean all tasks.

    Raises:
        TaskFilterError: there is no such column, or the value does not fit it.
    """
    return [_item(condition, columns) for condition in conditions]


def among(task_ids: Sequence[int]) -> dict[str, Any]:
    """Only these tasks."""
    return {"filter": "filter:tasks:id", "operator": "in_list", "type": "List", "value": list(task_ids)}


def with_version(version: str) -> dict[str, Any]:
    """Only tasks with a prediction of that version."""
    return _versions("contains", version)


def without_version(version: str) -> dict[str, Any]:
    """Only tasks without a prediction of that version."""
    return _versions("not_contains", version)


def _versions(operator: str, version: str) -> dict[str, Any]:
    column = "filter:tasks:predictions_model_versions"
    return {"filter": column, "operator": operator, "type": "List", "value": [version]}


WITHOUT_PREDICTION: Mapping[str, Any] = {
    "filter": "filter:tasks:total_predictions",
    "operator": "equal",
    "type": "Number",
    "value": 0,
}
"""Only tasks without any prediction."""


def _item(condition: Condition, columns: Mapping[str, str]) -> dict[str, Any]:
    declared = columns.get(condition.column)
    if declared is None or condition.column == "data":
        known = ", ".join(sorted(set(columns) - {"data"}))
        raise TaskFilterError(f"tasks have no column {condition.column!r} to filter by; this project has: {known}")
    type_, value = _value(condition, declared)
    return {
        "filter": f"filter:tasks:{condition.column}",
        "operator": _OPERATORS[condition.operator],
        "type": type_,
        "value": value,
    }


def _value(condition: Condition, declared: str) -> tuple[str, Any]:
    """The value in the column's type; a field of the data has the type that its value looks like."""
    column, value = condition.column, condition.value
    number = _number(value)
    ordered = condition.operator in ("<", "<=", ">", ">=")
    if declared == "List":
        if column == "predictions_model_versions":
            return "List", [value]
        if number is None:
            raise TaskFilterError(f"{column} is compared with an id, not with {value!r}")
        return "List", int(number)
    if declared == "Boolean":
        if value.lower() not in ("true", "false"):
            raise TaskFilterError(f"{column} is true or false, not {value!r}")
        return "Boolean", value.lower() == "true"
    if declared == "Datetime":
        return "Datetime", _moment(column, value)
    if declared == "Number" or (ordered and declared not in _PLAIN):
        if number is None:
            raise TaskFilterError(f"{column} is compared with a number, not with {value!r}")
        return "Number", number
    return "String", value


def _number(text: str) -> int | float | None:
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return None


def _moment(column: str, text: str) -> str:
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise TaskFilterError(
            f"{column} is compared with a time, like 2026-01-31 or 2026-01-31T12:00, not with {text!r}"
        ) from None
    aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    return aware.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
