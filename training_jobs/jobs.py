"""RQ entry points: named by string path, small JSON arguments, nothing heavy imported until a job runs.

The worker's parent process imports this module (for the failure callback) and must stay small and without CUDA,
since it forks.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Any

import redis
from rq import get_current_job
from rq.job import Job
from rq.timeouts import JobTimeoutException

from backend.job_history import JobHistory, JobOutcome, JobRecord
from backend.label_studio.errors import LabelStudioError
from backend.label_studio.images import ImageError
from backend.label_studio.task_filter import parse_choice
from backend.logs import error_text
from backend.prelabel_queue import PrelabelQueue, PrelabelRequest
from backend.queue import TrainingQueue, save_progress
from backend.right_of_way import GiveWay
from backend.settings import Settings, SettingsError, load_settings
from backend.versions import VersionError, VersionStore
from training_jobs.errors import GivenUpError
from training_jobs.job_log import log_job
from training_jobs.lock import ProjectLock, release_dead
from vlm_core.errors import VLMError

if TYPE_CHECKING:
    from backend.label_studio.client import LabelStudioClient

log = logging.getLogger(__name__)

_PROGRESS_EVERY_S = 1.0

_WORKER_GONE = 70
"""Exit code; for people."""

CANCELLED = "it was cancelled"

FORESEEN = (VLMError, SettingsError, LabelStudioError, ImageError, JobTimeoutException)
"""Errors whose text is ours, for people, and says the remedy."""


def train_project(project_id: int) -> dict[str, Any]:
    """Train one project; see `training_jobs.training.train_version`.

    Settings come from the environment. Runs inside an RQ job.

    Returns:
        `outcome`, `reason` and `version`, for RQ's own record.

    Raises:
        Exception: whatever stopped it. What may pass is tried again by RQ; what will not is not.
    """
    job = get_current_job()
    if job is None:
        raise RuntimeError("train_project runs as an RQ job: enqueue it with TrainingQueue.request_training")
    try:
        return _train(project_id, job)
    except Exception as error:
        if not _may_pass(error):
            job.retries_left = 0
        raise


def on_failure(
    job: Job,
    connection: redis.Redis,
    kind: type[BaseException] | None = None,
    error: BaseException | None = None,
    trace: TracebackType | None = None,
) -> None:
    """Called by RQ when an attempt has failed, also in the worker's parent when it finds the job's process dead.

    Notes the reason. Once there will be no other attempt, writes the history and gives up the project's place.
    """
    settings = load_settings()
    reason = _describe(error, settings) if error else "its worker has vanished"
    if job.retries_left:
        job.meta["problem"] = reason
        job.save_meta()
        log_job(job, "train", "retrying", reason=reason)
        return
    project_id = int(job.args[0])
    _record(settings, job, project_id, "failed", reason)
    release_dead(connection, project_id, job.id)
    TrainingQueue.of(connection, settings).finish(project_id, job.id)


def on_stopped(job: Job, connection: redis.Redis) -> None:
    """Called by RQ, in the worker's parent, when it has stopped a job that was cancelled."""
    settings = load_settings()
    _give_up(settings, job, int(job.args[0]), TrainingQueue.of(connection, settings))


def _give_up(settings: Settings, job: Job, project_id: int, queue: TrainingQueue) -> None:
    """Note that a job was cancelled, and leave its place; the serving version stays."""
    _record(settings, job, project_id, "cancelled", CANCELLED)
    release_dead(job.connection, project_id, job.id)
    queue.finish(project_id, job.id)


def _train(project_id: int, job: Job) -> dict[str, Any]:
    from training_jobs.training import connect, train_version
    from training_jobs.version_record import published_result

    settings = load_settings()
    queue = TrainingQueue.of(job.connection, settings)
    if queue.is_cancelled(project_id, job.id):  # its worker died before it could be told
        _give_up(settings, job, project_id, queue)
        return {"outcome": "cancelled", "reason": CANCELLED, "version": None}
    begun = queue.begin(project_id, job.id)
    if begun is None:
        reason = "another job of the project has taken over"
        _record(settings, job, project_id, "superseded", reason)
        return {"outcome": "superseded", "reason": reason, "version": None}
    # A second attempt of a request that was made on purpose is still one.
    forced = begun.forced or bool(job.meta.get("forced"))
    former_token = job.meta.get("token")
    job.meta = {key: job.meta[key] for key in ("project_id", "reason") if key in job.meta} | {"forced": forced}
    job.save_meta()
    client, fetcher = connect(settings)
    store = VersionStore(settings.data_dir)
    with client, ProjectLock(job.connection, project_id, job.id) as lock:
        published = store.publication(project_id)
        if published is not None and published[0] == former_token:
            # The former attempt was killed between publishing and saying so.
            result = published_result(store.get(project_id, published[1]))
        else:
            token = job.meta["token"] = store.next_token(project_id)
            job.save_meta()
            give_way = GiveWay(settings.data_dir, most_s=_MOST_GIVEN_AWAY * settings.train_timeout_s)
            result = train_version(
                project_id,
                settings,
                client=client,
                fetcher=fetcher,
                token=token,
                forced=forced,
                report=_Reporter(job, lock.check, give_way),
            )
        if result.outcome == "published" and result.version is not None:
            _announce(queue, project_id, result.version)
            if settings.show_scores:
                _tell_label_studio(client, project_id)
            _prelabel_again(settings, job.connection, project_id)
        if result.version is not None:
            _prune(settings, store, project_id)
    _record(settings, job, project_id, **vars(result))
    queue.finish(project_id, job.id)
    return {"outcome": result.outcome, "reason": result.reason, "version": result.version}


def _announce(queue: TrainingQueue, project_id: int, version: int) -> None:
    """Tell the servers; a failure costs nothing, since each notices a new version by itself."""
    try:
        queue.announce_version(project_id, version)
    except redis.RedisError as error:
        log.warning("project=%d version %d could not be announced: %s", project_id, version, type(error).__name__)


def _tell_label_studio(client: LabelStudioClient, project_id: int) -> None:
    """Let Label Studio learn of the new version, so that its score column follows; a failure costs only that."""
    from backend.label_studio.connect import refresh_version

    try:
        refresh_version(client, project_id)
    except LabelStudioError as error:
        log.warning("project=%d Label Studio was not told of the new version: %s", project_id, error)


def _prelabel_again(settings: Settings, connection: redis.Redis, project_id: int) -> None:
    """Ask for the tasks that the settings name to be predicted by the new version; a failure costs only that.

    What was seen of their images is on the disk, so that only the decoder runs.
    """
    conditions = parse_choice(settings.prelabel_after_publish)
    if conditions is None:
        return
    try:
        PrelabelQueue(connection).request(project_id, PrelabelRequest(conditions))
    except redis.RedisError as error:
        log.warning("project=%d its tasks are not pre-labelled again: %s", project_id, type(error).__name__)


def _prune(settings: Settings, store: VersionStore, project_id: int) -> None:
    """Remove old versions; a failure leaves them to the next training."""
    try:
        gone = store.prune(project_id, settings.keep_versions)
    except (VersionError, OSError) as error:
        log.warning("project=%d its old versions stay: %s", project_id, error)
        return
    if gone:
        log.info("project=%d old versions are removed: %s", project_id, ", ".join(map(str, gone)))


_MOST_GIVEN_AWAY = 0.25
"""Of the time that a training has at most: what it gives to predictions must not be why it runs out."""


class _Reporter:
    """Notes progress in the job about once a second; gives up when the lock is lost, ends when the worker is gone.

    Called between steps, it is also where the training gives way to predictions.
    """

    def __init__(self, job: Job, check: Callable[[], None], give_way: Callable[[], None]) -> None:
        self._job = job
        self._give_way = give_way
        self._check = check
        self._worker = os.getppid()
        self._phase = ""
        self._next = 0.0
        self._began = time.monotonic()

    def __call__(self, phase: str, share: float, loss: float | None) -> None:
        if os.getppid() != self._worker:
            # Nobody notes signs of life for this process any more, so another worker brings the job back. To say
            # anything to Redis now would bring it back twice.
            log.warning("job %s: its worker is gone, so this process ends", self._job.id)
            logging.shutdown()
            os._exit(_WORKER_GONE)
        self._check()
        self._give_way()
        now = time.monotonic()
        if phase == self._phase and now < self._next:
            return
        self._phase, self._next = phase, now + _PROGRESS_EVERY_S
        progress: dict[str, Any] = {"percent": round(100 * min(1.0, share)), "phase": phase}
        if loss is not None:
            progress["loss"] = round(loss, 4)
        if (left_s := seconds_left(share, now - self._began)) is not None:
            progress["seconds_left"] = round(left_s)
        try:
            save_progress(self._job, progress)
        except redis.RedisError as error:  # a Redis that is away for a while is no reason to give up a training
            log.warning("job %s: its progress could not be noted: %s", self._job.id, type(error).__name__)


def seconds_left(share: float, spent_s: float) -> float | None:
    """How long a job still takes, if it goes on as until now, s; None where that is too early to say.

    Args:
        share: done, 0 to 1.
        spent_s: since it began.
    """
    if share < 0.05 or spent_s < 5.0:
        return None
    return spent_s * (1.0 - min(1.0, share)) / share


def _may_pass(error: Exception) -> bool:
    """Whether another attempt could end otherwise."""
    if isinstance(error, (LabelStudioError, ImageError)):
        return error.temporary
    if isinstance(error, (VLMError, SettingsError)):
        return isinstance(error, GivenUpError)
    return not isinstance(error, JobTimeoutException)  # it would take as long again


def _describe(error: BaseException, settings: Settings) -> str:
    """The reason for people: our own messages as they are, others with their kind."""
    if isinstance(error, (VLMError, SettingsError, LabelStudioError, ImageError)):
        return str(error)
    if isinstance(error, JobTimeoutException):
        return (
            f"it took longer than {settings.train_timeout_s} s: raise VLM_TRAIN_TIMEOUT_S, or train for fewer steps "
            "(VLM_TRAIN_RECIPE)"
        )
    if isinstance(error, OSError) and error.strerror:
        where = error.filename or settings.data_dir
        return f"{where}: {error.strerror}. Make room, mend the permissions, or choose another VLM_DATA_DIR"
    return f"{type(error).__name__}: {error_text(error)}; the worker's log says where"


def _record(
    settings: Settings,
    job: Job,
    project_id: int,
    outcome: JobOutcome,
    reason: str,
    version: int | None = None,
    labels: Any = None,
    counts: Any = None,
) -> None:
    requested = str(job.meta.get("reason", ""))
    started, ended = log_job(job, "train", outcome, requested=requested, version=version, reason=reason)
    record = JobRecord(
        job_id=job.id,
        project_id=project_id,
        requested=requested,
        outcome=outcome,
        reason=reason,
        started_at=started,
        ended_at=ended,
        version=version,
        labels=labels or {},
        counts=counts or {},
    )
    try:
        JobHistory(settings.data_dir).add(record)
    except OSError as error:  # a full disk must not turn a published version into a failed job
        log.error("job %s: its outcome %r could not be noted: %s", job.id, outcome, error)
