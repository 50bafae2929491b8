"""The server put together: a composition root. Everything is made here and handed to what needs it."""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from fastapi import FastAPI
from starlette.exceptions import HTTPException

from backend.activity import Activity
from backend.api.auth import Gate
from backend.api.cancel import CancelHandlers
from backend.api.errors import ApiError
from backend.api.handlers import Handlers, QueueUnavailableError, Training
from backend.api.logs import RequestLog, api_error, http_error
from backend.api.openapi import document
from backend.api.prelabel import PrelabelHandlers
from backend.api.routes import make_router
from backend.handing_over import HandingOver, PrelabelLink
from backend.job_history import JobHistory
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.errors import LabelStudioError
from backend.label_studio.titles import ProjectTitles
from backend.metrics import Metrics
from backend.model_store import ModelStore, StoreState
from backend.page.gather import PageSource
from backend.parts import (
    connect_prelabelling,
    connect_queue,
    feature_files,
    image_fetcher,
    label_studio_client,
    load_model,
)
from backend.plans import ExtraParams, PlanCache
from backend.predictor import ImageSource, Predictor
from backend.readiness import Probe, Readiness
from backend.right_of_way import RightOfWay
from backend.settings import Settings
from backend.training import TrainingLink
from backend.versions import VersionStore
from backend.watched import watch_caches, watch_model, watch_parts, watch_queues

log = logging.getLogger(__name__)

_PROBE_WAIT_S = 2.0
"""For Redis and Label Studio each, when somebody asks whether they are there."""


def create_app(
    settings: Settings,
    *,
    images: ImageSource | None = None,
    training: Training | None = None,
    prelabelling: PrelabelLink | None = None,
) -> FastAPI:
    """The ASGI application. Nothing is loaded or connected until it is started.

    Args:
        settings: of the server.
        images: where images come from; default as the settings say.
        training: the training queue; default the one of the settings.
        prelabelling: the line to pre-labelling; default the one of the settings.
    """
    link = None
    if training is None:
        training = link = TrainingLink(lambda: connect_queue(settings))
    versions = VersionStore(settings.data_dir)
    store = ModelStore(lambda: load_model(settings), versions, max_loaded=settings.max_loaded_versions)
    plans, extra_params = PlanCache(), ExtraParams(settings.data_dir)
    activity, metrics = Activity(settings.data_dir), Metrics()
    fetcher = None
    if images is None:
        images = fetcher = image_fetcher(settings)
    predictor = Predictor(
        store,
        images,
        extra_params,
        plans=plans,
        fetch_threads=settings.image_fetch_threads,
        feature_cache_bytes=settings.feature_cache_bytes,
        feature_files=feature_files(settings),
        metrics=metrics,
        computing=RightOfWay(settings.data_dir).answering,
    )
    readiness = make_readiness(settings, lambda: store.state, training)
    watch_parts(metrics, readiness)
    watch_model(metrics, store)
    caches = {"features": predictor.feature_counts.read, "phrases": store.phrase_counts}
    watch_caches(metrics, caches | ({} if fetcher is None else {"images": fetcher.cache_counts.read}))
    prelabelling = prelabelling or PrelabelLink(lambda: connect_prelabelling(settings))
    watch_queues(metrics, training, prelabelling)
    connect = label_studio_client(settings)
    handlers = Handlers(
        store=store,
        versions=versions,
        predictor=HandingOver(predictor, prelabelling, can_post=connect is not None),
        plans=plans,
        extra_params=extra_params,
        training=training,
        activity=activity,
        readiness=readiness,
        metrics=metrics,
    )

    page = PageSource(
        store=store,
        versions=versions,
        data_dir=settings.data_dir,
        activity=activity,
        training=training,
        prelabelling=prelabelling,
        readiness=readiness,
        titles=ProjectTitles(connect),
    )

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        store.start()
        page.start()
        if link is not None:
            link.start()
        yield
        handlers.close()
        predictor.close()
        store.close()
        activity.close()

    # FastAPI's own pages would need no credentials; `/openapi.json` is a route of ours, which does.
    app = FastAPI(title="label-studio-vlm-backend", lifespan=lifespan, openapi_url=None)
    app.openapi = functools.cache(lambda: document(app))  # type: ignore[method-assign]
    app.include_router(
        make_router(
            handlers,
            PrelabelHandlers(prelabelling),
            CancelHandlers(training, JobHistory(settings.data_dir)),
            Gate(settings),
            page,
            request_max_bytes=settings.request_max_bytes,
            predict_deadline_s=settings.predict_deadline_s,
        )
    )
    app.add_exception_handler(ApiError, api_error)
    app.add_exception_handler(HTTPException, http_error)
    app.add_middleware(RequestLog, metrics=metrics)
    return app


def make_readiness(settings: Settings, model: Callable[[], StoreState], training: Training) -> Readiness:
    """Who answers `/ready`: Redis is asked every 5 seconds at most, Label Studio every 30."""

    def redis() -> str:
        try:
            training.ping()
        except QueueUnavailableError as error:
            return error.public
        return ""

    studio = None
    if settings.label_studio_url is not None and settings.label_studio_token is not None:
        client = LabelStudioClient(settings.label_studio_url, settings.label_studio_token, timeout_s=_PROBE_WAIT_S)

        def label_studio() -> str:
            try:
                client.whoami()
            except LabelStudioError as error:
                return str(error)
            return ""

        studio = Probe(label_studio, keep_s=30.0, wait_s=_PROBE_WAIT_S)
    return Readiness(model, Probe(redis, keep_s=5.0, wait_s=_PROBE_WAIT_S), studio)
