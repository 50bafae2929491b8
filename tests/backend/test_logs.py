"""What a line of the log is, and what it never holds."""

from __future__ import annotations

import io
import json
import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from backend.logs import JsonFormatter, Line, SafeFormatter, configure_logging
from backend.settings import Settings
from vlm_core.errors import VLMError

SECRET = "hunter2-of-the-operator"


class Captured:
    """A logger of our own package that writes through a formatter."""

    def __init__(self, formatter: logging.Formatter, name: str) -> None:
        self.stream = io.StringIO()
        handler = logging.StreamHandler(self.stream)
        handler.setFormatter(formatter)
        self.log = logging.Logger(name)
        self.log.addHandler(handler)

    @property
    def text(self) -> str:
        return self.stream.getvalue()

    @property
    def entry(self) -> dict[str, Any]:
        (line,) = self.text.splitlines()
        entry: dict[str, Any] = json.loads(line)
        return entry


def text_log(name: str = "backend.x") -> Captured:
    return Captured(SafeFormatter([SECRET]), name)


def json_log(name: str = "backend.x") -> Captured:
    return Captured(JsonFormatter([SECRET]), name)


def test_a_line_is_fields_in_text() -> None:
    captured = text_log()
    captured.log.info(Line("request", path="/predict", status=200, absent=None, free='a b="c"\nd', empty=""))
    assert captured.text.endswith(r'INFO backend.x path=/predict status=200 free="a b=\"c\"\nd" empty=""' + "\n")


def test_a_line_is_members_in_json() -> None:
    captured = json_log()
    captured.log.warning(Line("request", path="/predict", status=200, ok=True, share=0.5, free="a b\nc", absent=None))
    entry = captured.entry
    assert entry.pop("time").endswith("+00:00")
    assert entry == {
        "level": "WARNING",
        "logger": "backend.x",
        "message": "request",
        "path": "/predict",
        "status": 200,
        "ok": True,
        "share": 0.5,
        "free": "a b\nc",
    }


def test_what_others_log_is_a_line_too() -> None:
    captured = json_log("uvicorn.error")
    captured.log.info("listening on %s", "http://127.0.0.1:9090")
    assert captured.entry["message"] == "listening on http://127.0.0.1:9090"


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        # The whole text where there is nothing to cut.
        ("project=7 task=5 no prediction: a.png?", "project=7 task=5 no prediction: a.png?"),
        ("is it there? yes=no", "is it there? yes=no"),
        ("Token authentication is off", "Token authentication is off"),
        ("/data/local-files/?d=set/a.png: not there", "/data/local-files/?d=set/a.png: not there"),
        ("GET https://bucket/a.png?X-Amz-Signature=0aF HTTP", "GET https://bucket/a.png?... HTTP"),
        ("'/data/upload/1/a.png?token=0aF'", "'/data/upload/1/a.png?...'"),
        ("/data/local-files/?d=a.png&sig=0aF", "/data/local-files/?d=a.png"),
        ("https://other/?d=0aF", "https://other/?..."),
        ("https://host/cb#access_token=0aF", "https://host/cb?..."),
        ("redis://me:0aF@redis:6379/0", "redis://[removed]@redis:6379/0"),
        ("Authorization: Basic bWU6aHVudGVyMg==", "Authorization: Basic [removed]"),
        ("{'Authorization': 'Token 0a1b2c3d4e5f'}", "{'Authorization': 'Token [removed]'}"),
        ("bearer eyJhbGciOi.eyJ0b2tlbl90eXBlIjoi.1", "bearer [removed]"),
        ("data:image/png;base64," + "0aF" * 30 + " ends", "data:image/png;base64,... ends"),
        (f"the password {SECRET}!", "the password [removed]!"),
    ],
)
@pytest.mark.parametrize("make", [text_log, json_log])
def test_credentials_and_queries_are_cut_whoever_logs_them(make: Any, text: str, kept: str) -> None:
    captured = make("urllib3.connectionpool")
    captured.log.warning("%s", text)
    assert (captured.entry["message"] if make is json_log else captured.text[:-1].split(" ", 4)[4]) == kept


def _raise(error: BaseException) -> None:
    raise error


class OurError(VLMError):
    """As those of our packages."""


OurError.__module__ = "vlm_core.errors"


@pytest.mark.parametrize("make", [text_log, json_log])
def test_a_traceback_says_where_and_quotes_only_our_own_errors(make: Any) -> None:
    captured = make()
    sent = " ".join(["what", "somebody", "sent"])  # the source lines are in the traceback, too
    try:
        try:
            try:
                _raise(KeyError(sent))
            except KeyError:
                _raise(OSError(28, "No space left"))
        except OSError as error:
            raise OurError("the disk is full") from error
    except OurError:
        captured.log.exception(Line("failed", reference="0a1b"))
    text = captured.entry["traceback"] if make is json_log else captured.text
    assert sent not in captured.text
    assert text.count("in _raise\n") == 2
    assert "builtins.KeyError: (its text is left out" in text
    assert "builtins.OSError: [Errno 28] No space left" in text
    assert "vlm_core.errors.OurError: the disk is full" in text
    assert text.index("KeyError:") < text.index("OSError:") < text.index("OurError:")


def test_text_of_others_makes_no_line_of_its_own() -> None:
    captured = text_log()
    captured.log.warning("project=7: %s", "no such label: x\n2026-01-01 INFO backend.request method=POST")
    assert len(captured.text.splitlines()) == 1


@pytest.fixture
def levels() -> Iterator[None]:
    names = ["", "backend", "vlm_core", "training_jobs", "uvicorn", "rq"]
    former = {name: logging.getLogger(name).level for name in names}
    yield
    for name, level in former.items():
        logging.getLogger(name).setLevel(level)


@pytest.mark.parametrize(
    ("level", "own", "server", "library"),
    [
        ("DEBUG", logging.DEBUG, logging.INFO, logging.WARNING),
        ("INFO", logging.INFO, logging.INFO, logging.WARNING),
        ("ERROR", logging.ERROR, logging.ERROR, logging.ERROR),
    ],
)
def test_libraries_do_not_tell_whatever_the_level(
    levels: None, level: str, own: int, server: int, library: int
) -> None:
    configure_logging(level)
    assert logging.getLogger("backend.app").getEffectiveLevel() == own
    assert logging.getLogger("rq.something").getEffectiveLevel() == server
    assert logging.getLogger("uvicorn.something").getEffectiveLevel() == server
    for name in ("httpx", "httpcore.http11", "urllib3", "some.library"):
        assert logging.getLogger(name).getEffectiveLevel() == library


def test_a_process_writes_json_lines() -> None:
    script = """
import logging
from backend.logs import Line, configure_logging
configure_logging("INFO", "json", secrets=["hunter2-of-the-operator"])
logging.getLogger("backend.x").info(Line("job", job="train-1"))
logging.getLogger("httpx").info("GET https://bucket?x=1")
logging.getLogger("other").warning("hunter2-of-the-operator")
"""
    ran = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2]
    )
    entries = [json.loads(line) for line in ran.stderr.splitlines()]
    assert [entry["message"] for entry in entries] == ["job", "[removed]"]


def test_the_secrets_of_the_settings_are_known(tmp_path: Path) -> None:
    settings = Settings(
        data_dir=tmp_path,
        basic_auth_user="me",
        basic_auth_pass="a-long-password",
        webhook_secret="a-webhook-secret",
        label_studio_api_key="an-api-key",
        redis_url="redis://:redis-password@redis:6379/0",
    )
    encoded = "bWU6YS1sb25nLXBhc3N3b3Jk"
    assert settings.secrets == {"a-long-password", encoded, "a-webhook-secret", "an-api-key", "redis-password"}
    assert not Settings(data_dir=tmp_path, basic_auth_user="me", basic_auth_pass="pass").secrets & {"pass"}
