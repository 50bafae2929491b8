"""Pre-labelling as it is asked for and as it gets on: requests, the jobs that do the work, progress.

What there is to do stands in the project's `backend.prelabel_ledger`. One kind of job lists the tasks of a request
there. The other kind is a *stint*: it loads the model once, then takes one shard of tasks after the other until there
are none, its time is up, or a training waits. So there are never more jobs of a project than workers, and another one
follows as long as tasks are left.

    vlm:prelabel:projects                  projects that ever had something to pre-label
    vlm:prelabel:<project>:requests        requests whose tasks are being listed
    vlm:prelabel:<project>:listed:<id>     what a request has come to
    vlm:prelabel:<project>:ended           what became of the latest run

Jobs are named by string path and are JSON, as those of `backend.queue` are.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

import redis
from rq import Callback, Queue, Retry, Worker
from rq.registry import ScheduledJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from backend.prelabel_ledger import Ledger, Patience, Run

QUEUE_NAME = "vlm-prelabel"
FUNCTION = "training_jobs.prelabel.prelabel_project"
LIST_FUNCTION = "training_jobs.prelabel.list_tasks"
FAILURE_CALLBACK = "training_jobs.prelabel.on_failure"

SHARD = 128
"""Tasks that a job claims at once: a few seconds' work, and what a killed job loses at most."""

JOB_TIMEOUT_S = 3600
"""A stint ends by itself long before; this is for one that hangs."""

RETRY_INTERVALS_S = (30, 180)
_RESULT_TTL_S = 24 * 3600
_ENDED_TTL_S = 7 * 24 * 3600

State = Literal["queued", "running", "waiting", "stopped"]


@dataclass(frozen=True)
class PrelabelRequest:
    """Which tasks of a project to pre-label.

    Attributes:
        conditions: `COLUMN OPERATOR VALUE`, all of which must hold; see `backend.label_studio.task_filter`.
        tab: id of a Data Manager tab whose filters hold too.
        only_missing: only tasks without any prediction. Those that have one of the serving version get no other anyway.
        limit: most tasks.
    """

    conditions: tuple[str, ...] = ()
    tab: int | None = None
    only_missing: bool = False
    limit: int | None = None

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> PrelabelRequest:
        """From the fields as a job's arguments hold them."""
        return cls(**{**fields, "conditions": tuple(fields["conditions"])})


@dataclass(frozen=True)
class Listed:
    """What a request has come to.

    Attributes:
        found: tasks that it names.
        run_id: of the run that they are part of.
        problem: why it cannot be met; "" when it can.
    """

    found: int
    run_id: str
    problem: str = ""


@dataclass(frozen=True)
class PrelabelProgress:
    """A project whose tasks are being pre-labelled.

    Attributes:
        project_id: Label Studio's id.
        run_id: names the run; its record in `JobHistory` has the same name.
        state: "running"; "queued": a job waits for a worker; "waiting": until Label Studio is back, or tasks can be
            tried again; "stopped": no job, the next worker that starts goes on.
        started_at: aware, UTC.
        total: tasks asked for; it grows while they are listed.
        done: of these, settled: imported, there already, or failed.
        posted: of these, predictions imported.
        failed: of these, without a prediction.
        rate_per_s: tasks a second lately; None where that is not known.
        seconds_left: at that rate.
        versions: predictions imported, by version.
        problem: why it does not get on; "" when it does.
        job_ids: RQ's, of its jobs that run or wait.
    """

    project_id: int
    run_id: str
    state: State
    started_at: datetime
    total: int
    done: int
    posted: int
    failed: int
    rate_per_s: float | None
    seconds_left: float | None
    versions: dict[str, int]
    problem: str
    job_ids: tuple[str, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {**asdict(self), "started_at": self.started_at.isoformat(), "job_ids": list(self.job_ids)}


@dataclass(frozen=True)
class PrelabelEnded:
    """What became of a run.

    Attributes:
        run_id: of the run.
        counts: tasks by what became of them: "posted", "present", "failed".
        versions: predictions imported, by version.
        seconds: that it took.
        label_studio_s: what jobs waited for Label Studio, in all; predicting went on meanwhile.
        problem: why it ended early; "" where it did not.
        failures: some of the tasks that have no prediction, with the reason.
    """

    run_id: str
    counts: dict[str, int]
    versions: dict[str, int]
    seconds: float
    label_studio_s: float = 0.0
    problem: str = ""
    failures: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class RequestState:
    """Where a project's pre-labelling stands.

    Attributes:
        listed: what the request has come to; None as long as its tasks are being listed, and where none was named.
        progress: of the run that is under way; None where there is nothing to do.
        ended: the latest run of the last week that has ended.
    """

    listed: Listed | None
    progress: PrelabelProgress | None
    ended: PrelabelEnded | None

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        return {
            "listed": None if self.listed is None else asdict(self.listed),
            "progress": None if self.progress is None else self.progress.to_json(),
            "ended": None if self.ended is None else asdict(self.ended),
        }


class PrelabelQueue:
    """Requests and jobs. Safe to share between threads. Every call may raise `redis.RedisError`."""

    def __init__(self, connection: redis.Redis, *, patience: Patience | None = None) -> None:
        """No request is made to Redis here.

        Args:
            connection: from `connect_redis`; must return bytes.
            patience: of the ledgers.
        """
        self.connection = self._redis = connection
        self._patience = patience
        self.rq = Queue(QUEUE_NAME, connection=connection, serializer=JSONSerializer)

    def ledger(self, project_id: int) -> Ledger:
        """What there is to do in a project."""
        return Ledger(self._redis, project_id, patience=self._patience)

    def workers(self) -> int:
        """How many listen. RQ's own count holds those that were killed too."""
        return len(Worker.all(queue=self.rq))

    # Asking -----------------------------------------------------------------------------------------------
    def request(self, project_id: int, request: PrelabelRequest) -> str:
        """Ask for tasks to be pre-labelled; a worker lists them.

        Returns:
            Names the request; see `listed`.

        Raises:
            ValueError: `project_id` is not a positive integer.
        """
        _check(project_id)
        request_id = uuid.uuid4().hex[:12]
        with self._redis.pipeline() as pipe:
            pipe.sadd(_PROJECTS, project_id)
            pipe.sadd(_requests(project_id), request_id)
            pipe.execute()
        self.ledger(project_id).begin_run()
        self.rq.enqueue(LIST_FUNCTION, project_id, request_id, asdict(request), **_options(project_id))
        return request_id

    def list_later(self, project_id: int, request_id: str, request: PrelabelRequest, wait_s: float) -> None:
        """Have a request's tasks listed after a pause, for Label Studio is away."""
        arguments = (project_id, request_id, asdict(request))
        self.rq.enqueue_in(timedelta(seconds=wait_s), LIST_FUNCTION, *arguments, **_options(project_id))

    def hand_over(
        self, project_id: int, version: str, finished: Sequence[int], unfinished: Sequence[int], *, age_s: float
    ) -> set[int]:
        """Before an answer of `/predict` leaves: see `backend.prelabel_ledger.Ledger.answer`.

        Returns:
            Finished tasks whose prediction must be withheld.
        """
        _check(project_id)
        ledger = self.ledger(project_id)
        withheld = ledger.answer(version, finished, unfinished, age_s=age_s)
        if unfinished or withheld:
            self._redis.sadd(_PROJECTS, project_id)
            self.ensure_jobs(project_id)
        return withheld

    def wanted(self, project_id: int, request_id: str) -> bool:
        """Whether a request's tasks are to be listed still."""
        return bool(self._redis.sismember(_requests(project_id), request_id))

    def note_listed(self, project_id: int, request_id: str, listed: Listed) -> None:
        """A request's tasks are in the ledger, or it cannot be met."""
        with self._redis.pipeline() as pipe:
            pipe.set(_listed(project_id, request_id), json.dumps(asdict(listed)), ex=_ENDED_TTL_S)
            pipe.srem(_requests(project_id), request_id)
            pipe.execute()

    def listed(self, project_id: int, request_id: str) -> Listed | None:
        """What a request's tasks are; None as long as they are not listed."""
        raw = self._redis.get(_listed(project_id, request_id))
        return None if raw is None else Listed(**json.loads(raw))

    # Jobs -------------------------------------------------------------------------------------------------
    def ensure_jobs(self, project_id: int, *, without: str | None = None) -> None:
        """See to it that the project's tasks will be worked on: now by as many jobs as there are workers and shards,
        later by one.

        Args:
            project_id: Label Studio's id.
            without: a job that is about to end and does not count.
        """
        ledger = self.ledger(project_id)
        wait_s = ledger.next_due_s()
        if wait_s is None:
            if ledger.run() is None:
                return
            wait_s = 0.0  # its last job was killed before it could end the run
        running, queued, scheduled = (
            [job_id for job_id in ids if job_id != without] for ids in self._job_ids(project_id)
        )
        if wait_s > 0:
            if not (running or queued or scheduled):
                self._schedule(project_id, wait_s)
            return
        shards = -(-max(ledger.ready(), 1) // SHARD)
        workers = max(1, self.workers())
        for _ in range(min(shards, workers) - len(running) - len(queued)):
            self.rq.enqueue(FUNCTION, project_id, **_options(project_id))

    def try_later(self, project_id: int, wait_s: float) -> None:
        """Have the next job begin after a pause, for Label Studio is away; one that waits already is enough."""
        if not any(self._job_ids(project_id)[1:]):
            self._schedule(project_id, wait_s)

    def resume(self) -> list[int]:
        """A job for each project that has tasks left and none; for a worker's start.

        Returns:
            Projects with something to do.
        """
        found = [int(value) for value in self._redis.smembers(_PROJECTS)]
        left = [project_id for project_id in sorted(found) if self.ledger(project_id).run() is not None]
        for project_id in left:
            self.ensure_jobs(project_id)
        return left

    def stop(self, project_id: int) -> None:
        """Drop what no job has begun; what is being predicted is still imported."""
        self._redis.delete(_requests(project_id))
        self.ledger(project_id).drop()

    # Progress ---------------------------------------------------------------------------------------------
    def progress(self, project_id: int) -> PrelabelProgress | None:
        """How far a project is; None where there is nothing to do."""
        run = self.ledger(project_id).run()
        if run is None:
            return None
        running, queued, scheduled = self._job_ids(project_id)
        state: State = "running" if running else "queued" if queued else "waiting" if scheduled else "stopped"
        return _progress(project_id, run, state, (*running, *queued, *scheduled))

    def state(self, project_id: int, request_id: str | None = None) -> RequestState:
        """Where a project, and one request of it, stands."""
        listed = None if request_id is None else self.listed(project_id, request_id)
        # In this order: a run that ends in between is then seen twice rather than not at all.
        progress = self.progress(project_id)
        return RequestState(listed, progress, self.ended(project_id))

    def jobs(self) -> list[PrelabelProgress]:
        """All projects that have something to pre-label, by id."""
        projects = sorted(int(value) for value in self._redis.smembers(_PROJECTS))
        return [found for project_id in projects if (found := self.progress(project_id)) is not None]

    def ended(self, project_id: int) -> PrelabelEnded | None:
        """What became of the latest run of the last week."""
        raw = self._redis.get(f"vlm:prelabel:{project_id}:ended")
        return None if raw is None else PrelabelEnded(**json.loads(raw))

    def note_ended(self, project_id: int, ended: PrelabelEnded) -> None:
        """Keep what became of a run, for who waits for it."""
        self._redis.set(f"vlm:prelabel:{project_id}:ended", json.dumps(asdict(ended)), ex=_ENDED_TTL_S)

    def _job_ids(self, project_id: int) -> tuple[list[str], list[str], list[str]]:
        """Ids of the project's jobs that run, wait for a worker, and wait for a time."""
        prefix = _job_prefix(project_id)
        everything = (
            StartedJobRegistry(queue=self.rq).get_job_ids(cleanup=False),
            self.rq.get_job_ids(),
            ScheduledJobRegistry(queue=self.rq).get_job_ids(cleanup=False),
        )
        running, queued, scheduled = ([job_id for job_id in ids if job_id.startswith(prefix)] for ids in everything)
        return running, queued, scheduled

    def _schedule(self, project_id: int, wait_s: float) -> None:
        self.rq.enqueue_in(timedelta(seconds=max(wait_s, 1.0)), FUNCTION, project_id, **_options(project_id))


_PROJECTS = "vlm:prelabel:projects"


def _requests(project_id: int) -> str:
    return f"vlm:prelabel:{project_id}:requests"


def _listed(project_id: int, request_id: str) -> str:
    return f"vlm:prelabel:{project_id}:listed:{request_id}"


def _job_prefix(project_id: int) -> str:
    return f"prelabel-p{project_id}-"


def _options(project_id: int) -> dict[str, Any]:
    return {
        "job_id": f"{_job_prefix(project_id)}{uuid.uuid4().hex[:12]}",
        "description": f"pre-label project {project_id}",
        "job_timeout": JOB_TIMEOUT_S,
        "result_ttl": _RESULT_TTL_S,
        "failure_ttl": _ENDED_TTL_S,
        "retry": Retry(max=len(RETRY_INTERVALS_S), interval=list(RETRY_INTERVALS_S)),
        "on_failure": Callback(FAILURE_CALLBACK, timeout=60),
        "meta": {"project_id": project_id},
    }


def _progress(project_id: int, run: Run, state: State, job_ids: tuple[str, ...]) -> PrelabelProgress:
    return PrelabelProgress(
        project_id=project_id,
        run_id=run.run_id,
        state=state,
        started_at=datetime.fromtimestamp(run.started_at, UTC),
        total=run.total,
        done=run.done,
        posted=run.counts["posted"],
        failed=run.counts["failed"],
        rate_per_s=run.rate_per_s,
        seconds_left=run.seconds_left,
        versions=run.versions,
        problem=run.problem,
        job_ids=job_ids,
    )


def _check(project_id: int) -> None:
    if isinstance(project_id, bool) or not isinstance(project_id, int) or project_id < 1:
        raise ValueError(f"project id {project_id!r}: Label Studio's ids are integers from 1 on")
