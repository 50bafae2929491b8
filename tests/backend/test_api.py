from __future__ import annotations

import base64
import json
import logging
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from backend.api import routes
from backend.api.schemas import PredictRequest, parse
from backend.right_of_way import GiveWay
from tests.backend.serving import CONFIG, Server, serving, until


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    with serving(tmp_path, monkeypatch) as made:
        yield made.ready()


# Health and setup -------------------------------------------------------------------------------------------


def test_health_answers_while_the_model_loads_and_setup_says_why_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gate = threading.Event()
    with serving(tmp_path, monkeypatch, gate) as server:
        assert server.client.get("/health").json() == {"status": "UP", "model": "loading"}
        reply = server.setup()
        assert reply.status_code == 503
        assert "being loaded" in reply.json()["error"]
        assert "model_version" not in reply.json()
        gate.set()
        assert server.ready().setup().status_code == 200


def test_predict_waits_for_the_model_within_its_deadline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    with serving(tmp_path, monkeypatch, gate, predict_deadline_s=0.2) as server:
        reply = server.predict("squares", "white")
        assert reply.status_code == 200
        assert ["being loaded" in item["error"] for item in reply.json()["results"]] == [True, True]
        gate.set()


def test_setup_and_every_prediction_agree_on_the_version(server: Server) -> None:
    name = server.setup().json()["model_version"]
    assert name.startswith("colours-p7-v000-")
    results = server.predict("squares", "white").json()["results"]
    assert {item["model_version"] for item in results} == {name}
    assert server.client.get("/versions").json() == {"versions": [name]}
    assert server.client.get("/versions?project=7").json() == {"versions": [name], "current": 0, "history": []}


@pytest.mark.parametrize("extra", [None, "", "{}", {}, '{"model_score_threshold": 0.4}', {"other": "x"}])
def test_extra_parameters_come_in_several_forms(server: Server, extra: Any) -> None:
    reply = server.setup(extra_params=extra)
    assert reply.status_code == 200
    assert "config_error" not in reply.json()
    predicted = server.predict("squares").json()["results"][0]["model_version"]
    assert predicted == reply.json()["model_version"]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"schema": "<View"}, "not well-formed"),
        ({"schema": CONFIG.replace('toName="i"', 'toName="j"')}, '"j"'),
        ({"extra_params": "not json"}, "extra parameters"),
        ({"extra_params": [1]}, "extra parameters"),
        ({"extra_params": {"model_score_threshold": 7}}, "model_score_threshold"),
        ({"extra_params": '{"model_score_threshold": NaN}'}, "NaN"),
        ({"extra_params": r'{"model_skip": "\ud800"}'}, "character"),
        ({"extra_params": "[" * 100_000}, "not JSON"),
    ],
)
def test_a_config_that_cannot_be_used_does_not_break_setup(
    server: Server, caplog: pytest.LogCaptureFixture, changes: dict[str, Any], says: str
) -> None:
    reply = server.setup(**changes)
    assert reply.status_code == 200
    assert says in reply.json()["config_error"]
    assert says in caplog.text
    name = reply.json()["model_version"]
    assert name.startswith("colours-p7-v000-")
    assert says in server.client.get("/status").json()["projects"]["7"]["config_problem"]
    # What `/setup` refuses predictions refuse too, instead of going on under another name.
    (item,) = server.predict("squares", label_config=changes.get("schema", CONFIG)).json()["results"]
    assert "result" not in item
    assert says in item["error"]
    assert name != server.setup().json()["model_version"]
    assert server.client.get("/status").json()["projects"]["7"]["config_problem"] is None
    assert "result" in server.predict("squares").json()["results"][0]


def test_setup_tells_what_is_left_alone(server: Server) -> None:
    schema = CONFIG.replace("</View>", '<TextArea name="t" toName="i"/></View>')
    (left,) = server.setup(schema=schema).json()["left_alone"]
    assert left["name"] == "t"


# Predict ----------------------------------------------------------------------------------------------------


def test_a_batch_has_one_item_a_task(server: Server) -> None:
    reply = server.predict("squares", "gone", "white")
    assert reply.status_code == 200
    assert list(reply.json()) == ["results"]
    items = reply.json()["results"]
    assert [len(item["result"]) if "result" in item else item["error"] for item in items] == [
        1,
        "gone: there is no such image",
        0,
    ]


def test_an_interactive_error_is_a_200_with_errors(server: Server) -> None:
    point = {"id": "a", "from_name": "b", "to_name": "i", "type": "keypointlabels", "value": {"x": 1, "y": 1}}
    context: dict[str, Any] = {"context": {"result": [point]}}
    reply = server.predict("gone", params=context)
    assert reply.status_code == 200
    assert reply.json()["errors"] == ["gone: there is no such image"]
    assert len(reply.json()["results"]) == 1
    reply = server.predict("squares", params=context, label_config="<View")
    assert reply.status_code == 200
    assert "not well-formed" in reply.json()["errors"][0]
    assert "errors" not in server.predict("squares", params=context).json()


@pytest.mark.parametrize("context", [7, "text", [1], {}, {"result": [{"type": "keypoint", "value": 7}]}])
def test_a_broken_context_is_a_200_with_errors(server: Server, context: Any) -> None:
    reply = server.predict("squares", params={"context": context})
    assert reply.status_code == 200
    (reason,) = reply.json()["errors"]
    assert reply.json()["results"] == [{"error": reason}]


@pytest.mark.parametrize("project", [7, "7", "7.1700000000", {"id": 7}])
def test_a_project_comes_in_several_forms(server: Server, project: Any) -> None:
    assert server.predict("squares", project=project).status_code == 200


def test_the_body_may_lack_params(server: Server) -> None:
    assert server.predict("squares", params=None).status_code == 200


# Status -----------------------------------------------------------------------------------------------------


def _status(server: Server) -> Any:
    return server.client.get("/status").json()["projects"]


def test_status_says_of_each_project_what_last_happened(server: Server) -> None:
    assert _status(server) == {}
    name = server.setup().json()["model_version"]
    known = _status(server)["7"]
    assert known == {
        "version": name,
        "config_problem": None,
        "last_prediction": None,
        "last_event": None,
        "last_error": None,
    }
    server.predict("squares", "gone")
    server.event("ANNOTATION_CREATED")
    until(lambda: server.training.requests != [])
    server.event("PROJECT_UPDATED")  # says nothing about learning, and so covers up nothing
    until(lambda: _status(server)["7"]["last_event"] is not None)
    known = _status(server)["7"]
    assert {key: known["last_prediction"][key] for key in ("tasks", "failed")} == {"tasks": 2, "failed": 1}
    assert {key: known["last_error"][key] for key in ("stage", "reason")} == {
        "stage": "predict",
        "reason": "gone: there is no such image",
    }
    assert {key: known["last_event"][key] for key in ("action", "outcome")} == {
        "action": "ANNOTATION_CREATED",
        "outcome": "queued",
    }
    server.setup(schema="<View")
    assert "not well-formed" in _status(server)["7"]["config_problem"]
    server.setup()
    assert _status(server)["7"]["config_problem"] is None


def test_status_says_which_event_was_not_queued(server: Server) -> None:
    server.training.down = True
    server.event("START_TRAINING")
    known = _status(server)["7"]
    assert (known["last_event"]["action"], known["last_event"]["outcome"]) == ("START_TRAINING", "not queued")
    assert known["last_error"]["stage"] == "webhook"
    assert "Redis" in known["last_error"]["reason"]


def test_status_remembers_over_a_restart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch) as server:
        name = server.ready().setup().json()["model_version"]
    with serving(tmp_path, monkeypatch) as server:
        assert _status(server)["7"]["version"] == name


# Wrong requests ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["/setup", "/predict", "/webhook"])
@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b"", 400),
        (b"{", 400),
        (b"\xff\xfe", 400),
        (b"[" * 100_000, 400),
        (b'{"project": 1' + b"0" * 5000 + b"}", 400),  # an integer too long to convert
        (b"[]", 422),
        (b"null", 422),
        (b"{}", 422),
    ],
)
def test_a_body_that_is_none_is_the_callers_error(server: Server, path: str, body: bytes, status: int) -> None:
    reply = server.client.post(path, content=body)
    assert reply.status_code == status
    assert reply.json()["error"]


@pytest.mark.parametrize(
    ("path", "changes", "named"),
    [
        ("predict", {"tasks": 3}, "tasks"),
        ("predict", {"tasks": None}, "tasks"),
        ("predict", {"tasks": {"id": 1, "data": {}}}, "tasks"),
        ("predict", {"project": None}, "project"),
        ("predict", {"project": "seven"}, "project"),
        ("predict", {"project": "-7"}, "project"),
        ("predict", {"project": 0}, "project"),
        ("predict", {"project": 7.5}, "project"),
        ("predict", {"project": True}, "project"),
        ("predict", {"project": "\N{ARABIC-INDIC DIGIT SEVEN}"}, "project"),
        ("predict", {"project": "../../etc"}, "project"),
        ("predict", {"label_config": None}, "label_config"),
        ("predict", {"label_config": "  "}, "label_config"),
        ("predict", {"params": "x"}, "params"),
        ("setup", {"schema": 3}, "schema"),
        ("setup", {"project": {}}, "project"),
    ],
)
def test_a_wrong_value_is_named_and_not_shown(server: Server, path: str, changes: dict[str, Any], named: str) -> None:
    reply = getattr(server, path)(**changes)
    assert reply.status_code == 422
    assert reply.json()["error"].startswith(f"{named}: ")
    assert "etc" not in reply.text


def test_a_wrong_task_costs_itself_only(server: Server) -> None:
    good = {"id": 1, "data": {"image": "squares"}}
    wrong: list[Any] = [
        None,
        3,
        [],
        {},
        {"id": 2},
        {"id": 3, "data": None},
        {"id": 4, "data": "x"},
        {"id": 5, "data": []},
    ]
    unlike = [{"data": good["data"]}, {"id": None, **good}, {"id": {"a": 1}, "data": good["data"]}]
    first, *failed = server.predict(tasks=[good, *wrong]).json()["results"]
    assert first["result"]
    assert [("result" in item, '"data"' in item["error"]) for item in failed] == [(False, True)] * len(wrong)
    for item in server.predict(tasks=unlike).json()["results"]:
        assert [region["value"] for region in item["result"]] == [region["value"] for region in first["result"]]


@pytest.mark.parametrize("announced", [True, False])
def test_a_body_over_the_limit_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, announced: bool) -> None:
    def drip() -> Iterator[bytes]:
        yield from [b" " * 1000] * 3

    with serving(tmp_path, monkeypatch, request_max_bytes=2000) as server:
        reply = server.client.post("/predict", content=b" " * 2001 if announced else drip())
        assert reply.status_code == 413
        assert "VLM_REQUEST_MAX_BYTES" in reply.json()["error"]


@pytest.mark.parametrize("path", ["/", "/health"])
def test_probes_that_want_no_body_are_answered(server: Server, path: str) -> None:
    reply = server.client.head(path)
    assert (reply.status_code, reply.content) == (200, b"")


@pytest.mark.parametrize(("method", "path", "status"), [("GET", "/nope", 404), ("POST", "/versions", 405)])
def test_other_routes_are_refused_in_the_same_shape(server: Server, method: str, path: str, status: int) -> None:
    reply = server.client.request(method, path)
    assert reply.status_code == status
    assert reply.json()["error"]


def test_what_nobody_foresaw_is_a_500_with_a_reference(
    server: Server, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("/secret/path")

    monkeypatch.setattr(server.training, "request_training", fail)
    reply = server.event("START_TRAINING")
    assert reply.status_code == 500
    assert "secret" not in reply.text
    reference = reply.json()["error"].split()[-1]
    assert f"reference={reference}" in caplog.text
    assert "/secret/path" in caplog.text


# Webhooks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("action", "fields"),
    [
        ("ANNOTATION_CREATED", {"annotation": {"id": 1}, "task": {"id": 1}}),
        ("ANNOTATION_UPDATED", {"annotation": {"id": 1}, "task": {"id": 1}}),
        ("ANNOTATIONS_CREATED", {"annotation": [{"id": 1}], "task": [{"id": 1}]}),
        ("ANNOTATIONS_DELETED", {"annotations": [{"id": 1}]}),
    ],
)
def test_events_ask_for_a_training(server: Server, action: str, fields: dict[str, Any]) -> None:
    reply = server.event(action, **fields)
    assert (reply.status_code, reply.json()) == (200, {"status": "noted"})
    until(lambda: server.training.requests == [(7, action)])


def test_the_button_is_told_what_became_of_it(server: Server) -> None:
    reply = server.event("START_TRAINING")
    assert (reply.status_code, reply.json()) == (201, {"status": "queued", "job": "train-p7-1"})
    again = server.event("START_TRAINING")
    assert (again.status_code, again.json()["status"]) == (200, "already queued")
    assert server.training.requests == [(7, "START_TRAINING")] * 2


def test_a_training_is_cancelled_and_one_that_never_began_is_noted(server: Server, tmp_path: Path) -> None:
    assert server.client.delete("/projects/7/training").json() == {"status": "nothing"}
    server.event("START_TRAINING")
    reply = server.client.delete("/projects/7/training")
    assert (reply.status_code, reply.json()) == (200, {"status": "removed"})
    assert server.training.requests == []
    (page,) = [server.client.get("/", headers={"accept": "text/html"}).text]
    assert "cancelled before it began" in page
    server.training.down = True
    reply = server.client.delete("/projects/7/training")
    assert reply.status_code == 503
    assert "nothing was cancelled" in reply.json()["error"]
    assert server.client.delete("/projects/0/training").status_code == 422


def test_events_of_a_moment_are_passed_on_as_one_for_each_project(server: Server) -> None:
    server.training.gate = threading.Event()  # the queue is slow with the first one
    server.event("ANNOTATION_CREATED")
    until(lambda: server.training.waiting == 1)
    for number in range(30):
        server.event("ANNOTATION_UPDATED", {"id": 7 + number % 3})
    server.training.gate.set()
    updated = [(7, "ANNOTATION_UPDATED"), (8, "ANNOTATION_UPDATED"), (9, "ANNOTATION_UPDATED")]
    until(lambda: len(server.training.requests) == 4)
    assert server.training.requests == [(7, "ANNOTATION_CREATED"), *updated]


def test_events_that_were_acknowledged_are_passed_on_before_the_server_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.nudges._GATHER_S", 60)
    with serving(tmp_path, monkeypatch) as server:
        server.event("ANNOTATIONS_DELETED")
    assert server.training.requests == [(7, "ANNOTATIONS_DELETED")]


@pytest.mark.parametrize("action", ["PROJECT_UPDATED", "TASKS_CREATED", "LABEL_LINK_CREATED", "ANNOTATION_DELETED"])
def test_other_events_are_acknowledged(server: Server, action: str) -> None:
    assert server.event(action, {"title": "no id"}).status_code == 200
    assert server.training.requests == []


def test_an_event_without_a_project_is_the_callers_error(server: Server) -> None:
    for action in ("START_TRAINING", "ANNOTATION_CREATED"):
        reply = server.client.post("/webhook", json={"action": action})
        assert reply.status_code == 422
        assert reply.json()["error"].startswith("project: ")


def test_with_the_queue_down_annotations_are_acknowledged_and_the_button_is_not(server: Server) -> None:
    server.training.down = True
    reply = server.event("ANNOTATION_CREATED")
    assert (reply.status_code, reply.json()) == (200, {"status": "noted"})
    reply = server.event("START_TRAINING")
    assert reply.status_code == 503
    assert "Redis" in reply.json()["error"]
    assert server.client.get("/status").json()["queue"]["status"] == "down"


def test_events_that_came_while_the_queue_was_down_are_passed_on_when_it_is_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("backend.nudges._AGAIN_S", 0.01)
    with serving(tmp_path, monkeypatch) as server:
        server.training.down = True
        server.event("ANNOTATION_CREATED")
        until(lambda: "7" in _status(server))
        assert _status(server)["7"]["last_event"]["outcome"] == "not queued"
        assert "Redis" in _status(server)["7"]["last_error"]["reason"]
        server.training.down = False
        until(lambda: server.training.requests == [(7, "ANNOTATION_CREATED")])


def test_a_queue_that_hangs_is_not_waited_for(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "WEBHOOK_LIMIT_S", 0.05)
    server.training.gate = threading.Event()
    try:
        assert server.event("ANNOTATION_CREATED").status_code == 200
        reply = server.event("START_TRAINING")
        assert reply.status_code == 503
        assert "in time" in reply.text
    finally:
        server.training.gate.set()


def test_large_events_are_read_too(server: Server) -> None:
    mask = {"rle": list(range(256)) * 1000}
    assert server.event("ANNOTATION_CREATED", annotation={"result": [{"value": mask}]}).status_code == 200
    until(lambda: server.training.requests == [(7, "ANNOTATION_CREATED")])


def test_setup_and_webhook_answer_while_all_predictions_wait(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    gate = threading.Event()
    server.model.on_encode = lambda: gate.wait(20) and None
    threads = [threading.Thread(target=lambda: server.predict("squares")) for _ in range(routes.PREDICT_THREADS + 4)]
    try:
        for thread in threads:
            thread.start()
        started = time.monotonic()
        assert server.client.get("/health").status_code == 200
        assert server.setup().status_code == 200
        assert server.event("ANNOTATION_CREATED").status_code == 200
        assert server.event("START_TRAINING").status_code in (200, 201)
        assert time.monotonic() - started < 5
    finally:
        gate.set()
        for thread in threads:
            thread.join(20)


# Credentials ------------------------------------------------------------------------------------------------

ROUTES = [
    ("POST", "/setup"),
    ("POST", "/predict"),
    ("POST", "/webhook"),
    ("GET", "/versions"),
    ("GET", "/status"),
    ("GET", "/metrics"),
]
SECRET = "a-secret-of-webhooks"


def _basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()}


@pytest.mark.parametrize(
    "headers",
    [
        {},
        _basic("me", "wrong"),
        _basic("you", "hünter2"),
        _basic("me", ""),
        {"Authorization": "Basic"},
        {"Authorization": "Basic !!!"},
        {"Authorization": "Bearer bWU6aHVudGVyMg=="},
        {"X-VLM-Webhook-Secret": "wrong"},
    ],
)
@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_without_credentials_only_health_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, path: str, headers: dict[str, str]
) -> None:
    with serving(tmp_path, monkeypatch, basic_auth_user="me", basic_auth_pass="hünter2") as server:
        reply = server.client.request(method, path, headers=headers, content=b"{")
        assert reply.status_code == 401
        assert reply.headers["www-authenticate"].startswith("Basic ")
        assert server.client.get("/health").status_code == 200
        assert server.client.get("/").status_code == 200


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_with_credentials_all_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, path: str) -> None:
    with serving(tmp_path, monkeypatch, basic_auth_user="me", basic_auth_pass="hünter2") as server:
        reply = server.client.request(method, path, headers=_basic("me", "hünter2"), content=b"{")
        assert reply.status_code != 401


@pytest.mark.parametrize(
    ("basic", "secret", "sent", "action", "status"),
    [
        (False, True, {}, "ANNOTATION_CREATED", 401),
        (False, True, {"X-VLM-Webhook-Secret": "wrong"}, "ANNOTATION_CREATED", 401),
        (False, True, {"X-VLM-Webhook-Secret": SECRET}, "ANNOTATION_CREATED", 200),
        (False, True, {}, "START_TRAINING", 201),  # Label Studio's button sends no webhook headers
        (True, True, {}, "START_TRAINING", 401),
        (True, True, {"X-VLM-Webhook-Secret": SECRET}, "ANNOTATION_CREATED", 200),
        (True, True, _basic("me", "pass"), "START_TRAINING", 201),
        (True, False, {}, "ANNOTATION_CREATED", 401),
        (True, False, _basic("me", "pass"), "ANNOTATION_CREATED", 200),
        (False, False, {}, "ANNOTATION_CREATED", 200),
    ],
)
def test_webhooks_carry_a_secret_or_basic_auth(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    basic: bool,
    secret: bool,
    sent: dict[str, str],
    action: str,
    status: int,
) -> None:
    settings: dict[str, Any] = {"basic_auth_user": "me", "basic_auth_pass": "pass"} if basic else {}
    settings |= {"webhook_secret": SECRET} if secret else {}
    with serving(tmp_path, monkeypatch, **settings) as server:
        body = {"action": action, "project": {"id": 7}}
        assert server.client.post("/webhook", json=body, headers=sent).status_code == status


# Logs -------------------------------------------------------------------------------------------------------


def test_a_request_is_one_line_and_no_payload_is_in_it(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    caplog.clear()
    server.predict("squares", "https://bucket/image.png?X-Amz-Signature=abcdef")
    server.event("ANNOTATION_CREATED")
    server.setup(access_token="abcdef")
    server.client.get("/status?token=abcdef")
    server.client.get("/no%0Ape%20method=POST")
    lines = [record.getMessage() for record in caplog.records if record.name == "backend.request"]
    assert len(lines) == 5
    assert "path=/predict status=200" in lines[0]
    assert "project=7 tasks=2 failed=1 interactive=False version=colours-p7-v000-" in lines[0]
    assert "action=ANNOTATION_CREATED project=7" in lines[1]
    assert "\n" not in lines[4]
    assert lines[4].count("method=") == 1
    own = "".join(record.getMessage() for record in caplog.records if record.name.startswith("backend."))
    assert "secret" not in own  # the project object of an event holds a token
    assert "abcdef" not in "".join(lines)


# Reading ----------------------------------------------------------------------------------------------------

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(tasks=st.lists(JSON, max_size=3), context=st.none() | st.dictionaries(st.text(max_size=5), JSON), rest=JSON)
def test_the_quick_reader_reads_what_the_standard_library_reads(tasks: list[Any], context: Any, rest: Any) -> None:
    body = {"tasks": tasks, "project": "7.17", "label_config": CONFIG, "params": {"context": context, "x": rest}}
    text = json.dumps(body)
    quick, slow = parse(PredictRequest, text.encode()), PredictRequest.model_validate(json.loads(text))
    assert quick == slow
    assert json.dumps(quick.tasks) == json.dumps(slow.tasks)  # 1 is not 1.0


def test_what_the_quick_reader_refuses_is_read_all_the_same() -> None:
    text = '{"tasks": [{"data": {"image": "half \\ud800"}}], "project": 7, "label_config": "<View/>"}'
    with pytest.raises(ValidationError):
        PredictRequest.model_validate_json(text)
    assert parse(PredictRequest, text.encode()).tasks == [{"data": {"image": "half \ud800"}}]


# Trainings --------------------------------------------------------------------------------------------------


def test_trainings_wait_while_an_answer_is_computed_and_not_after(server: Server, tmp_path: Path) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    give_way = GiveWay(tmp_path, clock=lambda: now, sleep=sleep)

    def waits() -> float:
        sleep(1.0)  # of work
        began = now
        give_way()
        return now - began

    found: list[float] = []
    server.ready().model.on_encode = lambda: found.append(waits())
    (item,) = server.predict("squares").json()["results"]
    assert item["result"]
    assert found == [pytest.approx(2.0, abs=0.1)]  # as long as a training may be held up
    assert waits() == 0.0
