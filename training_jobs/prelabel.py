"""Pre-labelling as RQ jobs: named by string path, nothing heavy imported until a job runs.

A job is a stint on one project; see `backend.prelabel_queue`. It ends when nothing can be done now, when its time is
up, or when a training waits for this worker, and sees to it that another one follows where tasks are left.
"""

from __future__ import annotations

import logging
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from types import TracebackType
from typing import TYPE_CHECKING, Any

import redis
from rq import Queue, Worker, get_current_job
from rq.job import Job
from rq.serializers import JSONSerializer

from backend.job_history import JobHistory, JobRecord
from backend.label_studio.errors import LabelStudioError, LabelStudioNotFoundError
from backend.label_studio.task_filter import TaskFilterError
from backend.logs import Line, error_text
from backend.prelabel_ledger import Run
from backend.prelabel_queue import LIST_FUNCTION, SHARD, Listed, PrelabelEnded, PrelabelQueue, PrelabelRequest
from backend.queue import QUEUE_NAME as TRAINING_QUEUE
from backend.settings import Settings, SettingsError, load_settings
from training_jobs.errors import CannotPrelabelError, ProcessEndedError, TrainingError
from training_jobs.job_log import log_job
from vlm_core.errors import VLMError

if TYPE_CHECKING:
    from backend.label_studio.client import LabelStudioClient

log = logging.getLogger(__name__)

_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 5.0, 300.0
"""Before Label Studio is tried again; each pause is twice the one before."""

_FAILURES_TOLD = 100
_OURS = (LabelStudioError, VLMError, SettingsError)
"""Errors whose message is meant for people."""


def prelabel_project(project_id: int) -> None:
    """Work on a project's tasks for a while.

    Settings come from the environment. Runs inside an RQ job.

    Raises:
        Exception: whatever stopped it. What may pass is tried again by RQ; what will not is not, and what is left then
            waits for the next request or the next start of a worker.
    """
    job = get_current_job()
    if job is None:
        raise RuntimeError("prelabel_project runs as an RQ job: enqueue it with PrelabelQueue.request")
    try:
        _work(project_id, job)
    except _OURS:
        job.retries_left = 0
        raise


def list_tasks(project_id: int, request_id: str, fields: Mapping[str, Any]) -> None:
    """List the tasks of a request; raises as `prelabel_project` does.

    Args:
        project_id: Label Studio's id.
        request_id: names the request.
        fields: of a `PrelabelRequest`.
    """
    job = get_current_job()
    if job is None:
        raise RuntimeError("list_tasks runs as an RQ job: enqueue it with PrelabelQueue.request")
    try:
        _list(project_id, request_id, PrelabelRequest.from_json(fields), job)
    except _OURS:
        job.retries_left = 0
        raise


def on_failure(
    job: Job,
    connection: redis.Redis,
    kind: type[BaseException] | None = None,
    error: BaseException | None = None,
    trace: TracebackType | None = None,
) -> None:
    """Called by RQ when an attempt has failed, also in the worker's parent when it finds the job's process dead."""
    queue, project_id = PrelabelQueue(connection), int(job.args[0])
    ledger = queue.ledger(project_id)
    ledger.release(job.id, died=error is None or isinstance(error, ProcessEndedError))
    problem = "its worker has vanished"
    if error is not None:
        problem = str(error) if isinstance(error, _OURS) else f"{type(error).__name__}: {error_text(error)}"
    ledger.setback(problem)
    log_job(
        job,
        "list" if job.func_name == LIST_FUNCTION else "prelabel",
        "retrying" if job.retries_left else "failed",
        reason=problem,
    )
    if job.func_name == LIST_FUNCTION and not job.retries_left:
        queue.note_listed(project_id, job.args[1], Listed(0, ledger.begin_run(), problem))
        _end_run(load_settings(), queue, project_id)


def _list(project_id: int, request_id: str, request: PrelabelRequest, job: Job) -> None:
    from training_jobs.prelabel_listing import chosen_tasks

    settings = load_settings()
    queue = PrelabelQueue(job.connection)
    ledger = queue.ledger(project_id)
    run_id, count, problem = ledger.begin_run(), 0, ""
    page: list[int] = []

    def add() -> None:
        if queue.wanted(project_id, request_id) and ledger.add(page):
            queue.ensure_jobs(project_id)  # other workers need not wait for the rest
        page.clear()

    try:
        with _client(settings) as client:
            for task_id in chosen_tasks(client, project_id, request):
                page.append(task_id)
                count += 1
                if len(page) == SHARD:
                    add()
        add()
    except LabelStudioError as error:
        if error.temporary:
            pause_s = _pause_s(ledger.setback(str(error)))
            log_job(job, "list", "paused", again_in_s=round(pause_s), reason=str(error))
            queue.list_later(project_id, request_id, request, pause_s)
            return
        problem = str(error)
    except TaskFilterError as error:
        problem = str(error)
    if problem:
        log.error("project=%d a request to pre-label cannot be met: %s", project_id, problem)
        ledger.setback(problem)
    log_job(job, "list", "given up" if problem else "done", tasks=count)
    queue.note_listed(project_id, request_id, Listed(count, run_id, problem))
    _end_run(settings, queue, project_id)
    queue.ensure_jobs(project_id, without=job.id)


def _client(settings: Settings) -> LabelStudioClient:
    from backend.parts import label_studio_client

    connect = label_studio_client(settings)
    if connect is None:
        raise TrainingError("predictions go to Label Studio: set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY")
    return connect()


def _pause_s(setbacks: int) -> float:
    return min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2.0 ** (setbacks - 1))


def _work(project_id: int, job: Job) -> None:
    # Not before a job runs: the worker's parent imports this module, and must stay small.
    from backend.parts import patience
    from training_jobs.prelabel_stint import Serving, run_stint

    settings = load_settings()
    queue = PrelabelQueue(job.connection, patience=patience(settings))
    ledger = queue.ledger(project_id)
    ledger.release(job.id)  # a former run of this job was interrupted
    outcome, problem = "done", None
    try:
        with _client(settings) as client:
            if ledger.next_due_s() == 0.0:
                client.project(project_id)  # before the model is loaded for nothing
                with Serving(settings) as serving:
                    run_stint(
                        project_id,
                        serving=serving,
                        client=client,
                        queue=queue,
                        owner=f"{job.id}:{uuid.uuid4().hex}",
                        give_way=_training_waits(job),
                    )
    except (LabelStudioNotFoundError, CannotPrelabelError) as error:
        outcome, problem = "given up", str(error)
        ledger.release(job.id)
        ledger.setback(str(error))
        queue.stop(project_id)
    except LabelStudioError as error:
        ledger.release(job.id)
        if not error.temporary:
            raise
        pause_s = _pause_s(ledger.setback(str(error)))
        log_job(job, "prelabel", "paused", again_in_s=round(pause_s), reason=str(error))
        queue.try_later(project_id, pause_s)
        return
    log_job(job, "prelabel", outcome, reason=problem)
    ledger.release(job.id)
    _end_run(settings, queue, project_id)
    queue.ensure_jobs(project_id, without=job.id)


def _training_waits(job: Job) -> Callable[[], bool]:
    """Tells whether a training waits that this job's worker would take."""
    worker = Worker.find_by_key(
        f"{Worker.redis_worker_namespace_prefix}{job.worker_name}", job.connection, serializer=JSONSerializer
    )
    if worker is None or TRAINING_QUEUE not in worker.queue_names():
        return lambda: False
    trainings = Queue(TRAINING_QUEUE, connection=job.connection, serializer=JSONSerializer)
    return lambda: not trainings.is_empty()


def _end_run(settings: Settings, queue: PrelabelQueue, project_id: int) -> None:
    """Note what became of the run if nothing of it is left."""
    if (ended := queue.ledger(project_id).end_run()) is None:
        return
    run, failed = ended
    told = {str(task_id): reason for task_id, reason in sorted(failed.items())[:_FAILURES_TOLD]}
    now = datetime.now(UTC)
    started = datetime.fromtimestamp(run.started_at, UTC)
    seconds = max(0.0, (now - started).total_seconds())
    queue.note_ended(
        project_id,
        PrelabelEnded(run.run_id, run.counts, run.versions, seconds, run.label_studio_s, run.problem, told),
    )
    record = JobRecord(
        job_id=run.run_id,
        project_id=project_id,
        requested="pre-labelling",
        outcome="failed" if run.problem else "pre-labelled",
        reason=run.problem or _summary(run, failed),
        started_at=started,
        ended_at=now,
        counts=run.counts,
    )
    log.info(
        Line(
            "pre-labelled",
            project=project_id,
            run=run.run_id,
            outcome=record.outcome,
            s=round(seconds, 1),
            **run.counts,
            reason=record.reason,
        )
    )
    try:
        JobHistory(settings.data_dir).add(record)
    except OSError as error:  # what was imported stays imported
        log.error("project=%d %s: its outcome could not be noted: %s", project_id, run.run_id, error)


def _summary(run: Run, failed: Mapping[int, str]) -> str:
    parts = [f"{run.counts['posted']} predictions imported"]
    if run.counts["present"]:
        parts.append(f"{run.counts['present']} were there already")
    if failed:
        task_id, reason = min(failed.items())
        parts.append(f"{len(failed)} tasks without one (task {task_id}: {reason})")
    return ", ".join(parts)
