"""The running server against its own OpenAPI document: Schemathesis sends what it allows and what it does not.

The real app: a tiny checkpoint, the embedded Redis, files of this machine. The seed is fixed.
"""

from __future__ import annotations

import base64
import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import schemathesis
from fastapi import FastAPI
from fastapi.routing import APIRoute
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, seed, settings
from hypothesis import strategies as st
from PIL import Image
from schemathesis.engine import events, from_schema

from backend.app import create_app
from backend.redis_server import release_server
from backend.settings import Settings
from tests.backend.serving import CONFIG
from tests.core.factories import make_clipseg_directory

USER, PASSWORD = "me", "a-password"
HEADERS = {"Authorization": "Basic " + base64.b64encode(f"{USER}:{PASSWORD}".encode()).decode()}
EXAMPLES = 30
SEED = 20240611


@pytest.fixture
def app(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FastAPI]:
    """One for each test: Schemathesis ends it after a run, and an app that has ended answers nothing."""
    directory = tmp_path_factory.mktemp("openapi")  # a short path, as Redis's socket needs
    make_clipseg_directory(directory / "tiny", mask_size=64, image_size=64)
    (directory / "files").mkdir()
    Image.new("RGB", (40, 30), "red").save(directory / "files" / "a.png")
    made = create_app(
        Settings(
            checkpoint=str(directory / "tiny"),
            device="cpu",
            data_dir=directory / "data",
            local_files_root=directory / "files",
            basic_auth_user=USER,
            basic_auth_pass=PASSWORD,
            request_max_bytes=1024 * 1024,
        )
    )
    yield made
    release_server(directory / "data" / "redis")


@pytest.fixture
def loaded(app: FastAPI) -> schemathesis.BaseSchema:
    """The document as the server gives it to who has credentials, once model and queues are there."""
    config = {
        "seed": SEED,
        "auth": {"basic": {"username": USER, "password": PASSWORD}},
        "generation": {"max-examples": EXAMPLES, "deterministic": True, "with-security-parameters": False},
        "phases": {"stateful": {"enabled": False}},
    }
    document = schemathesis.openapi.from_asgi(
        "/openapi.json", app, headers=HEADERS, config=schemathesis.Config.from_dict(config)
    )
    deadline = time.monotonic() + 120
    while document["/health"]["GET"].Case().call().json()["model"] != "ready":
        assert time.monotonic() < deadline
    asked = [
        document["/webhook"]["POST"].Case(
            body={"action": "START_TRAINING", "project": 1}, media_type="application/json"
        ),
        document["/projects/{project}/prelabel"]["GET"].Case(path_parameters={"project": "1"}),
    ]
    while any(case.call(headers=HEADERS).status_code == 503 for case in asked):
        assert time.monotonic() < deadline
    return document


def test_the_server_does_what_its_document_says(loaded: schemathesis.BaseSchema) -> None:
    """Every route, with what the document allows and with what it does not: examples, boundaries, random."""
    asked: Counter[str] = Counter()
    wrong: list[str] = []
    for event in from_schema(loaded).execute():
        if isinstance(event, events.ScenarioFinished):
            recorder = event.recorder
            asked[recorder.label] += len(recorder.interactions)
            wrong += [
                f"{recorder.label}: {check.name}: {check.failure_info.failure}\n{check.failure_info.code_sample}"
                for checks in recorder.checks.values()
                for check in checks
                if check.failure_info is not None
            ]
        elif isinstance(event, (events.NonFatalError, events.FatalError)):
            wrong.append(str(getattr(event, "info", None) or event))
        elif isinstance(event, events.EngineFinished):
            assert event.stop_reason.value == "completed"
    assert not wrong, f"{len(wrong)} wrong:\n" + "\n\n".join(wrong[:5])
    documented = {f"{m.upper()} {path}" for path, methods in loaded.raw_schema["paths"].items() for m in methods}
    assert set(+asked) == documented


# What a random text will not hit: configs that can be used, tasks with images, what annotators have drawn.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
CONFIGS = st.sampled_from(
    [
        CONFIG,
        CONFIG.replace(
            "</View>", '<Choices name="c" toName="i"><Choice value="yes"/><Choice value="no"/></Choices></View>'
        ),
        CONFIG.replace("BrushLabels", "RectangleLabels"),
        CONFIG.replace("BrushLabels", "Video"),
        CONFIG.replace("$image", "$other"),
    ]
)
URIS = st.sampled_from(["/data/local-files/?d=a.png", "/data/local-files/?d=../x", "data:image/png;base64,AAAA", "x:y"])
TASKS = st.lists(
    JSON
    | st.fixed_dictionaries(
        {"data": st.dictionaries(st.sampled_from(["image", "other"]), URIS | JSON, max_size=2)},
        optional={"id": st.integers(1, 9) | JSON, "annotations": JSON},
    ),
    max_size=3,
)
REGIONS = st.lists(
    JSON
    | st.fixed_dictionaries(
        {"type": st.sampled_from(["brushlabels", "rectanglelabels", "keypointlabels", "textarea", "choices"])},
        optional={
            "id": JSON,
            "from_name": st.sampled_from(["b", "c"]) | JSON,
            "to_name": st.sampled_from(["i"]) | JSON,
            "value": JSON
            | st.fixed_dictionaries(
                {"brushlabels": st.just(["Red"]) | JSON},
                optional={name: st.floats(-10, 110) | JSON for name in ("x", "y", "width", "height", "text", "rle")},
            ),
            "original_width": JSON,
        },
    ),
    max_size=2,
)


@seed(SEED)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(config=CONFIGS, tasks=TASKS, context=st.none() | st.fixed_dictionaries({}, optional={"result": REGIONS | JSON}))
def test_tasks_of_any_kind_get_a_prediction_or_a_reason(
    loaded: schemathesis.BaseSchema, config: str, tasks: list[Any], context: dict[str, Any] | None
) -> None:
    body = {"tasks": tasks, "project": "7.17", "label_config": config, "params": {"context": context}}
    case = loaded["/predict"]["POST"].Case(body=body, media_type="application/json")
    reply = case.call_and_validate(headers=HEADERS)
    assert reply.status_code == 200
    assert len(reply.json()["results"]) == len(tasks)
    assert not [item for item in reply.json()["results"] if "unexpected" in item.get("error", "")]


@seed(SEED)
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck), database=None)
@given(config=CONFIGS | st.text(), extra=JSON | JSON.map(json.dumps) | st.dictionaries(st.just("model_min_area"), JSON))
def test_any_connection_can_be_set_up(loaded: schemathesis.BaseSchema, config: str, extra: Any) -> None:
    body = {"project": 7, "schema": config, "extra_params": extra}
    reply = loaded["/setup"]["POST"].Case(body=body, media_type="application/json").call_and_validate(headers=HEADERS)
    assert reply.status_code == 200


# The document itself ----------------------------------------------------------------------------------------


def _routes(router: Any) -> Iterator[APIRoute]:
    for route in router.routes:
        inner = getattr(route, "original_router", None)  # a router that was included
        if inner is not None:
            yield from _routes(inner)
        elif isinstance(route, APIRoute):
            yield route


def test_every_route_is_documented_or_left_out_on_purpose(app: FastAPI) -> None:
    routes = list(_routes(app))
    left_out = {route.path for route in routes if not route.include_in_schema}
    pages = {"/", "/projects/{project}/versions/{version}/report"}
    assert left_out == {*pages, "/metrics", "/openapi.json"}
    paths = app.openapi()["paths"]
    assert set(paths) == {route.path for route in routes} - left_out
    assert all(operation.get("description") for methods in paths.values() for operation in methods.values())


def test_the_document_asks_for_credentials_and_names_them(tmp_path: Path) -> None:
    with TestClient(create_app(Settings(data_dir=tmp_path, basic_auth_user=USER, basic_auth_pass=PASSWORD))) as client:
        assert client.get("/openapi.json").status_code == 401
        document = client.get("/openapi.json", headers=HEADERS).json()
    security = {path: next(iter(methods.values()))["security"] for path, methods in document["paths"].items()}
    assert {path for path, asked in security.items() if not asked} == {"/health", "/ready"}
    assert security["/setup"] == [{"basic": []}]


@pytest.mark.parametrize(
    ("settings_", "setup", "webhook"),
    [
        ({}, [], []),
        ({"webhook_secret": "a-secret-of-webhooks"}, [], [{}, {"webhookSecret": []}]),
        (
            {"basic_auth_user": USER, "basic_auth_pass": PASSWORD, "webhook_secret": "a-secret-of-webhooks"},
            [{"basic": []}],
            [{"basic": []}, {"webhookSecret": []}],
        ),
    ],
)
def test_what_a_webhook_needs_depends_on_the_settings(
    tmp_path: Path, settings_: dict[str, str], setup: Any, webhook: Any
) -> None:
    paths = create_app(Settings(data_dir=tmp_path, **settings_)).openapi()["paths"]
    assert paths["/setup"]["post"]["security"] == setup
    assert paths["/webhook"]["post"]["security"] == webhook
