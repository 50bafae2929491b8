"""Whether what the server works with is there: the model, Redis, Label Studio.

Only the model is needed to predict, so only it makes the server not ready: a balancer must not take a server away
because no training can be queued, or because Label Studio, which all servers share, restarts. The rest is told, and
makes it "degraded".

Redis and Label Studio are asked at most once in a while and never waited for long, however often `/ready` is asked.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from backend.model_store import StoreState

PartState = Literal["up", "loading", "down", "not set"]


@dataclass(frozen=True)
class Part:
    """One thing that the server works with.

    Attributes:
        name: "model", "redis" or "label_studio".
        state: "not set": the settings do not name it.
        reason: what is wrong and what that means, fit for a client; "" when it is up.
        needed: no prediction without it.
    """

    name: str
    state: PartState
    reason: str
    needed: bool


@dataclass(frozen=True)
class Ready:
    """How ready the server is.

    Attributes:
        parts: each with its state.
    """

    parts: tuple[Part, ...]

    @property
    def status(self) -> Literal["ready", "degraded", "not ready"]:
        """ "degraded": it predicts, but something else is missing."""
        wrong = [part for part in self.parts if part.state in ("down", "loading")]
        if any(part.needed for part in wrong):
            return "not ready"
        return "degraded" if wrong else "ready"


class Probe:
    """A check that is made now and then, in a thread of its own. Safe to share between threads."""

    def __init__(self, check: Callable[[], str], *, keep_s: float, wait_s: float) -> None:
        """Nothing is checked yet.

        Args:
            check: says what is wrong, "" for nothing; what it raises counts as wrong, by its kind.
            keep_s: for how long an outcome is not checked again.
            wait_s: for a check that is under way.
        """
        self._check = check
        self._keep_s = keep_s
        self._wait_s = wait_s
        self._lock = threading.Lock()
        self._running: threading.Event | None = None
        self._outcome: tuple[float, str] | None = None

    def problem(self) -> str:
        """What is wrong; "" for nothing. Answers within `wait_s`."""
        with self._lock:
            if self._outcome is not None and time.monotonic() - self._outcome[0] < self._keep_s:
                return self._outcome[1]
            if self._running is None:
                self._running = threading.Event()
                threading.Thread(target=self._run, args=(self._running,), name="probe", daemon=True).start()
            done = self._running
        if not done.wait(self._wait_s):
            return f"no answer within {self._wait_s:g} s"
        with self._lock:
            return self._outcome[1] if self._outcome is not None else ""

    def _run(self, done: threading.Event) -> None:
        try:
            found = self._check()
        except Exception as error:  # a check that fails says that something is wrong
            found = f"the check failed ({type(error).__name__}); the server's log may say more"
        with self._lock:
            self._outcome = time.monotonic(), found
            self._running = None
        done.set()


class Readiness:
    """Asks all parts. Safe to share between threads."""

    def __init__(self, model: Callable[[], StoreState], redis: Probe, label_studio: Probe | None) -> None:
        """Nothing is asked yet.

        Args:
            model: where loading stands.
            redis: whether the queue answers.
            label_studio: whether Label Studio answers and takes our token; None: the settings name none.
        """
        self._model = model
        self._redis = redis
        self._label_studio = label_studio

    def ready(self) -> Ready:
        """The state of each part."""
        state = self._model()
        model: PartState = "up" if state.status == "ready" else "loading" if state.status == "loading" else "down"
        redis = self._redis.problem()
        studio: tuple[PartState, str] = (
            "not set",
            "set LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY: without them nothing is learned, and images that Label "
            "Studio keeps cannot be fetched",
        )
        if self._label_studio is not None:
            problem = self._label_studio.problem()
            studio = ("down", problem) if problem else ("up", "")
        return Ready(
            (
                Part("model", model, state.reason, needed=True),
                Part("redis", "down" if redis else "up", redis, needed=False),
                Part("label_studio", *studio, needed=False),
            )
        )
