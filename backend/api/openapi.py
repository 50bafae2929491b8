"""The OpenAPI document, served at `/openapi.json` behind the same credentials as the routes.

Bodies are read and checked in threads by hand (`backend.api.schemas`), which FastAPI cannot know. So the routes say
with `operation` what they take and answer, and `tests/backend/test_openapi.py` holds the running server against it.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from backend.api.auth import BASIC, SECRET, SECRET_HEADER
from backend.api.replies import ErrorReply
from backend.api.schemas import PredictRequest, PrelabelBody, SetupRequest, WebhookRequest

_REF = "#/components/schemas/{model}"
_REQUESTS: tuple[type[BaseModel], ...] = (SetupRequest, PredictRequest, WebhookRequest, PrelabelBody)

_ERRORS = {
    400: "The body is not JSON.",
    401: "No credentials, or wrong ones.",
    404: "There is no such thing.",
    413: "The body is larger than this server accepts.",
    422: "A value is missing or of the wrong kind; the reason names it.",
    500: "An unexpected error; the reason holds a reference into the server's log.",
    503: "It cannot be answered now; the reason says what is being waited for.",
}


def operation(
    answers: type[BaseModel],
    *,
    status: int = 200,
    takes: type[BaseModel] | None = None,
    query: Mapping[str, Mapping[str, Any]] | None = None,
    also: Mapping[int, type[BaseModel]] | None = None,
    errors: Sequence[int] = (),
    security: Sequence[Mapping[str, list[str]]] = (),
) -> dict[str, Any]:
    """What a route is documented as: keyword arguments of FastAPI's decorators.

    Args:
        answers: when all is well.
        status: of that answer.
        takes: the body.
        query: JSON schema of each parameter; none is required.
        also: what other statuses answer.
        errors: statuses with `{"error": reason}`; those of bodies and of credentials come by themselves.
        security: `OPEN`, or what `Gate.security` says.
    """
    statuses = {*errors, *((400, 413, 422) if takes else ()), *((401,) if security else ()), 500}
    responses: dict[int | str, dict[str, Any]] = {
        code: {"model": model, "description": (model.__doc__ or "").partition("\n")[0]}
        for code, model in {status: answers, **(also or {})}.items()
    }
    # 503 of /ready is an answer of its own.
    errors_only = sorted(statuses - set(responses))
    responses |= {code: {"model": ErrorReply, "description": _ERRORS[code]} for code in errors_only}
    extra: dict[str, Any] = {"security": list(security)}
    if takes is not None:
        schema = {"$ref": _REF.format(model=takes.__name__)}
        extra["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    if query:
        extra["parameters"] = [
            {"name": name, "in": "query", "required": False, "schema": dict(schema)} for name, schema in query.items()
        ]
    return {"responses": responses, "openapi_extra": extra}


def document(app: FastAPI) -> dict[str, Any]:
    """The document of all routes that are in the schema."""
    made = get_openapi(
        title=app.title,
        version=importlib.metadata.version("label-studio-vlm-backend"),
        description="A Label Studio ML backend: the protocol that Label Studio speaks, and what operators look at.",
        routes=app.routes,
    )
    _, requests = models_json_schema([(model, "validation") for model in _REQUESTS], ref_template=_REF)
    components = made.setdefault("components", {})
    components.setdefault("schemas", {}).update(requests["$defs"])
    components["securitySchemes"] = {
        BASIC: {"type": "http", "scheme": "basic", "description": "BASIC_AUTH_USER and BASIC_AUTH_PASS."},
        SECRET: {
            "type": "apiKey",
            "in": "header",
            "name": SECRET_HEADER,
            "description": "VLM_WEBHOOK_SECRET; `vlm connect` writes it into the webhooks.",
        },
    }
    return made
