"""The server's line to the training queue."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

from backend.api.handlers import QueueUnavailableError
from backend.queue import Cancelled, LiveJob, QueueCounts, RequestOutcome, TrainingQueue
from backend.queue_link import QueueLink

log = logging.getLogger(__name__)


class TrainingLink:
    """The training queue, connected at first use. Safe to share between threads."""

    def __init__(self, connect: Callable[[], TrainingQueue]) -> None:
        """Nothing is connected yet.

        Args:
            connect: gives the queue, or raises what `backend.redis_connection.connect_redis` raises.
        """
        self._link = QueueLink(connect)

    def start(self) -> None:
        """Connect in a thread of its own, so that the first webhook does not wait for a server to start."""
        threading.Thread(target=self._try, name="connect-redis", daemon=True).start()

    def request_training(self, project_id: int, *, reason: str) -> RequestOutcome:
        """Ask for one training that sees everything saved until now.

        Raises:
            QueueUnavailableError: Redis is down; the request is not recorded.
        """
        return self._link.call(lambda queue: queue.request_training(project_id, reason=reason))

    def status(self, project_id: int) -> LiveJob | None:
        """The project's job that waits or runs; None where there is none.

        Raises:
            QueueUnavailableError: Redis is down.
        """
        return self._link.call(lambda queue: queue.status(project_id))

    def cancel(self, project_id: int) -> Cancelled:
        """Give up the project's training.

        Raises:
            QueueUnavailableError: Redis is down; nothing has changed.
        """
        return self._link.call(lambda queue: queue.cancel(project_id))

    def jobs(self) -> list[LiveJob]:
        """Jobs that wait or run.

        Raises:
            QueueUnavailableError: Redis is down.
        """
        return self._link.call(lambda queue: queue.jobs())

    def ping(self) -> None:
        """Whether the queue is there.

        Raises:
            QueueUnavailableError: it is not.
        """
        self._link.call(lambda queue: queue.ping())

    def counts(self) -> QueueCounts:
        """How many jobs and workers there are.

        Raises:
            QueueUnavailableError: Redis is down.
        """
        return self._link.call(lambda queue: queue.counts())

    def _try(self) -> None:
        try:
            self._link.call(lambda queue: None)
        except QueueUnavailableError:
            log.warning("webhooks are acknowledged, but no training is queued until Redis is there")
