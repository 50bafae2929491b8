"""Pre-labelling as it really runs: a real Redis, `vlm worker` as a process of its own, Label Studio over HTTP."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest
import redis

from backend import prelabel_queue
from backend.job_commands import jobs_report
from backend.job_history import JobHistory
from backend.prelabel_queue import PrelabelQueue, PrelabelRequest
from backend.settings import Settings
from tests.jobs.label_studio import picture, serve
from tests.jobs.prelabelled import PrelabelLabelStudio
from tests.jobs.test_worker import start_worker, until

TASKS = 150


@pytest.fixture
def queue(connection: redis.Redis, monkeypatch: pytest.MonkeyPatch) -> PrelabelQueue:
    monkeypatch.setattr(prelabel_queue, "RETRY_INTERVALS_S", (1, 1))
    return PrelabelQueue(connection)


@pytest.fixture
def label_studio() -> Iterator[PrelabelLabelStudio]:
    with serve(PrelabelLabelStudio(TASKS)) as running:
        assert isinstance(running, PrelabelLabelStudio)
        yield running
        running.free.set()


def all_done(label_studio: PrelabelLabelStudio) -> bool:
    return all(label_studio.versions_of(task) for task in label_studio.images)


IMPATIENT = """
from dataclasses import replace
from backend import parts, prelabel_queue
patience = parts.patience
parts.patience = lambda settings: replace(patience(settings), retry_s=0.5, check_s=0.5)
prelabel_queue.RETRY_INTERVALS_S = (1, 1)
"""


def worker(settings: Settings, url: str, *options: str, **variables: str) -> subprocess.Popen[bytes]:
    """`vlm worker` that does not wait long before it tries again."""
    return start_worker(settings, url, *options, before=IMPATIENT, VLM_LABEL_STUDIO_TIMEOUT_S="2", **variables)


def test_all_tasks_get_one_prediction_and_no_second_one_when_asked_again(
    queue: PrelabelQueue, settings: Settings, label_studio: PrelabelLabelStudio
) -> None:
    request_id = queue.request(7, PrelabelRequest())
    waiting = queue.progress(7)
    assert waiting is not None
    assert (waiting.state, waiting.total) == ("queued", 0)
    assert worker(settings, label_studio.url, "--burst").wait(300) == 0
    assert {len(label_studio.versions_of(task)) for task in label_studio.images} == {1}
    listed, ended = queue.listed(7, request_id), queue.ended(7)
    assert listed is not None
    assert ended is not None
    assert (listed.found, listed.problem) == (TASKS, "")
    assert ended.run_id == listed.run_id
    assert ended.counts == {"posted": TASKS, "present": 0, "failed": 0}
    assert ended.versions == {label_studio.versions_of(1)[0]: TASKS}
    assert queue.progress(7) is None
    assert [(r.outcome, r.job_id) for r in JobHistory(settings.data_dir).list(7)] == [("pre-labelled", ended.run_id)]

    queue.request(7, PrelabelRequest())
    new = label_studio.add_task(picture(1)[0])
    assert worker(settings, label_studio.url, "--burst").wait(300) == 0
    assert {len(label_studio.versions_of(task)) for task in label_studio.images} == {1}
    ended = queue.ended(7)
    assert ended is not None
    assert ended.counts == {"posted": 1, "present": TASKS, "failed": 0}
    assert label_studio.versions_of(new)


def test_conditions_and_a_limit_choose_the_tasks(
    queue: PrelabelQueue, settings: Settings, label_studio: PrelabelLabelStudio
) -> None:
    label_studio.imported += [{"task": 21, "model_version": "another"}, {"task": 22, "model_version": "another"}]
    queue.request(7, PrelabelRequest(("id > 20", "id <= 30"), only_missing=True, limit=3))
    wrong = queue.request(7, PrelabelRequest(("colour = red",)))
    assert worker(settings, label_studio.url, "--burst").wait(300) == 0
    assert {p["task"] for p in label_studio.imported if p["model_version"] != "another"} == {23, 24, 25}
    listed = queue.listed(7, wrong)
    assert listed is not None
    assert "no column 'colour'" in listed.problem
    assert "total_predictions" in listed.problem
    assert queue.progress(7) is None


@pytest.mark.parametrize("whole_worker", [False, True], ids=["horse", "horse and worker"])
def test_a_kill_in_the_middle_of_an_import_loses_and_doubles_nothing(
    queue: PrelabelQueue, settings: Settings, label_studio: PrelabelLabelStudio, whole_worker: bool
) -> None:
    running: list[psutil.Process] = []
    schedulers: list[psutil.Process] = []

    def kill() -> None:
        label_studio.before_import = lambda: None
        (parent,) = running
        scheduler, horse = sorted(parent.children(), key=psutil.Process.create_time)
        schedulers.append(scheduler)
        for process in [parent, horse] if whole_worker else [horse]:
            process.kill()

    label_studio.before_import = kill
    queue.request(7, PrelabelRequest())
    first = worker(settings, label_studio.url)
    running.append(psutil.Process(first.pid))
    assert label_studio.stored.wait(300)  # by a client that is dead
    second = None
    if whole_worker:
        assert first.wait(20) == -signal.SIGKILL
        second = worker(settings, label_studio.url)
    until(lambda: queue.progress(7) is None, "the run is over", 300)
    for process in filter(None, (first, second)):
        process.terminate()
        process.wait(20)
    for scheduler in schedulers:  # it outlives a worker that is killed
        with contextlib.suppress(psutil.NoSuchProcess):
            scheduler.kill()
    assert label_studio.twice() == {}
    assert all_done(label_studio)


def test_label_studio_away_is_waited_for(
    queue: PrelabelQueue, settings: Settings, label_studio: PrelabelLabelStudio
) -> None:
    label_studio.status = 503
    queue.request(7, PrelabelRequest())
    running = worker(settings, label_studio.url)

    def waits() -> bool:
        found = queue.progress(7)
        return found is not None and found.state == "waiting" and "503" in found.problem

    until(waits, "it says that it waits, and why", 60)
    (row,) = jobs_report(settings)["prelabelling"]
    assert (row["project_id"], row["state"]) == (7, "waiting")
    label_studio.status = 200
    until(lambda: all_done(label_studio), "all tasks have predictions", 300)
    running.terminate()
    running.wait(20)
    assert label_studio.twice() == {}


def test_two_workers_share_the_tasks_of_a_project(
    queue: PrelabelQueue, settings: Settings, label_studio: PrelabelLabelStudio
) -> None:
    workers = [worker(settings, label_studio.url, "--queues", "prelabel") for _ in range(2)]
    until(lambda: len(queue.connection.smembers("rq:workers:vlm-prelabel")) == 2, "both workers listen", 60)
    label_studio.free.clear()
    for task in range(TASKS):
        label_studio.add_task(picture(task)[0])
    queue.request(7, PrelabelRequest())
    label_studio.free.set()
    until(lambda: all_done(label_studio), "all tasks have predictions", 300)
    for process in workers:
        process.terminate()
    assert [process.wait(20) for process in workers] == [0, 0]
    assert label_studio.twice() == {}


def test_a_picture_that_cannot_be_read_costs_itself_only(
    queue: PrelabelQueue, settings: Settings, label_studio: PrelabelLabelStudio
) -> None:
    label_studio.images[5] = b"no picture"
    queue.request(7, PrelabelRequest(("id <= 10",)))
    running = worker(settings, label_studio.url)
    until(lambda: queue.progress(7) is None, "the run is over", 300)
    running.terminate()
    running.wait(20)
    ended = queue.ended(7)
    assert ended is not None
    assert ended.counts == {"posted": 9, "present": 0, "failed": 1}
    assert "5" in ended.failures
    assert not label_studio.versions_of(5)


def test_the_workers_parent_stays_small() -> None:
    script = "import sys, training_jobs.worker; print({'torch', 'numba'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=os.environ, check=True)
    assert ran.stdout.strip() == "set()"
