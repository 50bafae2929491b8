"""Jobs as they really run: requests in a real Redis, `vlm worker` as a process of its own, Label Studio over HTTP."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from rq.job import Job
from rq.serializers import JSONSerializer

from backend.job_commands import jobs_report, versions_report
from backend.job_history import JobHistory
from backend.queue import START_TRAINING, TrainingQueue
from backend.redis_server import connect_redis, release_server
from backend.settings import Settings
from backend.versions import VersionStore
from tests.jobs.label_studio import TOKEN, LabelStudio, corrected_project, serve


@pytest.fixture
def settings(tmp_path: Path, checkpoint: Path) -> Settings:
    return Settings(checkpoint=str(checkpoint), data_dir=tmp_path, device="cpu")


@pytest.fixture
def connection(settings: Settings) -> Iterator[redis.Redis]:
    yield connect_redis(settings)
    release_server(settings.data_dir / "redis")


@pytest.fixture
def queue(connection: redis.Redis) -> TrainingQueue:
    return TrainingQueue(connection, timeout_s=300)


@pytest.fixture
def label_studio() -> Iterator[LabelStudio]:
    with serve(corrected_project(24)) as running:
        yield running
        running.free.set()


def start_worker(settings: Settings, url: str, *options: str) -> subprocess.Popen[bytes]:
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name in kept} | {
        "VLM_CHECKPOINT": settings.checkpoint,
        "VLM_DATA_DIR": str(settings.data_dir),
        "VLM_DEVICE": "cpu",
        "LABEL_STUDIO_URL": url,
        "LABEL_STUDIO_API_KEY": TOKEN,
        "OMP_NUM_THREADS": "1",
        "VLM_TRAIN_RECIPE": '{"steps": 120, "learning_rate": 0.005, "pull": 0, "encoded_views": 32, "choose_from": 99}',
        "LOG_LEVEL": "WARNING",
    }
    return subprocess.Popen([sys.executable, "-m", "backend.cli", "worker", *options], env=environment)


def burst(settings: Settings, url: str) -> None:
    assert start_worker(settings, url, "--burst").wait(120) == 0


def fetch(connection: redis.Redis, job_id: str) -> Job:
    return Job.fetch(job_id, connection=connection, serializer=JSONSerializer)


def until(condition: Callable[[], bool], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {timeout_s} s: {what}"
        time.sleep(0.02)


def test_a_request_becomes_a_better_version(
    queue: TrainingQueue, connection: redis.Redis, settings: Settings, label_studio: LabelStudio
) -> None:
    notices = queue.version_notices(timeout_s=0.1)
    assert next(notices) is None
    job_id = queue.request_training(7, reason=START_TRAINING).job_id
    burst(settings, label_studio.url)
    current = VersionStore(settings.data_dir).current(7)
    assert current is not None
    assert current.number == 1
    notice = next(notices)
    assert notice is not None
    assert (notice.project_id, notice.number) == (7, 1)
    job = fetch(connection, job_id)
    assert job.return_value()["outcome"] == "published"
    assert label_studio.backends_listed == 1  # so that Label Studio's score column follows the version
    assert queue.status(7) is None
    report = jobs_report(settings, project_id=7)
    assert (report["queue"], report["live"]) == ("running", [])
    ended = report["ended"][0]
    assert (ended["outcome"], ended["version"], ended["requested"]) == ("published", 1, START_TRAINING)
    assert ended["labels"]["red"]["after"] > ended["labels"]["red"]["before"]
    assert [(row["number"], row["serves"], row["decision"]) for row in versions_report(settings, 7)] == [
        (1, True, "better")
    ]


def test_a_request_during_a_run_is_followed_by_one_that_sees_it(
    queue: TrainingQueue, settings: Settings, label_studio: LabelStudio
) -> None:
    label_studio.free.clear()
    queue.request_training(7, reason="ANNOTATION_CREATED")
    worker = start_worker(settings, label_studio.url, "--burst")
    assert label_studio.asked.wait(60)
    states = [queue.request_training(7, reason="ANNOTATION_CREATED").state for _ in range(3)]
    assert states == ["will follow"] * 3
    label_studio.free.set()
    assert worker.wait(120) == 0
    # The second reads the same annotations, so it has nothing new; a third was never made.
    assert [record.outcome for record in JobHistory(settings.data_dir).list(7)] == ["nothing new", "published"]
    assert queue.status(7) is None


def test_sigterm_gives_the_running_job_back(
    queue: TrainingQueue, connection: redis.Redis, settings: Settings, label_studio: LabelStudio
) -> None:
    label_studio.free.clear()
    job_id = queue.request_training(7, reason=START_TRAINING).job_id
    worker = start_worker(settings, label_studio.url)
    assert label_studio.asked.wait(60)
    worker.terminate()
    assert worker.wait(15) == 0
    job = fetch(connection, job_id)
    assert (job.get_status().value, job.retries_left) == ("queued", 2)
    assert queue.rq.job_ids == [job_id]
    label_studio.free.set()
    burst(settings, label_studio.url)
    assert [record.outcome for record in JobHistory(settings.data_dir).list(7)] == ["published"]


def test_a_job_whose_worker_was_killed_is_taken_up_at_the_next_start(
    queue: TrainingQueue, connection: redis.Redis, settings: Settings, label_studio: LabelStudio
) -> None:
    label_studio.free.clear()
    job_id = queue.request_training(7, reason="ANNOTATION_CREATED").job_id
    worker = start_worker(settings, label_studio.url)
    assert label_studio.asked.wait(60)
    until(lambda: fetch(connection, job_id).get_status().value == "started", "the job runs")
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    for process in (worker.pid, *map(int, children)):
        os.kill(process, signal.SIGKILL)
    worker.wait()
    live = queue.status(7)
    assert live is not None
    assert live.state == "running"  # as far as Redis knows
    assert queue.request_training(7, reason="ANNOTATION_CREATED").state == "will follow"
    label_studio.free.set()
    burst(settings, label_studio.url)
    assert [record.job_id for record in JobHistory(settings.data_dir).list(7)] == [job_id]  # one run covered both
    assert VersionStore(settings.data_dir).current(7) is not None
    assert queue.status(7) is None


def test_the_last_attempt_of_a_job_that_is_killed_is_a_failure_and_a_waiting_request_follows(
    queue: TrainingQueue, connection: redis.Redis, settings: Settings, label_studio: LabelStudio
) -> None:
    label_studio.free.clear()
    job_id = queue.request_training(7, reason="ANNOTATION_CREATED").job_id
    job = fetch(connection, job_id)
    job.retries_left = 0  # its last attempt
    job.save()
    worker = start_worker(settings, label_studio.url, "--burst")
    assert label_studio.asked.wait(60)
    queue.request_training(7, reason="ANNOTATION_CREATED")
    children = [int(child) for child in Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()]
    label_studio.asked.clear()
    for child in children:
        os.kill(child, signal.SIGKILL)
    assert label_studio.asked.wait(60)  # the follow-up of the request that came meanwhile
    label_studio.free.set()
    assert worker.wait(120) == 0
    outcomes = [(record.outcome, record.reason) for record in JobHistory(settings.data_dir).list(7)]
    assert outcomes[1] == ("failed", "the job's process ended unexpectedly")
    assert outcomes[0][0] == "published"


def test_what_may_pass_is_tried_again_later(
    queue: TrainingQueue, connection: redis.Redis, settings: Settings, label_studio: LabelStudio
) -> None:
    label_studio.status = 500
    job_id = queue.request_training(7, reason=START_TRAINING).job_id
    burst(settings, label_studio.url)
    live = queue.status(7)
    assert live is not None
    assert (live.job_id, live.state) == (job_id, "retrying")
    assert fetch(connection, job_id).retries_left == 1
    assert JobHistory(settings.data_dir).list(7) == []


def test_what_will_not_pass_fails_at_once_with_its_reason(
    queue: TrainingQueue, connection: redis.Redis, settings: Settings, label_studio: LabelStudio
) -> None:
    job_id = queue.request_training(8, reason=START_TRAINING).job_id  # Label Studio has no project 8
    burst(settings, label_studio.url)
    assert fetch(connection, job_id).get_status().value == "failed"
    records = JobHistory(settings.data_dir).list(8)
    assert [record.outcome for record in records] == ["failed"]
    assert "404" in records[0].reason or "not" in records[0].reason.lower()
    assert queue.status(8) is None
    assert queue.request_training(8, reason=START_TRAINING).state == "queued"


def test_the_workers_own_process_stays_without_torch() -> None:
    code = "import sys, training_jobs.worker, training_jobs.jobs; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"
