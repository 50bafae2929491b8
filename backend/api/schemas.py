"""What Label Studio sends, checked once.

Only what is read is named; everything else passes unread, since Label Studio sends much more and adds to it.
"""

from __future__ import annotations

import json
import re
from typing import Annotated, Any, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    StrictBool,
    StrictInt,
    StrictStr,
    ValidationError,
    WithJsonSchema,
)

from backend.api.errors import BadRequestError, InvalidRequestError
from backend.api.events import TRAINING_EVENTS
from backend.label_studio.task_filter import CONDITION_PATTERN, parse_condition

Request = TypeVar("Request", bound="_Request")

_LARGEST_ID = 2**63 - 1
_PROJECT_TEXT = re.compile(r"([1-9][0-9]{0,17})(\.[0-9]*)?")


def project_id_of(value: object) -> int:
    """Label Studio's id of a project, from an id, from `<id>.<unix created>`, or from the project's object.

    Raises:
        ValueError: something else.
    """
    if isinstance(value, dict):
        value = value.get("id")
    if isinstance(value, str) and (head := _PROJECT_TEXT.fullmatch(value)):
        value = int(head[1])
    if isinstance(value, float) and value.is_integer():  # 7.0 is an integer to JSON
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= _LARGEST_ID:
        raise ValueError('a project is its id, "<id>.<created>" or an object with id')
    return value


def _has_text(value: str) -> str:
    if not value.strip():
        raise ValueError("must not be blank")
    return value


PROJECT_PARAMETER: dict[str, Any] = {"type": "string", "pattern": r"^[1-9][0-9]{0,17}(\.[0-9]*)?$"}
_ID_SCHEMA: dict[str, Any] = {
    "anyOf": [{"type": "integer", "minimum": 1, "maximum": _LARGEST_ID}, PROJECT_PARAMETER],
}
_PROJECT_SCHEMA: dict[str, Any] = {
    "anyOf": [*_ID_SCHEMA["anyOf"], {"type": "object", "properties": {"id": _ID_SCHEMA}, "required": ["id"]}],
    "description": 'Its id, "<id>.<unix created>", or an object with id.',
}

ProjectId = Annotated[int, BeforeValidator(project_id_of), WithJsonSchema(_PROJECT_SCHEMA)]


class _Request(BaseModel):
    model_config = ConfigDict(extra="ignore", frozen=True)


class SetupRequest(_Request):
    """`POST /setup`."""

    project: ProjectId
    label_config: Annotated[StrictStr, Field(alias="schema")]
    extra_params: Any = None


class PredictParams(_Request):
    """`params` of `POST /predict`; login and password in it are not read."""

    context: Any = None  # read by `backend.label_studio.interaction`, which tells the annotator what is wrong with it


class PredictRequest(_Request):
    """`POST /predict`, for a batch (no context) or for one task that an annotator works on."""

    tasks: list[Any]  # each is checked on its own: a wrong one costs itself only
    project: ProjectId
    label_config: Annotated[StrictStr, AfterValidator(_has_text), Field(json_schema_extra={"pattern": r"\S"})]
    params: PredictParams | None = None

    @property
    def context(self) -> Any:
        """What the annotator drew or typed; None for a batch."""
        return None if self.params is None else self.params.context


def _webhook_schema(schema: dict[str, Any]) -> None:
    """Only events after which something is learned must name their project."""
    training = sorted(TRAINING_EVENTS)
    schema["required"] = ["action"]
    schema["anyOf"] = [
        {"properties": {"action": {"enum": training}, "project": _PROJECT_SCHEMA}, "required": ["project"]},
        {"properties": {"action": {"type": "string", "minLength": 1, "maxLength": 100, "not": {"enum": training}}}},
    ]


class WebhookRequest(_Request):
    """`POST /webhook`. Annotations and tasks in it are not read: training reads them from Label Studio."""

    model_config = ConfigDict(json_schema_extra=_webhook_schema)

    action: Annotated[StrictStr, Field(min_length=1, max_length=100)]
    project: Any = None


def _condition(text: str) -> str:
    parse_condition(text)
    return text


ConditionText = Annotated[
    StrictStr, AfterValidator(_condition), Field(max_length=1000, json_schema_extra={"pattern": CONDITION_PATTERN})
]


def _whole(value: object) -> object:
    return int(value) if isinstance(value, float) and value.is_integer() else value  # 7.0 is an integer to JSON


Whole = Annotated[StrictInt, Field(ge=1, le=_LARGEST_ID), BeforeValidator(_whole)]


class PrelabelBody(_Request):
    """`POST /projects/<id>/prelabel`; an empty object asks for all tasks.

    Attributes:
        filter: conditions, `COLUMN OPERATOR VALUE` each, all of which must hold.
        tab: id of a Data Manager tab.
        only_missing: only tasks without any prediction.
        limit: most tasks.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    filter: list[ConditionText] = Field([], max_length=50)
    tab: Whole | None = None
    only_missing: StrictBool = False
    limit: Whole | None = None


def project_of_event(event: WebhookRequest) -> int:
    """The project that an event is about.

    Raises:
        InvalidRequestError: it names none.
    """
    try:
        return project_id_of(event.project)
    except ValueError as error:
        raise InvalidRequestError(f"project: {error}") from None


def parse(model: type[Request], body: bytes) -> Request:
    """Read a request's body.

    Raises:
        BadRequestError: not JSON.
        InvalidRequestError: a value is missing or of the wrong kind; the message names each, but shows no value,
            since payloads hold tokens.
    """
    try:
        # Straight from the bytes to the fields that are named: five times faster than what follows, and a body of
        # megabytes is not held a second time.
        return model.model_validate_json(body)
    except ValidationError:
        pass  # what follows says what is wrong; it also takes what the reader above is too strict for
    try:
        value = json.loads(body)
    except (ValueError, RecursionError) as error:
        where = f", line {error.lineno} column {error.colno}" if isinstance(error, json.JSONDecodeError) else ""
        raise BadRequestError(f"the body is not JSON{where}") from None
    if not isinstance(value, dict):
        raise InvalidRequestError(f"the body must be a JSON object, it is a {type(value).__name__}")
    try:
        return model.model_validate(value)
    except ValidationError as error:
        found = error.errors(include_url=False, include_context=False, include_input=False)
        named = [
            f"{'.'.join(str(step) for step in item['loc'])}: {item['msg'].removeprefix('Value error, ')}"
            for item in found
        ]
        more = f" (and {len(named) - 5} more)" if len(named) > 5 else ""
        raise InvalidRequestError("; ".join(named[:5]) + more) from None
