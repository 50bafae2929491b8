from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from backend import connect_command
from backend.cli import app
from backend.label_studio.client import LabelStudioClient
from backend.label_studio.connect import (
    ConnectError,
    NotReadyError,
    connect_project,
    refresh_version,
    report_lines,
)
from backend.label_studio.connection import DESCRIPTION, FIRST_TITLE, SECRET_HEADER, WEBHOOK_ACTIONS
from backend.label_studio.errors import LabelStudioNotFoundError, LabelStudioRejectedError
from backend.label_studio.first_project import FirstProjectError, ensure_first_project
from backend.settings import Settings

URL = "http://127.0.0.1:9090"
V0, V1 = "demo-p1-v000-aaaaaaaa", "demo-p1-v001-bbbbbbbb"
SECRET = "a webhook secret"


@pytest.fixture
def client(label_studio: Any) -> LabelStudioClient:
    label_studio.reachable[URL] = (V0, None)
    return LabelStudioClient("http://ls.test", label_studio.LEGACY, transport=label_studio.transport)


def assert_connected(label_studio: Any, url: str = URL, version: str = V0, secret: str | None = SECRET) -> None:
    (backend,) = label_studio.backends
    assert (backend["url"], backend["title"], backend["state"]) == (url, version, "CO")
    assert backend["is_interactive"] is True
    assert label_studio.projects[1]["model_version"] == version
    assert label_studio.projects[1]["show_collab_predictions"] is True
    (hook,) = label_studio.hooks
    assert (hook["url"], hook["send_for_all_actions"], hook["is_active"]) == (f"{url}/webhook", False, True)
    assert sorted(hook["actions"]) == sorted(WEBHOOK_ACTIONS)
    assert hook["headers"] == ({SECRET_HEADER: secret} if secret else {})


def assert_repeats(label_studio: Any, client: LabelStudioClient, url: str = URL, **options: Any) -> None:
    """The same again finds nothing to change and changes nothing."""
    before = len(label_studio.changes)
    report = connect_project(client, 1, url, **options)
    assert report.changes == ()
    assert label_studio.changes[before:] == []


def test_a_fresh_project_is_connected_and_the_second_run_changes_nothing(label_studio: Any, client: Any) -> None:
    report = connect_project(client, 1, f"{URL}/", webhook_secret=SECRET)
    assert_connected(label_studio)
    assert (report.model_version, report.warnings) == (V0, ())
    assert report.ml_backend_id == label_studio.backends[0]["id"]
    assert report.webhook_id == label_studio.hooks[0]["id"]
    assert report.changes[0] == f"connected the project to {URL}"
    assert_repeats(label_studio, client, webhook_secret=SECRET)
    assert report_lines(report)[0] == f"model version: {V0}"


def test_no_secret_is_ever_in_the_report(label_studio: Any, client: Any) -> None:
    label_studio.reachable[URL] = (V0, ("user", "a password"))
    report = connect_project(client, 1, URL, webhook_secret=SECRET, basic_auth=("user", "a password"))
    assert SECRET not in str(report)
    assert "a password" not in str(report)
    assert_connected(label_studio)
    assert_repeats(label_studio, client, webhook_secret=SECRET, basic_auth=("user", "a password"))


def test_credentials_are_written_again_when_they_no_longer_work(label_studio: Any, client: Any) -> None:
    connect_project(client, 1, URL, webhook_secret=SECRET)
    label_studio.reachable[URL] = (V0, ("user", "first"))
    report = connect_project(client, 1, URL, webhook_secret=SECRET, basic_auth=("user", "first"))
    assert report.changes == ("updated the connection (auth method, basic auth user)",)
    label_studio.reachable[URL] = (V0, ("user", "second"))
    report = connect_project(client, 1, URL, webhook_secret=SECRET, basic_auth=("user", "second"))
    assert report.changes == ("updated the connection (password)",)
    assert_connected(label_studio)
    # a password cannot be read back: one that works is left alone, whatever is given
    assert connect_project(client, 1, URL, webhook_secret=SECRET, basic_auth=("user", "wrong one")).changes == ()
    label_studio.reachable[URL] = (V0, ("user", "third"))
    with pytest.raises(ConnectError, match="BASIC_AUTH_USER and BASIC_AUTH_PASS"):
        connect_project(client, 1, URL, webhook_secret=SECRET, basic_auth=("user", "wrong one"))
    label_studio.reachable[URL] = (V0, None)
    connect_project(client, 1, URL, webhook_secret=SECRET)
    assert label_studio.backends[0]["auth_method"] == "NONE"


def test_webhook_headers_follow_the_secret_and_keep_the_owner_s(label_studio: Any, client: Any) -> None:
    connect_project(client, 1, URL)
    assert_connected(label_studio, secret=None)
    label_studio.hooks[0]["headers"] = {"X-Own": "1", "x-vlm-webhook-secret": "old"}
    connect_project(client, 1, URL, webhook_secret=SECRET)
    assert label_studio.hooks[0]["headers"] == {"X-Own": "1", SECRET_HEADER: SECRET}
    assert_repeats(label_studio, client, webhook_secret=SECRET)
    connect_project(client, 1, URL)
    assert label_studio.hooks[0]["headers"] == {"X-Own": "1"}


def test_left_over_webhooks_of_ours_go_and_others_stay(label_studio: Any, client: Any) -> None:
    own = client.create_webhook(1, "http://elsewhere.internal:1/webhook")
    for url, headers in (
        (f"{URL}/webhook", {}),
        (f"{URL}/webhook/", {}),
        ("HTTP://127.0.0.1:9090/webhook", {}),
        ("http://old-address:9090/webhook", {SECRET_HEADER: "an old secret"}),
    ):
        client.create_webhook(1, url, headers=headers)
    report = connect_project(client, 1, URL, webhook_secret=SECRET)
    assert sum("left-over" in change for change in report.changes) == 3
    assert "an old secret" not in str(report)
    label_studio.hooks.remove(next(hook for hook in label_studio.hooks if hook["id"] == own["id"]))
    assert_connected(label_studio)


def test_a_webhook_that_was_switched_off_or_deleted_is_mended(label_studio: Any, client: Any) -> None:
    connect_project(client, 1, URL, webhook_secret=SECRET)
    label_studio.hooks[0]["is_active"] = False
    assert connect_project(client, 1, URL, webhook_secret=SECRET).changes == ("updated the webhook (is active)",)
    label_studio.hooks.clear()
    assert connect_project(client, 1, URL, webhook_secret=SECRET).changes == (f"created the webhook to {URL}/webhook",)
    assert_connected(label_studio)


@pytest.mark.parametrize("secret", [SECRET, None])
def test_a_backend_that_moved_takes_its_connection_along(secret: str | None, label_studio: Any, client: Any) -> None:
    connect_project(client, 1, URL, webhook_secret=secret)
    number = label_studio.backends[0]["id"]
    label_studio.reachable["http://new.internal:9090"] = (V0, None)
    report = connect_project(client, 1, "http://new.internal:9090", webhook_secret=secret)
    assert report.ml_backend_id == number
    assert_connected(label_studio, "http://new.internal:9090", secret=secret)
    assert_repeats(label_studio, client, "http://new.internal:9090", webhook_secret=secret)


def test_a_second_connection_to_this_backend_is_removed(label_studio: Any, client: Any) -> None:
    connect_project(client, 1, URL, webhook_secret=SECRET)
    label_studio.reachable["http://old.internal:1"] = (V0, None)
    client.create_ml_backend(1, "http://old.internal:1", description=DESCRIPTION)
    report = connect_project(client, 1, URL, webhook_secret=SECRET)
    assert any("second connection" in change for change in report.changes)
    assert_connected(label_studio)


def test_a_connection_made_by_hand_is_taken_over(label_studio: Any, client: Any) -> None:
    client.create_ml_backend(1, f"{URL}/", title="by hand")
    report = connect_project(client, 1, URL, webhook_secret=SECRET)
    assert "updated the connection" in report.changes[0]
    assert_connected(label_studio)


def test_another_backend_before_ours_is_a_warning(label_studio: Any, client: Any) -> None:
    label_studio.reachable["http://yolo.internal:1"] = ("yolo", None)
    client.create_ml_backend(1, "http://yolo.internal:1", title="YOLO")
    (warning,) = connect_project(client, 1, URL, webhook_secret=SECRET).warnings
    assert "only the first backend" in warning
    assert '"YOLO" at http://yolo.internal:1' in warning
    assert len(label_studio.backends) == 2


def test_a_project_that_shows_other_or_no_predictions_is_switched(label_studio: Any, client: Any) -> None:
    label_studio.projects[1].update(model_version="imported", show_collab_predictions=False)
    label_studio.stored_versions.add("imported")
    report = connect_project(client, 1, URL, webhook_secret=SECRET)
    assert f'set the project to predictions of "{V0}", before "imported"' in report.changes
    assert_connected(label_studio)


def test_a_title_of_the_owner_s_choice_is_kept_and_explained(label_studio: Any, client: Any) -> None:
    report = connect_project(client, 1, URL, title="Our masks")
    assert label_studio.backends[0]["title"] == label_studio.projects[1]["model_version"] == "Our masks"
    assert "shows no scores" in report.warnings[0]
    assert_repeats(label_studio, client, title="Our masks")
    label_studio.reachable[URL] = (V1, None)
    assert refresh_version(client, 1) == V1
    assert label_studio.backends[0]["title"] == "Our masks"


def test_a_published_version_becomes_the_title(label_studio: Any, client: Any) -> None:
    connect_project(client, 1, URL, webhook_secret=SECRET)
    label_studio.reachable[URL] = (V1, None)
    assert refresh_version(client, 1) == V1
    assert_connected(label_studio, version=V1)
    before = len(label_studio.changes)
    assert refresh_version(client, 1) == V1
    assert label_studio.changes[before:] == []
    # an owner who chose other predictions meanwhile keeps them
    label_studio.projects[1].update(model_version="imported", show_collab_predictions=False)
    label_studio.reachable[URL] = (V0, None)
    assert refresh_version(client, 1) == V0
    assert label_studio.projects[1]["model_version"] == "imported"
    assert label_studio.projects[1]["show_collab_predictions"] is False


def test_refreshing_a_project_that_is_not_connected_does_nothing(label_studio: Any, client: Any) -> None:
    assert refresh_version(client, 1) is None
    assert label_studio.changes == []


def test_basic_auth_survives_a_new_title(label_studio: Any, client: Any) -> None:
    label_studio.reachable[URL] = (V0, ("user", "a password"))
    connect_project(client, 1, URL, basic_auth=("user", "a password"))
    label_studio.reachable[URL] = (V1, ("user", "a password"))
    assert refresh_version(client, 1) == V1
    assert label_studio.backends[0]["state"] == "CO"


@pytest.mark.parametrize("what", ["blocks_connections", "blocks_webhooks"])
def test_blocked_addresses_name_both_settings(what: str, label_studio: Any, client: Any) -> None:
    setattr(label_studio, what, True)
    for _ in range(2):  # the first run may leave a connection without webhook behind
        with pytest.raises(ConnectError) as caught:
            connect_project(client, 1, URL, webhook_secret=SECRET)
        assert caught.value.status == 403
        for word in ("ML_BLOCK_LOCAL_IP=false", "SSRF_PROTECTION_ENABLED=false", "127.0.0.0/8"):
            assert word in str(caught.value)
    setattr(label_studio, what, False)
    connect_project(client, 1, URL, webhook_secret=SECRET)
    assert_connected(label_studio)


def test_a_backend_that_is_not_there_or_not_ready_is_named(label_studio: Any, client: Any) -> None:
    with pytest.raises(ConnectError, match="is `vlm serve` running") as caught:
        connect_project(client, 1, "http://nowhere.internal:9090")
    assert "<a" not in str(caught.value)
    label_studio.reachable[URL] = ("!503 model is loading", None)
    with pytest.raises(ConnectError, match=r"not ready for this project.*model is loading"):
        connect_project(client, 1, URL)
    label_studio.reachable[URL] = (V0, None)
    connect_project(client, 1, URL)
    label_studio.reachable.clear()
    with pytest.raises(ConnectError, match="not connected"):
        connect_project(client, 1, URL)


def test_other_refusals_pass_through(label_studio: Any, client: Any) -> None:
    with pytest.raises(LabelStudioNotFoundError):
        connect_project(client, 2, URL)
    assert label_studio.changes == []
    label_studio.backends.append({"id": 99, "project": 1, "url": "x", "title": "x", "auth_method": "NONE"})
    with pytest.raises(LabelStudioRejectedError):
        client.update_project(1, model_version="unknown")


@pytest.mark.parametrize("url", ["127.0.0.1:9090", "ftp://host", "http://", "http://user:pw@host", "http://host?a=1"])
def test_only_an_address_is_accepted(url: str, client: Any) -> None:
    with pytest.raises(ValueError, match="is not the backend's address") as caught:
        connect_project(client, 1, url)
    assert "pw" not in str(caught.value)


@pytest.mark.parametrize("host", ["backend", "my_backend.internal", "a.b1", "a.c", "-a.org", "a.-org"])
def test_a_host_that_label_studio_takes_no_webhook_for_is_refused_first(
    host: str, label_studio: Any, client: Any
) -> None:
    with pytest.raises(ValueError, match="takes no webhook for the host"):
        connect_project(client, 1, f"http://{host}:9090")
    assert label_studio.changes == []


@pytest.mark.parametrize("host", ["localhost", "10.0.0.7", "[::1]", "backend.vlm.internal", "müll.de", "x.xn--p1ai"])
def test_label_studio_is_asked_about_any_other_host(host: str, client: Any) -> None:
    with pytest.raises(NotReadyError, match="Label Studio cannot use"):
        connect_project(client, 1, f"http://{host}:9090")


# Commands ---------------------------------------------------------------------------------------------------
def test_connect_needs_to_know_label_studio(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LABEL_STUDIO_URL", "LABEL_STUDIO_HOST", "LABEL_STUDIO_API_KEY", "LABEL_STUDIO_ACCESS_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    outcome = CliRunner().invoke(app, ["connect", "--project", "1"])
    assert outcome.exit_code == 2
    assert "LABEL_STUDIO_URL" in outcome.output


def test_connect_from_the_command_line(label_studio: Any, web: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command against a server of this machine that answers like Label Studio."""
    import httpx

    def relay(handler: Any) -> None:
        length = int(handler.headers.get("content-length") or 0)
        request = httpx.Request(
            handler.command,
            f"http://ls.test{handler.path}",
            headers=dict(handler.headers.items()),
            content=handler.rfile.read(length),
        )
        answer = label_studio.answer(request)
        handler.send_response(answer.status_code)
        handler.send_header("Content-Length", str(len(answer.content)))
        handler.end_headers()
        handler.wfile.write(answer.content)

    web.fallback = relay
    label_studio.reachable["http://127.0.0.1:9191"] = (V0, ("user", "a password"))
    for name, value in {
        "LABEL_STUDIO_URL": web.url,
        "LABEL_STUDIO_API_KEY": label_studio.PERSONAL,
        "VLM_WEBHOOK_SECRET": SECRET,
        "BASIC_AUTH_USER": "user",
        "BASIC_AUTH_PASS": "a password",
        "PORT": "9191",
    }.items():
        monkeypatch.setenv(name, value)
    first = CliRunner().invoke(app, ["connect", "--project", "1"])
    assert first.exit_code == 0, first.output
    assert_connected(label_studio, "http://127.0.0.1:9191")
    assert "a password" not in first.output
    second = CliRunner().invoke(app, ["connect", "--project", "1", "--json"])
    assert json.loads(second.output)["changes"] == []
    missing = CliRunner().invoke(app, ["connect", "--project", "2"])
    assert missing.exit_code == 1
    assert "Check the id" in missing.output


# Waiting, and a first project ---------------------------------------------------------------------------------
def test_connecting_waits_for_what_is_not_ready_and_not_for_what_is_wrong(
    label_studio: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    naps: list[float] = []

    def nap(seconds: float) -> None:
        naps.append(seconds)
        label_studio.reachable[URL] = ("!503 model is loading", None) if len(naps) == 1 else (V0, None)

    monkeypatch.setattr(connect_command.time, "sleep", nap)
    monkeypatch.setattr(
        connect_command,
        "LabelStudioClient",
        lambda *_, **__: LabelStudioClient("http://ls.test", label_studio.LEGACY, transport=label_studio.transport),
    )
    label_studio.reachable.clear()
    settings = Settings(label_studio_url="http://ls.test", label_studio_api_key=label_studio.LEGACY)
    said: list[str] = []

    def connect(wait_s: float) -> Any:
        return connect_command.connect_when_ready(
            settings, 1, None, backend_url=URL, title=None, wait_s=wait_s, say=said.append
        )

    with pytest.raises(ConnectError, match="is `vlm serve` running"):
        connect(0.0)
    assert not naps
    assert connect(60.0).model_version == V0
    assert len(naps) == 2
    assert len(said) == 2
    assert "model is loading" in said[1]
    label_studio.backends.clear()
    label_studio.blocks_connections = True
    with pytest.raises(ConnectError, match="ML_BLOCK_LOCAL_IP"):
        connect(60.0)
    assert len(naps) == 2


def test_the_setting_decides_whether_scores_show(label_studio: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        connect_command,
        "LabelStudioClient",
        lambda *_, **__: LabelStudioClient("http://ls.test", label_studio.LEGACY, transport=label_studio.transport),
    )

    label_studio.reachable[URL] = (V0, None)

    def connect(*, show_scores: bool) -> Any:
        settings = Settings(
            label_studio_url="http://ls.test", label_studio_api_key=label_studio.LEGACY, show_scores=show_scores
        )
        return connect_command.connect_when_ready(
            settings, 1, None, backend_url=URL, title=None, wait_s=0, say=lambda _: None
        )

    connect(show_scores=True)
    assert label_studio.backends[0]["title"] == label_studio.projects[1]["model_version"] == V0
    for _ in range(2):
        report = connect(show_scores=False)
        # Label Studio asks the backend live where the two are equal, and they name no version of a prediction.
        assert label_studio.backends[0]["title"] == label_studio.projects[1]["model_version"] == FIRST_TITLE
        assert report.warnings == ()
    assert report.changes == ()
    connect(show_scores=True)
    assert label_studio.backends[0]["title"] == label_studio.projects[1]["model_version"] == V0


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({}, "label-config.xml: No such file"),
        ({"label-config.xml": "<View>"}, "label-config.xml: "),
        ({"label-config.xml": "<View><Text name='t' value='$t'/></View>"}, "nothing to predict for"),
    ],
)
def test_a_folder_that_cannot_be_a_project_is_named(
    files: dict[str, str], message: str, client: Any, label_studio: Any, tmp_path: Path
) -> None:
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(FirstProjectError, match=message):
        ensure_first_project(client, tmp_path, print)
    assert label_studio.calls == []


def test_without_a_project_and_a_config_nothing_is_connected(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(app, ["connect", "--first-project", str(tmp_path)])
    assert outcome.exit_code == 0
    assert "nothing to connect" in outcome.output
    assert CliRunner().invoke(app, ["connect"]).exit_code == 2


@pytest.mark.parametrize("title", ["x" * 51, "two\nlines"])
def test_a_title_that_label_studio_does_not_take_is_named(title: str, client: Any, tmp_path: Path) -> None:
    (tmp_path / "label-config.xml").write_text(
        '<View><Image name="i" value="$image"/><Choices name="c" toName="i"><Choice value="a"/></Choices></View>'
    )
    (tmp_path / "title.txt").write_text(title)
    with pytest.raises(FirstProjectError, match=r"title\.txt: a title is one line of at most 50"):
        ensure_first_project(client, tmp_path, lambda _: None)
