"""What an answer of `/predict` leaves undone goes to the jobs; with Redis down the answer goes out all the same."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import redis

from backend.handing_over import HandingOver, PrelabelLink
from backend.parts import connect_prelabelling
from backend.predictor import Answer, Deadline
from backend.prelabel_queue import PrelabelQueue
from backend.redis_connection import connect_redis
from backend.redis_server import release_server
from backend.settings import Settings

V = "demo-p7-v000-12345678"
DONE = {"model_version": V, "score": 0.5, "result": []}


class Answering:
    """Answers these items, and takes this long."""

    def __init__(self, *items: Mapping[str, Any], version: str = V) -> None:
        self.answer = Answer([dict(item) for item in items], version)

    def predict(
        self,
        tasks: Sequence[Any],
        *,
        project_id: int,
        label_config: str,
        deadline: Deadline,
        context: Mapping[str, Any] | None = None,
    ) -> Answer:
        return self.answer


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    yield Settings(data_dir=tmp_path)
    release_server(tmp_path / "redis")


@pytest.fixture
def queue(settings: Settings) -> PrelabelQueue:
    return PrelabelQueue(connect_redis(settings))


def link(settings: Settings) -> PrelabelLink:
    return PrelabelLink(lambda: connect_prelabelling(settings))


def ask(
    predictor: HandingOver,
    ids: Sequence[Any],
    *,
    late: bool,
    context: Mapping[str, Any] | None = None,
) -> list[dict[str, Any]]:
    deadline = Deadline(0.0 if late else 60.0)
    tasks = [{"id": task_id, "data": {}} for task_id in ids]
    return predictor.predict(tasks, project_id=7, label_config="<View/>", deadline=deadline, context=context).items


def test_what_is_not_done_in_time_is_handed_over(settings: Settings, queue: PrelabelQueue) -> None:
    predictor = HandingOver(Answering(DONE, {"error": "late"}, {"error": "late"}), link(settings), can_post=True)
    items = ask(predictor, [1, 2, 3], late=True)
    assert items[0] == DONE
    assert [set(item) for item in items[1:]] == [{"error"}] * 2
    assert "a worker predicts it and posts it" in items[1]["error"]
    assert queue.ledger(7).take("a:1", 9) == [2, 3]
    # The jobs leave alone what was answered.
    queue.ledger(7).add([1])
    queue.ledger(7).take("a:1", 9)
    assert queue.ledger(7).begin_import("a:1", V, [1]).answered == [1]


def test_what_failed_in_time_is_not(settings: Settings, queue: PrelabelQueue) -> None:
    predictor = HandingOver(Answering(DONE, {"error": "no picture"}), link(settings), can_post=True)
    assert ask(predictor, [1, 2], late=False)[1] == {"error": "no picture"}
    assert queue.jobs() == []


def test_before_the_model_is_loaded_all_are_handed_over(settings: Settings, queue: PrelabelQueue) -> None:
    predictor = HandingOver(Answering({"error": "loading"}, version=""), link(settings), can_post=True)
    ask(predictor, [4], late=True)
    assert queue.ledger(7).take("a:1", 9) == [4]


def test_a_prediction_that_a_job_is_writing_is_withheld(settings: Settings, queue: PrelabelQueue) -> None:
    queue.ledger(7).add([1])
    queue.ledger(7).take("a:1", 9)
    queue.ledger(7).begin_import("a:1", V, [1])
    predictor = HandingOver(Answering(DONE, DONE), link(settings), can_post=True)
    withheld, given = ask(predictor, [1, 2], late=False)
    assert "result" not in withheld
    assert "a worker has just posted" in withheld["error"]
    assert given == DONE


def test_an_annotators_own_question_concerns_nobody_else(settings: Settings, queue: PrelabelQueue) -> None:
    predictor = HandingOver(Answering({"error": "late"}), link(settings), can_post=True)
    assert ask(predictor, [1], late=True, context={"result": []}) == [{"error": "late"}]
    assert queue.jobs() == []


@pytest.mark.parametrize("task_id", [None, "1", True, 0, -5, 2**63, 1.5])
def test_tasks_without_an_id_of_label_studios_stay_here(
    settings: Settings, queue: PrelabelQueue, task_id: object
) -> None:
    predictor = HandingOver(Answering(DONE, {"error": "late"}), link(settings), can_post=True)
    assert ask(predictor, [task_id, task_id], late=True) == [DONE, {"error": "late"}]
    assert queue.jobs() == []


def test_without_label_studios_address_nothing_is_handed_over(
    settings: Settings, queue: PrelabelQueue, caplog: pytest.LogCaptureFixture
) -> None:
    predictor = HandingOver(Answering(DONE, {"error": "late"}), link(settings), can_post=False)
    assert ask(predictor, [1, 2], late=True) == [DONE, {"error": "late"}]
    assert queue.jobs() == []
    assert "set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY" in caplog.text


def test_with_redis_down_the_answer_is_given_and_the_log_says_so(caplog: pytest.LogCaptureFixture) -> None:
    tried: list[float] = []

    def connect() -> PrelabelQueue:
        tried.append(time.monotonic())
        raise redis.ConnectionError("refused")

    caplog.set_level(logging.WARNING)
    predictor = HandingOver(Answering(DONE, {"error": "late"}), PrelabelLink(connect), can_post=True)
    for _ in range(3):
        assert ask(predictor, [1, 2], late=True) == [DONE, {"error": "late"}]
    assert "1 tasks are not done, and not handed over: Redis is down" in caplog.text
    assert len(tried) == 1  # the next answers do not wait for it
