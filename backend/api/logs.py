"""One line and one measurement per request, and the last net for errors.

No payload, token, query or header is ever logged.
"""

from __future__ import annotations

import logging
import time
import uuid
from collections.abc import Mapping, MutableMapping
from http import HTTPStatus
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.routing import Match
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from backend.api.errors import ApiError
from backend.logs import Line
from backend.metrics import OTHER, Metrics

log = logging.getLogger("backend.request")

_METHODS = ("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE")
_NOTES = "vlm.notes"
_MAX_PATH_CHARS = 80
_OFTEN = ("/", "/health", "/ready", "/metrics")
"""Asked every few seconds by machines: told at DEBUG while all is well."""


def note(scope: MutableMapping[str, Any], notes: Mapping[str, object]) -> None:
    """Add to the log line of this request."""
    scope.setdefault(_NOTES, {}).update(notes)


async def api_error(request: Request, error: Exception) -> JSONResponse:
    """An `ApiError` as its status and `{"error": reason}`."""
    assert isinstance(error, ApiError)
    note(request.scope, {"error": type(error).__name__})
    return JSONResponse({"error": str(error)}, error.status, headers=dict(error.headers))


async def http_error(request: Request, error: Exception) -> JSONResponse:
    """The framework's own errors (404, 405) in the same shape."""
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        headers["Allow"] = ", ".join(_allowed(request))
    return JSONResponse({"error": str(error.detail)}, error.status_code, headers=headers)


def _allowed(request: Request) -> list[str]:
    """The methods of all routes of this path; the framework names those of the first route only."""
    routes = request.app.router.routes
    return [
        method
        for method in _METHODS
        if any(route.matches({**request.scope, "method": method})[0] is Match.FULL for route in routes)
    ]


class RequestLog:
    """ASGI middleware: one line of the log and one measurement per request.

    What no handler foresaw becomes a 500 with a reference, under which the traceback stands in the log.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        """Wrap an app; count in `metrics`."""
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        started = time.monotonic()
        scope[_NOTES] = {}
        status = 0

        async def watch(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            with self._metrics.in_progress():
                await self._app(scope, receive, watch)
        except ClientDisconnect:
            note(scope, {"error": "client-gone"})
        except Exception:
            reference = uuid.uuid4().hex[:8]
            note(scope, {"reference": reference})
            log.exception(Line("unexpected error", reference=reference))
            if not status:
                content = {"error": f"an unexpected error; the server's log has the details under {reference}"}
                await JSONResponse(content, 500)(scope, receive, watch)
        finally:
            self._write(scope, status, time.monotonic() - started)

    def _write(self, scope: Scope, status: int, seconds: float) -> None:
        # The template of the route that was found: a path of the client's choice would be a label of its own.
        route = getattr(scope.get("route"), "path", OTHER)
        self._metrics.request(route, status, seconds)
        path = quote(scope["path"][:_MAX_PATH_CHARS], safe="/-_.")
        level = logging.DEBUG if path in _OFTEN and status == 200 else logging.INFO
        fields = {"method": scope["method"], "path": path, "status": status, "ms": round(1000 * seconds)}
        log.log(level, Line("request", **{**fields, **scope[_NOTES]}))
