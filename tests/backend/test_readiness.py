"""Whether the server says what it works with, and never waits long for it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fastapi.testclient import TestClient

from backend.model_store import StoreState
from backend.readiness import Probe, Readiness
from tests.backend.serving import serving

READY = StoreState("ready", "", "colours")
LOADING = StoreState("loading", "being loaded", "")
FAILED = StoreState("failed", "no such checkpoint", "")


def _probe(problem: str) -> Probe:
    return Probe(lambda: problem, keep_s=60, wait_s=10)


@pytest.mark.parametrize(
    ("model", "redis", "studio", "status", "states"),
    [
        (READY, "", "", "ready", ["up", "up", "up"]),
        (READY, "", None, "ready", ["up", "up", "not set"]),
        (READY, "gone", "", "degraded", ["up", "down", "up"]),
        (READY, "", "401", "degraded", ["up", "up", "down"]),
        (LOADING, "", "", "not ready", ["loading", "up", "up"]),
        (FAILED, "gone", "401", "not ready", ["down", "down", "down"]),
    ],
)
def test_only_the_model_is_needed_to_predict(
    model: StoreState, redis: str, studio: str | None, status: str, states: list[str]
) -> None:
    ready = Readiness(lambda: model, _probe(redis), None if studio is None else _probe(studio)).ready()
    assert ready.status == status
    assert [part.name for part in ready.parts] == ["model", "redis", "label_studio"]
    assert [part.state for part in ready.parts] == states
    assert [part.needed for part in ready.parts] == [True, False, False]
    assert all(bool(part.reason) == (part.state != "up") for part in ready.parts)


class Check:
    """Counts how often it is made; says what it is told to, when it is let."""

    def __init__(self) -> None:
        self.made = 0
        self.gate = threading.Event()
        self.gate.set()
        self.answer: Callable[[], str] = lambda: ""

    def __call__(self) -> str:
        self.made += 1
        self.gate.wait(20)
        return self.answer()


def test_an_outcome_is_kept_for_a_while() -> None:
    check = Check()
    kept, fresh = Probe(check, keep_s=60, wait_s=10), Probe(check, keep_s=0, wait_s=10)
    assert [kept.problem() for _ in range(3)] == ["", "", ""]
    assert check.made == 1
    check.answer = lambda: "gone"
    assert kept.problem() == ""
    assert [fresh.problem() for _ in range(2)] == ["gone", "gone"]
    assert check.made == 3


def test_a_check_that_hangs_is_not_waited_for_and_not_made_twice() -> None:
    check = Check()
    check.gate.clear()
    probe = Probe(check, keep_s=60, wait_s=0.01)
    assert [probe.problem() for _ in range(3)] == ["no answer within 0.01 s"] * 3
    assert check.made == 1
    check.gate.set()
    patient = Probe(check, keep_s=60, wait_s=20)
    assert patient.problem() == ""


def test_a_check_that_raises_says_so_without_its_text() -> None:
    check = Check()

    def fail() -> str:
        raise ValueError("a-secret")

    check.answer = fail
    problem = _probe_of(check).problem()
    assert "ValueError" in problem
    assert "a-secret" not in problem


def _probe_of(check: Check) -> Probe:
    return Probe(check, keep_s=0, wait_s=20)


# The route --------------------------------------------------------------------------------------------------


def _ready(client: TestClient, **headers: str) -> tuple[int, Any]:
    reply = client.get("/ready", headers=headers)
    return reply.status_code, reply.json()


def test_ready_is_503_until_the_model_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    with serving(tmp_path, monkeypatch, gate) as server:
        status, body = _ready(server.client)
        assert (status, body["status"]) == (503, "not ready")
        assert body["parts"]["model"]["state"] == "loading"
        assert body["parts"]["model"]["needed_to_predict"] is True
        gate.set()
        status, body = _ready(server.ready().client)
        assert (status, body["status"]) == (200, "ready")
        assert body["parts"]["redis"] == {"state": "up", "reason": "", "needed_to_predict": False}
        assert body["parts"]["label_studio"]["state"] == "not set"


def test_without_redis_the_server_stays_in_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch) as server:
        server.ready().training.down = True
        status, body = _ready(server.client)
        assert (status, body["status"]) == (200, "degraded")
        assert "Redis" in body["parts"]["redis"]["reason"]


def test_label_studio_is_asked_with_the_token(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = {"label_studio_url": "http://127.0.0.1:9", "label_studio_api_key": "a-secret-of-label-studio"}
    with serving(tmp_path, monkeypatch, **settings) as server:
        status, body = _ready(server.ready().client)
        assert (status, body["status"]) == (200, "degraded")
        part = body["parts"]["label_studio"]
        assert part["state"] == "down"
        assert part["reason"]
        assert "a-secret" not in str(body)


def test_who_has_no_credentials_learns_the_status_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch, basic_auth_user="me", basic_auth_pass="pass") as server:
        assert _ready(server.ready().client) == (200, {"status": "ready"})
        assert "parts" in _ready(server.client, Authorization="Basic bWU6cGFzcw==")[1]
