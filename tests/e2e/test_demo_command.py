"""`vlm demo` as a person runs it."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import psutil
import pytest

from backend.demo.guardian import end_trees
from backend.demo.processes import free_port
from tests.e2e.harness import label_studio_executable

pytestmark = pytest.mark.e2e

START_S = 600.0
STOP_S = 60.0


def heed_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def test_it_says_where_to_look_and_ctrl_c_ends_all_of_it(tmp_path: Path) -> None:
    executable = label_studio_executable()
    ports = [str(free_port()), str(free_port())]
    command = [sys.executable, "-m", "backend.cli", "demo", "--data-dir", str(tmp_path / "demo")]
    command += ["--port", ports[0], "--backend-port", ports[1]]
    command += ["--label-studio", str(executable)] if executable else []
    output = tmp_path / "output.txt"
    with output.open("w") as file:
        # Tests that run in the background of a script ignore Ctrl-C, and so would all that they start.
        demo = subprocess.Popen(
            command, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, preexec_fn=heed_ctrl_c
        )
    try:
        deadline = time.monotonic() + START_S
        while "Ctrl-C stops" not in output.read_text():
            assert demo.poll() is None, output.read_text()
            assert time.monotonic() < deadline, output.read_text()
            time.sleep(0.5)
        text = output.read_text()
        address = re.search(rf"http://localhost:{ports[0]}/projects/\d+/data", text)
        assert address is not None
        page = httpx.get(address.group().replace("localhost", "127.0.0.1"), trust_env=False)
        assert page.status_code in (200, 302)  # the sign-in page
        children = psutil.Process(demo.pid).children(recursive=True)
        assert len(children) >= 5  # Label Studio, backend, Redis, worker, guardian
        demo.send_signal(signal.SIGINT)
        assert demo.wait(STOP_S) == 0
        assert [child for child in children if child.is_running()] == []
    finally:
        if demo.poll() is None:
            end_trees([psutil.Process(demo.pid)], grace_s=20.0)
            demo.wait()
