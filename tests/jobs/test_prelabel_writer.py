"""Imports that Label Studio refuses, in whole or in part, and imports that came too late."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import pytest
import redis

from backend.label_studio.errors import (
    LabelStudioAuthError,
    LabelStudioNotFoundError,
    LabelStudioRejectedError,
    LabelStudioServerError,
)
from backend.prelabel_ledger import Ledger
from tests.private_redis import private_redis
from training_jobs import import_pace, prelabel_writer
from training_jobs.prelabel_writer import PredictionWriter

V = "demo-p7-v000-12345678"
OWNER = "job:1"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[redis.Redis]:
    with private_redis(tmp_path_factory.mktemp("writer")) as connected:
        yield connected


@pytest.fixture
def ledger(server: redis.Redis) -> Ledger:
    server.flushall()
    return Ledger(server, 7)


class Api:
    """Keeps what it is sent; refuses an import with a wrong score, leaves out in silence what has none."""

    def __init__(self, tasks: Sequence[int]) -> None:
        self.tasks = set(tasks)
        self.stored: list[dict[str, Any]] = []
        self.imports: list[int] = []
        self.fault: Exception | None = None
        self.meanwhile: Callable[[], None] = lambda: None

    def having(self) -> list[int]:
        return sorted(int(item["task"]) for item in self.stored)

    def matching_tasks(self, project_id: int, conditions: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        assert project_id == 7
        found = self.tasks
        for condition in conditions:
            if condition["operator"] == "in_list":
                found = found & set(condition["value"])
            else:
                assert (condition["operator"], condition["value"]) == ("contains", [V])
                found = found & set(self.having())
        return [{"id": task} for task in sorted(found)]

    def import_predictions(self, project_id: int, predictions: Sequence[Mapping[str, Any]]) -> int:
        self.imports.append(len(predictions))
        if self.fault is not None:
            raise self.fault
        if not {p["task"] for p in predictions} <= self.tasks:
            raise LabelStudioRejectedError("no such task", status=400)
        if any(p["score"] > 1 for p in predictions):
            raise LabelStudioRejectedError("a score is above 1", status=400)
        kept = [dict(p, id=len(self.stored) + n) for n, p in enumerate(predictions, start=1) if p["score"] >= 0]
        self.stored += kept
        self.meanwhile()
        return len(kept)

    def task_predictions(self, task_id: int) -> list[dict[str, Any]]:
        return [item for item in self.stored if item["task"] == task_id]

    def delete_prediction(self, prediction_id: int) -> None:
        left = [item for item in self.stored if item["id"] != prediction_id]
        if len(left) == len(self.stored):
            raise LabelStudioNotFoundError("gone", status=404)
        self.stored = left


def write(ledger: Ledger, api: Api, scores: Mapping[int, float], slept: list[float] | None = None) -> None:
    ledger.add(scores)
    taken = ledger.take(OWNER, 999)
    writer = PredictionWriter(
        7, api, ledger, OWNER, one_at_a_time=contextlib.nullcontext, sleep=(slept if slept is not None else []).append
    )
    writer.add(V, {task: {"model_version": V, "score": scores[task], "result": []} for task in taken})
    writer.flush()


def counts(ledger: Ledger) -> dict[str, int]:
    run = ledger.run()
    assert run is not None
    return run.counts


def test_one_that_is_refused_is_found_and_the_others_are_imported(ledger: Ledger) -> None:
    api = Api(range(1, 21))
    write(ledger, api, {task: 2.0 if task == 13 else 0.5 for task in range(1, 21)})
    assert api.having() == [task for task in range(1, 21) if task != 13]
    assert counts(ledger) == {"posted": 19, "present": 0, "failed": 0}
    assert ledger.next_due_s() == pytest.approx(30.0, abs=1.0)  # it is tried once more


def test_tasks_that_were_deleted_cost_no_search(ledger: Ledger) -> None:
    api = Api(range(1, 101))
    api.tasks -= set(range(40, 60))
    write(ledger, api, dict.fromkeys(range(1, 101), 0.5))
    assert api.having() == sorted(api.tasks)
    assert api.imports == [100, 80]
    assert counts(ledger) == {"posted": 80, "present": 20, "failed": 0}


def test_what_label_studio_leaves_out_in_silence_has_failed(ledger: Ledger) -> None:
    api = Api(range(1, 6))
    write(ledger, api, {1: 0.5, 2: -1.0, 3: 0.5})
    assert api.having() == [1, 3]
    assert counts(ledger) == {"posted": 2, "present": 0, "failed": 0}
    assert ledger.next_due_s() == pytest.approx(30.0, abs=1.0)


def test_what_is_there_already_is_not_imported(ledger: Ledger) -> None:
    api = Api(range(1, 6))
    api.stored = [{"task": 2, "id": 1}]
    write(ledger, api, dict.fromkeys(range(1, 6), 0.5))
    assert api.having() == [1, 2, 3, 4, 5]
    assert counts(ledger) == {"posted": 4, "present": 1, "failed": 0}


def test_after_a_failure_that_may_have_stored_it_the_outcome_is_waited_for(ledger: Ledger) -> None:
    api = Api([1])
    api.fault = LabelStudioServerError("the counters", status=500)
    with pytest.raises(LabelStudioServerError):
        write(ledger, api, {1: 0.5})
    assert ledger.take("other:1", 9) == []
    assert ledger.next_due_s() == pytest.approx(ledger.patience.settle_s, abs=2.0)
    assert ledger.answer(V, [1], [], age_s=0.0) == {1}


def test_after_a_refusal_of_the_token_nothing_is_in_doubt(ledger: Ledger) -> None:
    api = Api([1])
    api.fault = LabelStudioAuthError("the token", status=401)
    with pytest.raises(LabelStudioAuthError):
        write(ledger, api, {1: 0.5})
    ledger.release("job")
    assert ledger.take("other:1", 9) == [1]
    assert ledger.begin_import("other:1", V, [1]).own == [1]


def test_an_import_after_the_claim_had_ended_removes_what_is_too_much(ledger: Ledger) -> None:
    api = Api([1, 2])

    def another_job() -> None:
        ledger.release("job")  # as after a sleep longer than the lease
        ledger.take("other:1", 1)
        api.stored.append({"task": 1, "id": 99, "model_version": V})

    api.meanwhile = another_job
    write(ledger, api, {1: 0.5, 2: 0.5})
    assert [(item["task"], item["id"]) for item in api.stored] == [(1, 1), (2, 2)]


def test_imports_stay_small_in_number_and_bytes(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prelabel_writer, "MOST_PREDICTIONS", 10)
    api = Api(range(1, 41))
    write(ledger, api, dict.fromkeys(range(1, 26), 0.5))
    assert api.imports == [10, 10, 5]
    one = len(json.dumps({"task": 26, "model_version": V, "score": 0.5, "result": []}))
    monkeypatch.setattr(prelabel_writer, "MOST_BYTES", 3 * one)
    api.imports.clear()
    write(ledger, api, dict.fromkeys(range(26, 34), 0.5))
    assert api.imports == [3, 3, 2]


def test_a_slow_label_studio_gets_a_rest_after_each_import(ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prelabel_writer, "MOST_PREDICTIONS", 40)
    monkeypatch.setattr(import_pace, "SLOW_S", -1.0)  # everything is slow
    api, slept = Api(range(1, 101)), list[float]()
    write(ledger, api, dict.fromkeys(range(1, 101), 0.5), slept)
    assert sum(api.imports) == 100
    assert len(slept) == len(api.imports)
