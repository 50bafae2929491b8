"""The demo's supervision of its child processes, with real processes."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from backend.demo.processes import (
    DemoError,
    StoppedError,
    Supervisor,
    child_environment,
    free_port,
    require_free_port,
    signals_as_exceptions,
)

SLEEPER = [sys.executable, "-c", "import time; print('ready', flush=True); time.sleep(600)"]
# Ignores SIGTERM and has a child in a session of its own, as a worker with a running job has.
STUBBORN = [
    sys.executable,
    "-c",
    "import signal, subprocess, sys, time\n"
    "signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
    "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'], start_new_session=True)\n"
    "print('child', child.pid, flush=True)\n"
    "time.sleep(600)\n",
]


def start(supervisor: Supervisor, argv: list[str], tmp_path: Path, name: str = "Some Child") -> psutil.Process:
    child = supervisor.start(name, argv, env=dict(os.environ), cwd=tmp_path, remedy="Feed it.")
    return psutil.Process(child.process.pid)


def until(condition: Callable[[], object], timeout_s: float = 20.0) -> object:
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError("it never came true")


def grandchild(log: Path) -> psutil.Process:
    text = until(lambda: log.exists() and "child " in log.read_text() and log.read_text())
    return psutil.Process(int(str(text).split()[1]))


def gone(process: psutil.Process) -> bool:
    return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE


def test_a_log_holds_one_run_and_the_one_before_is_kept(tmp_path: Path) -> None:
    for word in ("first", "second"):
        with Supervisor(tmp_path / "logs") as supervisor:
            child = start(supervisor, [sys.executable, "-c", f"print('{word}')"], tmp_path, "writer")
            psutil.wait_procs([child])
    assert (tmp_path / "logs" / "writer.log").read_text() == "second\n"
    assert (tmp_path / "logs" / "writer.previous.log").read_text() == "first\n"


def test_leaving_ends_all_children(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        processes = [start(supervisor, SLEEPER, tmp_path, f"child {n}") for n in range(3)]
        assert all(process.is_running() for process in processes)
    assert not any(process.is_running() for process in processes)


def test_a_child_that_ignores_the_request_is_killed_with_its_descendants(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        child = start(supervisor, STUBBORN, tmp_path)
        below = grandchild(tmp_path / "logs" / "some-child.log")
        supervisor.stop(grace_s=0.5)
        assert not child.is_running()
        assert gone(below)


def test_a_dead_child_is_reported_with_name_code_log_and_remedy(tmp_path: Path) -> None:
    dying = [sys.executable, "-c", "import sys; print('no more porridge'); sys.exit(7)"]
    with Supervisor(tmp_path / "logs") as supervisor:
        start(supervisor, dying, tmp_path, "Third Bear")
        with pytest.raises(DemoError) as caught:
            supervisor.wait_for("the bear", lambda: None, timeout_s=20.0)
    for part in ("Third Bear", "exit code 7", "Feed it.", "third-bear.log", "| no more porridge"):
        assert part in str(caught.value)


def test_a_killed_child_is_reported_with_its_signal(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        start(supervisor, SLEEPER, tmp_path).kill()
        with pytest.raises(DemoError, match="was killed by SIGKILL"):
            supervisor.watch()


def test_a_command_that_does_not_exist_is_reported(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor, pytest.raises(DemoError, match="nothing-here"):
        start(supervisor, [str(tmp_path / "nothing-here")], tmp_path)


def test_waiting_ends_with_the_condition_or_with_the_deadline(tmp_path: Path) -> None:
    with Supervisor(tmp_path / "logs") as supervisor:
        answers = iter([None, None, "now"])
        assert supervisor.wait_for("it", lambda: next(answers), timeout_s=20.0) == "now"
        with pytest.raises(DemoError, match=r"Waited 0 s for rain\. Look up\."):
            supervisor.wait_for("rain", lambda: None, timeout_s=0.0, hint="Look up.")


def test_no_process_is_left_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nfrom backend.demo.processes import Supervisor\n"
        f"with Supervisor(Path({str(tmp_path)!r})) as supervisor:\n"
        f"    child = supervisor.start('kept', {SLEEPER!r}, env=dict(os.environ), cwd=Path('.'), remedy='')\n"
        "    print(child.process.pid, flush=True)\n"
        "    supervisor.watch()\n"
    )
    demo = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert demo.stdout is not None
    child = psutil.Process(int(demo.stdout.readline()))
    helpers = psutil.Process(demo.pid).children()
    assert child in helpers
    assert len(helpers) == 2  # the child and the guardian
    demo.kill()
    demo.wait()
    until(lambda: all(gone(process) for process in helpers))
    demo.stdout.close()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_signals_end_the_block_and_are_restored(number: signal.Signals) -> None:
    earlier = signal.getsignal(number)

    def receive() -> None:
        with signals_as_exceptions():
            signal.raise_signal(number)

    with pytest.raises(StoppedError, match=number.name):
        receive()
    assert signal.getsignal(number) is earlier


def test_a_taken_port_is_named_with_its_holder_and_the_remedy() -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        with pytest.raises(DemoError) as caught:
            require_free_port(port, "the tea party", "Move down.")
    for part in (str(port), "the tea party", f"process {os.getpid()}", "Move down."):
        assert part in str(caught.value)


def test_the_command_reports_a_taken_port_and_starts_nothing(tmp_path: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = str(holder.getsockname()[1])
        command = [sys.executable, "-m", "backend.cli", "demo", "--data-dir", str(tmp_path / "demo")]
        command += ["--label-studio", sys.executable, "--port", port]
        ended = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert ended.returncode == 1
    assert f"Port {port}" in ended.stderr
    assert "DEMO_PORT" in ended.stderr
    assert "Traceback" not in ended.stderr
    assert list((tmp_path / "demo" / "logs").iterdir()) == []


def test_a_free_port_is_accepted() -> None:
    require_free_port(free_port(), "anything", "")


def test_no_setting_of_the_shell_reaches_a_child(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("VLM_CHECKPOINT", "LABEL_STUDIO_URL", "BASIC_AUTH_USER", "PORT", "REDIS_URL"):
        monkeypatch.setenv(name, "of the shell")
    monkeypatch.setenv("VLM_DEVICE", "cpu")
    environment = child_environment(("VLM_DEVICE",), PORT="1234")
    assert "of the shell" not in environment.values()
    assert environment["VLM_DEVICE"] == "cpu"
    assert environment["PORT"] == "1234"
    assert environment["PATH"] == os.environ["PATH"]


def test_ctrl_c_while_a_child_starts_leaves_none_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[psutil.Process] = []
    popen = subprocess.Popen

    def interrupted(argv: list[str], **options: object) -> object:
        process = popen(argv, **options)  # type: ignore[call-overload]
        if argv == SLEEPER:
            started.append(psutil.Process(process.pid))
            signal.raise_signal(signal.SIGINT)
        return process

    monkeypatch.setattr(subprocess, "Popen", interrupted)
    # Where the tests run in the background of a script, Ctrl-C is ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt), Supervisor(tmp_path / "logs", lambda line: None) as supervisor:
            start(supervisor, SLEEPER, tmp_path)
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    finally:
        signal.signal(signal.SIGINT, before)
    assert len(started) == 1
    assert gone(started[0])
