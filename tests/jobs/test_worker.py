"""Jobs as they really run: requests in a real Redis, `vlm worker` as a process of its own, Label Studio over HTTP."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import redis
import torch
from rq.job import Job
from rq.serializers import JSONSerializer

from backend import queue as queue_module
from backend import redis_server
from backend.job_commands import cancel_job, jobs_report
from backend.job_history import JobHistory
from backend.queue import START_TRAINING, LiveJob, TrainingQueue
from backend.redis_connection import connect_redis
from backend.redis_server import find_server
from backend.settings import Settings
from backend.version_commands import versions_report
from backend.versions import BaseCheckpoint, ManifestDraft, RecipeRecord, VersionStore
from tests.jobs.label_studio import TOKEN, LabelStudio, brush, corrected_project, picture, serve
from tests.jobs.prelabelled import PrelabelLabelStudio
from training_jobs.jobs import _Reporter


@pytest.fixture
def queue(connection: redis.Redis) -> TrainingQueue:
    return TrainingQueue(connection, timeout_s=300)


@pytest.fixture
def label_studio() -> Iterator[LabelStudio]:
    with serve(corrected_project(24)) as running:
        yield running
        running.free.set()


RECIPE = {
    "choose_from": 4,
    "folds": 2,
    "head_from": 10_000,
    "decoder_from": 4,
    "conditions": {"steps": 10},
    "decoder": {"steps": 120, "learning_rate": 0.005, "pull": 0, "encoded_views": 32, "interpolations": [1.0]},
}
"""Short, and of the whole decoder: these tests are about jobs."""


def start_worker(
    settings: Settings, url: str, *options: str, before: str = "", **variables: str
) -> subprocess.Popen[bytes]:
    """`vlm worker`; `before` is Python that runs first in its process, `variables` go to its environment."""
    kept = ("PATH", "HOME", "LANG", "TMPDIR", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name in kept} | {
        "VLM_CHECKPOINT": settings.checkpoint,
        "VLM_DATA_DIR": str(settings.data_dir),
        "VLM_DEVICE": "cpu",
        "LABEL_STUDIO_URL": url,
        "LABEL_STUDIO_API_KEY": TOKEN,
        "OMP_NUM_THREADS": "1",
        "VLM_TRAIN_RECIPE": json.dumps(RECIPE),
        "LOG_LEVEL": "WARNING",
        **variables,
    }
    code = f"import sys; from backend.cli import main\nsys.argv = {['vlm', 'worker', *options]!r}\n{before}\nmain()"
    return subprocess.Popen([sys.executable, "-c", code], env=environment)


def burst(settings: Settings, url: str) -> None:
    assert start_worker(settings, url, "--burst").wait(120) == 0


def fetch(connection: redis.Redis, job_id: str) -> Job:
    return Job.fetch(job_id, connection=connection, serializer=JSONSerializer)


NOTHING = LiveJob(7, "", "queued", "", None, None, {}, "", follow_up=False)


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


def test_after_a_better_version_tasks_are_pre_labelled_again_and_old_versions_go(
    queue: TrainingQueue, settings: Settings
) -> None:
    label_studio = PrelabelLabelStudio(30)
    for task_id in range(1, 25):
        _, masks = picture(task_id - 1)
        label_studio.annotate(task_id, [brush(label, mask) for label, mask in masks.items()])
    store = VersionStore(settings.data_dir)
    for _ in range(3):
        written = store.write(7, {"w": torch.zeros(1)}, a_candidate(), {})
    assert written.number == 3
    queue.request_training(7, reason=START_TRAINING)
    with serve(label_studio) as running:
        options = {"VLM_PRELABEL_AFTER_PUBLISH": "unannotated", "VLM_KEEP_VERSIONS": "2"}
        assert start_worker(settings, running.url, "--burst", **options).wait(120) == 0
    current = store.current(7)
    assert current is not None
    assert (current.number, store.numbers(7)) == (4, (3, 4))
    assert sorted(int(item["task"]) for item in label_studio.imported) == [25, 26, 27, 28, 29, 30]
    assert all("-p7-v004-" in item["model_version"] for item in label_studio.imported)
    # Nothing is better the second time, so nothing is pre-labelled again.
    queue.request_training(7, reason=START_TRAINING)
    with serve(label_studio) as running:
        assert start_worker(settings, running.url, "--burst", **options).wait(120) == 0
    assert JobHistory(settings.data_dir).list(7)[0].outcome == "not better"
    assert len(label_studio.imported) == 6


def a_candidate() -> ManifestDraft:
    base = BaseCheckpoint(name="demo", fingerprint="a" * 64)
    return ManifestDraft(base=base, recipe=RecipeRecord(name="r"), seed=0, decision="not better")


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


def test_a_job_whose_worker_was_killed_is_taken_up_by_another_worker_and_its_process_ends(
    queue: TrainingQueue, connection: redis.Redis, settings: Settings, label_studio: LabelStudio, tmp_path: Path
) -> None:
    first, job_id, horse = start_training(queue, connection, settings, label_studio, tmp_path / "mark")
    label_studio.asked.clear()
    second = start_worker(settings, label_studio.url, VLM_RECONCILE_S="1")  # looks after things each second
    try:
        first.kill()  # the job's process goes on, and knows nothing of it
        first.wait()
        assert label_studio.asked.wait(60), "the other worker has not taken it up"
        assert psutil.pid_exists(horse)
        label_studio.free.set()
        until(lambda: len(JobHistory(settings.data_dir).list(7)) > 0, "a run has ended", 120)
        until(lambda: not psutil.pid_exists(horse), "the process of the dead worker has ended", 60)
        until(lambda: queue.status(7) is None, "nothing is left to do", 60)
    finally:
        second.terminate()
        second.wait()
    assert [(r.job_id, r.outcome) for r in JobHistory(settings.data_dir).list(7)] == [(job_id, "published")]
    assert VersionStore(settings.data_dir).numbers(7) == (1,)


def test_a_jobs_process_that_has_outlived_its_worker_ends_and_the_job_is_run_once_more(
    queue: TrainingQueue, connection: redis.Redis, settings: Settings, label_studio: LabelStudio, tmp_path: Path
) -> None:
    worker, job_id, horse = start_training(queue, connection, settings, label_studio, tmp_path / "mark")
    assert (tmp_path / "mark.omp").read_text() == "passive"  # it shares its cores with others
    worker.kill()
    worker.wait()
    label_studio.free.set()
    until(lambda: not psutil.pid_exists(horse), "it has ended", 60)
    assert VersionStore(settings.data_dir).numbers(7) == ()
    assert queue.rq.job_ids == []  # the next worker brings it back: twice would be run twice
    burst(settings, label_studio.url)
    assert [(r.job_id, r.outcome) for r in JobHistory(settings.data_dir).list(7)] == [(job_id, "published")]


def start_training(
    queue: TrainingQueue, connection: redis.Redis, settings: Settings, label_studio: LabelStudio, mark: Path
) -> tuple[subprocess.Popen[bytes], str, int]:
    """A worker, the training that it has begun and that waits for tasks, and the process of it."""
    label_studio.free.clear()
    job_id = queue.request_training(7, reason="ANNOTATION_CREATED").job_id
    worker = start_worker(settings, label_studio.url, before=NOTE_PROCESS, MARK=str(mark))
    assert label_studio.asked.wait(60)
    until(lambda: fetch(connection, job_id).get_status().value == "started", "the job runs")
    return worker, job_id, int(mark.read_text())


NOTE_PROCESS = """
import os
from pathlib import Path
import training_jobs.jobs as jobs
def noted(*args, original=jobs._train):
    Path(os.environ["MARK"]).write_text(str(os.getpid()))
    Path(os.environ["MARK"]).with_suffix(".omp").write_text(os.environ["OMP_WAIT_POLICY"])
    return original(*args)
jobs._train = noted
"""


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
    assert outcomes[1][0] == "failed"
    assert "the job's process ended unexpectedly (SIGKILL)" in outcomes[1][1]
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
    assert "500" in live.problem
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


KILL_ONCE = """
import os, signal
from pathlib import Path
import {module} as module
def killed(*args, original=module.{name}, **kwargs):
    mark = Path(os.environ["MARK"])
    if not mark.exists():
        mark.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return original(*args, **kwargs)
module.{name} = killed
"""


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jobs are tried again at once."""
    monkeypatch.setattr(queue_module, "RETRY_INTERVALS_S", (0, 0))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("module", "name", "versions"),
    [
        ("backend.versions", "VersionStore.publish", [1, 2]),  # between the version and `current`
        ("training_jobs.jobs", "_announce", [1]),  # after `current`
    ],
)
def test_a_job_that_is_killed_anywhere_is_run_again_and_tells_the_truth(
    queue: TrainingQueue,
    settings: Settings,
    label_studio: LabelStudio,
    tmp_path: Path,
    module: str,
    name: str,
    versions: list[int],
) -> None:
    queue.request_training(7, reason=START_TRAINING)
    before, mark = KILL_ONCE.format(module=module, name=name), tmp_path / "mark"
    assert start_worker(settings, label_studio.url, "--burst", before=before, MARK=str(mark)).wait(120) == 0
    assert mark.exists()
    store = VersionStore(settings.data_dir)
    current = store.current(7)
    assert current is not None
    assert store.numbers(7) == tuple(versions)
    (record,) = JobHistory(settings.data_dir).list(7)
    assert (record.outcome, record.version) == ("published", versions[-1] == current.number and current.number)
    assert record.labels["red"].after is not None
    assert record.counts["images"] == 24
    assert queue.status(7) is None


@pytest.mark.usefixtures("at_once")
def test_a_training_that_was_asked_for_is_still_one_after_its_process_was_killed(
    queue: TrainingQueue, settings: Settings, label_studio: LabelStudio, tmp_path: Path
) -> None:
    queue.request_training(7, reason="ANNOTATION_CREATED")
    burst(settings, label_studio.url)
    queue.request_training(7, reason=START_TRAINING)
    before = KILL_ONCE.format(module="training_jobs.jobs", name="_Reporter.__call__")
    assert (
        start_worker(settings, label_studio.url, "--burst", before=before, MARK=str(tmp_path / "mark")).wait(120) == 0
    )
    assert JobHistory(settings.data_dir).list(7)[0].outcome == "not better"  # and not "nothing new"


def test_a_training_gives_way_at_every_step(connection: redis.Redis) -> None:
    said: list[str] = []
    job = Job.create(print, connection=connection, serializer=JSONSerializer)
    reporter = _Reporter(job, lambda: said.append("lock"), lambda: said.append("way"))
    for _ in range(3):
        reporter("learning", 0.5, None)
    assert said == ["lock", "way"] * 3


FULL_DISK = """
import os, resource, signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(os.environ["MOST_BYTES"]),) * 2)
"""
"""No file may grow beyond that: as on a full disk, writes fail in the kernel."""


def test_a_full_disk_ends_in_a_clear_error_and_the_serving_version_stays(
    queue: TrainingQueue, settings: Settings, label_studio: LabelStudio
) -> None:
    queue.request_training(7, reason=START_TRAINING)
    burst(settings, label_studio.url)
    store = VersionStore(settings.data_dir)
    before = store.current(7)
    assert before is not None
    most = before.weights_path.stat().st_size // 2
    queue.request_training(7, reason=START_TRAINING)
    worker = start_worker(settings, label_studio.url, "--burst", before=FULL_DISK, MOST_BYTES=str(most))
    assert worker.wait(120) == 0
    live = queue.status(7)
    assert live is not None
    assert live.state == "retrying"  # somebody may make room
    assert "File too large. Make room, mend the permissions, or choose another VLM_DATA_DIR" in live.problem
    now = store.current(7)
    assert now is not None
    assert (now.number, store.numbers(7)) == (1, (1,))
    assert sorted(path.name for path in (store.project_dir(7) / "versions").iterdir()) == ["001"]


def test_redis_may_die_while_a_job_runs(
    queue: TrainingQueue, connection: redis.Redis, settings: Settings, label_studio: LabelStudio
) -> None:
    label_studio.free.clear()
    queue.request_training(7, reason=START_TRAINING)
    worker = start_worker(settings, label_studio.url, "--burst")
    assert label_studio.asked.wait(60)
    os.kill(int(connection.info("server")["process_id"]), signal.SIGKILL)
    label_studio.free.set()
    assert worker.wait(120) == 0
    assert [record.outcome for record in JobHistory(settings.data_dir).list(7)] == ["published"]
    assert queue.status(7) is None


def test_a_worker_that_has_lost_redis_waits_for_it(
    settings: Settings, label_studio: LabelStudio, tmp_path: Path
) -> None:
    socket, log = tmp_path / "own.sock", tmp_path / "worker.log"
    command = [find_server(), "--port", "0", "--unixsocket", str(socket), "--dir", str(tmp_path), "--appendonly", "yes"]

    def start_redis() -> subprocess.Popen[bytes]:
        server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        until(lambda: redis_server._answers(socket), "Redis answers")
        return server

    own = settings.model_copy(update={"redis_url": f"unix://{socket}"})
    server = start_redis()
    worker = None
    try:
        queue = TrainingQueue(connect_redis(own), timeout_s=300)
        label_studio.free.clear()
        queue.request_training(7, reason="ANNOTATION_CREATED")
        before = f"import sys, training_jobs.worker as w; w._REDIS_TRIES = 1; sys.stderr = open({str(log)!r}, 'w', 1)"
        worker = start_worker(settings, label_studio.url, before=before, REDIS_URL=f"unix://{socket}")
        assert label_studio.asked.wait(60)
        server.kill()
        server.wait()
        label_studio.free.set()
        until(lambda: "has lost Redis" in log.read_text(), "the worker notices")
        server = start_redis()
        until(lambda: VersionStore(settings.data_dir).current(7) is not None, "a version is published", 60)
        until(lambda: queue.status(7) is None, "the job has ended", 60)
        worker.terminate()
        assert worker.wait(20) == 0
    finally:
        server.kill()
        server.wait()
        if worker is not None and worker.poll() is None:
            worker.kill()


def test_the_workers_own_process_stays_without_torch() -> None:
    code = "import sys, training_jobs.worker, training_jobs.jobs; print('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_a_running_training_is_cancelled_within_seconds_and_the_serving_version_stays(
    queue: TrainingQueue, connection: redis.Redis, settings: Settings, label_studio: LabelStudio
) -> None:
    queue.request_training(7, reason=START_TRAINING)
    burst(settings, label_studio.url)
    serving = VersionStore(settings.data_dir).current(7)
    assert serving is not None
    long = {"VLM_TRAIN_RECIPE": json.dumps({**RECIPE, "conditions": {"steps": 1_000_000}})}
    worker = start_worker(settings, label_studio.url, **long)
    try:
        job_id = queue.request_training(7, reason=START_TRAINING).job_id
        until(lambda: bool((queue.status(7) or NOTHING).progress.get("loss")), "it trains", 60.0)
        queue.request_training(7, reason="ANNOTATION_CREATED")  # would be followed by another one
        assert "is being stopped" in cancel_job(settings, 7)
        until(lambda: queue.status(7) is None, "it is stopped")
        until(lambda: fetch(connection, job_id).get_status().value == "stopped", "RQ knows")
        record = JobHistory(settings.data_dir).list(7)[0]
        assert (record.job_id, record.outcome, record.version) == (job_id, "cancelled", None)
        assert queue.rq.job_ids == []
        current = VersionStore(settings.data_dir).current(7)
        assert current is not None
        assert current.number == serving.number
        # Its place is free: the next one is not kept waiting by its lock.
        assert queue.request_training(7, reason="ANNOTATION_CREATED").state == "queued"
        until(lambda: bool((queue.status(7) or NOTHING).progress), "the next one runs", 60.0)
        assert cancel_job(settings, 7)
        until(lambda: queue.status(7) is None, "it is stopped too")
    finally:
        worker.terminate()
        worker.wait(30)


def test_a_training_that_was_cancelled_while_its_worker_was_dead_ends_when_it_is_taken_up(
    queue: TrainingQueue, connection: redis.Redis, settings: Settings, label_studio: LabelStudio
) -> None:
    label_studio.free.clear()
    job_id = queue.request_training(7, reason=START_TRAINING).job_id
    worker = start_worker(settings, label_studio.url)
    assert label_studio.asked.wait(60)
    until(lambda: fetch(connection, job_id).get_status().value == "started", "the job runs")
    children = Path(f"/proc/{worker.pid}/task/{worker.pid}/children").read_text().split()
    for process in (worker.pid, *map(int, children)):
        os.kill(process, signal.SIGKILL)
    worker.wait()
    assert queue.cancel(7) == "stopping"
    label_studio.free.set()
    burst(settings, label_studio.url)
    assert [record.outcome for record in JobHistory(settings.data_dir).list(7)] == ["cancelled"]
    assert queue.status(7) is None
    assert VersionStore(settings.data_dir).current(7) is None
