"""The training queue against a real Redis: coalesced, never lost, never stuck."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import pytest
import redis
from rq import SimpleWorker
from rq.job import Job, JobStatus
from rq.registry import ScheduledJobRegistry
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer

from backend import queue as queue_module
from backend.parts import connect_queue
from backend.queue import START_TRAINING, Begun, RequestOutcome, TrainingQueue, save_progress
from backend.settings import Settings
from tests.private_redis import private_redis


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with private_redis(tmp_path_factory.mktemp("queue")) as connected:
        yield connected


@pytest.fixture
def connection(server: redis.Redis) -> redis.Redis:
    server.flushall()
    return server


@pytest.fixture
def queue(connection: redis.Redis) -> TrainingQueue:
    return TrainingQueue(connection, timeout_s=60)


class Jobs(ModuleType):
    """An importable module with a job whose body the test gives."""

    body: Callable[[int], object]
    failures: list[BaseException]

    def train(self, project_id: int) -> object:
        return self.body(project_id)


@pytest.fixture
def jobs(monkeypatch: pytest.MonkeyPatch) -> Iterator[Jobs]:
    module = Jobs("vlm_test_jobs")
    module.failures = []
    module.train_project = lambda project_id: module.body(project_id)  # type: ignore[attr-defined]
    module.on_failure = lambda job, connection, kind, value, trace: module.failures.append(value)  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "vlm_test_jobs", module)
    monkeypatch.setattr(queue_module, "TRAIN_FUNCTION", "vlm_test_jobs.train_project")
    monkeypatch.setattr(queue_module, "FAILURE_CALLBACK", "vlm_test_jobs.on_failure")
    return module


def burst(queue: TrainingQueue) -> None:
    # A worker takes over the process's signals and keeps them.
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    worker = SimpleWorker([queue.rq], connection=queue.rq.connection, serializer=JSONSerializer)
    try:
        worker.work(burst=True, logging_level="ERROR")
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)


def current_job(queue: TrainingQueue, project_id: int = 7) -> str:
    job = queue.status(project_id)
    assert job is not None
    return job.job_id


def all_jobs(connection: redis.Redis) -> set[str]:
    return {key.decode().removeprefix("rq:job:") for key in connection.keys("rq:job:*")}


def at_once(work: Callable[[int], object], count: int) -> list[object]:
    barrier = threading.Barrier(count)
    results: list[object] = []

    def run(index: int) -> None:
        barrier.wait()
        results.append(work(index))

    threads = [threading.Thread(target=run, args=(index,)) for index in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_request_becomes_a_job_with_explicit_limits(queue: TrainingQueue, connection: redis.Redis) -> None:
    outcome = queue.request_training(7, reason="ANNOTATION_CREATED")
    assert outcome.state == "queued"
    job = Job.fetch(outcome.job_id, connection=connection, serializer=JSONSerializer)
    assert job.func_name == "training_jobs.jobs.train_project"
    assert list(job.args) == [7]
    assert job.timeout == 60
    assert job.result_ttl == 7 * 24 * 3600
    assert job.failure_ttl == 30 * 24 * 3600
    assert (job.retries_left, job.retry_intervals) == (2, [30, 180])
    assert b"\x80" not in connection.hget(job.key, "data")[:1]  # no pickle
    assert queue.rq.job_ids == [outcome.job_id]


def test_requests_that_come_while_one_waits_add_nothing(queue: TrainingQueue, connection: redis.Redis) -> None:
    first = queue.request_training(7, reason="ANNOTATION_CREATED")
    second = queue.request_training(7, reason=START_TRAINING)
    assert second == RequestOutcome(first.job_id, "already queued")
    assert queue.rq.job_ids == [first.job_id]
    assert queue.request_training(8, reason="ANNOTATION_CREATED").state == "queued"
    assert len(queue.rq) == 2


def test_requests_at_the_same_moment_make_one_job(queue: TrainingQueue, connection: redis.Redis) -> None:
    outcomes = at_once(lambda _: queue.request_training(7, reason="ANNOTATION_CREATED"), 24)
    states = [outcome.state for outcome in outcomes if isinstance(outcome, RequestOutcome)]
    assert sorted(states) == ["already queued"] * 23 + ["queued"]
    assert len(queue.rq) == len(all_jobs(connection)) == 1
    assert queue.begin(7, current_job(queue)) == Begun(seen=24, forced=False)


def test_requests_during_a_run_lead_to_exactly_one_more(queue: TrainingQueue, jobs: Jobs) -> None:
    seen: list[int] = []
    states: list[str] = []

    def body(project_id: int) -> None:
        job_id = current_job(queue)
        begun = queue.begin(project_id, job_id)
        assert begun is not None
        seen.append(begun.seen)
        if len(seen) == 1:
            outcomes = at_once(lambda _: queue.request_training(7, reason="ANNOTATION_UPDATED"), 12)
            states.extend(outcome.state for outcome in outcomes if isinstance(outcome, RequestOutcome))
            assert len(queue.rq) == 0  # nothing queued beside a running job
            live = queue.status(7)
            assert live is not None
            assert live.follow_up
        queue.finish(project_id, job_id)

    jobs.body = body
    queue.request_training(7, reason="ANNOTATION_CREATED")
    burst(queue)
    assert states == ["will follow"] * 12
    assert seen == [1, 13]
    assert queue.status(7) is None


def test_no_request_is_lost_however_they_interleave(queue: TrainingQueue, jobs: Jobs) -> None:
    # Four webhooks keep asking while jobs begin and end. In the end every request was covered by a job that began
    # after it, and never did two jobs of the project wait.
    made = threading.Lock()
    count = 0
    covered: list[int] = []
    most_waiting = 0

    def webhook() -> None:
        nonlocal count
        for _ in range(40):
            with made:
                count += 1
            queue.request_training(7, reason="ANNOTATION_CREATED")

    def body(project_id: int) -> None:
        nonlocal most_waiting
        job_id = current_job(queue)
        begun = queue.begin(project_id, job_id)
        assert begun is not None
        covered.append(begun.seen)
        most_waiting = max(most_waiting, len(queue.rq))
        queue.finish(project_id, job_id)
        most_waiting = max(most_waiting, len(queue.rq))

    jobs.body = body
    webhooks = [threading.Thread(target=webhook) for _ in range(4)]
    for thread in webhooks:
        thread.start()
    while any(thread.is_alive() for thread in webhooks):
        burst(queue)
    burst(queue)
    assert covered[-1] == count == 160
    assert covered == sorted(set(covered))  # each job had something new
    assert most_waiting <= 1
    assert queue.status(7) is None


class Interrupted(redis.Redis):
    """A client in which something else happens once between a transaction's reading and its writing."""

    def __init__(self, server: redis.Redis, meanwhile: Callable[[], object]) -> None:
        super().__init__(connection_pool=server.connection_pool)
        self.meanwhile: Callable[[], object] | None = meanwhile

    def pipeline(self, transaction: bool = True, shard_hint: str | None = None) -> redis.client.Pipeline:
        pipe = super().pipeline(transaction, shard_hint)
        original = pipe.multi

        def multi() -> None:
            meanwhile, self.meanwhile = self.meanwhile, None
            if meanwhile is not None:
                meanwhile()
            original()

        pipe.multi = multi  # type: ignore[method-assign]
        return pipe


def test_a_request_between_the_last_look_and_the_end_of_a_job_is_not_lost(
    queue: TrainingQueue, connection: redis.Redis
) -> None:
    job_id = queue.request_training(7, reason="ANNOTATION_CREATED").job_id
    queue.begin(7, job_id)
    Job.fetch(job_id, connection=connection, serializer=JSONSerializer).set_status(JobStatus.STARTED)
    ending = TrainingQueue(Interrupted(connection, lambda: queue.request_training(7, reason="ANNOTATION_CREATED")))
    following = ending.finish(7, job_id)
    assert following is not None
    assert current_job(queue) == following


def test_a_job_that_ends_after_a_request_was_counted_is_followed(queue: TrainingQueue, connection: redis.Redis) -> None:
    job_id = queue.request_training(7, reason="ANNOTATION_CREATED").job_id
    queue.begin(7, job_id)
    Job.fetch(job_id, connection=connection, serializer=JSONSerializer).set_status(JobStatus.STARTED)
    assert queue.request_training(7, reason="ANNOTATION_CREATED") == RequestOutcome(job_id, "will follow")
    following = queue.finish(7, job_id)
    assert following is not None
    assert current_job(queue) == following


def test_two_requests_that_both_find_no_job_make_one(queue: TrainingQueue, connection: redis.Redis) -> None:
    faster: list[RequestOutcome] = []
    asking = TrainingQueue(
        Interrupted(connection, lambda: faster.append(queue.request_training(7, reason="ANNOTATION_CREATED")))
    )
    outcome = asking.request_training(7, reason="ANNOTATION_CREATED")
    assert [one.state for one in faster] == ["queued"]
    assert outcome == RequestOutcome(faster[0].job_id, "already queued")
    assert all_jobs(connection) == {faster[0].job_id}
    assert queue.begin(7, outcome.job_id) == Begun(seen=2, forced=False)


def test_a_request_while_a_job_begins_is_seen_or_followed(queue: TrainingQueue, connection: redis.Redis) -> None:
    job_id = queue.request_training(7, reason="ANNOTATION_CREATED").job_id
    beginning = TrainingQueue(Interrupted(connection, lambda: queue.request_training(7, reason=START_TRAINING)))
    assert beginning.begin(7, job_id) == Begun(seen=2, forced=True)


def test_a_job_that_waits_for_its_retry_covers_new_requests(
    queue: TrainingQueue, jobs: Jobs, connection: redis.Redis
) -> None:
    def body(project_id: int) -> None:
        queue.begin(project_id, current_job(queue))
        raise ConnectionError("Label Studio is away")

    jobs.body = body
    first = queue.request_training(7, reason="ANNOTATION_CREATED")
    burst(queue)
    live = queue.status(7)
    assert live is not None
    assert (live.job_id, live.state) == (first.job_id, "retrying")
    assert ScheduledJobRegistry(queue=queue.rq).get_job_ids() == [first.job_id]
    assert queue.request_training(7, reason=START_TRAINING) == RequestOutcome(first.job_id, "already queued")
    assert all_jobs(connection) == {first.job_id}
    assert queue.begin(7, first.job_id) == Begun(seen=2, forced=True)


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.CANCELED, JobStatus.STOPPED, JobStatus.FINISHED])
def test_a_mark_whose_job_has_ended_does_not_block(
    queue: TrainingQueue, connection: redis.Redis, status: JobStatus
) -> None:
    first = queue.request_training(7, reason="ANNOTATION_CREATED")
    connection.delete(queue.rq.key)
    Job.fetch(first.job_id, connection=connection, serializer=JSONSerializer).set_status(status)
    assert queue.status(7) is None
    assert queue.enqueue_forgotten() == [7]
    second = queue.status(7)
    assert second is not None
    assert second.job_id != first.job_id
    assert queue.enqueue_forgotten() == []


def test_a_mark_whose_job_has_vanished_does_not_block(queue: TrainingQueue, connection: redis.Redis) -> None:
    first = queue.request_training(7, reason="ANNOTATION_CREATED")
    connection.delete(queue.rq.key, Job.key_for(first.job_id))
    assert queue.request_training(7, reason="ANNOTATION_CREATED").state == "queued"
    assert len(queue.rq) == 1


def test_a_job_that_was_replaced_is_told_so(queue: TrainingQueue, connection: redis.Redis) -> None:
    first = queue.request_training(7, reason="ANNOTATION_CREATED")
    Job.fetch(first.job_id, connection=connection, serializer=JSONSerializer).set_status(JobStatus.FAILED)
    second = queue.request_training(7, reason="ANNOTATION_CREATED")
    assert second.state == "queued"
    assert queue.begin(7, first.job_id) is None
    assert queue.finish(7, first.job_id) is None
    assert current_job(queue) == second.job_id
    assert queue.begin(7, second.job_id) == Begun(seen=2, forced=False)


def test_the_button_is_remembered_until_a_job_begins(queue: TrainingQueue) -> None:
    queue.request_training(7, reason=START_TRAINING)
    queue.request_training(7, reason="ANNOTATION_CREATED")
    job_id = current_job(queue)
    assert queue.begin(7, job_id) == Begun(seen=2, forced=True)
    assert queue.begin(7, job_id) == Begun(seen=2, forced=False)


def test_what_runs_and_waits_is_listed_with_its_progress(queue: TrainingQueue, jobs: Jobs) -> None:
    seen: list[list[tuple[int, str, dict[str, object]]]] = []

    def body(project_id: int) -> None:
        if project_id == 7:
            job = Job.fetch(current_job(queue), connection=queue.rq.connection, serializer=JSONSerializer)
            save_progress(job, {"phase": "training", "percent": 40, "loss": 0.3})
            seen.append([(live.project_id, live.state, live.progress) for live in queue.jobs()])

    jobs.body = body
    queue.request_training(7, reason=START_TRAINING)
    queue.request_training(8, reason="ANNOTATION_CREATED")
    burst(queue)
    assert seen == [[(7, "running", {"phase": "training", "percent": 40, "loss": 0.3}), (8, "queued", {})]]
    assert queue.jobs() == []


def test_version_notices_reach_a_listener(queue: TrainingQueue, connection: redis.Redis) -> None:
    notices = queue.version_notices(timeout_s=0.05)
    assert next(notices) is None
    queue.announce_version(7, 3)
    connection.publish(queue_module.NEW_VERSION_CHANNEL, "not ours")
    heard = [next(notices) for _ in range(2)]
    assert heard == [queue_module.VersionNotice(7, 3), None]
    notices.close()  # type: ignore[attr-defined]


@pytest.mark.parametrize("project_id", [0, -1, True, "7"])
def test_project_ids_are_positive_integers(queue: TrainingQueue, project_id: object) -> None:
    with pytest.raises(ValueError, match="project id"):
        queue.request_training(project_id, reason="x")  # type: ignore[arg-type]


def test_workers_are_counted_while_they_are_signed_on(connection: redis.Redis, queue: TrainingQueue) -> None:
    assert queue.counts().workers == 0
    worker = SimpleWorker([queue.rq], connection=connection, serializer=JSONSerializer)
    elsewhere = SimpleWorker(["another queue"], connection=connection, serializer=JSONSerializer)
    worker.register_birth()
    elsewhere.register_birth()
    assert queue.counts().workers == 1
    connection.delete(worker.key)  # killed: its sign of life is over, its name still listed
    assert queue.counts().workers == 0


def test_a_waiting_training_is_cancelled_with_all_requests_so_far(
    queue: TrainingQueue, connection: redis.Redis
) -> None:
    job_id = queue.request_training(7, reason=START_TRAINING).job_id
    queue.request_training(7, reason="ANNOTATION_CREATED")
    queue.request_training(8, reason="ANNOTATION_CREATED")
    assert queue.cancel(7) == "removed"
    assert queue.status(7) is None
    assert job_id not in queue.rq.job_ids
    assert queue.enqueue_forgotten() == []  # nothing of it comes back
    assert [job.project_id for job in queue.jobs()] == [8]
    # What comes later is asked for anew, and not as what was asked for on purpose.
    later = queue.request_training(7, reason="ANNOTATION_CREATED")
    assert later.state == "queued"
    assert later.job_id != job_id
    begun = queue.begin(7, later.job_id)
    assert begun is not None
    assert not begun.forced


def test_a_training_that_waits_for_its_next_attempt_is_cancelled(queue: TrainingQueue, jobs: Jobs) -> None:
    def fail(project_id: int) -> object:
        raise ValueError(project_id)

    jobs.body = fail
    queue.request_training(7, reason="ANNOTATION_CREATED")
    SimpleWorker([queue.rq], connection=queue.rq.connection, serializer=JSONSerializer).work(burst=True)
    live = queue.status(7)
    assert live is not None
    assert live.state == "retrying"
    assert queue.cancel(7) == "removed"
    assert queue.status(7) is None
    assert len(ScheduledJobRegistry(queue=queue.rq)) == 0


def test_there_is_nothing_to_cancel(queue: TrainingQueue, jobs: Jobs) -> None:
    assert queue.cancel(7) == "nothing"
    jobs.body = lambda project_id: queue.finish(project_id, str(queue.status(project_id)))
    queue.request_training(7, reason="ANNOTATION_CREATED")
    SimpleWorker([queue.rq], connection=queue.rq.connection, serializer=JSONSerializer).work(burst=True)
    assert queue.cancel(7) == "nothing"


def test_a_running_training_that_no_worker_looks_after_is_marked(queue: TrainingQueue, jobs: Jobs) -> None:
    seen: list[object] = []

    def body(project_id: int) -> object:
        live = queue.status(project_id)
        assert live is not None
        seen.extend((queue.cancel(project_id), queue.is_cancelled(project_id, live.job_id)))
        assert not queue.is_cancelled(project_id, "another")
        return queue.finish(project_id, live.job_id)

    jobs.body = body
    queue.request_training(7, reason="ANNOTATION_CREATED")
    SimpleWorker([queue.rq], connection=queue.rq.connection, serializer=JSONSerializer).work(burst=True)
    assert seen == ["stopping", True]


def test_a_button_press_goes_before_background_runs_in_the_order_of_presses(queue: TrainingQueue) -> None:
    for project_id in (1, 2, 3):
        queue.request_training(project_id, reason="ANNOTATION_CREATED")
    queue.request_training(4, reason=START_TRAINING)
    queue.request_training(3, reason="ANNOTATION_UPDATED")  # waits already, and goes on waiting where it is
    queue.request_training(2, reason=START_TRAINING)  # waits already, and moves up
    queue.request_training(2, reason=START_TRAINING)  # once
    assert [job.project_id for job in queue.jobs()] == [4, 2, 1, 3]


def test_projects_take_turns_however_many_corrections_one_has(queue: TrainingQueue) -> None:
    for project_id in (1, 1, 1, 2, 1, 1, 3):
        queue.request_training(project_id, reason="ANNOTATION_CREATED")
    first = current_job(queue, 1)
    assert [job.project_id for job in queue.jobs()] == [1, 2, 3]
    queue.rq.pop_job_id()  # a worker takes it
    queue.begin(1, first)
    Job.fetch(first, connection=queue.rq.connection, serializer=JSONSerializer).set_status(JobStatus.STARTED)
    queue.request_training(1, reason="ANNOTATION_CREATED")
    queue.finish(1, first)
    assert [job.project_id for job in queue.jobs()] == [2, 3, 1]


def test_a_press_during_a_run_is_for_the_one_that_follows(queue: TrainingQueue) -> None:
    job_id = queue.request_training(1, reason="ANNOTATION_CREATED").job_id
    queue.request_training(2, reason="ANNOTATION_CREATED")
    queue.rq.pop_job_id()
    queue.begin(1, job_id)
    Job.fetch(job_id, connection=queue.rq.connection, serializer=JSONSerializer).set_status(JobStatus.STARTED)
    assert queue.request_training(1, reason=START_TRAINING).state == "will follow"
    assert [job.project_id for job in queue.jobs()] == [2]
    queue.finish(1, job_id)  # what follows it is waited for
    assert [job.project_id for job in queue.jobs()] == [1, 2]


def due(queue: TrainingQueue) -> list[str]:
    """Jobs that wait for their time, though it were to come."""
    return ScheduledJobRegistry(queue=queue.rq).get_jobs_to_schedule(timestamp=2**40)


def test_a_training_waits_for_further_corrections_and_they_do_not_put_it_off(connection: redis.Redis) -> None:
    queue = TrainingQueue(connection, wait_s=3600)
    first = queue.request_training(7, reason="ANNOTATION_CREATED")
    registry = ScheduledJobRegistry(queue=queue.rq)
    when = registry.get_scheduled_time(first.job_id)
    assert 3500 < (when - datetime.now(UTC)).total_seconds() <= 3600
    assert queue.request_training(7, reason="ANNOTATION_CREATED") == RequestOutcome(first.job_id, "already queued")
    assert (due(queue), registry.get_scheduled_time(first.job_id), queue.rq.job_ids) == ([first.job_id], when, [])
    live = queue.status(7)
    assert live is not None
    assert (live.state, live.reason) == ("queued", "ANNOTATION_CREATED")
    assert queue.cancel(7) == "removed"
    assert due(queue) == []


def test_a_button_press_does_not_wait(connection: redis.Redis) -> None:
    queue = TrainingQueue(connection, wait_s=3600)
    waiting = queue.request_training(7, reason="ANNOTATION_CREATED").job_id
    pressed = queue.request_training(8, reason=START_TRAINING).job_id
    assert (queue.rq.job_ids, due(queue)) == ([pressed], [waiting])
    assert queue.request_training(7, reason=START_TRAINING).job_id == waiting
    assert (queue.rq.job_ids, due(queue)) == ([pressed, waiting], [])
    assert Job.fetch(waiting, connection=connection, serializer=JSONSerializer).get_status() == JobStatus.QUEUED


def test_a_job_that_has_waited_is_run_by_a_worker(connection: redis.Redis, jobs: Jobs) -> None:
    queue = TrainingQueue(connection, wait_s=1e-3)
    seen: list[object] = []
    jobs.body = lambda project_id: seen.append(queue.begin(project_id, current_job(queue)))
    queue.request_training(7, reason="ANNOTATION_CREATED")
    queue.request_training(7, reason="ANNOTATION_CREATED")
    scheduler = RQScheduler([queue.rq], connection=connection, serializer=JSONSerializer)
    scheduler.acquire_locks()
    try:
        while due(queue):
            scheduler.enqueue_scheduled_jobs()
    finally:
        scheduler.release_locks()
    SimpleWorker([queue.rq], connection=connection, serializer=JSONSerializer).work(burst=True)
    assert seen == [Begun(seen=2, forced=False)]


def test_what_follows_a_training_waits_too_but_not_what_was_asked_for(connection: redis.Redis) -> None:
    queue = TrainingQueue(connection, wait_s=3600)
    for reason, waits in (("ANNOTATION_CREATED", True), (START_TRAINING, False)):
        job_id = queue.request_training(7, reason=START_TRAINING).job_id
        queue.rq.pop_job_id()
        queue.begin(7, job_id)
        Job.fetch(job_id, connection=connection, serializer=JSONSerializer).set_status(JobStatus.STARTED)
        queue.request_training(7, reason=reason)
        following = queue.finish(7, job_id)
        assert (queue.rq.job_ids, due(queue)) == (([], [following]) if waits else ([following], []))
        queue.cancel(7)


def test_the_servers_queue_waits_as_the_settings_say(tmp_path: Path) -> None:
    with private_redis(tmp_path):
        queue = connect_queue(Settings(data_dir=tmp_path, train_wait_s=3600, train_timeout_s=77))
        job_id = queue.request_training(7, reason="ANNOTATION_CREATED").job_id
        assert due(queue) == [job_id]
        assert Job.fetch(job_id, connection=queue.rq.connection, serializer=JSONSerializer).timeout == 77
