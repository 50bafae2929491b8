"""The reconcile job over a real Redis and Label Studio's API: what is found, what is not, and what it costs."""

from __future__ import annotations

import functools
import itertools
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import redis
from fastapi.testclient import TestClient

from backend.app import create_app
from backend.job_history import JobHistory
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.connect import DESCRIPTION
from backend.label_studio.errors import LabelStudioServerError
from backend.plans import ExtraParams
from backend.queue import TrainingQueue
from backend.redis_server import release_server
from backend.settings import Settings
from backend.versions import VersionStore
from tests.jobs.label_studio import TOKEN, LabelStudio, brush, corrected_project, picture, serve
from tests.jobs.test_worker import start_worker, until
from training_jobs import reconcile as module
from training_jobs.annotation_state import Mark, Reading, stamps_of
from training_jobs.reconcile import REASON, Found, plan_reconcile, reconcile, reconcile_queue

OURS = {"id": 3, "url": "http://10.0.0.9:9090", "description": "by hand", "model_version": "demo-p7-v000-0a1b2c3d"}


@pytest.fixture
def label_studio() -> Iterator[LabelStudio]:
    with serve(corrected_project(3)) as running:
        running.backends = [OURS]
        yield running
        running.free.set()


@pytest.fixture
def settings(tmp_path: Path, label_studio: LabelStudio) -> Settings:
    return Settings(data_dir=tmp_path, label_studio_url=label_studio.url, label_studio_api_key=TOKEN)


@pytest.fixture
def queue(connection: redis.Redis) -> TrainingQueue:
    return TrainingQueue(connection)


@pytest.fixture
def client(settings: Settings) -> Iterator[LabelStudioClient]:
    with LabelStudioClient(str(settings.label_studio_url), TOKEN, sleep=lambda _: None) as made:
        yield made


@pytest.fixture
def run(client: LabelStudioClient, settings: Settings, connection: redis.Redis) -> Callable[[], Found]:
    return lambda: reconcile(client, settings, connection)


def know(settings: Settings, project_id: int = 7) -> Path:
    """What `/setup` leaves behind."""
    ExtraParams(settings.data_dir).remember(project_id, None)
    return VersionStore(settings.data_dir).project_dir(project_id)


def read(client: LabelStudioClient, directory: Path) -> None:
    """What a training leaves behind."""
    mark = Mark.of(client, 7)
    tasks = client.tasks(7, only_annotated=True)
    Reading(mark, {str(task["id"]): stamps_of(task) for task in tasks}).keep(directory)


def test_annotations_of_which_no_webhook_told_are_found(
    run: Callable[[], Found], queue: TrainingQueue, settings: Settings
) -> None:
    know(settings)
    assert run().requested == [7]
    live = queue.status(7)
    assert live is not None
    assert (live.state, live.reason) == ("queued", REASON)
    # That job will read everything, so nothing is asked while it waits.
    assert run() == Found(busy=1)


def test_what_a_training_has_read_is_not_news_and_costs_one_call(
    run: Callable[[], Found],
    queue: TrainingQueue,
    settings: Settings,
    client: LabelStudioClient,
    label_studio: LabelStudio,
) -> None:
    read(client, know(settings))
    for _ in range(2):
        label_studio.calls.clear()
        assert run() == Found(unchanged=1)
        assert label_studio.calls == ["/api/tasks/"]
    assert queue.jobs() == []


def new_annotation(label_studio: LabelStudio) -> None:
    image, masks = picture(3)
    label_studio.annotate(label_studio.add_task(image), [brush(label, mask) for label, mask in masks.items()])


def second_annotation(label_studio: LabelStudio) -> None:
    label_studio.annotate(2, [])


def changed(label_studio: LabelStudio) -> None:
    label_studio.change(label_studio.annotations[1][0])


def deleted(label_studio: LabelStudio) -> None:
    label_studio.delete(label_studio.annotations[3][0])


def all_deleted(label_studio: LabelStudio) -> None:
    for found in label_studio.annotations.values():
        label_studio.delete(found[0])


def one_for_another(label_studio: LabelStudio) -> None:
    label_studio.delete(label_studio.annotations[1][0])
    label_studio.annotate(1, [])


def moved_to_another_task(label_studio: LabelStudio) -> None:
    deleted(label_studio)
    new_annotation(label_studio)


@pytest.mark.parametrize(
    "change", [new_annotation, second_annotation, changed, deleted, all_deleted, one_for_another, moved_to_another_task]
)
def test_every_change_of_annotations_is_news(
    change: Callable[[LabelStudio], None],
    run: Callable[[], Found],
    settings: Settings,
    client: LabelStudioClient,
    label_studio: LabelStudio,
) -> None:
    read(client, know(settings))
    assert run().requested == []
    change(label_studio)
    assert run().requested == [7]


def test_predictions_and_skipped_tasks_are_no_news_and_are_looked_at_once(
    run: Callable[[], Found], settings: Settings, client: LabelStudioClient, label_studio: LabelStudio
) -> None:
    read(client, know(settings))
    for task_id in (1, 3):
        label_studio.touch(task_id)  # as when predictions are stored
    label_studio.annotate(2, [], was_cancelled=True)
    for calls in (2, 1):
        label_studio.calls.clear()
        assert run() == Found(unchanged=1)
        assert label_studio.calls == ["/api/tasks/"] * calls


def test_only_tasks_that_changed_since_the_last_reading_are_read(
    run: Callable[[], Found],
    settings: Settings,
    client: LabelStudioClient,
    label_studio: LabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("training_jobs.annotation_state._PAGE_TASKS", 1)
    read(client, know(settings))
    label_studio.touch(1)
    label_studio.calls.clear()
    assert run() == Found(unchanged=1)
    # The mark, the task that was touched, the newest of the last reading, and one that is older.
    assert label_studio.calls == ["/api/tasks/"] * 4


def test_a_project_without_annotations_or_labels_to_learn_is_left_alone(
    run: Callable[[], Found], settings: Settings, label_studio: LabelStudio
) -> None:
    know(settings)
    label_studio.config = """<View><Image name="image" value="$image"/>
        <TextArea name="t" toName="image" prompt="a | b"/></View>"""
    assert run() == Found(unchanged=1)
    label_studio.annotations = {task_id: [] for task_id in label_studio.annotations}
    assert run() == Found(unchanged=1)


def test_a_project_of_choices_alone_is_trained(
    run: Callable[[], Found], settings: Settings, label_studio: LabelStudio
) -> None:
    know(settings)
    label_studio.config = """<View><Image name="image" value="$image"/>
        <Choices name="c" toName="image"><Choice value="a"/><Choice value="b"/></Choices></View>"""
    assert run() == Found(requested=[7])


def test_only_projects_that_are_known_and_connected_are_trained(
    run: Callable[[], Found], settings: Settings, label_studio: LabelStudio, connection: redis.Redis
) -> None:
    assert run() == Found()
    know(settings)
    label_studio.backends = [{"id": 1, "url": "http://10.0.0.9:9090", "description": "SAM", "model_version": "v1"}]
    assert run() == Found(gone=1)
    label_studio.backends.append({"id": 2, "url": "http://b", "description": DESCRIPTION, "model_version": None})
    assert run().requested == [7]
    connection.flushall()
    label_studio.backends.pop()
    own_address = settings.model_copy(update={"backend_url": "http://10.0.0.9:9090/"})
    with LabelStudioClient(label_studio.url, TOKEN) as client:
        assert reconcile(client, own_address, connection).requested == [7]


def test_a_project_that_label_studio_no_longer_has_stops_nobody(run: Callable[[], Found], settings: Settings) -> None:
    know(settings, 6)
    know(settings, 7)
    assert run() == Found(requested=[7], gone=1)


def test_label_studio_away_ends_the_run(
    run: Callable[[], Found], settings: Settings, label_studio: LabelStudio, queue: TrainingQueue
) -> None:
    know(settings)
    label_studio.status = 503
    with pytest.raises(LabelStudioServerError):
        run()
    label_studio.status = 200
    assert run().requested == [7]


def fail(queue: TrainingQueue) -> None:
    """The project's job ends as after a last attempt that failed: nothing was read."""
    live = queue.status(7)
    assert live is not None
    queue.begin(7, live.job_id)
    queue.finish(7, live.job_id)
    queue.rq.empty()


def requests(
    client: LabelStudioClient, settings: Settings, queue: TrainingQueue, connection: redis.Redis, *, lasting_s: float
) -> list[float]:
    """When a training that always fails is asked for, s, in four days of rounds, one an hour.

    Args:
        client, settings, queue, connection: of the test.
        lasting_s: how long the job lives.
    """
    start, asked_at = 1_800_000_000.0, []
    for hour in range(4 * 24):
        now_s = hour * 3600.0
        if reconcile(client, settings, connection, clock=functools.partial(float, start + now_s)).requested:
            asked_at.append(now_s)
        if queue.status(7) is not None and now_s >= asked_at[-1] + lasting_s:
            fail(queue)
    return asked_at


@pytest.mark.parametrize(
    ("lasting_s", "pauses_h"), [(0.0, [1, 2, 4, 8, 16, 24, 24]), (5 * 3600.0, [1, 2, 4, 8, 16, 24])]
)
def test_what_failed_is_asked_for_again_each_time_after_twice_the_pause_up_to_a_day(
    settings: Settings,
    client: LabelStudioClient,
    queue: TrainingQueue,
    connection: redis.Redis,
    lasting_s: float,
    pauses_h: list[int],
) -> None:
    know(settings)
    hourly = settings.model_copy(update={"reconcile_s": 3600.0})
    found = requests(client, hourly, queue, connection, lasting_s=lasting_s)
    assert [(later - former - lasting_s) / 3600 for former, later in itertools.pairwise(found)] == pauses_h


def test_after_a_failure_another_correction_is_asked_for_at_once_and_with_the_first_pause(
    settings: Settings,
    client: LabelStudioClient,
    queue: TrainingQueue,
    connection: redis.Redis,
    label_studio: LabelStudio,
) -> None:
    know(settings)
    now = 1_800_000_000.0

    def run() -> list[int]:
        return reconcile(client, settings, connection, clock=lambda: now).requested

    assert run() == [7]
    fail(queue)
    now += settings.reconcile_s
    assert run() == [7]
    fail(queue)
    now += settings.reconcile_s
    assert run() == []  # the second pause is longer
    new_annotation(label_studio)
    assert run() == [7]
    fail(queue)
    now += settings.reconcile_s - 1
    assert run() == []
    now += 1
    assert run() == [7]


def test_a_clock_that_was_put_back_makes_nobody_wait(
    settings: Settings, client: LabelStudioClient, queue: TrainingQueue, connection: redis.Redis
) -> None:
    know(settings)
    assert reconcile(client, settings, connection, clock=lambda: 1_800_000_000.0).requested == [7]
    fail(queue)
    assert reconcile(client, settings, connection, clock=lambda: 1_700_000_000.0).requested == [7]


@pytest.mark.parametrize("kept", [b"2026-01-01T00:00:00.000103Z 3 3", b'{"mark": 1}', b"[]", b'"text"', b"\xff"])
def test_what_another_release_noted_is_no_hindrance(
    kept: bytes, run: Callable[[], Found], settings: Settings, connection: redis.Redis
) -> None:
    know(settings)
    connection.set("vlm:reconcile:asked:7", kept)
    assert run().requested == [7]


def test_a_redis_that_lost_everything_loses_no_training(
    run: Callable[[], Found], settings: Settings, queue: TrainingQueue, connection: redis.Redis
) -> None:
    know(settings)
    queue.request_training(7, reason="ANNOTATION_CREATED")
    assert run() == Found(busy=1)
    connection.flushall()
    assert run().requested == [7]
    connection.flushall()
    assert run().requested == [7]


def test_events_that_came_while_redis_was_down_are_found_later(
    run: Callable[[], Found], settings: Settings, queue: TrainingQueue
) -> None:
    """The whole chain: a server without Redis acknowledges, ends, and the reconcile job finds what it told nobody."""
    alone = settings.model_copy(
        update={"redis_url": "redis://127.0.0.1:1", "checkpoint": str(settings.data_dir / "none")}
    )
    with TestClient(create_app(alone)) as server:
        body = {"action": "ANNOTATION_CREATED", "project": {"id": 7}}
        assert server.post("/webhook", json=body).status_code == 200
        reply = server.post("/webhook", json={**body, "action": "START_TRAINING"})
        assert reply.status_code == 503
        assert "Redis" in reply.json()["error"]
        until(lambda: server.get("/status").json()["projects"]["7"]["last_error"] is not None, "the event is tried")
        setup = {"project": "7.17", "schema": "<View/>", "extra_params": None}
        assert server.post("/setup", json=setup).status_code == 503  # the model is not there; the project is known
    assert queue.jobs() == []
    assert run().requested == [7]


# Planning ---------------------------------------------------------------------------------------------------
def test_workers_that_start_together_queue_one_run(connection: redis.Redis, settings: Settings) -> None:
    together = threading.Barrier(8)
    planned: list[bool] = []

    def start() -> None:
        together.wait(10)
        planned.append(plan_reconcile(connection, settings, at_start=True))

    threads = [threading.Thread(target=start) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(10)
    assert sorted(planned) == [False] * 7 + [True]
    assert len(reconcile_queue(connection).job_ids) == 1
    # It counts for the stretch of time too, so that maintenance adds none.
    assert not plan_reconcile(connection, settings)


def test_every_stretch_of_time_has_one_run(
    connection: redis.Redis, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr(module.time, "time", lambda: now)
    assert [plan_reconcile(connection, settings) for _ in range(3)] == [True, False, False]
    now += settings.reconcile_s - 1
    assert not plan_reconcile(connection, settings)
    now += 1
    assert [plan_reconcile(connection, settings) for _ in range(2)] == [True, False]
    connection.flushall()
    assert plan_reconcile(connection, settings)


@pytest.mark.parametrize("changes", [{"reconcile_s": 0}, {"label_studio_url": None}, {"label_studio_api_key": None}])
def test_nothing_is_planned_where_nothing_can_be_found(
    changes: dict[str, object], connection: redis.Redis, settings: Settings
) -> None:
    assert not plan_reconcile(connection, settings.model_copy(update=changes), at_start=True)


# The whole --------------------------------------------------------------------------------------------------
def test_a_worker_trains_what_no_webhook_told_and_then_rests(checkpoint: Path, tmp_path: Path) -> None:
    settings = Settings(checkpoint=str(checkpoint), data_dir=tmp_path, device="cpu")
    know(settings)
    history = JobHistory(tmp_path)
    with serve(corrected_project(24)) as label_studio:
        label_studio.backends = [OURS]
        worker = start_worker(settings, label_studio.url, VLM_RECONCILE_S="1")
        try:
            until(lambda: len(history.list(7)) == 1, "the job has ended", 120)
            assert [(item.outcome, item.requested) for item in history.list(7)] == [("published", REASON)]
            label_studio.calls.clear()
            until(lambda: label_studio.calls.count("/api/tasks/") > 3, "more runs", 60)
            assert len(history.list(7)) == 1
            label_studio.delete(label_studio.annotations[5][0])
            until(lambda: len(history.list(7)) == 2, "the deletion was found", 120)
            assert history.list(7)[0].counts["images"] == 23
            assert history.list(7)[0].requested == REASON
        finally:
            worker.terminate()
            assert worker.wait(20) == 0
            release_server(tmp_path / "redis")
