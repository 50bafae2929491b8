"""Trainings give way to the server's answers on the same machine: somebody waits for those.

Priorities of the kernel do not do it. A training in a container, a service or a terminal of its own has the same share
of the cores as all of the server's threads together, whatever its niceness; and threads that compute one matrix
product wait for the slowest of them, so that a request takes not twice as long beside a training but twenty times.
So the server holds a file lock while it computes an answer, and a training looks at it between its steps.

The lock is the kernel's: it costs microseconds, reaches all containers of a machine that share the data directory, and
ends with its process. The file is named after the machine's boot, so that machines that share a directory over a
network do not wait for each other; it is empty. Where it cannot be had, nobody gives way, and nothing else is lost.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import logging
import math
import os
import platform
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

log = logging.getLogger(__name__)

MOST_WAITING = 0.75
"""Share of its time that a job lets answers have at most, were they to be asked for without end."""

_SAVED_UP_S = 2.0
"""The longest that a job waits at a stretch: that much of the time it let others have is kept in mind."""
_LOOK_EVERY_S = 0.005
_BOOT = Path("/proc/sys/kernel/random/boot_id")


def _lock_path(data_dir: Path) -> Path:
    """Of this machine since it was started; the same in all of its containers."""
    try:
        machine = _BOOT.read_text(encoding="ascii")
    except OSError:  # no Linux
        machine = platform.node()
    return data_dir / "locks" / f"answering-{hashlib.sha256(machine.encode()).hexdigest()[:12]}"


class RightOfWay:
    """The server's side: says that answers are being computed. Safe to share between threads."""

    def __init__(self, data_dir: Path) -> None:
        """Nothing is created before the first answer."""
        self._path = _lock_path(data_dir)
        self._lock = threading.Lock()
        self._answers = 0
        self._descriptor: int | None = None
        self._held = self._failed = False

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """While an answer is computed; several may be at the same time."""
        with self._lock:
            self._answers += 1
            if not self._held:
                self._hold()
        try:
            yield
        finally:
            with self._lock:
                self._answers -= 1
                if self._answers == 0 and self._held and self._descriptor is not None:
                    self._held = False
                    with contextlib.suppress(OSError):
                        fcntl.flock(self._descriptor, fcntl.LOCK_UN)

    def _hold(self) -> None:
        if self._failed:
            return
        try:
            if self._descriptor is None:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._descriptor = os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
            self._held = True
        except BlockingIOError:  # a job looks at this very moment: the next answer tries again
            return
        except OSError as error:
            log.warning("jobs will not give way to predictions: %s: %s", self._path.name, error.strerror)
            self._failed = True


class GiveWay:
    """A job's side: called between two pieces of work, it waits while answers are computed.

    Never longer than `MOST_WAITING` of all the time allows, so that it goes on beside a server that is never idle, and
    never longer in all than it is told.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        most_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """Looks at nothing yet.

        Args:
            data_dir: that the server has too.
            most_s: in all, for a job that is given a limited time.
            clock, sleep: for tests.
        """
        self._path = _lock_path(data_dir)
        self._clock, self._sleep = clock, sleep
        self._allowed_s, self._left_s = 0.0, most_s
        self._since = clock()

    def __call__(self) -> None:
        """Wait until nobody is being answered, or for as long as this job may be held up."""
        began = self._clock()
        earned = (began - self._since) * MOST_WAITING / (1 - MOST_WAITING)
        self._allowed_s = min(_SAVED_UP_S, self._allowed_s + earned)
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:  # no server has answered here yet
            self._since = began
            return
        try:
            while self._clock() - began < min(self._allowed_s, self._left_s) and _somebody_answers(descriptor):
                self._sleep(_LOOK_EVERY_S)
        finally:
            os.close(descriptor)
        self._since = self._clock()
        self._allowed_s -= self._since - began
        self._left_s -= self._since - began


def _somebody_answers(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # a file system without locks
        return False
    fcntl.flock(descriptor, fcntl.LOCK_UN)
    return False
