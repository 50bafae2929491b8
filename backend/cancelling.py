"""Give up a project's training: for the command line and for the API."""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Protocol

from backend.job_history import JobHistory, JobRecord
from backend.queue import Cancelled, LiveJob

log = logging.getLogger(__name__)

WAITED = "it was cancelled before it began"


class Queue(Protocol):
    """What is needed of the training queue."""

    def status(self, project_id: int) -> LiveJob | None:
        """The project's job that waits or runs."""

    def cancel(self, project_id: int) -> Cancelled:
        """Give up the project's training."""


def cancel_training(queue: Queue, history: JobHistory, project_id: int) -> Cancelled:
    """Remove the training that waits, or have the one that runs stopped; noted in the history either way.

    A running one notes itself, once its worker has stopped it.

    Args:
        queue: of trainings.
        history: of the data directory.
        project_id: Label Studio's id.

    Raises:
        redis.RedisError, QueueUnavailableError: Redis is down; nothing has changed.
    """
    known = queue.status(project_id)
    outcome = queue.cancel(project_id)
    if outcome == "removed" and known is not None:
        now = datetime.now(UTC)
        record = JobRecord(
            job_id=known.job_id,
            project_id=project_id,
            requested=known.reason,
            outcome="cancelled",
            reason=WAITED,
            started_at=now,
            ended_at=now,
        )
        try:
            history.add(record)
        except OSError as error:  # a full disk must not turn what was done into a failure
            log.error("project=%d that its training was cancelled could not be noted: %s", project_id, error)
    return outcome
