"""A line to a queue in Redis: connected when needed, and never a reason to fail otherwise.

Whatever goes wrong between here and Redis becomes `QueueUnavailableError`, with a reason fit for a client; the
cause goes to the log.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

import redis

from backend.api.handlers import QueueUnavailableError
from vlm_core.errors import VLMError

log = logging.getLogger(__name__)

Q = TypeVar("Q")
T = TypeVar("T")


class QueueLink(Generic[Q]):
    """A queue, connected at first use. Safe to share between threads."""

    def __init__(self, connect: Callable[[], Q]) -> None:
        """Nothing is connected yet.

        Args:
            connect: gives the queue, or raises what `backend.redis_connection.connect_redis` raises.
        """
        self._connect = connect
        self._queue: Q | None = None
        self._lock = threading.Lock()
        self._down = False
        self._trying = threading.Lock()

    def call(self, work: Callable[[Q], T]) -> T:
        """Do something with the queue.

        Raises:
            QueueUnavailableError: Redis is down.
        """
        if not self._down:
            return self._try(work)
        # One at a time finds out whether it is back; a hundred events a second need not all wait for that.
        if not self._trying.acquire(blocking=False):
            raise QueueUnavailableError
        try:
            return self._try(work)
        finally:
            self._trying.release()

    def _try(self, work: Callable[[Q], T]) -> T:
        try:
            with self._lock:
                if self._queue is None:
                    self._queue = self._connect()
                queue = self._queue
            result = work(queue)
        except (redis.RedisError, VLMError, OSError) as error:
            if not self._down:  # once, not with every event
                log.error("the job queue cannot be reached: %s: %s", type(error).__name__, error)
            self._down = True
            raise QueueUnavailableError from error
        if self._down:
            log.info("the job queue is back")
        self._down = False
        return result
