"""The server's line to the training queue: connected when needed, and never a reason to fail otherwise.

Whatever goes wrong between here and Redis becomes `QueueUnavailableError`, with a reason fit for a client; the
cause goes to the log.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import TypeVar

import redis

from backend.api.handlers import QueueUnavailableError
from backend.queue import LiveJob, QueueCounts, RequestOutcome, TrainingQueue
from vlm_core.errors import VLMError

log = logging.getLogger(__name__)

_T = TypeVar("_T")


class TrainingLink:
    """The training queue, connected at first use. Safe to share between threads."""

    def __init__(self, connect: Callable[[], TrainingQueue]) -> None:
        """Nothing is connected yet.

        Args:
            connect: gives the queue, or raises what `backend.redis_connection.connect_redis` raises.
        """
        self._connect = connect
        self._queue: TrainingQueue | None = None
        self._lock = threading.Lock()

    def start(self) -> None:
        """Connect in a thread of its own, so that the first webhook does not wait for a server to start."""
        threading.Thread(target=self._try, name="connect-redis", daemon=True).start()

    def request_training(self, project_id: int, *, reason: str) -> RequestOutcome:
        """Ask for one training that sees everything saved until now.

        Raises:
            QueueUnavailableError: Redis is down; the request is not recorded.
        """
        return self._call(lambda queue: queue.request_training(project_id, reason=reason))

    def jobs(self) -> list[LiveJob]:
        """Jobs that wait or run.

        Raises:
            QueueUnavailableError: Redis is down.
        """
        return self._call(lambda queue: queue.jobs())

    def ping(self) -> None:
        """Whether the queue is there.

        Raises:
            QueueUnavailableError: it is not.
        """
        self._call(lambda queue: queue.ping())

    def counts(self) -> QueueCounts:
        """How many jobs and workers there are.

        Raises:
            QueueUnavailableError: Redis is down.
        """
        return self._call(lambda queue: queue.counts())

    def _call(self, work: Callable[[TrainingQueue], _T]) -> _T:
        try:
            with self._lock:
                if self._queue is None:
                    self._queue = self._connect()
                queue = self._queue
            return work(queue)
        except (redis.RedisError, VLMError, OSError) as error:
            log.error("the training queue cannot be reached: %s: %s", type(error).__name__, error)
            raise QueueUnavailableError from error

    def _try(self) -> None:
        try:
            self._call(lambda queue: None)
        except QueueUnavailableError:
            log.warning("webhooks are acknowledged, but no training is queued until Redis is there")
