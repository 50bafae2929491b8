"""The routes: credentials, body, the handler in a thread, the reply. Facts: Label Studio's ML backend protocol.

Predictions, webhooks and probes have threads of their own, so that what hangs there keeps nobody else waiting.
"""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable
from typing import Annotated

import anyio
import anyio.to_thread
from fastapi import APIRouter, Path, Request, Response

from backend.api.auth import SECRET_HEADER, Gate
from backend.api.cancel import CancelHandlers
from backend.api.errors import InvalidRequestError, NotFoundError, TooLargeError, UnavailableError
from backend.api.events import START_TRAINING
from backend.api.handlers import Handlers, Reply
from backend.api.logs import note
from backend.api.openapi import operation
from backend.api.prelabel import PrelabelHandlers
from backend.api.replies import (
    CancelledReply,
    HealthReply,
    PredictReply,
    PrelabelAskedReply,
    PrelabelReply,
    ReadyReply,
    SetupReply,
    StatusReply,
    VersionsReply,
    WebhookReply,
)
from backend.api.schemas import (
    PROJECT_PARAMETER,
    PredictRequest,
    PrelabelBody,
    SetupRequest,
    WebhookRequest,
    parse,
    project_id_of,
)
from backend.page.gather import PageSource
from backend.page.html import render, security_policy
from backend.page.report import render_report
from backend.predictor import Deadline
from backend.versions import VersionError, VersionNotFoundError

log = logging.getLogger(__name__)

WEBHOOK_LIMIT_S = 0.7
"""Label Studio waits one second for a webhook, inside the annotator's submit, and does not try again."""

_QUICK_BYTES = 256 * 1024
"""An event of this size is read in less than a millisecond: sooner than a thread takes it up."""

ProjectInPath = Annotated[str, Path(json_schema_extra=PROJECT_PARAMETER)]

PREDICT_THREADS = 16
PROBE_THREADS = 4
"""Of those who watch the server: they wait for Redis and Label Studio, and must keep nobody else waiting."""
WEBHOOK_THREADS = 16

_QUICK_BYTES = 256 * 1024
"""An event of this size is read in less than a millisecond: sooner than a thread takes it up."""


def make_router(
    handlers: Handlers,
    prelabelling: PrelabelHandlers,
    cancelling: CancelHandlers,
    gate: Gate,
    page: PageSource,
    *,
    request_max_bytes: int,
    predict_deadline_s: float,
) -> APIRouter:
    """The routes over their handlers.

    Args:
        handlers: what the routes do.
        prelabelling: what those of pre-labelling do.
        cancelling: what the one that cancels does.
        gate: checks credentials.
        page: what a browser sees at `/`.
        request_max_bytes: largest body.
        predict_deadline_s: seconds from a request's arrival until `/predict` answers with what is done.
    """
    router = APIRouter()
    predict_threads = anyio.CapacityLimiter(PREDICT_THREADS)
    probe_threads = anyio.CapacityLimiter(PROBE_THREADS)
    webhook_threads = anyio.CapacityLimiter(WEBHOOK_THREADS)

    @router.head("/health", **operation(HealthReply))
    @router.get("/health", **operation(HealthReply))
    async def health(request: Request) -> Response:
        """Whether the server runs. Label Studio asks before everything else."""
        return _respond(request, handlers.health())

    @router.get("/ready", **operation(ReadyReply, also={503: ReadyReply}))
    async def ready(request: Request) -> Response:
        """Whether predictions are answered; 503 where not. Who has credentials is told the state of each part."""
        # A balancer's probe can carry no credentials: it needs the status only.
        details = gate.passes(request.headers.get("authorization"))
        return await _in_thread(request, lambda: handlers.ready(details=details), probe_threads)

    @router.get("/metrics", include_in_schema=False)
    async def metrics(request: Request) -> Response:
        gate.check(request.headers.get("authorization"))
        accept = request.headers.get("accept", "")
        content, media_type = await anyio.to_thread.run_sync(lambda: handlers.metrics(accept), limiter=probe_threads)
        return Response(content, media_type=media_type)

    @router.get("/openapi.json", include_in_schema=False)
    async def openapi(request: Request) -> Response:
        gate.check(request.headers.get("authorization"))
        return _respond(request, Reply(request.app.openapi()))

    @router.api_route("/", methods=["GET", "HEAD"], include_in_schema=False)
    async def root(request: Request) -> Response:
        if "text/html" not in request.headers.get("accept", ""):
            return _respond(request, handlers.health())  # Label Studio, and who looks whether anybody is there
        gate.check(request.headers.get("authorization"))
        project = _project_parameter(request)
        refresh = request.query_params.get("refresh") != "off"
        return await anyio.to_thread.run_sync(lambda: page_response(page, project, refresh=refresh))

    @router.post("/setup", **operation(SetupReply, takes=SetupRequest, errors=[503], security=gate.security))
    async def setup(request: Request) -> Response:
        """The name of the version that serves a project. Label Studio asks before it retrieves predictions."""
        gate.check(request.headers.get("authorization"))
        body = await _body(request, request_max_bytes)
        return await _in_thread(request, lambda: handlers.setup(body))

    @router.post("/predict", **operation(PredictReply, takes=PredictRequest, security=gate.security))
    async def predict(request: Request) -> Response:
        """A prediction for each task, or the reason why it has none."""
        gate.check(request.headers.get("authorization"))
        deadline = Deadline(predict_deadline_s)  # from here on: waiting for a thread is waiting too
        body = await _body(request, request_max_bytes)
        return await _in_thread(request, lambda: handlers.predict(body, deadline), predict_threads)

    @router.post(
        "/webhook",
        **operation(
            WebhookReply,
            takes=WebhookRequest,
            also={201: WebhookReply},
            errors=[503],
            security=gate.webhook_security,
        ),
    )
    async def webhook(request: Request) -> Response:
        """An event of a project. Those after which there is something to learn ask for a training."""
        authorization, secret = request.headers.get("authorization"), request.headers.get(SECRET_HEADER)
        gate.check_webhook(authorization, secret)
        body = await _body(request, request_max_bytes)
        if len(body) <= _QUICK_BYTES:
            event = parse(WebhookRequest, body)
        else:
            event = await anyio.to_thread.run_sync(lambda: parse(WebhookRequest, body), limiter=webhook_threads)
        gate.check_webhook(authorization, secret, action=event.action)
        if event.action != START_TRAINING:
            return _respond(request, handlers.event(event))
        with anyio.move_on_after(WEBHOOK_LIMIT_S):
            return await _in_thread(request, lambda: handlers.start_training(event), webhook_threads, abandon=True)
        raise handlers.not_queued(event, "the job queue (Redis) did not answer in time")

    @router.delete("/projects/{project}/training", **operation(CancelledReply, errors=[503], security=gate.security))
    async def cancel_training(request: Request, project: ProjectInPath) -> Response:
        """Give up the project's training that waits or runs. The serving version stays; later corrections ask anew."""
        gate.check(request.headers.get("authorization"))
        project_id = _project_id(project)
        return await _in_thread(request, lambda: cancelling.cancel(project_id))

    @router.post(
        "/projects/{project}/prelabel",
        status_code=202,
        **operation(PrelabelAskedReply, status=202, takes=PrelabelBody, errors=[503], security=gate.security),
    )
    async def ask_to_prelabel(request: Request, project: ProjectInPath) -> Response:
        """Have the workers predict a project's tasks and import the predictions into Label Studio."""
        gate.check(request.headers.get("authorization"))
        project_id = _project_id(project)
        body = await _body(request, request_max_bytes)
        return await _in_thread(request, lambda: prelabelling.ask(project_id, body))

    @router.get(
        "/projects/{project}/prelabel",
        **operation(PrelabelReply, query={"request": {"type": "string"}}, errors=[422, 503], security=gate.security),
    )
    async def prelabelling_state(request: Request, project: ProjectInPath) -> Response:
        """How far the pre-labelling of a project is; with `request`, what that request has come to."""
        gate.check(request.headers.get("authorization"))
        project_id, asked = _project_id(project), request.query_params.get("request")
        return await _in_thread(request, lambda: prelabelling.state(project_id, asked))

    @router.get(
        "/versions",
        **operation(VersionsReply, query={"project": PROJECT_PARAMETER}, errors=[422, 503], security=gate.security),
    )
    async def versions(request: Request) -> Response:
        """Names of the versions that serve now; with `project`, that project's versions."""
        gate.check(request.headers.get("authorization"))
        project = _project_parameter(request)
        return await _in_thread(request, lambda: handlers.versions(project))

    @router.get("/projects/{project}/versions/{version}/report", include_in_schema=False)
    async def report(request: Request, project: str, version: str) -> Response:
        gate.check(request.headers.get("authorization"))
        project_id, number = _project_id(project), _version_number(version)
        return await anyio.to_thread.run_sync(lambda: report_response(page, project_id, number))

    @router.get("/status", **operation(StatusReply, security=gate.security))
    async def status(request: Request) -> Response:
        """Where everything stands: model, queue, and what last happened to each project."""
        gate.check(request.headers.get("authorization"))
        return await _in_thread(request, handlers.status)

    return router


def page_response(page: PageSource, project: int | None, *, refresh: bool) -> Response:
    """The page, with what keeps it to itself."""
    return _html(render(page.view(project), refresh=refresh))


def report_response(page: PageSource, project_id: int, number: int) -> Response:
    """The report on a version, with what keeps it to itself.

    Raises:
        NotFoundError: there is no such version.
        UnavailableError: one of its files cannot be used.
    """
    try:
        view = page.report(project_id, number)
    except VersionNotFoundError as error:
        raise NotFoundError(error.public) from None
    except VersionError as error:
        log.error("project=%d version=%d report: %s", project_id, number, error)
        raise UnavailableError(error.public) from error
    return _html(render_report(view))


def _html(text: str) -> Response:
    headers = {
        "Cache-Control": "no-store",
        "Content-Security-Policy": security_policy(),
        "Referrer-Policy": "no-referrer",
        "Vary": "Accept",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(text, media_type="text/html", headers=headers)


async def _in_thread(
    request: Request, work: Callable[[], Reply], limiter: anyio.CapacityLimiter | None = None, *, abandon: bool = False
) -> Response:
    def run() -> Response:
        return _respond(request, work())  # JSON of megabytes is written in the thread too

    return await anyio.to_thread.run_sync(run, limiter=limiter, abandon_on_cancel=abandon)


async def _body(request: Request, limit: int) -> bytes:
    """The whole body, or an error before more than `limit` bytes are held."""
    remedy = f"the body is over {limit} bytes: send fewer tasks, or raise VLM_REQUEST_MAX_BYTES"
    length = request.headers.get("content-length", "")
    if length.isdecimal() and int(length) > limit:
        raise TooLargeError(remedy)
    chunks: list[bytes] = []
    held = 0
    async for chunk in request.stream():
        held += len(chunk)
        if held > limit:
            raise TooLargeError(remedy)
        chunks.append(chunk)
    return b"".join(chunks)


def _project_parameter(request: Request) -> int | None:
    text = request.query_params.get("project")
    return None if text is None else _project_id(text)


def _version_number(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,9}", text) or int(text) < 1:
        raise InvalidRequestError("version: must be a version's number, like 1; the base model has no report")
    return int(text)


def _project_id(text: str) -> int:
    try:
        return project_id_of(text)
    except ValueError:
        raise InvalidRequestError("project: must be a project's id, like 1") from None


def _respond(request: Request, reply: Reply) -> Response:
    note(request.scope, reply.notes)
    # A NaN would not be JSON, and Label Studio would drop the whole answer: better an error here.
    content = json.dumps(reply.body, allow_nan=False, separators=(",", ":"), ensure_ascii=False)
    return Response(content.encode(), status_code=reply.status, media_type="application/json")
