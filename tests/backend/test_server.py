"""`vlm serve` as a process of its own."""

from __future__ import annotations

import os
import re
import select
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from backend import server
from backend.cli import app
from backend.settings import Settings, child_environment
from tests.core.factories import make_clipseg_directory


@pytest.fixture
def process(tmp_path: Path) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A server on a free port, with a worker, and its address."""
    make_clipseg_directory(tmp_path / "tiny", mask_size=64, image_size=64)
    settings = Settings(checkpoint=str(tmp_path / "tiny"), data_dir=tmp_path / "data", port=0, log_level="INFO")
    started = subprocess.Popen(
        [sys.executable, "-m", "backend.cli", "serve", "--with-worker"],
        cwd=Path(__file__).parents[2],
        env=child_environment(settings),
        stderr=subprocess.PIPE,
        text=True,
    )
    assert started.stderr is not None
    line = next(line for line in started.stderr if "listening on" in line)
    found = re.search(r"http://\S+", line)
    assert found is not None
    yield started, found.group()
    if started.poll() is None:
        started.kill()
    started.stderr.close()
    started.wait()


def _children(pid: int) -> list[int]:
    text = Path(f"/proc/{pid}/task/{pid}/children").read_text()
    return [int(child) for child in text.split()]


def _workers(pid: int) -> list[int]:
    return [child for child in _children(pid) if b"backend.cli\0worker" in Path(f"/proc/{child}/cmdline").read_bytes()]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_it_answers_at_once_and_ends_cleanly_with_its_worker(process: tuple[subprocess.Popen[str], str]) -> None:
    started, url = process
    assert httpx.get(f"{url}/health", timeout=5).json()["status"] == "UP"
    workers = _workers(started.pid)
    assert len(workers) == 1
    started.send_signal(signal.SIGTERM)
    assert started.wait(60) == 0
    assert not Path(f"/proc/{workers[0]}").exists()


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc and uses a pidfd")
def test_the_worker_ends_with_a_server_that_is_killed(process: tuple[subprocess.Popen[str], str]) -> None:
    started, url = process
    assert httpx.get(f"{url}/health", timeout=5).status_code == 200
    (worker,) = _workers(started.pid)
    watched = os.pidfd_open(worker)
    started.kill()
    started.wait()
    # Readable as soon as the process has ended, whoever inherits and collects it.
    ended, _, _ = select.select([watched], [], [], 30)
    os.close(watched)
    if not ended:
        os.kill(worker, signal.SIGKILL)
    assert ended


def test_a_taken_port_is_said_plainly(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert server.run_server(Settings(data_dir=tmp_path, port=port)) == 1
    assert f"127.0.0.1:{port}" in capsys.readouterr().err


def test_wrong_settings_end_the_command_with_all_of_them() -> None:
    ran = subprocess.run(
        [sys.executable, "-m", "backend.cli", "serve"],
        cwd=Path(__file__).parents[2],
        env=os.environ | {"PORT": "x", "VLM_DEVICE": "gpu"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 2
    assert "PORT" in ran.stderr
    assert "VLM_DEVICE" in ran.stderr
    assert "Traceback" not in ran.stderr


def test_every_command_has_help_with_an_example() -> None:
    for command in app.registered_commands:
        assert command.callback is not None
        assert "Example" in (command.callback.__doc__ or ""), command.callback.__name__
