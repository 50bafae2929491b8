"""The ledger and the queue of pre-labelling against a real Redis: claims, deaths, hand-overs, progress."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import redis
from rq import Queue, Worker
from rq.registry import ScheduledJobRegistry
from rq.serializers import JSONSerializer

from backend.prelabel_ledger import Ledger, Patience
from backend.prelabel_queue import SHARD, PrelabelEnded, PrelabelQueue, PrelabelRequest
from tests.private_redis import private_redis

V = "demo-p7-v000-12345678"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with private_redis(tmp_path_factory.mktemp("prelabel")) as connected:
        yield connected


@pytest.fixture
def connection(server: redis.Redis) -> redis.Redis:
    server.flushall()
    return server


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ledger(connection: redis.Redis, clock: Clock) -> Ledger:
    return Ledger(connection, 7, patience=Patience(), clock=clock)


@pytest.fixture
def queue(connection: redis.Redis) -> PrelabelQueue:
    return PrelabelQueue(connection)


def post(ledger: Ledger, owner: str, tasks: list[int]) -> None:
    begun = ledger.begin_import(owner, V, tasks)
    assert begun.own == tasks
    assert ledger.sending(owner, V, tasks) == tasks
    assert ledger.finish(owner, V, tasks, "posted") == []


def test_tasks_come_by_id_the_urgent_ones_first_and_each_once(ledger: Ledger) -> None:
    assert ledger.add([30, 4, 200]) == 3
    assert ledger.add([4, 200, 5]) == 1
    ledger.add([100], urgent=True)
    ledger.add([200], urgent=True)
    assert ledger.ready() == 5
    assert ledger.take("a:1", 3) == [100, 200, 4]
    assert ledger.take("b:1", 9) == [5, 30]
    assert ledger.take("c:1", 9) == []
    assert ledger.add([4, 30]) == 0  # somebody works on them


def test_ids_as_large_as_label_studio_has_them(ledger: Ledger) -> None:
    ledger.add([2**63 - 1, 2**53 + 1])
    taken = ledger.take("a:1", 9)
    assert sorted(taken) == [2**53 + 1, 2**63 - 1]
    post(ledger, "a:1", taken)
    assert ledger.answer(V, [2**63 - 1], [], age_s=0.0) == {2**63 - 1}


def test_a_claim_ends_with_its_lease_and_lasts_while_it_is_renewed(ledger: Ledger, clock: Clock) -> None:
    ledger.add([1, 2])
    assert ledger.take("a:1", 1) == [1]
    clock.now += 50
    assert ledger.take("b:1", 1) == [2]
    assert ledger.renew("b:1") == 1
    clock.now += 20
    assert ledger.take("c:1", 9) == [1]
    assert ledger.begin_import("a:1", V, [1]).lost == [1]
    assert ledger.begin_import("b:1", V, [2]).own == [2]
    assert ledger.renew("a:1") == 0


def test_what_dies_comes_back_in_smaller_shards_and_is_given_up_in_the_end(ledger: Ledger) -> None:
    ledger.add(range(1, 101))
    assert len(ledger.take("a:1", 100)) == 100
    assert ledger.release("a", died=True) == 100
    assert ledger.take("b:1", 100) == list(range(1, 11))
    ledger.release("b", died=True)
    assert len(ledger.take("c:1", 100)) == 1  # task 1 again, and alone
    ledger.release("c", died=True)
    assert ledger.take("d:1", 100) == [1]
    ledger.release("d", died=True)
    assert set(ledger.failed()) == {1}
    assert "four times" in ledger.failed()[1]
    assert ledger.take("e:1", 100) == [2]


def test_a_job_that_ends_gives_back_without_blame(ledger: Ledger) -> None:
    ledger.add(range(1, 21))
    ledger.take("a:1", 10)
    ledger.take("a:2", 10)
    ledger.take("ab:1", 10)
    assert ledger.release("a") == 20
    assert len(ledger.take("c:1", 20)) == 20


def test_a_task_that_fails_is_tried_once_more_later(ledger: Ledger, clock: Clock) -> None:
    ledger.add([1])
    ledger.take("a:1", 9)
    ledger.fail("a:1", V, {1: "no picture"})
    assert ledger.take("a:1", 9) == []
    assert ledger.next_due_s() == pytest.approx(30.0)
    clock.now += 31
    assert ledger.take("a:1", 9) == [1]
    ledger.fail("a:1", V, {1: "no picture at all"})
    assert ledger.failed() == {1: "no picture at all"}
    ended = ledger.end_run()
    assert ended is not None
    run, failed = ended
    assert (run.total, run.done, run.counts["failed"], failed) == (1, 1, 1, {1: "no picture at all"})
    assert ledger.end_run() is None
    assert ledger.failed() == {}


def test_what_is_being_imported_or_was_just_now_is_withheld_from_an_answer(ledger: Ledger, clock: Clock) -> None:
    ledger.add([1, 2, 3])
    ledger.take("a:1", 9)
    ledger.begin_import("a:1", V, [1])
    assert ledger.answer(V, [1, 2], [], age_s=0.0) == {1}
    assert ledger.answer("another", [1], [], age_s=0.0) == set()
    ledger.sending("a:1", V, [1])
    ledger.finish("a:1", V, [1], "posted")
    clock.now += 100
    assert ledger.answer(V, [1], [], age_s=41.0) == {1}  # Label Studio may have chosen it before it was written
    assert ledger.answer(V, [1], [], age_s=39.0) == set()
    # Its other side: what the server has answered is no job's for ten minutes.
    begun = ledger.begin_import("a:1", V, [2, 3])
    assert (begun.answered, begun.own) == ([2], [3])
    clock.now += 16
    assert ledger.take("b:1", 9) == [1, 2]  # 1 was withheld
    ledger.finish("b:1", V, [1], "present")
    assert ledger.begin_import("b:1", V, [2]).answered == [2]
    clock.now += 600
    assert 2 in ledger.take("b:1", 9)
    assert ledger.begin_import("b:1", V, [2]).own == [2]


def test_a_withheld_prediction_is_looked_after(ledger: Ledger, clock: Clock) -> None:
    """Whoever deleted it by hand and asked again at once gets it from the jobs."""
    ledger.add([1])
    ledger.take("a:1", 9)
    post(ledger, "a:1", [1])
    assert ledger.end_run() is not None
    assert ledger.answer(V, [1], [], age_s=1.0) == {1}
    clock.now += 16
    assert ledger.take("b:1", 9) == [1]


def test_an_import_without_an_answer_is_doubtful_until_it_has_settled(ledger: Ledger, clock: Clock) -> None:
    ledger.add([1])
    ledger.take("a:1", 9)
    ledger.begin_import("a:1", V, [1])
    clock.now += 40
    ledger.sending("a:1", V, [1])
    ledger.defer("a:1", [1], 10)
    clock.now += 11
    ledger.take("b:1", 9)
    assert ledger.begin_import("b:1", V, [1]).doubtful == [1]
    clock.now += ledger.patience.settle_s - 13
    ledger.renew("b:1")
    assert ledger.begin_import("b:1", V, [1]).doubtful == [1]  # 2 s too early
    clock.now += 3
    assert ledger.begin_import("b:1", V, [1]).own == [1]
    ledger.abort_import("b:1", V, [1])
    assert ledger.begin_import("b:1", V, [1]).own == [1]


def test_writing_after_the_claim_has_ended_is_noticed(ledger: Ledger, clock: Clock) -> None:
    ledger.add([1, 2])
    ledger.take("a:1", 9)
    ledger.begin_import("a:1", V, [1, 2])
    clock.now += 61
    ledger.take("b:1", 1)
    assert ledger.sending("a:1", V, [1, 2]) == []
    assert ledger.finish("a:1", V, [1, 2], "posted") == [1, 2]


def test_progress_has_a_rate_and_the_time_left(ledger: Ledger, clock: Clock) -> None:
    ledger.add(range(1, 101))
    run = ledger.run()
    assert run is not None
    assert (run.total, run.done, run.rate_per_s, run.seconds_left) == (100, 0, None, None)
    for _ in range(4):
        clock.now += 2.0
        post(ledger, "a:1", ledger.take("a:1", 10))
    run = ledger.run()
    assert run is not None
    assert (run.done, run.versions) == (40, {V: 40})
    assert run.rate_per_s == pytest.approx(5.0)
    assert run.seconds_left == pytest.approx(12.0)
    clock.now += 92.0  # nothing gets on
    run = ledger.run()
    assert run is not None
    assert run.rate_per_s == pytest.approx(0.4)
    assert ledger.setback("away") == 1
    assert ledger.setback("still away") == 2
    run = ledger.run()
    assert run is not None
    assert run.problem == "still away"
    post(ledger, "a:1", ledger.take("a:1", 10))
    run = ledger.run()
    assert run is not None
    assert run.problem == ""
    assert ledger.setback("away") == 1


def test_a_hand_over_makes_one_job_however_often(queue: PrelabelQueue) -> None:
    assert queue.jobs() == []
    for _ in range(3):
        assert queue.hand_over(7, V, [1], [2, 3], age_s=1.0) == set()
    (found,) = queue.jobs()
    assert (found.project_id, found.state, found.total, found.done, len(found.job_ids)) == (7, "queued", 2, 0, 1)
    job = queue.rq.fetch_job(found.job_ids[0])
    assert job is not None
    assert (job.func_name, list(job.args)) == ("training_jobs.prelabel.prelabel_project", [7])
    assert queue.hand_over(8, V, [1], [], age_s=1.0) == set()
    assert queue.progress(8) is None


def test_as_many_jobs_as_workers_and_shards(queue: PrelabelQueue, connection: redis.Redis) -> None:
    for _ in range(4):
        worker = Worker([queue.rq], connection=connection, serializer=JSONSerializer)
        worker.register_birth()
    connection.delete(worker.key)  # killed: its sign of life is over, its name still listed
    queue.ledger(7).add(range(1, 2 * SHARD + 1))
    queue.ensure_jobs(7)
    assert len(queue.rq.get_job_ids()) == 2
    queue.ledger(7).add(range(2 * SHARD + 1, 9 * SHARD))
    queue.ensure_jobs(7)
    assert len(queue.rq.get_job_ids()) == 3


def test_tasks_for_later_get_a_job_for_later(queue: PrelabelQueue) -> None:
    ledger = queue.ledger(7)
    ledger.add([1])
    ledger.take("a:1", 9)
    ledger.fail("a:1", V, {1: "no picture"})
    for _ in range(2):
        queue.ensure_jobs(7)
    assert queue.rq.get_job_ids() == []
    assert len(ScheduledJobRegistry(queue=queue.rq).get_job_ids()) == 1
    found = queue.progress(7)
    assert found is not None
    assert found.state == "waiting"


def test_what_has_no_job_is_taken_up_at_a_workers_start(queue: PrelabelQueue, connection: redis.Redis) -> None:
    queue.hand_over(7, V, [], [1], age_s=1.0)
    Queue("vlm-prelabel", connection=connection, serializer=JSONSerializer).empty()
    found = queue.progress(7)
    assert found is not None
    assert found.state == "stopped"
    assert queue.resume() == [7]
    found = queue.progress(7)
    assert found is not None
    assert found.state == "queued"
    # A run whose last job was killed before it could end the run.
    queue.ledger(8).begin_run()
    connection.sadd("vlm:prelabel:projects", 8)
    assert queue.resume() == [7, 8]
    found = queue.progress(8)
    assert found is not None
    assert found.state == "queued"


def test_a_request_is_listed_by_a_job_and_can_be_stopped(queue: PrelabelQueue) -> None:
    request = PrelabelRequest(("id > 3",), tab=4, only_missing=True, limit=5)
    request_id = queue.request(7, request)
    (job_id,) = queue.rq.get_job_ids()
    job = queue.rq.fetch_job(job_id)
    assert job is not None
    assert job.func_name == "training_jobs.prelabel.list_tasks"
    assert list(job.args[:2]) == [7, request_id]
    assert PrelabelRequest.from_json(job.args[2]) == request
    state = queue.state(7, request_id)
    assert state.listed is None
    assert state.progress is not None
    assert state.progress.total == 0
    assert queue.wanted(7, request_id)
    assert queue.ledger(7).end_run() is None  # its tasks are not known yet
    queue.ledger(7).add([1, 2])
    queue.stop(7)
    assert not queue.wanted(7, request_id)
    ended = queue.ledger(7).end_run()
    assert ended is not None
    assert ended[0].total == 0


def test_what_became_of_a_run_is_kept_for_who_waits(queue: PrelabelQueue) -> None:
    ended = PrelabelEnded("prelabel-1", {"posted": 1, "present": 0, "failed": 1}, {V: 1}, 2.0, 0.5, "", {"4": "broken"})
    queue.note_ended(7, ended)
    assert queue.ended(7) == ended
    assert queue.ended(8) is None


@pytest.mark.parametrize("project_id", [0, -1, True, "7"])
def test_only_label_studios_ids(queue: PrelabelQueue, project_id: object) -> None:
    with pytest.raises(ValueError, match="project id"):
        queue.request(project_id, PrelabelRequest())  # type: ignore[arg-type]
