"""What Prometheus is told, read with its own parser."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from backend.metrics import Metrics, Times
from tests.backend.serving import Server, serving


def values(client: TestClient) -> dict[tuple[str, ...], float]:
    """Every sample, by its name and its label values in the order of the labels' names."""
    reply = client.get("/metrics")
    assert reply.status_code == 200
    assert reply.headers["content-type"].startswith("text/plain; version=")
    return _read(reply.text)


def _read(text: str) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *(sample.labels[name] for name in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(tmp_path, monkeypatch) as made:
        yield made.ready()


def test_requests_are_timed_by_route_and_status(server: Server) -> None:
    server.setup()
    server.setup(schema="<View")
    server.client.post("/setup", content=b"{")
    server.client.get("/versions?project=7")
    found = values(server.client)
    assert found["vlm_request_seconds_count", "/setup", "200"] == 2
    assert found["vlm_request_seconds_count", "/setup", "400"] == 1
    assert found["vlm_request_seconds_count", "/versions", "200"] == 1
    assert 0 < found["vlm_request_seconds_sum", "/setup", "200"] < 60
    assert found["vlm_requests_in_progress",] == 1, "this one"


def test_no_path_of_a_clients_choice_is_a_series(server: Server) -> None:
    server.client.get("/a-path-of-my-choice")
    server.client.get("/versions/a-path-of-my-choice")
    server.client.request("A-METHOD", "/a-path-of-my-choice")
    found = values(server.client)
    assert not [key for key in found if "my-choice" in str(key) or "A-METHOD" in str(key)]
    assert found["vlm_request_seconds_count", "other", "404"] == 3


def test_webhooks_are_counted_by_action_and_outcome(server: Server) -> None:
    server.event("ANNOTATION_CREATED")
    server.event("ANNOTATION_CREATED")
    server.event("PROJECT_UPDATED")
    server.event("AN_ACTION_OF_MY_CHOICE")
    server.training.down = True
    server.event("START_TRAINING")
    found = values(server.client)
    events = {key[1:]: count for key, count in found.items() if key[0] == "vlm_webhook_events_total"}
    assert events == {
        ("ANNOTATION_CREATED", "queued"): 1,
        ("ANNOTATION_CREATED", "already queued"): 1,
        ("PROJECT_UPDATED", "ignored"): 1,
        ("other", "ignored"): 1,
        ("START_TRAINING", "not queued"): 1,
    }


def test_the_queue_is_absent_while_redis_is_down(server: Server) -> None:
    server.event("ANNOTATION_CREATED")
    found = values(server.client)
    assert found["vlm_jobs", "training", "queued"] == 1
    assert found["vlm_jobs", "training", "running"] == 0
    assert found["vlm_workers", "training"] == 1
    server.training.down = True
    assert not [key for key in values(server.client) if key[0] in ("vlm_jobs", "vlm_workers")]


def test_what_serves_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    with serving(tmp_path, monkeypatch, gate) as server:
        found = values(server.client)
        assert found["vlm_up", "model"] == 0
        assert not [key for key in found if key[0] == "vlm_model_info"]
        gate.set()
        server.ready()
        found = values(server.client)
        assert found["vlm_up", "model"] == 1
        assert found["vlm_up", "redis"] == 1
        assert ("vlm_up", "label_studio") not in found, "it is not set"
        (info,) = [key for key in found if key[0] == "vlm_model_info"]
        assert info[2] == "colours"
        assert any(key[0] == "vlm_build_info" for key in found)
        assert found["process_cpu_seconds_total",] > 0


def test_two_apps_count_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path / "one", monkeypatch) as one, serving(tmp_path / "two", monkeypatch) as two:
        one.ready().setup()
        assert ("vlm_request_seconds_count", "/setup", "200") not in values(two.client)


def test_prometheus_may_ask_for_openmetrics(server: Server) -> None:
    reply = server.client.get("/metrics", headers={"Accept": "application/openmetrics-text; version=1.0.0"})
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    assert reply.text.endswith("# EOF\n")


def test_metrics_ask_for_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch, basic_auth_user="me", basic_auth_pass="pass") as server:
        assert server.client.get("/metrics").status_code == 401
        assert server.client.get("/metrics", auth=("me", "pass")).status_code == 200


def test_a_requests_times_are_added_up_over_its_threads() -> None:
    metrics = Metrics()
    times = Times(metrics)
    times.add("encode", 0.25)
    times.add("encode", 0.5)
    times.add("fetch", 1.0)
    times.batch(4)
    times.batch(2)
    with pytest.raises(ValueError, match="wrong"), times.timed("regions"):
        raise ValueError("wrong")
    fields = dict(times.fields())
    assert fields.pop("regions_ms") < 1000
    assert list(fields.items()) == [("fetch_ms", 1000), ("encode_ms", 750), ("batch", 4)]
    found = _read(metrics.exposition("")[0].decode())
    assert found["vlm_stage_seconds_count", "regions"] == 1, "also where it fails"
    assert ("vlm_stage_seconds_count", "encode") not in found, "the batch is counted, not each who waited for it"
