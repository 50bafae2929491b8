"""`vlm worker`: an RQ worker that forks for each job.

It forks, so that a job's memory (and its CUDA context) is gone when the job has ended, and a job that crashes
the interpreter takes nothing with it. So the parent must never import torch, and this module must not either. A
forking worker also notes a sign of life every 10 seconds while a job runs. A dead worker's job is taken up by another
worker within a minute: within 15 seconds on the same machine, and at once when a worker starts there. A job's process
that outlives its worker notices, and ends.

SIGTERM and Ctrl-C end it within seconds: training can be repeated, so a running job is stopped and put back in
the queue, without counting as an attempt.

Redis may go and come back. A job that runs meanwhile goes on; the worker waits, and what it could not note is put
right as after a crash.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import time
from collections.abc import Sequence, Set
from typing import Any

import redis
from rq import Queue, Worker
from rq.executions import Execution
from rq.intermediate_queue import IntermediateQueue
from rq.job import Job, JobStatus
from rq.registry import StartedJobRegistry
from rq.serializers import JSONSerializer

from backend.prelabel_queue import PrelabelQueue
from backend.queue import TrainingQueue
from backend.redis_connection import connect_redis
from backend.redis_server import RedisUnavailableError
from backend.settings import Settings, environment_default
from training_jobs.errors import ProcessEndedError
from training_jobs.jobs import FORESEEN
from training_jobs.reconcile import plan_reconcile, reconcile_queue

log = logging.getLogger(__name__)

_MAINTENANCE_S = 15
_RQ_SLACK_S = 15
"""An idle worker waits for a job so much shorter than its `worker_ttl`, and looks after things only then."""

_SIGN_OF_LIFE_S = 10
_SILENCE_S = 25
"""After a sign of life is overdue a job counts as abandoned. More than a Redis that restarts takes; one that was alive
all the same loses the project's lock to its second run and cannot publish, so this only costs work."""

_REDIS_TRIES = 12
"""Of each command: a Redis that restarts within 13 seconds is not noticed."""

_PAUSE_S = 1.0
"""Before looking again for a Redis that was lost."""


class TrainingWorker(Worker):
    """RQ's forking worker that gives a running job back when it is asked to end."""

    _interrupted = False
    settings: Settings | None = None
    """Of the worker; None queues no run of the reconcile job."""

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """Seconds until a job without a further sign of life counts as abandoned."""
        rqs_slack_s = 60
        return super().get_heartbeat_ttl(job, working_time) - rqs_slack_s + _SILENCE_S

    def run_maintenance_tasks(self) -> None:
        """What an idle worker does every 15 seconds, also between jobs."""
        # Before RQ's own, which would let another attempt wait as if the job itself had failed.
        bring_back_abandoned(self.queues, myself=self.name)
        super().run_maintenance_tasks()  # type: ignore[no-untyped-call]  # RQ leaves it untyped
        if self.settings is not None:
            plan_reconcile(self.connection, self.settings)

    @property
    def asked_to_end(self) -> bool:
        """Whether a signal asked it to end; else it ended because it lost Redis."""
        return self._shutdown_requested_date is not None

    def maintain_heartbeats(self, job: Job, execution: Execution) -> None:
        """Note a sign of life; a job does not end because it could not be noted."""
        try:
            super().maintain_heartbeats(job, execution)
        except redis.RedisError as error:
            self.log.warning("worker %s: no sign of life could be noted: %s", self.name, type(error).__name__)

    def handle_exception(self, job: Job, *exc_info: Any) -> None:
        """Log what stopped a job; RQ's own line would quote the text of any error, which may be what somebody sent.

        Errors of ours say all there is to say in `on_failure`; of others it matters where they were raised.
        """
        if not isinstance(exc_info[1], FORESEEN):
            self.log.error("worker %s: job %s: an unexpected error", self.name, job.id, exc_info=exc_info)

    def handle_warm_shutdown_request(self) -> None:
        """Asked to end: stop the job's process."""
        if self.horse_pid:
            self._interrupted = True
            self.log.info("worker %s: ending, the running job goes back to the queue", self.name)
            self.kill_horse(signal.SIGKILL)

    def handle_work_horse_killed(self, job: Job, retpid: Any, ret_val: Any, rusage: Any) -> None:
        """The job's process is dead without having said how the job went."""
        # What that process noted, as RQ is going to save the job as this process knows it.
        job.get_meta(refresh=True)
        if self._interrupted:
            # One attempt more, at once: what RQ does next uses it up.
            job.retries_left = (job.retries_left or 0) + 1
            job.retry_intervals = [0]
        else:
            how = f" ({signal.Signals(os.WTERMSIG(ret_val)).name})" if ret_val and os.WIFSIGNALED(ret_val) else ""
            ended = ProcessEndedError(
                f"the job's process ended unexpectedly{how}. SIGKILL is most often the system's, for want of memory"
            )
            if job.failure_callback is not None:  # RQ itself does not call it for a process that was killed
                job.failure_callback(job, self.connection, type(ended), ended, None)

    def end_horse(self) -> None:
        """End the process of a job that this worker can no longer look after."""
        if self.horse_pid:
            self.kill_horse(signal.SIGKILL)
            self.wait_for_horse()


QUEUES = ("training", "prelabel")
"""What a worker can listen to; of jobs that wait in several, those of the first one go first."""


def run_worker(settings: Settings, *, queues: Sequence[str] = QUEUES, burst: bool = False) -> None:
    """Work until asked to end.

    Args:
        settings: of the worker; jobs read the same environment.
        queues: of `QUEUES`, the most urgent first.
        burst: end when the queue is empty.

    Raises:
        RedisUnavailableError: no Redis at the start. One that goes later is waited for.
    """
    share_cores()
    connection = connect_redis(settings, tries=_REDIS_TRIES)
    while not _work(connection, settings, queues, burst=burst):
        log.error("the worker has lost Redis, and goes on when it is back")
        for number in (signal.SIGTERM, signal.SIGINT):  # of the worker that is no more
            signal.signal(number, signal.SIG_DFL)
        connection = _wait_for_redis(settings)


def share_cores() -> None:
    """Let threads of trainings sleep where they wait for each other, unless the environment says otherwise.

    OpenMP lets them spin, which is best on a machine of their own. Beside a server or a Label Studio the core that
    one spins on is what the other waits for: measured on two cores beside one busy process, a step took 125 ms
    spinning and 59 ms sleeping. Read when torch is loaded, so by the processes of jobs.
    """
    environment_default("OMP_WAIT_POLICY", "passive")


def _work(connection: redis.Redis, settings: Settings, queues: Sequence[str], *, burst: bool) -> bool:
    """Work with one connection; returns whether the worker has ended as it should."""
    training, prelabelling = TrainingQueue.of(connection, settings), PrelabelQueue(connection)
    by_name = {"training": training.rq, "prelabel": prelabelling.rq}
    reconciles = "training" in queues and not burst
    try:
        recover(training, prelabelling)
        if reconciles:
            plan_reconcile(connection, settings, at_start=True)
    except redis.RedisError:
        return False
    pause_s = math.ceil(max(1, min(_MAINTENANCE_S, settings.reconcile_s or _MAINTENANCE_S)))
    worker = TrainingWorker(
        [*([reconcile_queue(connection)] if "training" in queues else []), *(by_name[name] for name in queues)],
        connection=connection,
        serializer=JSONSerializer,
        maintenance_interval=max(1, pause_s - 1),  # less, or every other round would be a little too early
        worker_ttl=pause_s + _RQ_SLACK_S,
        job_monitoring_interval=_SIGN_OF_LIFE_S,
        log_job_description=False,
    )
    worker.settings = settings if reconciles else None
    with contextlib.suppress(redis.RedisError):  # of its signing off
        # The scheduler is what brings back jobs that wait for another attempt.
        worker.work(burst=burst, with_scheduler=True, logging_level=None)
    worker.end_horse()
    return burst or worker.asked_to_end


def _wait_for_redis(settings: Settings) -> redis.Redis:
    while True:
        time.sleep(_PAUSE_S)
        try:
            return connect_redis(settings, tries=_REDIS_TRIES)
        except RedisUnavailableError as error:
            log.error("%s", error)


def recover(training: TrainingQueue, prelabelling: PrelabelQueue) -> None:
    """Put right what workers that were killed have left; called when a worker starts.

    Jobs that a dead worker of this machine was running, or had just taken, go back to their queue; projects with
    requests that no job covers get one.
    """
    queues = (training.rq, prelabelling.rq)
    if not bring_back_abandoned(queues):
        for rq in queues:
            _bring_back_taken(rq)
    for project_id in training.enqueue_forgotten():
        log.warning("project=%d: a request for training was left over and is taken up", project_id)
    for project_id in prelabelling.resume():
        log.info("project=%d: tasks are left to pre-label", project_id)


def bring_back_abandoned(queues: Sequence[Queue], *, myself: str | None = None) -> set[str]:
    """Put jobs of dead workers back into their queue, to be run at once.

    Args:
        queues: whose jobs.
        myself: name of the worker that looks; None: one that has not begun.

    Returns:
        Names of the workers that live, `myself` not among them.
    """
    living = _forget_dead_workers(queues[0], myself)
    for rq in queues:
        _bring_back_of(rq, {*living, myself})
    return living


def _bring_back_of(rq: Queue, living: Set[str | None]) -> None:
    registry = StartedJobRegistry(queue=rq)
    expired = set(registry.get_expired_job_ids())
    for job_id, execution_id in registry.get_job_and_execution_ids(cleanup=False):
        job = rq.fetch_job(job_id)
        if job is None or (job.worker_name in living and job_id not in expired):
            continue
        if living != {None} and job.get_status(refresh=False) != JobStatus.STARTED:
            continue  # taken just now: the name is that of the worker before
        log.warning("job %s: its worker is gone, it goes back to the queue", job_id)
        if job.retries_left:
            job.retry_intervals = [0]
            job.save(include_meta=False)
        # Expired entries are what RQ itself brings back, or fails where no attempt is left.
        rq.connection.zadd(registry.key, {f"{job_id}:{execution_id}": 0}, xx=True)
    registry.cleanup()


def _forget_dead_workers(rq: Queue, myself: str | None) -> set[str]:
    """Names of the other workers that live; those of this machine whose process is gone are struck off."""
    living = set()
    for worker in Worker.all(connection=rq.connection, serializer=JSONSerializer):
        if worker.name == myself:
            continue
        if worker.hostname == socket.gethostname() and worker.pid and not _lives(int(worker.pid)):
            worker.register_death()
            # RQ keeps the entry for a minute, for its own statistics.
            rq.connection.delete(worker.key)
        else:
            living.add(str(worker.name))
    return living


def _lives(pid: int) -> bool:
    if pid == os.getpid():
        return False  # a former self that lost Redis, or the container's former life
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _bring_back_taken(rq: Queue) -> None:
    """Jobs that were taken from the queue and never begun; safe only while no worker lives."""
    taken = IntermediateQueue(rq.key, connection=rq.connection)
    for job_id in taken.get_job_ids():
        with rq.connection.pipeline() as pipe:
            pipe.lrem(taken.key, 0, job_id)
            if rq.fetch_job(job_id) is not None:
                pipe.lrem(rq.key, 0, job_id)
                pipe.lpush(rq.key, job_id)
            pipe.execute()
