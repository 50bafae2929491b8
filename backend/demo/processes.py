"""The demo's child processes: started with a log file each, watched, and ended whatever happens.

Children run in sessions of their own, so that Ctrl-C in the terminal reaches the demo alone, which then ends
them in order. One that dies early is an error with its name, the end of its log and a remedy. If the demo is
killed outright, `backend.demo.guardian` ends them.
"""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import TypeVar

import psutil

from backend.demo.guardian import end_trees
from vlm_core.errors import VLMError

_T = TypeVar("_T")
_POLL_S = 0.25
_PROGRESS_S = 10.0
_TAIL_LINES = 25


class DemoError(VLMError):
    """The demo cannot go on; the message says why and what to do."""


class StoppedError(BaseException):
    """A signal asks the demo to end.

    Not an `Exception`: like `KeyboardInterrupt`, it must pass through code that handles errors.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.number = number


@dataclass(frozen=True)
class Child:
    """One started process.

    Attributes:
        name: as people know it, like "Label Studio".
        process: the process.
        log: file with its standard output and error.
        remedy: what to do if it ends by itself, one sentence.
    """

    name: str
    process: subprocess.Popen[bytes]
    log: Path
    remedy: str

    def tail(self, lines: int = _TAIL_LINES) -> str:
        """The end of its log, indented."""
        try:
            with self.log.open(errors="replace") as file:
                last = deque(file, maxlen=lines)
        except OSError as error:
            return f"  (no log: {error})"
        return "".join(f"  | {line.rstrip()}\n" for line in last).rstrip("\n") or "  | (its log is empty)"


class Supervisor:
    """Starts, watches and ends the demo's children. A context manager: leaving it ends all of them.

    Args:
        log_dir: where log files go; made if missing.
        say: prints a line for the user.
    """

    def __init__(self, log_dir: Path, say: Callable[[str], None] = print) -> None:
        self.log_dir = log_dir
        self._say = say
        self._children: list[Child] = []
        self._guardian: subprocess.Popen[str] | None = None

    def __enter__(self) -> Supervisor:
        self.log_dir.mkdir(parents=True, exist_ok=True)
        self._guardian = subprocess.Popen(
            [sys.executable, "-m", "backend.demo.guardian"],
            stdin=subprocess.PIPE,
            start_new_session=True,
            text=True,
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.stop()
        except (KeyboardInterrupt, StoppedError):
            # Asked twice: no more patience.
            self.stop(grace_s=0.0)
        finally:
            if self._guardian is not None and self._guardian.stdin is not None:
                # Ends what may be left, and itself.
                with contextlib.suppress(OSError):
                    self._guardian.stdin.close()
                self._guardian.wait()

    def start(self, name: str, argv: Sequence[str], *, env: Mapping[str, str], cwd: Path, remedy: str) -> Child:
        """Start a child whose output goes to a log file.

        Args:
            name: as people know it; the log file is named after it.
            argv: the command; the first is a path.
            env: its whole environment.
            cwd: its working directory.
            remedy: what to do if it ends by itself, one sentence.

        Raises:
            DemoError: the command cannot be started.
        """
        log = self.log_dir / (name.lower().replace(" ", "-") + ".log")
        if log.exists():
            log.replace(log.with_suffix(".previous.log"))  # what an error shows must be of this run
        # Ctrl-C between a child's start and its entry in the list would leave it behind.
        with log.open("wb") as output, _signals_wait():
            try:
                process = subprocess.Popen(
                    argv,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=dict(env),
                    cwd=cwd,
                    start_new_session=True,
                )
            except OSError as error:
                raise DemoError(f"{name} cannot be started: {argv[0]}: {error.strerror}. {remedy}") from None
            self._tell_guardian(f"+{process.pid}")
            child = Child(name, process, log, remedy)
            self._children.append(child)
        return child

    def check(self) -> None:
        """Make sure that every child still runs.

        Raises:
            DemoError: one has ended by itself; with its name, the end of its log and the remedy.
        """
        for child in self._children:
            code = child.process.poll()
            if code is not None:
                how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
                raise DemoError(f"{child.name} {how}. {child.remedy}\nThe end of {child.log}:\n{child.tail()}")

    def wait_for(self, what: str, condition: Callable[[], _T | None], *, timeout_s: float, hint: str = "") -> _T:
        """Ask `condition` until it gives something other than None, while all children live.

        Args:
            what: what is waited for, like "Label Studio to answer".
            condition: answers at once or within seconds; None means not yet.
            timeout_s: how long to ask.
            hint: what to look at if it never comes, one sentence.

        Raises:
            DemoError: a child died, or time is up.
        """
        started = time.monotonic()
        next_line = _PROGRESS_S
        while True:
            self.check()
            value = condition()
            if value is not None:
                return value
            elapsed = time.monotonic() - started
            if elapsed > timeout_s:
                logs = ", ".join(str(child.log) for child in self._children)
                raise DemoError(f"Waited {timeout_s:.0f} s for {what}. {hint} Logs: {logs}".replace("  ", " "))
            if elapsed > next_line:
                self._say(f"  waiting for {what} ({elapsed:.0f} s, at most {timeout_s:.0f})")
                next_line += _PROGRESS_S
            time.sleep(_POLL_S)

    def watch(self) -> None:
        """Return never: watch the children until one dies or a signal comes.

        Raises:
            DemoError: a child has ended by itself.
        """
        while True:
            self.check()
            time.sleep(_POLL_S)

    def stop(self, *, grace_s: float = 10.0) -> None:
        """End all children, the last started first, and wait until they are gone.

        Args:
            grace_s: seconds that each has to end by itself.
        """
        while self._children:
            child = self._children[-1]
            if child.process.poll() is None:
                with contextlib.suppress(psutil.NoSuchProcess):
                    end_trees([psutil.Process(child.process.pid)], grace_s=grace_s)
                child.process.wait()
            self._tell_guardian(f"-{child.process.pid}")
            self._children.pop()

    def _tell_guardian(self, line: str) -> None:
        if self._guardian is None or self._guardian.stdin is None:
            raise RuntimeError("use Supervisor as a context manager")
        # Without its guardian the demo still ends its children itself, unless it is killed.
        with contextlib.suppress(BrokenPipeError):
            print(line, file=self._guardian.stdin, flush=True)


@contextlib.contextmanager
def _signals_wait() -> Iterator[None]:
    """Signals that come within the block take effect after it; in the main thread, others get none."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    came: list[int] = []
    # Handlers rather than a blocked mask, which a child would inherit.
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    former = {number: signal.signal(number, lambda number, frame: came.append(number)) for number in numbers}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)
        for signal_number in came:
            signal.raise_signal(signal_number)


@contextlib.contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """SIGTERM and SIGHUP end the block like Ctrl-C does, so that everything is cleaned up; main thread only."""

    def handler(number: int, frame: FrameType | None) -> None:
        raise StoppedError(number)

    earlier = {number: signal.signal(number, handler) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        yield
    finally:
        for number, action in earlier.items():
            signal.signal(number, action)


def free_port() -> int:
    """A port of this machine that nobody uses now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def require_free_port(port: int, what: str, remedy: str) -> None:
    """Make sure that a port can be listened on.

    Args:
        port: 1..65535.
        what: who wants it, like "Label Studio".
        remedy: how to choose another.

    Raises:
        DemoError: it is taken, or may not be used; names who has it where that can be seen.
    """
    with socket.socket() as probe:
        # As servers do: a port whose last connections are still closing is free.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                raise DemoError(f"Port {port}, wanted for {what}, is taken{_holder(port)}. {remedy}") from None
            raise DemoError(f"Port {port}, wanted for {what}, cannot be used: {error.strerror}. {remedy}") from None


def _holder(port: int) -> str:
    """Who listens on a port, as far as this user may see."""
    with contextlib.suppress(psutil.Error, OSError):
        for connection in psutil.net_connections("tcp"):
            # Both tuples: an address is (ip, port), or empty.
            if connection.status == psutil.CONN_LISTEN and connection.laddr[1:] == (port,) and connection.pid:
                return f" by process {connection.pid} ({psutil.Process(connection.pid).name()})"
    return ""


def child_environment(keep: Sequence[str], **values: str) -> dict[str, str]:
    """An environment for a child that no setting of the user's shell leaks into.

    Args:
        keep: variables of ours to pass on although they are settings.
        values: variables to set.
    """
    ours = ("VLM_", "LABEL_STUDIO_", "BASIC_AUTH_", "DJANGO_", "POSTGRE_", "ML_TIMEOUT_")
    single = {"PORT", "REDIS_URL", "LOG_LEVEL", "DEBUG", "HOST", "SENTRY_DSN", "FRONTEND_SENTRY_DSN"}
    kept = {
        name: value
        for name, value in os.environ.items()
        if name in keep or not (name.startswith(ours) or name in single)
    }
    return {**kept, **values}
