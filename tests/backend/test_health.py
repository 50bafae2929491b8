"""The containers' health checks, against a real server process, Redis and worker entry."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from rq import Queue, Worker

from backend import health
from backend.redis_connection import connect_redis
from backend.redis_server import release_server
from backend.settings import load_settings


class Answering(BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        self.send_response(self.status if self.path == "/health" else 404)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[HTTPServer]:
    made = HTTPServer(("127.0.0.1", 0), Answering)
    thread = Thread(target=made.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def data_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("VLM_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("REDIS_URL", raising=False)
    yield tmp_path
    release_server(tmp_path / "redis")


def test_a_server_is_well_when_it_answers(server: HTTPServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PORT", str(server.server_port))
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")  # of the operator's network: not for this machine
    monkeypatch.setattr("sys.argv", ["health"])
    assert health.main() == 0
    monkeypatch.setattr(Answering, "status", 500)
    assert health.main() == 1


def test_a_server_that_is_not_there_is_not_well(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("PORT", str(free.getsockname()[1]))
        monkeypatch.setattr("sys.argv", ["health"])
        assert health.main() == 1
    assert "no answer on port" in capsys.readouterr().err


def test_a_worker_is_well_while_it_is_signed_on(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["health", "--worker"])
    assert health.main() == 1, "there is no Redis yet"
    connection = connect_redis(load_settings())
    assert "no worker of this-host" in str(health.worker_problem("this-host"))
    worker = Worker([Queue(connection=connection)], connection=connection)
    worker.register_birth()
    assert health.main() == 0
    assert health.worker_problem("another-host") is not None
    worker.register_death()
    assert health.main() == 1
