"""What Prometheus is told, read with its own parser."""

from __future__ import annotations

import logging
import re
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, get_args

import pytest
import yaml
from fastapi.testclient import TestClient
from prometheus_client.parser import text_string_to_metric_families

from backend import failures
from backend.answers.request import TaskError
from backend.cache_counts import CacheCounts
from backend.failures import Reason, reason_of
from backend.label_studio.images.errors import ForbiddenAddressError, ImageTimeoutError, ImageUnavailableError
from backend.metrics import STAGES, Metrics, Times
from backend.model_store import BusyError
from tests.backend.serving import CONFIG, Server, serving


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
    server.event("START_TRAINING")
    server.event("ANNOTATION_CREATED")
    server.event("ANNOTATION_CREATED")
    server.event("PROJECT_UPDATED")
    server.event("AN_ACTION_OF_MY_CHOICE")
    server.training.down = True
    server.event("START_TRAINING")
    found = values(server.client)
    events = {key[1:]: count for key, count in found.items() if key[0] == "vlm_webhook_events_total"}
    assert events == {
        ("ANNOTATION_CREATED", "noted"): 2,
        ("START_TRAINING", "queued"): 1,
        ("PROJECT_UPDATED", "ignored"): 1,
        ("other", "ignored"): 1,
        ("START_TRAINING", "not queued"): 1,
    }


def test_the_queue_is_absent_while_redis_is_down(server: Server) -> None:
    server.event("START_TRAINING")
    found = values(server.client)
    assert found["vlm_jobs", "training", "queued"] == 1
    assert found["vlm_jobs", "training", "running"] == 0
    assert found["vlm_workers", "training"] == 1
    assert found["vlm_jobs", "prelabel", "queued"] == 0
    assert found["vlm_prelabel_tasks_open",] == 0
    server.training.down = True
    assert not [
        key for key in values(server.client) if key[0] in ("vlm_jobs", "vlm_workers", "vlm_prelabel_tasks_open")
    ]


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


def test_the_documentation_names_every_metric_and_asks_for_no_other(server: Server) -> None:
    server.predict("squares", "gone")
    server.event("ANNOTATION_CREATED")
    page = (Path(__file__).parents[2] / "docs" / "monitoring.md").read_text()
    samples = {key[0] for key in values(server.client) if key[0].startswith("vlm_")}
    families = {re.sub(r"_(bucket|sum|count)$", "", name) for name in samples if not name.endswith("_created")}
    described = set(re.findall(r"^\| `(vlm_\w+)` \|", page, re.MULTILINE))
    assert described == families
    assert set(re.findall(r"\bvlm_\w+", page)) <= samples | families
    for reason in get_args(Reason):
        assert f"`{reason}`" in page, reason
    for stage in STAGES:
        assert re.search(rf"^\| `{stage}` \|", page, re.MULTILINE), stage
    for block in re.findall(r"```yaml\n(.*?)```", page, re.DOTALL):
        yaml.safe_load(block)


# Predictions ------------------------------------------------------------------------------------------------


def _changed(before: dict[tuple[str, ...], float], after: dict[tuple[str, ...], float], name: str) -> dict[Any, float]:
    return {
        key[1:]: round(value - before.get(key, 0), 6)
        for key, value in after.items()
        if key[0] == name and value != before.get(key, 0)
    }


def test_tasks_are_counted_by_what_their_answer_holds(server: Server) -> None:
    before = values(server.client)
    server.predict("squares", "gone", "white")
    server.predict("squares", label_config="<View")
    server.predict()
    after = values(server.client)
    assert _changed(before, after, "vlm_tasks_total") == {("found",): 1, ("nothing",): 1, ("failed",): 2}
    assert _changed(before, after, "vlm_failures_total") == {("image_unavailable",): 1, ("config",): 1}


def test_a_task_that_is_late_is_counted_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch, predict_deadline_s=0.2) as server:
        encoding = threading.Event()
        server.ready().model.on_encode = lambda: encoding.wait(20) and None
        server.predict("squares", "white")
        encoding.set()
        found = values(server.client)
    assert found["vlm_tasks_total", "failed"] == 2
    assert sum(value for key, value in found.items() if key[0] == "vlm_failures_total") == 2
    assert not [key for key in found if key[:1] == ("vlm_tasks_total",) and key[1] != "failed"]


def test_the_time_of_predictions_is_told_by_stage(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "backend.request")
    tags = CONFIG.replace("</View>", '<Choices name="c" toName="i"><Choice value="red"/></Choices></View>')
    server.predict("squares", "gone", "white", label_config=tags)
    found = values(server.client)
    counts = {key[1]: value for key, value in found.items() if key[0] == "vlm_stage_seconds_count"}
    assert set(counts) == set(STAGES)
    assert counts["fetch"] == 3, "also the one that failed"
    assert counts["regions"] == 2, "one for each image"
    # Masks and tags are two passes; whether the two images went through in one batch is a matter of time.
    assert 2 <= counts["encode"] <= 4
    assert found["vlm_batch_size_sum", "encode"] == 4
    assert found["vlm_batch_size_sum", "decode_masks"] == 2
    assert found["vlm_batch_size_sum", "rank_tags"] == 2
    assert counts["wait"] == 8, "each image for each of the two passes, the decoder and the ranking"
    (line,) = [message for message in caplog.messages if "path=/predict" in message]
    assert [field.partition("=")[0] for field in line.split() if "_ms=" in field] == [f"{name}_ms" for name in STAGES]
    assert " batch=" in line


def test_what_is_known_already_is_not_encoded_again(server: Server) -> None:
    server.predict("squares", "white")
    before = values(server.client)
    server.predict("squares", "white")
    after = values(server.client)
    assert _changed(before, after, "vlm_stage_seconds_count").get(("encode",)) is None
    assert _changed(before, after, "vlm_cache_requests_total") == {("features", "memory"): 2}
    assert before["vlm_cache_requests_total", "features", "miss"] == 2
    assert before["vlm_cache_requests_total", "phrases", "hit"] == 3
    assert before["vlm_cache_requests_total", "phrases", "miss"] == 4


def test_features_on_disk_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for expected in ("miss", "disk"):
        with serving(tmp_path, monkeypatch, feature_cache_bytes=0) as server:
            server.ready().predict("squares")
            assert values(server.client)["vlm_cache_requests_total", "features", expected] == 1


def test_a_requests_times_are_added_up_over_its_threads() -> None:
    metrics = Metrics()
    times = Times(metrics)
    times.batch("encode", 0.25, 4)
    times.batch("encode", 0.5, 2)
    times.stage("fetch", 1.0)
    with pytest.raises(ValueError, match="wrong"), times.timed("regions"):
        raise ValueError("wrong")
    fields = dict(times.fields())
    assert fields.pop("regions_ms") < 1000
    assert list(fields.items()) == [("fetch_ms", 1000), ("encode_ms", 750), ("batch", 4)]
    found = _read(metrics.exposition("")[0].decode())
    assert found["vlm_stage_seconds_count", "regions"] == 1, "also where it fails"
    assert found["vlm_stage_seconds_sum", "fetch"] == 1
    assert ("vlm_stage_seconds_count", "encode") not in found, "the batch is counted, not each who waited for it"


def test_every_error_counts_as_one_of_a_fixed_set() -> None:
    names = [reason for _, reason in failures._BY_KIND]
    assert set(names) | {"late", "refused", "task_data", "unexpected", "out_of_memory"} == set(get_args(Reason))
    kinds = [kind for kind, _ in failures._BY_KIND]
    for index, kind in enumerate(kinds):
        assert not [later for later in kinds[index + 1 :] if issubclass(later, kind)], f"{kind} hides another"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (TaskError("late", "late"), "late"),
        (TaskError("no data"), "task_data"),
        (ImageTimeoutError("slow"), "image_timeout"),
        (ImageUnavailableError("gone"), "image_unavailable"),
        (ForbiddenAddressError("private"), "image_forbidden"),
        (BusyError("busy"), "model_busy"),
        (MemoryError(), "out_of_memory"),
        (type("OutOfMemoryError", (RuntimeError,), {})("CUDA"), "out_of_memory"),
        (KeyError("x"), "unexpected"),
    ],
)
def test_what_an_error_counts_as(error: Exception, reason: str) -> None:
    assert reason_of(error) == reason


def test_cache_counts_are_right_from_many_threads() -> None:
    counts = CacheCounts("hit", "miss")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: counts.add("hit" if n % 2 else "miss"), range(2000)))
    assert counts.read() == {"hit": 1000, "miss": 1000}
