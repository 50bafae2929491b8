"""The training queue: many requests, one job per project, none lost.

A request is only a nudge: the job reads what there is to learn from Label Studio. So requests are counted, and a
job covers every request that was counted before it began to read. Per project Redis holds

    vlm:training:<project>:requested   requests counted so far
    vlm:training:<project>:seen        the count when the latest job began to read
    vlm:training:<project>:forced      set when somebody pressed the button since then
    vlm:training:<project>:job         the RQ job that waits or runs
    vlm:training:<project>:cancelled   the RQ job that was cancelled while it ran; expires

and these laws hold:

- While the project's job waits (queued, or scheduled for a retry) a request adds nothing: that job will see it.
- While it runs, a request is only counted. When the job ends it finds the count ahead and enqueues one more, in the
  same transaction in which it gives up its place.
- Whether a job "waits" or "runs" is what RQ's own record of it says. A mark whose job has failed, was cancelled or
  vanished counts for nothing, so it cannot block.

The keys are a convenience: with Redis lost, the next event or the reconcile job asks again. Jobs are named by
string path, so that this package never imports `training_jobs`, and are JSON, so that nothing is unpickled.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Literal

import redis
from redis.client import Pipeline
from rq import Callback, Queue, Retry, Worker
from rq.command import send_stop_job_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job, JobStatus
from rq.registry import FailedJobRegistry, ScheduledJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from backend import queue_scripts

if TYPE_CHECKING:
    from backend.settings import Settings

log = logging.getLogger(__name__)

QUEUE_NAME = "vlm-training"
TRAIN_FUNCTION = "training_jobs.jobs.train_project"
FAILURE_CALLBACK = "training_jobs.jobs.on_failure"
STOPPED_CALLBACK = "training_jobs.jobs.on_stopped"
NEW_VERSION_CHANNEL = "vlm:new-version"

START_TRAINING = "START_TRAINING"
"""The reason of a request that somebody made on purpose; it trains even where nothing is new."""

RETRY_INTERVALS_S = (30, 180)
"""Waits before a job is tried again. Label Studio restarts in less than the second."""

RESULT_TTL_S = 7 * 24 * 3600
FAILURE_TTL_S = 30 * 24 * 3600
"""How long RQ keeps what became of a job; the history in the data directory keeps it for good."""

_CANCELLED_TTL_S = 7 * 24 * 3600

_WAITING = frozenset({"created", "queued", "scheduled", "deferred", "rate_limited"})
_RUNNING = frozenset({"started"})

State = Literal["queued", "running", "retrying"]


@dataclass(frozen=True)
class RequestOutcome:
    """What became of a request.

    Attributes:
        job_id: the RQ job that will see it, or the one that must end first.
        state: "queued": a job was made; "already queued": one waits and will see it; "will follow": one runs, and
            exactly one more will run after it.
    """

    job_id: str
    state: Literal["queued", "already queued", "will follow"]


Cancelled = Literal["removed", "stopping", "nothing"]
"""What became of a wish to cancel: a waiting job was removed, a running one is being stopped, or there was none."""


@dataclass(frozen=True)
class Begun:
    """What a job learns when it begins.

    Attributes:
        seen: requests that it covers.
        forced: somebody pressed the button: train even where nothing is new.
    """

    seen: int
    forced: bool


@dataclass(frozen=True)
class LiveJob:
    """A job that waits or runs.

    Attributes:
        project_id: Label Studio's id.
        job_id: RQ's id.
        state: "queued", "running", or "retrying" (it failed and waits for its next attempt).
        reason: of the request that made it.
        enqueued_at: aware, UTC.
        started_at: aware, UTC; None while it waits.
        progress: phase, percent, loss ... as the job last said; {} before.
        problem: why its last attempt failed; "" where none has.
        follow_up: another one will run after it.
    """

    project_id: int
    job_id: str
    state: State
    reason: str
    enqueued_at: datetime | None
    started_at: datetime | None
    progress: dict[str, Any]
    problem: str
    follow_up: bool


@dataclass(frozen=True)
class QueueCounts:
    """How many jobs of each state RQ has, and how many workers.

    Attributes:
        queued: wait for a worker.
        running: are being worked on.
        retrying: wait until they are tried again.
        failed: have failed for good, of the last 30 days.
        workers: are signed on.
    """

    queued: int
    running: int
    retrying: int
    failed: int
    workers: int

    @classmethod
    def of(cls, rq: Queue) -> QueueCounts:
        """What RQ has now."""
        return cls(
            queued=rq.count,
            running=StartedJobRegistry(queue=rq).get_job_count(cleanup=False),
            retrying=ScheduledJobRegistry(queue=rq).get_job_count(cleanup=False),
            failed=FailedJobRegistry(queue=rq).get_job_count(cleanup=False),
            workers=len(Worker.all(queue=rq)),  # not its count: that one holds killed workers too
        )


@dataclass(frozen=True)
class VersionNotice:
    """A new version serves a project from now on; number 0 is the base model."""

    project_id: int
    number: int


class TrainingQueue:
    """Requests for training, and the state of the jobs. Safe to share between threads."""

    def __init__(self, connection: redis.Redis, *, timeout_s: int = 3600, wait_s: float = 0.0) -> None:
        """No request is made to Redis here.

        Args:
            connection: from `connect_redis`; must return bytes (no `decode_responses`).
            timeout_s: after which a job is stopped.
            wait_s: how long a job waits for further corrections before it is queued; not one that was asked for on
                purpose. Of use where workers have a scheduler, as `vlm worker` has.
        """
        self._redis = connection
        self._timeout_s = timeout_s
        self._wait_s = wait_s
        self.rq = Queue(QUEUE_NAME, connection=connection, serializer=JSONSerializer)
        self._count = connection.register_script(queue_scripts.COUNT)
        self._promote = connection.register_script(queue_scripts.PROMOTE)

    @classmethod
    def of(cls, connection: redis.Redis, settings: Settings) -> TrainingQueue:
        """With the times of the settings; for whoever makes jobs."""
        return cls(connection, timeout_s=settings.train_timeout_s, wait_s=settings.train_wait_s)

    def request_training(self, project_id: int, *, reason: str) -> RequestOutcome:
        """Ask for one training of the project that sees everything saved until now.

        Args:
            project_id: Label Studio's id.
            reason: for people; `START_TRAINING` marks a request made on purpose, by somebody who waits: it goes before
                all others, in the order of such requests. Otherwise projects take turns, for each has one job at most.

        Raises:
            ValueError: `project_id` is not a positive integer.
            redis.RedisError: Redis is down; the request is not recorded.
        """
        if isinstance(project_id, bool) or not isinstance(project_id, int) or project_id < 1:
            raise ValueError(f"project id {project_id!r}: Label Studio's ids are integers from 1 on")
        keys = _Keys(project_id)
        while True:
            # Mostly there is a job. Then this is all: Label Studio's annotators wait for it, and each round trip to
            # Redis costs a turn at the interpreter's lock, for which predictions compete.
            counted = self._count(
                keys=[keys.job, keys.requested, keys.forced, _PROJECTS],
                args=[Job.key_for(""), project_id, int(reason == START_TRAINING), *_WAITING, *_RUNNING],
            )
            if counted is not None:
                known_id, known_status = (str(_text(item)) for item in counted)
                if reason == START_TRAINING:
                    self._first(known_id)
                return RequestOutcome(known_id, "already queued" if known_status in _WAITING else "will follow")
            with self._redis.pipeline() as pipe:
                try:
                    pipe.watch(keys.job)
                    job_id, status = self._status(pipe, keys)
                    if job_id is not None and status in _WAITING | _RUNNING:
                        continue
                    pipe.multi()
                    pipe.incr(keys.requested)
                    pipe.sadd(_PROJECTS, project_id)
                    if reason == START_TRAINING:
                        pipe.set(keys.forced, 1)
                    job_id = self._enqueue(pipe, keys, reason, at_once=reason == START_TRAINING)
                    pipe.execute()
                except redis.WatchError:  # another request was faster, or a job has just ended: look again
                    continue
                if reason == START_TRAINING:
                    self._first(job_id)
                return RequestOutcome(job_id, "queued")

    def _first(self, job_id: str) -> None:
        """Let a job go now, before all that were not asked for on purpose; nothing where it does not wait."""
        before, after = _Keys(0).forced.split("0")
        keys = [self.rq.key, ScheduledJobRegistry(queue=self.rq).key]
        self._promote(keys=keys, args=[job_id, before, after, Job.key_for("")])

    def begin(self, project_id: int, job_id: str) -> Begun | None:
        """Called by the job before it reads anything: from here on requests are not covered by it.

        Returns:
            What it covers; None where another living job has taken its place and it must stop.
        """
        keys = _Keys(project_id)
        while True:
            with self._redis.pipeline() as pipe:
                try:
                    pipe.watch(keys.job, keys.requested, keys.forced)
                    owner, status = self._status(pipe, keys)
                    if owner != job_id and owner is not None and status in _WAITING | _RUNNING:
                        return None
                    seen = int(pipe.get(keys.requested) or 0)
                    forced = bool(pipe.exists(keys.forced))
                    pipe.multi()
                    pipe.sadd(_PROJECTS, project_id)
                    pipe.set(keys.job, job_id)
                    pipe.set(keys.seen, seen)
                    pipe.delete(keys.forced)
                    pipe.execute()
                except redis.WatchError:
                    continue
                return Begun(seen, forced)

    def finish(self, project_id: int, job_id: str) -> str | None:
        """Called when the job has ended for good: give up its place, to a follow-up if there were requests.

        Returns:
            The id of the follow-up job, or None.
        """
        keys = _Keys(project_id)
        while True:
            with self._redis.pipeline() as pipe:
                try:
                    pipe.watch(keys.job, keys.requested, keys.seen)
                    if _text(pipe.get(keys.job)) != job_id:
                        return None
                    behind = int(pipe.get(keys.requested) or 0) > int(pipe.get(keys.seen) or 0)
                    forced = bool(pipe.exists(keys.forced))
                    pipe.multi()
                    following = (
                        self._enqueue(pipe, keys, "requested during a training", at_once=forced) if behind else None
                    )
                    if following is None:
                        pipe.delete(keys.job)
                    pipe.execute()
                except redis.WatchError:
                    continue
                if following is not None and forced:
                    self._first(following)
                return following

    def cancel(self, project_id: int) -> Cancelled:
        """Give up the project's training, with all requests so far; later ones ask for another.

        A running job is stopped by its worker within a second or two, and not tried again. Where its worker is dead,
        the job ends as soon as another takes it up.

        Raises:
            redis.RedisError: Redis is down; nothing has changed.
        """
        keys = _Keys(project_id)
        while True:
            with self._redis.pipeline() as pipe:
                try:
                    pipe.watch(keys.job, keys.requested)
                    job_id, status = self._status(pipe, keys)
                    if job_id is None or status not in _WAITING | _RUNNING:
                        return "nothing"
                    waits = status in _WAITING
                    job = Job.fetch(job_id, connection=self._redis, serializer=JSONSerializer)
                    requested = int(pipe.get(keys.requested) or 0)
                    pipe.multi()
                    pipe.set(keys.seen, requested)
                    pipe.delete(keys.forced)
                    if waits:
                        pipe.delete(keys.job)
                        job.cancel(pipeline=pipe)
                    else:
                        pipe.set(keys.cancelled, job_id, ex=_CANCELLED_TTL_S)
                    pipe.execute()
                except redis.WatchError:  # it has begun, ended or been asked for again at this moment
                    continue
                except NoSuchJobError:
                    return "nothing"
            if waits:
                return "removed"
            try:
                send_stop_job_command(self._redis, job_id, serializer=JSONSerializer)
            except (InvalidJobOperation, NoSuchJobError):  # it has just ended, or nobody runs it: see `is_cancelled`
                log.info("job %s is not being run by a worker now", job_id)
            return "stopping"

    def is_cancelled(self, project_id: int, job_id: str) -> bool:
        """Whether this job was cancelled while it ran; asked by a worker that takes it up again."""
        return _text(self._redis.get(_Keys(project_id).cancelled)) == job_id

    def enqueue_forgotten(self) -> list[int]:
        """Enqueue a job for each project with uncovered requests and no living job; for a worker's start.

        Returns:
            The projects.
        """
        forgotten = []
        for project_id in sorted(int(value) for value in self._redis.smembers(_PROJECTS)):
            keys = _Keys(project_id)
            with self._redis.pipeline() as pipe:
                try:
                    pipe.watch(keys.job, keys.requested, keys.seen)
                    owner, status = self._status(pipe, keys)
                    if owner is not None and status in _WAITING | _RUNNING:
                        continue
                    if int(pipe.get(keys.requested) or 0) <= int(pipe.get(keys.seen) or 0):
                        continue
                    pipe.multi()
                    self._enqueue(pipe, keys, "request left over from an ended worker", at_once=True)
                    pipe.execute()
                except redis.WatchError:
                    continue  # somebody else takes care of it at this moment
            forgotten.append(project_id)
        return forgotten

    def status(self, project_id: int) -> LiveJob | None:
        """The project's job that waits or runs; None where there is none."""
        keys = _Keys(project_id)
        job_id = _text(self._redis.get(keys.job))
        return None if job_id is None else self._live(job_id)

    def jobs(self) -> list[LiveJob]:
        """All jobs that wait or run, the running ones first, then in the order in which they were asked for."""
        ids = [
            *StartedJobRegistry(queue=self.rq).get_job_ids(cleanup=False),
            *self.rq.get_job_ids(),
            *ScheduledJobRegistry(queue=self.rq).get_job_ids(cleanup=False),
        ]
        return [live for job_id in dict.fromkeys(ids) if (live := self._live(job_id)) is not None]

    def ping(self) -> None:
        """Whether Redis answers; raises redis.RedisError where it does not."""
        self._redis.ping()

    def counts(self) -> QueueCounts:
        """How many jobs there are, without looking at each."""
        return QueueCounts.of(self.rq)

    def announce_version(self, project_id: int, number: int) -> None:
        """Tell whoever listens that another version serves the project. A notice that nobody hears is lost."""
        notice = {"number": number, "project_id": project_id}
        self._redis.publish(NEW_VERSION_CHANNEL, json.dumps(notice))

    def version_notices(self, *, timeout_s: float) -> Iterator[VersionNotice | None]:
        """Notices as they come; None whenever none came for `timeout_s`, so that the caller can stop.

        The subscription is made at the first `next`. Only a shortcut: `VersionStore.current` notices a new version
        by itself.
        """
        with self._redis.pubsub(ignore_subscribe_messages=True) as subscription:
            subscription.subscribe(NEW_VERSION_CHANNEL)
            while True:
                message = subscription.get_message(timeout=timeout_s)
                yield None if message is None else _notice(message["data"])

    def _status(self, pipe: Pipeline, keys: _Keys) -> tuple[str | None, str | None]:
        """The project's job and RQ's status of it, both watched."""
        job_id = _text(pipe.get(keys.job))
        if job_id is None:
            return None, None
        pipe.watch(Job.key_for(job_id))
        return job_id, _text(pipe.hget(Job.key_for(job_id), "status"))

    def _enqueue(self, pipe: Pipeline, keys: _Keys, reason: str, *, at_once: bool) -> str:
        """Add a new job to the transaction and make it the project's."""
        job_id = f"train-p{keys.project_id}-{uuid.uuid4().hex[:12]}"
        waits = self._wait_s > 0 and not at_once
        job = self.rq.create_job(
            TRAIN_FUNCTION,
            args=(keys.project_id,),
            job_id=job_id,
            description=f"train project {keys.project_id} ({reason})",
            timeout=self._timeout_s,
            result_ttl=RESULT_TTL_S,
            failure_ttl=FAILURE_TTL_S,
            retry=Retry(max=len(RETRY_INTERVALS_S), interval=list(RETRY_INTERVALS_S)),
            on_failure=Callback(FAILURE_CALLBACK, timeout=60),
            on_stopped=Callback(STOPPED_CALLBACK, timeout=60),
            meta={"project_id": keys.project_id, "reason": reason},
            status=JobStatus.SCHEDULED if waits else JobStatus.QUEUED,
        )
        if waits:
            self.rq.schedule_job(job, datetime.now(UTC) + timedelta(seconds=self._wait_s), pipeline=pipe)
        else:
            self.rq.enqueue_job(job, pipeline=pipe)
        pipe.sadd(Queue.redis_queues_keys, self.rq.key)
        pipe.set(keys.job, job_id)
        return job_id

    def _live(self, job_id: str) -> LiveJob | None:
        try:
            job = Job.fetch(job_id, connection=self._redis, serializer=JSONSerializer)
        except NoSuchJobError:
            return None
        status = str(JobStatus(job.get_status(refresh=False)).value)
        project_id = job.meta.get("project_id")
        if status not in _WAITING | _RUNNING or not isinstance(project_id, int):
            return None
        state: State = "running" if status in _RUNNING else "retrying" if job.started_at else "queued"
        keys = _Keys(project_id)
        requested, seen = self._redis.mget(keys.requested, keys.seen)
        return LiveJob(
            project_id=project_id,
            job_id=job_id,
            state=state,
            reason=str(job.meta.get("reason", "")),
            enqueued_at=_aware(job.enqueued_at),
            started_at=_aware(job.started_at),
            progress=dict(job.meta.get("progress") or {}),
            problem=str(job.meta.get("problem") or ""),
            follow_up=state == "running" and int(requested or 0) > int(seen or 0),
        )


def save_progress(job: Job, progress: Mapping[str, Any]) -> None:
    """Note how far the job is, for `status` and `jobs`.

    Args:
        job: the running RQ job.
        progress: JSON: `phase`, `percent` (0 to 100), `loss` ...
    """
    job.meta["progress"] = dict(progress)
    job.save_meta()


_PROJECTS = "vlm:training:projects"


class _Keys:
    """The Redis keys of one project."""

    def __init__(self, project_id: int) -> None:
        self.project_id = project_id
        prefix = f"vlm:training:{project_id}"
        self.requested = f"{prefix}:requested"
        self.seen = f"{prefix}:seen"
        self.forced = f"{prefix}:forced"
        self.job = f"{prefix}:job"
        self.cancelled = f"{prefix}:cancelled"


def _text(value: Any) -> str | None:
    return value.decode() if isinstance(value, bytes) else value


def _aware(value: datetime | None) -> datetime | None:
    if value is None or value.tzinfo is not None:
        return value
    return value.replace(tzinfo=UTC)


def _notice(data: Any) -> VersionNotice | None:
    try:
        record = json.loads(data)
        return VersionNotice(int(record["project_id"]), int(record["number"]))
    except (ValueError, KeyError, TypeError):  # not ours: another program uses the same Redis
        return None
