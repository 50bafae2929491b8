from __future__ import annotations

import json
import threading
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from backend.label_studio.client import LabelStudioClient
from backend.label_studio.errors import (
    LabelStudioAuthError,
    LabelStudioError,
    LabelStudioForbiddenError,
    LabelStudioNotFoundError,
    LabelStudioRejectedError,
    LabelStudioServerError,
    LabelStudioUnreachableError,
)
from backend.label_studio.tokens import TokenSource, jwt_claims


def connect(label_studio: Any, token: str | None = None, **options: Any) -> LabelStudioClient:
    options.setdefault("transport", label_studio.transport)
    return LabelStudioClient("http://ls.test/", token or label_studio.PERSONAL, **options)


def replies(*responses: httpx.Response | Exception) -> httpx.MockTransport:
    """Gives these answers in turn, and fails the test when more are asked for."""
    left = list(responses)

    def answer(_request: httpx.Request) -> httpx.Response:
        reply = left.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return reply

    return httpx.MockTransport(answer)


def with_replies(*responses: httpx.Response | Exception, waits: list[float] | None = None) -> LabelStudioClient:
    sleep = waits.append if waits is not None else lambda _seconds: None
    return LabelStudioClient("http://ls.test", "legacy", transport=replies(*responses), sleep=sleep)


def test_the_greeting_needs_no_token_and_tells_the_time(label_studio: Any) -> None:
    label_studio.clock_ahead = timedelta(hours=1)
    with connect(label_studio, "0" * 40) as client:
        release, time = client.greet()
    assert release == "1.23.2"
    assert time is not None
    assert timedelta(minutes=59) < time - datetime.now(UTC) < timedelta(minutes=61)
    with with_replies(httpx.Response(200, json={"release": "1.9"}, headers={"date": "yesterday"})) as client:
        assert client.greet() == ("1.9", None)


def test_addresses_are_tried_without_anything_being_created(label_studio: Any) -> None:
    with connect(label_studio) as client:
        client.try_ml_backend_url(1, "http://127.0.0.1:9090")
        client.try_webhook_url(1, "http://127.0.0.1:9090/webhook")
        label_studio.blocks_connections = label_studio.blocks_webhooks = True
        with pytest.raises(LabelStudioForbiddenError, match="reserved network"):
            client.try_ml_backend_url(1, "http://127.0.0.1:9090")
        with pytest.raises(LabelStudioForbiddenError, match="reserved network"):
            client.try_webhook_url(1, "http://127.0.0.1:9090/webhook")
    assert label_studio.backends == label_studio.hooks == []


def test_what_a_trial_has_created_after_all_is_taken_back() -> None:
    asked: list[str] = []

    def answer(request: httpx.Request) -> httpx.Response:
        asked.append(f"{request.method} {request.url.path}")
        return httpx.Response(201, json={"id": 5}) if request.method == "POST" else httpx.Response(204)

    with LabelStudioClient("http://ls.test", "legacy", transport=httpx.MockTransport(answer)) as client:
        client.try_webhook_url(1, "http://h.test/webhook")
        client.try_ml_backend_url(1, "http://h.test")
    assert asked == ["POST /api/webhooks/", "DELETE /api/webhooks/5/", "POST /api/ml/", "DELETE /api/ml/5"]


def test_a_trial_of_an_address_that_is_refused_says_so() -> None:
    errors = {"url": ["Enter a valid URL."], "actions": ["no"]}
    refused = httpx.Response(400, json={"detail": "Validation error", "validation_errors": errors})
    with with_replies(refused) as client, pytest.raises(LabelStudioRejectedError, match="Enter a valid URL"):
        client.try_webhook_url(1, "http://h_h/webhook")


# Tokens -----------------------------------------------------------------------------------------------------
def test_a_legacy_token_is_sent_as_it_is(label_studio: Any) -> None:
    with connect(label_studio, f" {label_studio.LEGACY}\n") as client:
        assert client.whoami()["email"] == "owner@example.com"
        assert client.authorization() == f"Token {label_studio.LEGACY}"
    assert label_studio.refreshes == 0


def test_a_personal_token_is_exchanged_once_and_never_sent_with_a_call(label_studio: Any) -> None:
    with connect(label_studio) as client:
        for _ in range(3):
            client.project(1)
    assert label_studio.refreshes == 1
    assert label_studio.PERSONAL not in " ".join(label_studio.authorizations)
    assert all(header.startswith("Bearer ") for header in label_studio.authorizations)


def test_a_refused_access_token_is_exchanged_again_once(label_studio: Any) -> None:
    with connect(label_studio) as client:
        client.project(1)
        label_studio.expire()
        assert client.project(1)["id"] == 1
        assert label_studio.refreshes == 2
        label_studio.before.append(
            lambda request: httpx.Response(401, json={"detail": "no"}) if "projects" in request.url.path else None
        )
        with pytest.raises(LabelStudioAuthError, match="Create a new personal access token"):
            client.project(1)
        assert label_studio.refreshes == 3


def test_a_wrong_personal_token_is_named_without_being_shown(label_studio: Any) -> None:
    token = label_studio.PERSONAL[:-1] + "9"
    with (
        connect(label_studio, token) as client,
        pytest.raises(LabelStudioAuthError, match="Token is invalid") as caught,
    ):
        client.whoami()
    assert token not in str(caught.value)
    assert label_studio.calls == [("POST", "/api/token/refresh/")]


def test_a_wrong_legacy_token_names_the_setting(label_studio: Any) -> None:
    with connect(label_studio, "0" * 40) as client, pytest.raises(LabelStudioAuthError, match="off by default"):
        client.whoami()
    with (
        LabelStudioClient("http://ls.test", None, transport=label_studio.transport) as client,
        pytest.raises(LabelStudioAuthError, match="Set LABEL_STUDIO_API_KEY"),
    ):
        client.whoami()


class Clock:
    now = 5_000_000.0  # far from the token's own times: the clocks need not agree

    def __call__(self) -> float:
        return self.now


def test_access_tokens_are_renewed_before_they_expire(label_studio: Any) -> None:
    clock, made = Clock(), []
    jwt = label_studio.PERSONAL

    def exchange(personal: str) -> str:
        assert personal == jwt
        made.append(len(made))
        return f"access-{len(made)}"

    source = TokenSource(jwt, exchange, clock=clock)
    assert source.is_personal
    assert source.header() == "Bearer access-1"
    clock.now += 250
    assert source.header() == "Bearer access-1"
    clock.now += 10  # 260 of 300 seconds
    assert source.header() == "Bearer access-2"
    # another thread's refusal of an older token does not throw away a newer one
    assert source.renew("Bearer access-1")
    assert source.header() == "Bearer access-2"
    assert source.renew("Bearer access-2")
    assert source.header() == "Bearer access-3"


def test_many_threads_share_one_exchange(label_studio: Any) -> None:
    started, lock, calls = threading.Barrier(8), threading.Lock(), []

    def exchange(_personal: str) -> str:
        with lock:
            calls.append(1)
        return "access"

    source = TokenSource(label_studio.PERSONAL, exchange)
    headers: list[str] = []

    def work() -> None:
        started.wait()
        headers.append(source.header())

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert headers == ["Bearer access"] * 8
    assert calls == [1]


def test_kinds_of_tokens(label_studio: Any) -> None:
    def never(_personal: str) -> str:
        raise AssertionError

    access = label_studio.PERSONAL.replace(
        label_studio.PERSONAL.split(".")[1],
        "eyJ0b2tlbl90eXBlIjoiYWNjZXNzIn0",  # {"token_type":"access"}
    )
    assert TokenSource(access, never).header() == f"Bearer {access}"
    for text in ("", "abc", "a.b.c", "a.b", "..", f"{label_studio.PERSONAL}.x", "e30.e30.x", "W10.e30.x"):
        assert jwt_claims(text) is None
    assert not TokenSource("a.b.c", never).is_personal


# Answers ----------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("response", "kind", "words"),
    [
        (httpx.Response(403, json={"detail": "No."}), LabelStudioForbiddenError, "forbids GET /api/projects/1/: No"),
        (httpx.Response(404, json={"detail": "None"}), LabelStudioNotFoundError, "Check the id"),
        (
            httpx.Response(400, json={"detail": "Bad", "validation_errors": {"a": 1}}),
            LabelStudioRejectedError,
            '"a": 1',
        ),
        (httpx.Response(409, json=["x"]), LabelStudioRejectedError, r'\["x"\]'),
        (httpx.Response(500, text="<html>"), LabelStudioServerError, "HTTP 500"),
        (httpx.Response(200, text="<html>"), LabelStudioServerError, "other than JSON"),
        (httpx.Response(200, json=[1]), LabelStudioServerError, "no object"),
        (
            httpx.Response(302, headers={"location": "https://user:pw@ls.test/x?token=1"}),
            LabelStudioRejectedError,
            r"to https://ls\.test\. Set",
        ),
    ],
)
def test_answers_become_typed_errors(response: httpx.Response, kind: type[LabelStudioError], words: str) -> None:
    with with_replies(response) as client, pytest.raises(kind, match=words) as caught:
        client.project(1)
    assert caught.value.status in (response.status_code, None)
    assert type(caught.value).temporary is (kind is LabelStudioServerError)
    assert "token=" not in str(caught.value)


@pytest.mark.parametrize("failure", [httpx.ConnectError("refused"), httpx.ReadTimeout("slow"), httpx.Response(503)])
def test_reads_are_tried_again_and_changes_are_not(failure: Any) -> None:
    waits: list[float] = []
    good = httpx.Response(200, json={"id": 1})
    with with_replies(failure, failure, good, waits=waits) as client:
        assert client.project(1) == {"id": 1}
    assert len(waits) == 2
    with with_replies(failure, failure, failure) as client, pytest.raises(LabelStudioError) as caught:
        client.project(1)
    assert caught.value.temporary
    with with_replies(failure) as client, pytest.raises(LabelStudioError):
        client.update_project(1, title="x")


def test_nobody_at_the_address_is_named() -> None:
    with (
        LabelStudioClient("http://127.0.0.1:1", None, sleep=lambda _seconds: None) as client,
        pytest.raises(LabelStudioUnreachableError, match=r"http://127\.0\.0\.1:1 cannot be reached.*LABEL_STUDIO_URL"),
    ):
        client.whoami()


def test_no_content_is_fine() -> None:
    with with_replies(httpx.Response(204)) as client:
        client.delete_webhook(3)


# Calls ------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize("count", [0, 1, 4, 5, 8, 9])
def test_tasks_come_in_pages_and_once_each(count: int, label_studio: Any) -> None:
    label_studio.tasks = [{"id": number} for number in range(count)]
    with connect(label_studio) as client:
        assert [task["id"] for task in client.tasks(1, page_size=4)] == list(range(count))


def test_tasks_deleted_while_reading_end_the_pages(label_studio: Any) -> None:
    label_studio.tasks = [{"id": number} for number in range(8)]
    with connect(label_studio) as client:
        tasks = client.tasks(1, page_size=4)
        first = [next(tasks)["id"] for _ in range(4)]
        del label_studio.tasks[4:]
        assert [*first, *(task["id"] for task in tasks)] == [0, 1, 2, 3]


def test_what_calls_send() -> None:
    sent: list[tuple[str, str, dict[str, str], Any]] = []

    def answer(request: httpx.Request) -> httpx.Response:
        body = json.loads(request.content) if request.content else None
        sent.append((request.method, request.url.path, dict(request.url.params), body))
        return httpx.Response(200, json={"id": 5, "tasks": [], "results": []})

    with LabelStudioClient("http://ls.test/base", "legacy", transport=httpx.MockTransport(answer)) as client:
        client.create_annotation(3, [{"id": "a"}], was_cancelled=False)
        client.update_annotation(4, result=[])
        client.delete_annotation(4)
        client.retrieve_predictions(7, [1, 2])
        client.retrieve_predictions(7)
        client.train_ml_backend(9)
        client.task_predictions(3)
        list(client.tasks(7, only_annotated=True, page_size=2))
        client.create_project("a title", "<View/>", color="#fff")
        client.import_tasks(7, [{"data": {"image": "x"}}])
    assert sent[0] == ("POST", "/base/api/tasks/3/annotations/", {}, {"result": [{"id": "a"}], "was_cancelled": False})
    assert sent[1] == ("PATCH", "/base/api/annotations/4/", {}, {"result": []})
    assert sent[2][:2] == ("DELETE", "/base/api/annotations/4/")
    assert sent[3][2] == {"id": "retrieve_tasks_predictions", "project": "7"}
    assert sent[3][3]["selectedItems"] == {"all": False, "included": [1, 2]}
    assert sent[4][3]["selectedItems"] == {"all": True, "excluded": []}
    assert sent[5] == ("POST", "/base/api/ml/9/train", {}, {})
    assert sent[6][1:3] == ("/base/api/predictions/", {"task": "3"})
    assert sent[7][2]["fields"] == "all"
    assert sent[7][2]["project"] == "7"
    assert json.loads(sent[7][2]["query"])["filters"]["items"][0]["filter"] == "filter:tasks:total_annotations"
    assert sent[8][3] == {"title": "a title", "label_config": "<View/>", "color": "#fff"}
    assert sent[9][3] == [{"data": {"image": "x"}}]
