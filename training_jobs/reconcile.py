"""The reconcile job: annotations of which no webhook has told are found in Label Studio.

Label Studio sends an event once, waits a second and does not try again; Redis may lose what was queued. So now and then
each project that this backend knows is asked for annotations that no training has read, and a training is requested
where there are some. What a training has read lies in the data directory (`training_jobs.annotation_state`); Redis only
holds what saves questions:

    vlm:reconcile:slot:<n>     set once the run of the n-th stretch of time is queued
    vlm:reconcile:start        set while a run that a starting worker has queued is fresh
    vlm:reconcile:looked       per project the mark up to which nothing is new
    vlm:reconcile:asked:<id>   for which mark a training was requested, and when: `training_jobs.asked`

A project is known once Label Studio has called `/setup` for it, or a version of it was trained here. It is trained only
while Label Studio has a connection to this backend for it, which is looked up when there is something to train.

Workers queue the run, when they start and with RQ's maintenance. A run queued by the former run would end for good with
the first one that Redis loses.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import redis
from rq import Queue, get_current_job
from rq.serializers import JSONSerializer

from backend.label_studio.client import LabelStudioClient
from backend.label_studio.config import LabelConfigError, parse_label_config
from backend.label_studio.connection import is_ours
from backend.label_studio.errors import LabelStudioError, LabelStudioForbiddenError, LabelStudioNotFoundError
from backend.label_studio.true_tags import tag_controls
from backend.plans import ExtraParams
from backend.queue import TrainingQueue
from backend.settings import Settings, load_settings
from backend.versions import VersionStore
from training_jobs.annotation_state import AnnotationSource, Mark, Reading, has_news
from training_jobs.asked import Asked

log = logging.getLogger(__name__)

QUEUE_NAME = "vlm-reconcile"
FUNCTION = "training_jobs.reconcile.reconcile_projects"
REASON = "found by the reconcile job"

_TIMEOUT_S = 900
_RESULT_TTL_S = 3600
_START_S = 10
"""Workers that start within so many seconds share a run."""

_SLOT, _START = "vlm:reconcile:slot", "vlm:reconcile:start"
_LOOKED = "vlm:reconcile:looked"


class LabelStudioSource(AnnotationSource, Protocol):
    """The part of `LabelStudioClient` that is used."""

    def project(self, project_id: int) -> dict[str, Any]:
        """One project, with its `label_config`."""

    def ml_backends(self, project_id: int) -> list[dict[str, Any]]:
        """The project's connections to backends."""


@dataclass
class Found:
    """What one run has found.

    Attributes:
        requested: projects for which a training was requested.
        unchanged: how many projects had nothing new, or nothing to learn from it.
        busy: how many have a training that waits or runs, which sees everything.
        gone: how many Label Studio does not know, or has no connection to this backend for.
        failed: why a project could not be looked at, by its id.
    """

    requested: list[int] = field(default_factory=list)
    unchanged: int = 0
    busy: int = 0
    gone: int = 0
    failed: dict[int, str] = field(default_factory=dict)


def reconcile_queue(connection: redis.Redis) -> Queue:
    """The queue of the runs; workers look at it before they take up a training."""
    return Queue(QUEUE_NAME, connection=connection, serializer=JSONSerializer)


def plan_reconcile(connection: redis.Redis, settings: Settings, *, at_start: bool = False) -> bool:
    """Queue a run, unless another worker has done so for this stretch of time.

    Args:
        connection: to Redis.
        settings: of the worker.
        at_start: a worker starts: what happened while none was there is to be found now.

    Returns:
        Whether a run was queued.
    """
    interval_s = settings.reconcile_s
    if not interval_s or not settings.label_studio_url or not settings.label_studio_token:
        return False
    slot = f"{_SLOT}:{int(time.time() // interval_s)}"
    taken = _START if at_start else slot
    with connection.pipeline() as pipe:
        try:
            pipe.watch(taken)
            if pipe.exists(taken):
                return False
            pipe.multi()
            pipe.set(slot, 1, ex=math.ceil(2 * interval_s))
            if at_start:
                pipe.set(_START, 1, ex=_START_S)
            queue = reconcile_queue(connection)
            queue.enqueue_call(
                FUNCTION,
                description="look for annotations of which no webhook has told",
                timeout=_TIMEOUT_S,
                ttl=max(60, math.ceil(2 * interval_s)),  # of no use once the next ones are there
                result_ttl=_RESULT_TTL_S,
                failure_ttl=_RESULT_TTL_S,
                pipeline=pipe,
            )
            pipe.sadd(Queue.redis_queues_keys, queue.key)
            pipe.execute()
        except redis.WatchError:  # another worker does the same at this moment
            return False
    return True


def reconcile_projects() -> dict[str, Any]:
    """One run over all projects. Settings come from the environment. Runs inside an RQ job.

    Returns:
        The fields of `Found`, for RQ's own record.

    Raises:
        LabelStudioError: Label Studio is away; the next run tries again.
    """
    job = get_current_job()
    if job is None:
        raise RuntimeError("reconcile_projects runs as an RQ job: workers enqueue it with plan_reconcile")
    settings = load_settings()
    if settings.label_studio_url is None:
        raise RuntimeError("LABEL_STUDIO_URL is not set: nothing can be looked up")
    with LabelStudioClient(
        settings.label_studio_url, settings.label_studio_token, timeout_s=settings.label_studio_timeout_s
    ) as client:
        return asdict(reconcile(client, settings, job.connection))


def reconcile(
    client: LabelStudioSource,
    settings: Settings,
    connection: redis.Redis,
    *,
    clock: Callable[[], float] = time.time,
) -> Found:
    """Look at every project that this backend knows, and request what trainings are missing.

    Args:
        client: of Label Studio.
        settings: of the worker.
        connection: to Redis.
        clock: seconds since 1970.

    Raises:
        LabelStudioError: Label Studio is away, or takes no call of ours.
        redis.RedisError: Redis is away.
    """
    store, found = VersionStore(settings.data_dir), Found()
    queue = TrainingQueue.of(connection, settings)
    for project_id in store.project_ids():
        try:
            asked = Asked(connection, project_id, settings.reconcile_s)
            _Project(project_id, client, settings, connection, queue, found, asked, clock).look(store)
        except (LabelStudioNotFoundError, LabelStudioForbiddenError):
            found.gone += 1
        except LabelStudioError as error:
            if error.temporary or error.status == 401:
                raise  # the other projects would fare no better
            found.failed[project_id] = str(error)
            log.warning("project=%d could not be reconciled: %s", project_id, error)
    log.info(
        "reconciled requested=%s unchanged=%d busy=%d gone=%d failed=%d",
        ",".join(map(str, found.requested)) or "-",
        found.unchanged,
        found.busy,
        found.gone,
        len(found.failed),
    )
    return found


@dataclass(frozen=True)
class _Project:
    """One project in one run."""

    project_id: int
    client: LabelStudioSource
    settings: Settings
    connection: redis.Redis
    queue: TrainingQueue
    found: Found
    asked: Asked
    clock: Callable[[], float]

    def look(self, store: VersionStore) -> None:
        if self.queue.status(self.project_id) is not None:
            self.found.busy += 1
            self.asked.note_alive(self.clock())
            return
        mark = Mark.of(self.client, self.project_id)
        if self._known(mark):
            self.found.unchanged += 1
            return
        last = Reading.last(store.project_dir(self.project_id))
        if not has_news(self.client, self.project_id, mark, last) or not self._can_learn():
            self.found.unchanged += 1
            self.connection.hset(_LOOKED, str(self.project_id), str(mark))
            return
        if not self._is_connected():
            self.found.gone += 1
            return
        self.queue.request_training(self.project_id, reason=REASON)
        self.asked.note(str(mark), self.clock())
        self.found.requested.append(self.project_id)
        log.info("project=%d has annotations that no training has read: one is requested", self.project_id)

    def _known(self, mark: Mark) -> bool:
        """Whether the project was looked at with this very mark, or a training was requested for it lately."""
        looked = self.connection.hget(_LOOKED, str(self.project_id))
        return looked == str(mark).encode() or self.asked.waits(str(mark), self.clock())

    def _can_learn(self) -> bool:
        """Whether the labelling config has labels that are learned; the job itself tells what is wrong with one."""
        label_config = str(self.client.project(self.project_id).get("label_config") or "")
        try:
            plan = parse_label_config(label_config, ExtraParams(self.settings.data_dir).of(self.project_id))
        except LabelConfigError:
            return True
        return bool(plan.prompts or tag_controls(plan))

    def _is_connected(self) -> bool:
        entries = self.client.ml_backends(self.project_id)
        return any(is_ours(entry, self.settings.backend_url) for entry in entries)
